"""What a language model says when something else stands at a hook instead of its activations.

Every document is run alone, from its first token, as collecting runs it. What is put in reaches the rest of the model
only: activations before the hook are the clean ones, so reconstructions can be made beforehand, from the clean rows.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from amortjax.activations import export, models, stream
from amortjax.activations.corpus import Corpus
from amortjax.activations.export import Tokens
from amortjax.activations.models import Model
from amortjax.activations.store import MemoryStore
from amortjax.errors import CorpusError, ModelError

CLEAN = "clean"
Place = tuple[int, str]  # block and hook, as everywhere in this room


class Causal(NamedTuple):
    """A language model with its next-token head; `model.module` is the same module without the head."""

    model: Model
    module: Any


class Splice(NamedTuple):
    """What stands at the hook: `values` (n, D), a row for each token of the documents that is not special, or (D,) for
    all of them. `everywhere`: at special tokens too, which keep their activations otherwise; then (D,) only."""

    values: np.ndarray
    everywhere: bool = False


class Scores(NamedTuple):
    """Sums of each document, (documents,). A token counts if it is not special, whatever the one it predicts."""

    scored: np.ndarray  # tokens with a next one
    ce: np.ndarray  # sum over those of -log q(next token), nats
    kl: np.ndarray  # sum over all tokens of KL(p_clean || q), nats


class Held(NamedTuple):
    """Text held ready: `documents` of the test split and a store with the rows of every split asked for."""

    documents: list[Tokens]
    store: MemoryStore


def with_head(model: Model) -> Causal:
    """The same model with its head, read again from where it came; ModelError if it predicts no next token."""
    import torch
    from transformers import AutoModelForCausalLM

    path = str(models.EMBEDDED_FOLDER) if model.name == models.EMBEDDED else model.name
    no_loss = (
        f"{model.name}: a {type(model.module).__name__} predicts no next token, so it has no loss to recover"
    )
    dtype = next(model.module.parameters()).dtype
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
    except Exception as error:  # transformers raises many kinds, without a common base.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{no_loss} ({reason[:160]}): give a causal language model.") from error
    module, about = loaded
    if about["missing_keys"]:
        missing = sorted(about["missing_keys"])[0]
        raise ModelError(f"{no_loss} ({missing} is not in its weights): give a causal language model.")
    settings = (model.device, model.lead is not None)
    return wrap_causal(model.name, module.to(torch.device(model.device)), model.tokenizer, *settings)


def wrap_causal(
    name: str, module: Any, tokenizer: Any, device: str = "cpu", prepend_bos: bool = False
) -> Causal:
    """A Causal from a transformers module with a next-token head; ModelError if earlier tokens see later ones."""
    model = models.wrap_model(name, module.base_model, tokenizer, device, prepend_bos)
    causal = Causal(model, module.eval())
    if _looks_ahead(causal):
        raise ModelError(
            f"{name}: its tokens see later ones, so it has no next-token loss: give a causal model."
        )
    return causal


def _looks_ahead(causal: Causal) -> bool:
    import torch

    size = causal.module.get_input_embeddings().num_embeddings
    ids = np.arange(1, 9)[None].repeat(2, axis=0) % size
    ids[1, -1] = 0
    with torch.inference_mode():
        mask = torch.ones(ids.shape, dtype=torch.int64, device=causal.model.device)
        inputs = {"input_ids": torch.from_numpy(ids).to(causal.model.device), "attention_mask": mask}
        # Some models give tokens that don't exist the logit -inf.
        first, second = torch.nan_to_num(_logits(causal, inputs)[:, :-1].float(), neginf=0.0)
        return not torch.allclose(first, second, rtol=1e-3, atol=1e-3 * float(first.std()))


def gather(
    causal: Causal,
    corpus: Corpus,
    place: Place,
    budgets: Mapping[str, int],
    max_seq_len: int = 128,
    num_sequences: int | None = None,
    batch_tokens: int = 2048,
) -> Held:
    """Whole documents, as they come, until each split of `budgets` has its tokens (`test` among them). CorpusError if a
    split gets none."""
    model = causal.model
    models.check_layer(model, place[0], max_seq_len)
    fractions, missing = stream.fractions_for(model.name, corpus), dict(budgets)

    def needed() -> Iterator[stream.Assigned]:
        for pair in stream.assigned(corpus, fractions, 0, num_sequences):
            if max(missing.values()) <= 0:
                return
            if missing.get(pair[1], 0) > 0:
                yield pair

    documents: list[Tokens] = []
    splits: list[str] = []
    parts: list[export.Window] = []
    for pairs, tokens in stream.in_windows(model, needed(), max_seq_len):
        taken = []
        for (_, split), own in zip(pairs, tokens, strict=True):
            if missing[split] > 0 and own.keep.any():
                missing[split] -= int(own.keep.sum())
                taken.append(own)
                splits.append(split)
        documents += taken
        if taken:
            parts.append(export.run_window(model, taken, *place, batch_tokens))
    empty = sorted(set(budgets) - set(splits))
    if empty:
        raise CorpusError(f"{corpus.name}: no document fell into {', '.join(empty)}: give more text.")
    sizes = np.concatenate([part.sizes for part in parts])
    store = MemoryStore.build(
        np.concatenate([part.x for part in parts]),
        np.repeat(np.arange(len(sizes)), sizes),
        splits,
        token_ids=np.concatenate([part.token_ids for part in parts]),
        **stream.identity(model, corpus, *place, max_seq_len, fractions),
        lm_train_known=stream.lm_train_warning(model.name, corpus) is None,
    )
    return Held([own for own, split in zip(documents, splits, strict=True) if split == "test"], store)


def score(
    causal: Causal,
    documents: Sequence[Tokens],
    place: Place,
    splices: Mapping[str, Splice],
    batch_tokens: int,
) -> dict[str, Scores]:
    """{name: Scores}: of the model as it is under CLEAN, and with each splice at (block, hook)."""
    import torch

    sizes = np.asarray([int(document.keep.sum()) for document in documents])
    starts = np.cumsum(sizes) - sizes
    found = {name: _nothing(len(documents)) for name in (CLEAN, *splices)}
    with torch.inference_mode():
        for group in export.batches([len(document.ids) for document in documents], batch_tokens):
            own = [documents[i] for i in group]
            inputs = export.inputs(causal.model, own)
            log_p = _logits(causal, inputs).float().log_softmax(-1)
            _record(found[CLEAN], group, own, log_p, log_p)
            for name, splice in splices.items():
                value, where = _tensors(splice, own, starts[group], inputs["input_ids"].shape[1])
                with _spliced(causal.model, place, value, where):
                    logits = _logits(causal, inputs)
                _record(found[name], group, own, log_p, logits)
    return found


def _nothing(n: int) -> Scores:
    return Scores(np.zeros(n, np.int64), np.zeros(n), np.zeros(n))


def _logits(causal: Causal, inputs: dict[str, Any]) -> Any:
    return causal.module(**inputs, use_cache=False).logits


def _tensors(splice: Splice, documents: list[Tokens], starts: np.ndarray, width: int) -> tuple[Any, Any]:
    """The splice padded as its batch: value (B, width, D) or (D,), and where it stands (B, width, 1)."""
    import torch

    where = np.full((len(documents), width), splice.everywhere)
    values = np.asarray(splice.values, np.float32)
    padded = values if values.ndim == 1 else np.zeros((*where.shape, values.shape[1]), np.float32)
    for row, (document, start) in enumerate(zip(documents, starts, strict=True)):
        keep = np.flatnonzero(document.keep)
        where[row, keep] = True
        if values.ndim == 2:
            padded[row, keep] = values[start : start + len(keep)]
    return torch.from_numpy(np.ascontiguousarray(padded)), torch.from_numpy(where[..., None])


@contextlib.contextmanager
def _spliced(model: Model, place: Place, value: Any, where: Any) -> Iterator[None]:
    """While this is open, what passes (block, hook) is `value` wherever `where` says so."""
    import torch

    layer_index, hook = place
    value, where = value.to(model.device), where.to(model.device)

    def swapped(hidden: Any) -> Any:
        return torch.where(where, value.to(hidden.dtype), hidden)

    def before(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        del module
        if args:
            return (swapped(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": swapped(kwargs["hidden_states"])}

    def after(module: Any, args: tuple, output: Any) -> Any:
        del module, args
        # transformers 4 gives tuples where 5 gives tensors.
        return (swapped(output[0]), *output[1:]) if isinstance(output, tuple) else swapped(output)

    block = model.blocks[layer_index]
    if hook == "resid_pre":
        handle = block.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = (block if hook == "resid_post" else export.site(block, hook)).register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def _record(scores: Scores, group: list[int], documents: list[Tokens], log_p: Any, logits: Any) -> None:
    """Adds a batch: log_p (B, width, V) of the clean model and the spliced model's logits (its log_p: nothing was)."""
    import torch

    for row, (i, document) in enumerate(zip(group, documents, strict=True)):
        n = len(document.ids)
        keep = torch.from_numpy(document.keep).to(log_p.device)
        following = torch.tensor(document.ids[1:], dtype=torch.int64, device=log_p.device)
        p = log_p[row, :n]
        q = p if logits is log_p else logits[row, :n].float().log_softmax(-1)
        lost = -q[:-1].gather(-1, following[:, None])[:, 0]
        scores.scored[i] = int(keep[:-1].sum())
        scores.ce[i] = float(lost[keep[:-1]].double().sum())
        if q is not p:
            # A token that the clean model gives no chance at all adds nothing.
            terms = torch.where(torch.isneginf(p), 0.0, p.exp() * (p - q))
            scores.kl[i] = float(terms.sum(-1)[keep].double().sum())
