"""Activations of a Hugging Face PyTorch model: the only place where a language model runs.

Hooks, by block L: `resid_post` (output of the block; HF `hidden_states[L+1]`, except that the last of these
is normed and this is not), `resid_pre` (its input), `mlp_out` and `attn_out` (what each adds to the residual
stream; for Gemma after the norm that follows it, for BERT before the norm). The forward stops as soon as the
hook has what it wants. Special and padding tokens give no rows.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from amortjax.activations.models import Model
from amortjax.errors import ModelError

HOOKS = ("resid_post", "resid_pre", "mlp_out", "attn_out")
# A text is cut before it is tokenised, as only its beginning is used: at so many characters per token wanted,
CHARACTERS_PER_TOKEN = 8
# and all of it is tokenised after all if the tokens come this close to the cut.
CUT_MARGIN = 100


class _Enough(Exception):
    """The hook has what it wants: the rest of the forward is not needed."""


class Tokens(NamedTuple):
    """A document's token ids, with the special tokens, and which of them give a row."""

    ids: list[int]
    keep: np.ndarray


class Window(NamedTuple):
    """Rows of some documents, in document order."""

    x: np.ndarray  # (n, D) float32
    token_ids: np.ndarray  # (n,) int32
    sizes: np.ndarray  # (documents,) rows of each


def site(block: Any, hook: str) -> Any:
    """The submodule of a block whose output is `mlp_out` or `attn_out`."""
    names = {"mlp_out": ("mlp", "feed_forward"), "attn_out": ("self_attn", "attention", "attn")}[hook]
    if hasattr(block, "post_feedforward_layernorm"):  # Gemma 2 and 3: what is added has been normed.
        names = {"mlp_out": ("post_feedforward_layernorm",), "attn_out": ("post_attention_layernorm",)}[hook]
    elif hasattr(block, "intermediate") and hasattr(block, "output"):  # BERT: sum and norm share a module.
        return block.output.dense if hook == "mlp_out" else block.attention.output.dense
    for name in names:
        if hasattr(block, name):
            return getattr(block, name)
    raise ModelError(
        f"{type(block).__name__}: no {hook} found in it. Hooks that always work: resid_post, resid_pre."
    )


class _Tap:
    """A hook on one block that keeps what passes and ends the forward; `keep=False` only ends it. With `last`, the
    forward ends only where that says so."""

    def __init__(
        self,
        model: Model,
        layer_index: int,
        hook: str,
        keep: bool = True,
        last: Callable[[], bool] = lambda: True,
    ) -> None:
        if hook not in HOOKS:
            raise ModelError(f"--hook={hook}: not a hook. Hooks: {', '.join(HOOKS)}.")
        block = model.blocks[layer_index]
        self.value: Any = None
        self._keep = keep
        self._last = last
        if hook == "resid_pre":
            self._handle = block.register_forward_pre_hook(self._before, with_kwargs=True)
        else:
            module = block if hook == "resid_post" else site(block, hook)
            self._handle = module.register_forward_hook(self._after)

    def _take(self, value: Any) -> None:
        # transformers 4 gives tuples where 5 gives tensors.
        self.value = (value[0] if isinstance(value, tuple) else value) if self._keep else None
        if self._last():
            raise _Enough
        # What follows may add to it in place.
        self.value = self.value.clone()

    def _before(self, module: Any, args: tuple, kwargs: dict) -> None:
        del module
        self._take(args[0] if args else kwargs["hidden_states"])

    def _after(self, module: Any, args: tuple, output: Any) -> None:
        del module, args
        self._take(output)

    def remove(self) -> None:
        self._handle.remove()


def tokenise(model: Model, texts: list[str], max_seq_len: int) -> list[Tokens]:
    """Each text's first `max_seq_len` tokens, special ones counted."""
    lead = [] if model.lead is None else [model.lead]
    settings = {"truncation": True, "max_length": max_seq_len - len(lead), "verbose": False}
    limit = CHARACTERS_PER_TOKEN * max_seq_len
    encoded = model.tokenizer([text[:limit] for text in texts], **settings)
    ids = encoded["input_ids"]
    unsure = [i for i, text in enumerate(texts) if len(text) > limit and not _settled(encoded, i, limit)]
    if unsure:
        whole = model.tokenizer([texts[i] for i in unsure], **settings)["input_ids"]
        for i, own in zip(unsure, whole, strict=True):
            ids[i] = own
    special = np.asarray(sorted(model.special_ids), dtype=np.int64)
    documents = [lead + own for own in ids]
    return [Tokens(own, ~np.isin(np.asarray(own, dtype=np.int64), special)) for own in documents]


def _settled(encoded: Any, i: int, limit: int) -> bool:
    """Whether the tokens of a text cut at `limit` end so long before the cut that it can't matter."""
    if not encoded.encodings:
        return False
    return max(end for _, end in encoded.encodings[i].offsets) + CUT_MARGIN < limit


def batches(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Documents of similar length together: at most `batch_tokens` tokens with padding, or one document."""
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: (lengths[i], i))
    groups: list[list[int]] = []
    for i in order:
        if groups and (len(groups[-1]) + 1) * lengths[i] <= batch_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def inputs(model: Model, documents: list[Tokens]) -> dict[str, Any]:
    """Padded to the right: a causal model never looks there, an encoder is told by the mask."""
    import torch

    width = max(len(document.ids) for document in documents)
    ids = np.zeros((len(documents), width), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, document in enumerate(documents):
        ids[row, : len(document.ids)] = document.ids
        mask[row, : len(document.ids)] = 1
    return {
        "input_ids": torch.from_numpy(ids).to(model.device),
        "attention_mask": torch.from_numpy(mask).to(model.device),
    }


def _forward(model: Model, inputs: dict[str, Any]) -> None:
    import torch

    with torch.inference_mode():
        try:
            model.module(**inputs, use_cache=False)
        except TypeError as error:
            # Encoders without a cache don't know the word.
            if "use_cache" not in str(error):
                raise
            model.module(**inputs)


def run_window(
    model: Model, documents: list[Tokens], layer_index: int, hook: str, batch_tokens: int
) -> Window:
    """Activations of some documents, computed in batches of similar length, given in document order."""
    [window] = run_places(model, documents, [(layer_index, hook)], batch_tokens)
    return window


def run_places(
    model: Model, documents: list[Tokens], places: Sequence[tuple[int, str]], batch_tokens: int
) -> list[Window]:
    """As `run_window`, of several (block, hook) in the same forwards: one Window each."""
    sizes = np.asarray([int(document.keep.sum()) for document in documents], dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    found = [np.empty((int(sizes.sum()), model.d_model), dtype=np.float32) for _ in places]
    taps: list[_Tap] = []
    try:
        for layer_index, hook in places:
            last = lambda: all(tap.value is not None for tap in taps)  # noqa: E731
            taps.append(_Tap(model, layer_index, hook, last=last))
        for group in batches([len(document.ids) for document in documents], batch_tokens):
            for tap in taps:
                tap.value = None
            with contextlib.suppress(_Enough):
                _forward(model, inputs(model, [documents[i] for i in group]))
            for x, tap in zip(found, taps, strict=True):
                hidden = tap.value.float().cpu().numpy()
                for row, i in enumerate(group):
                    keep = documents[i].keep
                    x[starts[i] : starts[i] + sizes[i]] = hidden[row, : len(keep)][keep]
    finally:
        for tap in taps:
            tap.remove()
    ids = np.concatenate([np.asarray(document.ids, dtype=np.int32)[document.keep] for document in documents])
    return [Window(x, ids, sizes) for x in found]


def run_bare(model: Model, documents: list[Tokens], layer_index: int, hook: str, batch_tokens: int) -> None:
    """The same forwards with nothing kept, to measure what collecting adds."""
    tap = _Tap(model, layer_index, hook, keep=False)
    try:
        for group in batches([len(document.ids) for document in documents], batch_tokens):
            with contextlib.suppress(_Enough):
                _forward(model, inputs(model, [documents[i] for i in group]))
    finally:
        tap.remove()
