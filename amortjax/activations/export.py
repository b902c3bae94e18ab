"""Activations of a Hugging Face PyTorch model: the only place where a language model runs.

Hooks, by block L: `resid_post` (output of the block; HF `hidden_states[L+1]`, except that the last of these
is normed and this is not), `resid_pre` (its input), `mlp_out` and `attn_out` (what each adds to the residual
stream; for Gemma after the norm that follows it, for BERT before the norm). The forward stops as soon as the
hook has what it wants. Special and padding tokens give no rows.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amortjax.activations.tokens import readable
from amortjax.errors import ModelError

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).resolve().parents[1] / "assets" / "tiny_lm"
HOOKS = ("resid_post", "resid_pre", "mlp_out", "attn_out")
# A text is cut before it is tokenised, as only its beginning is used: at so many characters per token wanted,
CHARACTERS_PER_TOKEN = 8
# and all of it is tokenised after all if the tokens come this close to the cut.
CUT_MARGIN = 100


class _Enough(Exception):
    """The hook has what it wants: the rest of the forward is not needed."""


@dataclass(frozen=True)
class Model:
    """A language model ready to be read from."""

    name: str
    module: Any
    tokenizer: Any
    blocks: Any
    d_model: int
    # Longest sequence it takes; None if it says nothing.
    max_positions: int | None
    # Stands for configuration and weights.
    fingerprint: str
    special_ids: frozenset[int]
    device: str
    # The token put before each document, where that was asked for and the tokenizer puts none.
    lead: int | None = None

    def vocabulary(self) -> list[str]:
        """The text of each token id, a leading space shown as such."""
        strings = [""] * len(self.tokenizer)
        for token, number in self.tokenizer.get_vocab().items():
            if number < len(strings):
                strings[number] = token
        return readable(strings, set(self.special_ids))


class Tokens(NamedTuple):
    """A document's token ids, with the special tokens, and which of them give a row."""

    ids: list[int]
    keep: np.ndarray


class Window(NamedTuple):
    """Rows of some documents, in document order."""

    x: np.ndarray  # (n, D) float32
    token_ids: np.ndarray  # (n,) int32
    sizes: np.ndarray  # (documents,) rows of each


def load_model(name: str, dtype: str = "float32", device: str = "auto", prepend_bos: bool = False) -> Model:
    """A model by hub id or folder, or `embedded`; ModelError if there is none or it can't be read.

    prepend_bos: each document begins with the BOS token, also where the tokenizer adds none (GPT-2, Pythia): it takes
    the outlying norm of a first position, and gives no row.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    # Every retry of a hub that can't be reached would be a line; the error below says it once.
    for library in ("transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    path = str(EMBEDDED_FOLDER) if name == EMBEDDED else name
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise ModelError(f"{name}: no such folder: give a hub id or a folder with config.json and weights.")
    try:
        # Alone at first, because an id that is not there then fails once and not several times over.
        config = AutoConfig.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path, config=config)
        module = AutoModel.from_pretrained(path, config=config, dtype=getattr(torch, dtype))
    except Exception as error:  # transformers and the hub raise many kinds, without a common base.
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"{name}: can't be loaded ({reason[0][:200] if reason else type(error).__name__}): check the id "
            "and the network, or give a folder with config.json, weights and tokenizer."
        ) from error
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return wrap_model(name, module.to(device), tokenizer, device, prepend_bos)


def wrap_model(
    name: str, module: Any, tokenizer: Any, device: str = "cpu", prepend_bos: bool = False
) -> Model:
    """A Model from a transformers module and its tokenizer."""
    config = module.config.get_text_config()
    # An unknown-word token that has no other use stands for text.
    roles = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.cls_token}
    unknown = set() if tokenizer.unk_token in roles else {tokenizer.unk_token_id}
    return Model(
        name=name,
        module=module.eval(),
        tokenizer=tokenizer,
        blocks=_find_blocks(module, config.num_hidden_layers),
        d_model=int(config.hidden_size),
        max_positions=getattr(config, "max_position_embeddings", None),
        fingerprint=_fingerprint(module),
        special_ids=frozenset(set(tokenizer.all_special_ids) - unknown),
        device=device,
        lead=_lead(name, tokenizer) if prepend_bos else None,
    )


def _lead(name: str, tokenizer: Any) -> int | None:
    """The BOS token, or None where the tokenizer begins with it anyway; ModelError if it has none."""
    if tokenizer.bos_token_id is None:
        raise ModelError(f"{name}: its tokenizer has no BOS token: leave out --prepend_bos.")
    return None if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] else tokenizer.bos_token_id


def _find_blocks(module: Any, count: int) -> Any:
    import torch

    for _, child in module.named_modules():
        if isinstance(child, torch.nn.ModuleList) and len(child) == count:
            return child
    raise ModelError(f"{type(module).__name__}: no list of {count} blocks found; its layout is not known.")


def _fingerprint(module: Any) -> str:
    """Hash of the configuration and of the beginning of every weight."""
    config = {
        k: v for k, v in module.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")
    }
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=8)
    for name, value in sorted(module.state_dict().items()):
        start = value.detach().flatten()[:256].float().cpu().numpy()
        digest.update(f"{name}{tuple(value.shape)}".encode() + start.tobytes())
    return digest.hexdigest()


def check_layer(model: Model, layer_index: int, max_seq_len: int) -> None:
    """ModelError, with what would be valid, on a block that is not there or sequences that are too long."""
    count = len(model.blocks)
    if not 0 <= layer_index < count:
        raise ModelError(f"--layer_index={layer_index}: {model.name} has blocks 0 to {count - 1}.")
    if max_seq_len < 2 or (model.max_positions and max_seq_len > model.max_positions):
        raise ModelError(
            f"--max_seq_len={max_seq_len}: {model.name} takes 2 to {model.max_positions} tokens."
        )


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
