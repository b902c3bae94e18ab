"""Flags of launchers that can take their activations straight from a language model over text, and what they open."""

import dataclasses
import sys
from typing import Annotated, Any, Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    model_name: Annotated[
        str | None, "Where --acts is not there: hub id or folder of the language model, or `embedded`."
    ] = None
    layer_index: Annotated[int | None, "Block L of the model, from 0."] = None
    hook: Annotated[Literal["resid_post", "resid_pre", "mlp_out", "attn_out"], "Where in the block."] = (
        "resid_post"
    )
    dataset: Annotated[str, "`pydoc`, a hub id, or local jsonl, parquet or txt files."] = "pydoc"
    split: Annotated[str, "Split of a hub data set."] = "train"
    text_column: Annotated[str, "Column with the text."] = "text"
    num_sequences: Annotated[int | None, "At most so many documents."] = None
    max_seq_len: Annotated[int, "A document's first so many tokens."] = 128
    prepend_bos: Annotated[
        bool,
        "Begin each document with the BOS token where the tokenizer (GPT-2's, Pythia's) adds none; no row.",
    ] = False
    cache_dir: Annotated[str, "Where collected activations and the pydoc corpus are kept."] = "outputs/cache"


def model_and_corpus(
    config: Text, label_column: str | None = None, dtype: str = "float32", device: str = "auto"
) -> tuple[Any, Any]:
    """The language model and its text; warns if the embedded model may have been trained on some of it."""
    from amortjax.activations import models, stream
    from amortjax.activations.corpus import open_corpus

    corpus = open_corpus(config.dataset, config.split, config.text_column, label_column, config.cache_dir)
    model = models.load_model(str(config.model_name), dtype, device, config.prepend_bos)
    warning = stream.lm_train_warning(str(config.model_name), corpus)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    return model, corpus
