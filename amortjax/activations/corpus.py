"""Text from a Hugging Face hub id, local jsonl, parquet or txt files (.gz too), or the corpus `pydoc`.

In txt files a document is a paragraph: what stands between blank lines, or one line where a file has no
blank line.
"""

import gzip
import hashlib
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from amortjax.activations import pydoc
from amortjax.errors import CorpusError

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", ".txt", ".txt.gz")
# Local files up to this size are gone through once more, to know how many documents there will be.
COUNTED_BYTES = 1 << 30


@dataclass(frozen=True)
class Document:
    """One text; `doc_id` counts the corpus's documents from 0, `label` is None without a label column."""

    text: str
    label: str | None
    doc_id: int


class _Row(NamedTuple):
    text: str
    label: str | None


@dataclass(frozen=True)
class Corpus:
    """Documents that can be gone through again and again, always in the same order."""

    name: str
    fingerprint: str
    # How many documents there are, if that is known without reading all of them.
    size: int | None
    # True if near-copies have been removed already.
    deduplicated: bool
    _rows: Callable[[], Iterator[_Row]]

    def __iter__(self) -> Iterator[Document]:
        """All documents with any text; CorpusError if there are none."""
        count = 0
        for row in self._rows():
            if row.text.strip():
                yield Document(row.text, row.label, count)
                count += 1
        if not count:
            raise CorpusError(f"{self.name}: no document with any text in it.")


def open_corpus(
    dataset: str,
    split: str = "train",
    text_column: str = "text",
    label_column: str | None = None,
    cache_dir: str = "outputs/cache",
) -> Corpus:
    """The corpus of that name; CorpusError if it can't be read.

    `dataset` is `pydoc`, a local file or several comma-separated, or a hub id, with `:` before the name of a
    configuration (`Salesforce/wikitext:wikitext-103-raw-v1`). `split` is used by hub data sets only.
    """
    if dataset == "pydoc":
        return _pydoc(cache_dir)
    parts = [part.strip() for part in dataset.split(",") if part.strip()]
    if not parts:
        raise CorpusError("--dataset is empty: give a hub id, local files or pydoc.")
    if any(
        Path(part).exists() or part.endswith(ENDINGS) or part.startswith((".", "/", "~")) for part in parts
    ):
        return _local([Path(part).expanduser() for part in parts], text_column, label_column)
    if len(parts) > 1:
        raise CorpusError(f"{dataset}: several data sets; only local files can be joined by commas.")
    return _hub(dataset, split, text_column, label_column)


def _digest(*parts: object) -> str:
    return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=8).hexdigest()


def _pydoc(cache_dir: str) -> Corpus:
    documents = pydoc.load(cache_dir)
    rows = [_Row(text, label) for text, label in documents]
    return Corpus("pydoc", pydoc.fingerprint(), len(rows), True, lambda: iter(rows))


def _local(paths: list[Path], text_column: str, label_column: str | None) -> Corpus:
    content = hashlib.blake2b(digest_size=8)
    for path in paths:
        _check_file(path)
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                content.update(block)
    fingerprint = _digest(content.hexdigest(), text_column, label_column)

    def rows() -> Iterator[_Row]:
        for path in paths:
            yield from _file_rows(path, text_column, label_column)

    size = None
    if sum(path.stat().st_size for path in paths) <= COUNTED_BYTES:
        # This also finds a broken line before anything is computed.
        size = sum(bool(row.text.strip()) for row in rows())
    return Corpus(",".join(str(path) for path in paths), fingerprint, size, False, rows)


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise CorpusError(f"{path}: a folder; give the files, comma-separated.")
    if not path.is_file():
        raise CorpusError(f"{path}: no such file.")
    if not path.name.endswith(ENDINGS):
        raise CorpusError(f"{path}: not a kind of file that can be read; the kinds: {', '.join(ENDINGS)}.")


def _file_rows(path: Path, text_column: str, label_column: str | None) -> Iterator[_Row]:
    import pyarrow

    try:
        if path.name.endswith(".parquet"):
            yield from _parquet_rows(path, text_column, label_column)
        elif ".jsonl" in path.name:
            yield from _jsonl_rows(path, text_column, label_column)
        else:
            for text in _paragraphs(path):
                yield _Row(text, None)
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: not UTF-8 text (byte {error.start}).") from error
    except (OSError, EOFError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorpusError(f"{path}: unreadable or truncated ({reason[:200]}).") from error


def _lines(path: Path) -> Iterator[str]:
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        yield from file


def _paragraphs(path: Path) -> Iterator[str]:
    beginning = "".join(itertools.islice(_lines(path), 10000))
    if not re.search(r"\n[ \t]*\n", beginning):
        yield from (line.strip() for line in _lines(path) if line.strip())
        return
    block: list[str] = []
    for line in itertools.chain(_lines(path), [""]):
        if line.strip():
            block.append(line.rstrip("\n"))
        elif block:
            yield "\n".join(block).strip()
            block = []


def _pick(row: dict[str, Any], where: str, text_column: str, label_column: str | None) -> _Row:
    for column in (text_column, label_column):
        if column is not None and column not in row:
            raise CorpusError(f"{where}: no column {column!r}; the columns: {', '.join(map(str, row))}.")
    text, label = row[text_column], row[label_column] if label_column else None
    if text is not None and not isinstance(text, str):
        raise CorpusError(f"{where}: column {text_column!r} holds {type(text).__name__}, not text.")
    return _Row(text or "", None if label is None else str(label))


def _jsonl_rows(path: Path, text_column: str, label_column: str | None) -> Iterator[_Row]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}, line {number}: not JSON ({error.msg}).") from error
        if not isinstance(row, dict):
            raise CorpusError(f"{path}, line {number}: not a JSON object.")
        yield _pick(row, f"{path}, line {number}", text_column, label_column)


def _parquet_rows(path: Path, text_column: str, label_column: str | None) -> Iterator[_Row]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    wanted = [text_column] + ([label_column] if label_column else [])
    _pick(dict.fromkeys(names), str(path), text_column, label_column)
    for batch in file.iter_batches(batch_size=1024, columns=wanted):
        for row in batch.to_pylist():
            yield _pick(row, str(path), text_column, label_column)


def _hub(dataset: str, split: str, text_column: str, label_column: str | None) -> Corpus:
    import datasets
    import huggingface_hub

    # Every retry of a hub that can't be reached would be a line; the error below says it once.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    name, _, config = dataset.partition(":")
    try:
        stream = datasets.load_dataset(name, config or None, split=split, streaming=True)
        revision = huggingface_hub.dataset_info(name).sha
    except Exception as error:  # The two libraries raise dozens of kinds, without a common base.
        reason = str(error).strip().splitlines()
        raise CorpusError(
            f"{dataset}: not loaded from the hub ({reason[0][:200] if reason else type(error).__name__}): "
            "check the id, the split and the network, or give a local file or pydoc."
        ) from error
    features = stream.features or {}
    names = {i: n for i, n in enumerate(getattr(features.get(label_column), "names", None) or [])}

    def rows() -> Iterator[_Row]:
        for record in stream:
            row = _pick(record, dataset, text_column, label_column)
            if names and label_column:
                row = row._replace(label=names.get(record[label_column], row.label))
            yield row

    known = (stream.info.splits or {}).get(split)
    size = known.num_examples if known else None
    return Corpus(dataset, _digest(dataset, split, revision, text_column, label_column), size, False, rows)
