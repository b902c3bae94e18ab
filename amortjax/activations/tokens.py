"""The vocabulary as readable text: what token-property labels (first letter, leading space) need."""

from functools import cache


@cache
def _byte_alphabet() -> dict[str, int]:
    """The printable characters by which byte-level BPEs write bytes (the GPT-2 convention)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in shown}
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def _byte_level(token: str) -> str:
    alphabet = _byte_alphabet()
    if any(character not in alphabet for character in token):
        return token
    return bytes(alphabet[character] for character in token).decode("utf-8", "replace")


def _metaspace(token: str) -> str:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)]).decode("utf-8", "replace")
    return token.replace("▁", " ")


def _word_piece(token: str) -> str:
    # A piece that starts a word had a space before it (or the text's beginning).
    return token[2:] if token.startswith("##") else f" {token}"


def readable(vocabulary: list[str], special: set[int]) -> list[str]:
    """Each token's text; `vocabulary[id]` is the tokenizer's string; special tokens stay as they are.

    The convention (byte-level `Ġ`, metaspace `▁`, word pieces `##`) is the one that most tokens show.
    """
    marks = {"Ġ": _byte_level, "▁": _metaspace, "##": _word_piece}
    counts = {mark: sum(token.startswith(mark) for token in vocabulary) for mark in marks}
    best = max(counts, key=lambda mark: counts[mark])
    if not counts[best]:
        return list(vocabulary)
    return [token if i in special else marks[best](token) for i, token in enumerate(vocabulary)]
