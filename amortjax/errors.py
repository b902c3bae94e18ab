"""Errors that are the user's to mend. A launcher prints the message as one line and exits with code 2.

Every message says what is wrong, where, and what to do about it.
"""


class AmortjaxError(Exception):
    """A mistake in input or a broken file; the message is one line that names the remedy."""


class CheckpointError(AmortjaxError):
    """An SAE checkpoint that can't be read, or read exactly; names the file and the key."""


class StoreError(AmortjaxError):
    """An activation store that is missing, unfinished, damaged or written for something else."""


class CorpusError(AmortjaxError):
    """Text that can't be read, or from which nothing is left."""


class ModelError(AmortjaxError):
    """A language model, layer or hook that can't be found."""
