"""Runs a language model over text and stores the activations of one hook.

The store is what training and Section 5 read. A killed run goes on where it stopped when the same command
is given again.
"""

import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

if TYPE_CHECKING:
    from amortjax.activations.corpus import Corpus
    from amortjax.activations.export import Tokens
    from amortjax.activations.models import Model

# One window in so many is run once more with nothing kept, to tell what collecting costs.
BARE_EVERY = 24


@dataclass(frozen=True)
class Config:
    model_name: Annotated[
        str, "Hub id or folder of a transformers model, or `embedded` (ships with amortjax)."
    ]
    layer_index: Annotated[int, "Block L, counted from 0."]
    out: Annotated[str, "The store: a folder, gs://... or s3://... (--output_dir is the same)."]
    hook: Annotated[
        Literal["resid_post", "resid_pre", "mlp_out", "attn_out"],
        "Where in the block; resid_post of block L is hidden_states[L+1].",
    ] = "resid_post"
    dataset: Annotated[
        str,
        "`pydoc` (docstrings of installed packages), a hub id (with :configuration), or local .jsonl, "
        ".parquet or .txt files, also .gz, comma-separated.",
    ] = "pydoc"
    split: Annotated[str, "Split of a hub data set."] = "train"
    text_column: Annotated[str, "Column with the text."] = "text"
    label_column: Annotated[str | None, "Column with the label of a document; pydoc's is the package."] = None
    num_sequences: Annotated[int | None, "At most so many documents; all without it."] = None
    max_seq_len: Annotated[int, "A document's first so many tokens are used."] = 128
    prepend_bos: Annotated[
        bool,
        "Begin each document with the BOS token where the tokenizer (GPT-2's, Pythia's) adds none; no row.",
    ] = False
    batch_tokens: Annotated[int, "Tokens of a batch, with padding."] = 4096
    dtype: Annotated[Literal["float32", "bfloat16"], "Of the rows on disk."] = "float32"
    model_dtype: Annotated[Literal["float32", "bfloat16", "float16"], "In which the model computes."] = (
        "float32"
    )
    device: Annotated[str, "auto, cpu or cuda."] = "auto"
    split_fractions: Annotated[
        str | None, "As in sae_train=0.72,calibrate=0.06,probe_train=0.08,test=0.14 (which is the default)."
    ] = None
    seed: Annotated[int, "Seed of the assignment of documents to splits."] = 0
    cache_dir: Annotated[str, "Where the pydoc corpus is cached."] = "outputs/cache"


class _Clock:
    """Tokens per second of collecting, and of the bare forwards of a sample of windows."""

    def __init__(self) -> None:
        self.tokens = self.bare_tokens = self._windows = 0
        self.bare_seconds = 0.0
        self._began = time.perf_counter()

    def count(self, tokens: int, bare: Callable[[], None]) -> None:
        """After a window of `tokens`; now and then runs `bare` on it, with this clock stopped."""
        self.tokens += tokens
        if self._windows == 0:
            # The first window also pays for start-up: it is not counted.
            self.tokens, self._began = 0, time.perf_counter()
        elif self._windows % BARE_EVERY == 1:
            pause = time.perf_counter()
            bare()
            self.bare_seconds += time.perf_counter() - pause
            self._began += time.perf_counter() - pause
            self.bare_tokens += tokens
        self._windows += 1

    def rate(self) -> float:
        return self.tokens / (time.perf_counter() - self._began)

    def report(self) -> dict[str, float]:
        """Both rates and their ratio; empty after a run too short to tell."""
        if not self.bare_tokens:
            return {}
        rate, bare = self.rate(), self.bare_tokens / self.bare_seconds
        return {"tokens_per_second": rate, "bare_tokens_per_second": bare, "of_bare": rate / bare}


def _fractions(config: Config, corpus: "Corpus") -> dict[str, float]:
    from amortjax.activations import splits, stream
    from amortjax.errors import AmortjaxError

    usual = stream.fractions_for(config.model_name, corpus)
    if usual["lm_train"]:
        # The model's own training set this assignment apart.
        if config.seed or config.split_fractions:
            raise AmortjaxError(
                "the embedded model on pydoc has its splits fixed: leave out --seed and --split_fractions."
            )
        return usual
    return splits.parse_fractions(config.split_fractions) if config.split_fractions else usual


def _manifest(config: Config, model: "Model", corpus: "Corpus", fractions: dict) -> dict:
    from amortjax.activations import stream

    return {
        **stream.identity(model, corpus, config.layer_index, config.hook, config.max_seq_len, fractions),
        "dtype": config.dtype,
        "model_dtype": config.model_dtype,
        "num_sequences": config.num_sequences,
        "batch_tokens": config.batch_tokens,
        "seed": config.seed,
    }


def _windows(
    config: Config, model: "Model", corpus: "Corpus", fractions: dict
) -> Iterator[tuple[list, list["Tokens"]]]:
    from amortjax.activations import stream

    documents = stream.assigned(corpus, fractions, config.seed, config.num_sequences)
    return stream.ahead(stream.in_windows(model, documents, config.max_seq_len))


def _expected(config: Config, corpus: "Corpus", fractions: dict) -> int | None:
    """About how many documents there will be."""
    sizes = [config.num_sequences, corpus.size and round(corpus.size * (1 - fractions["lm_train"]))]
    return min((size for size in sizes if size), default=None)


def _collect(
    config: Config, model: "Model", corpus: "Corpus", fractions: dict, writer: Any
) -> tuple[dict, dict]:
    """Writes all rows; returns the table of documents and the speed."""
    import numpy as np
    from tqdm import tqdm

    from amortjax.activations.export import run_bare, run_window

    table: dict[str, list] = {"split": [], "label": [], "start": [], "stop": []}
    where = (config.layer_index, config.hook, config.batch_tokens)
    clock, seen = _Clock(), 0
    with tqdm(total=_expected(config, corpus, fractions), unit="doc", desc="collect", smoothing=0.05) as bar:
        for pairs, tokens in _windows(config, model, corpus, fractions):
            sizes = np.asarray([int(own.keep.sum()) for own in tokens])
            stops = seen + np.cumsum(sizes)
            doc_ids = np.repeat(len(table["split"]) + np.arange(len(pairs), dtype=np.int32), sizes)
            table["split"] += [split for _, split in pairs]
            table["label"] += [document.label or "" for document, _ in pairs]
            table["start"] += (stops - sizes).tolist()
            table["stop"] += stops.tolist()
            # A window that is wholly on disk already is only counted; one that is not is computed as before.
            if stops[-1] > writer.n_rows:
                window = run_window(model, tokens, *where)
                writer.append(seen, window.x, window.token_ids, doc_ids)
                clock.count(len(doc_ids), functools.partial(run_bare, model, tokens, *where))
            seen = int(stops[-1])
            bar.update(len(pairs))
            if clock.tokens:
                bar.set_postfix_str(f"{seen} tokens, {clock.rate():.0f} tokens/s")
    return table, clock.report()


def run(config: Config) -> dict:
    """Collects, or goes on, or says that all is there; returns the manifest."""
    from amortjax.activations import disk, models, stream
    from amortjax.activations.corpus import open_corpus
    from amortjax.activations.writer import Writer
    from amortjax.errors import AmortjaxError

    if config.num_sequences is not None and config.num_sequences < 1:
        raise AmortjaxError(f"--num_sequences={config.num_sequences}: at least 1.")
    corpus = open_corpus(
        config.dataset, config.split, config.text_column, config.label_column, config.cache_dir
    )
    fractions = _fractions(config, corpus)
    model = models.load_model(config.model_name, config.model_dtype, config.device, config.prepend_bos)
    models.check_layer(model, config.layer_index, config.max_seq_len)
    warning = stream.lm_train_warning(config.model_name, corpus)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    writer = Writer(config.out, _manifest(config, model, corpus, fractions))
    if writer.finished:
        print(f"{config.out}: complete already, {writer.n_rows} rows")
        return disk.read_manifest(config.out) or {}
    if writer.n_rows:
        print(f"{config.out}: going on after {writer.n_rows} rows", file=sys.stderr)
    documents, speed = _collect(config, model, corpus, fractions, writer)
    manifest = writer.finish(documents, model.vocabulary(), lm_train_known=warning is None, speed=speed)
    _print_summary(config, manifest, documents)
    return manifest


def _print_summary(config: Config, manifest: dict, documents: dict[str, list]) -> None:
    rows, count = manifest["n_rows"], manifest["n_documents"]
    print(f"{config.out}: {rows} rows of {manifest['d_model']} from {count} documents")
    for split in sorted(set(documents["split"])):
        chosen = [i for i, name in enumerate(documents["split"]) if name == split]
        rows = sum(documents["stop"][i] - documents["start"][i] for i in chosen)
        print(f"  {split:12s} {len(chosen):8d} documents {rows:10d} rows")
    speed = manifest["speed"]
    if speed:
        print(
            f"  {speed['tokens_per_second']:.0f} tokens/s collected, {100 * speed['of_bare']:.0f} % of "
            f"the bare forward's {speed['bare_tokens_per_second']:.0f}"
        )


if __name__ == "__main__":
    from amortjax.launch import flagged

    flagged.launch(Config, run, "amortjax.launch.collect", aliases={"output_dir": "out"})
