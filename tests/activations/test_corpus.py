import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amortjax.activations.corpus import open_corpus
from amortjax.errors import CorpusError

ROWS = [{"text": "one", "kind": "a"}, {"text": "  ", "kind": "b"}, {"text": "two\nlines", "kind": "c"}]


def _write(folder: Path, name: str) -> str:
    path = folder / name
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"text": [r["text"] for r in ROWS], "kind": [r["kind"] for r in ROWS]}), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_tables(tmp_path: Path, name: str):
    corpus = open_corpus(_write(tmp_path, name), label_column="kind")
    documents = list(corpus)
    assert [(d.text, d.label, d.doc_id) for d in documents] == [("one", "a", 0), ("two\nlines", "c", 1)]
    assert corpus.size == 2
    assert list(corpus) == documents
    assert open_corpus(str(tmp_path / name)).fingerprint != corpus.fingerprint


@pytest.mark.parametrize("ending", [".txt", ".txt.gz"])
def test_paragraphs(tmp_path: Path, ending: str):
    path = tmp_path / f"a{ending}"
    text = b"first\nparagraph\n \n\nsecond\n"
    path.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    assert [d.text for d in open_corpus(str(path))] == ["first\nparagraph", "second"]


def test_lines_where_there_are_no_paragraphs(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("first\nsecond\n")
    assert [d.text for d in open_corpus(str(path))] == ["first", "second"]


def test_several_files(tmp_path: Path):
    both = f"{_write(tmp_path, 'a.jsonl')}, {_write(tmp_path, 'b.parquet')}"
    corpus = open_corpus(both)
    assert [d.doc_id for d in corpus] == [0, 1, 2, 3]
    assert [d.text for d in corpus] == ["one", "two\nlines"] * 2


def test_fingerprint_is_of_the_content(tmp_path: Path):
    first, second = _write(tmp_path, "a.jsonl"), _write(tmp_path, "b.jsonl")
    assert open_corpus(first).fingerprint == open_corpus(second).fingerprint
    Path(second).write_text('{"text": "other"}\n')
    assert open_corpus(first).fingerprint != open_corpus(second).fingerprint


@pytest.mark.parametrize(
    ("name", "content", "columns", "said"),
    [
        ("a.jsonl", b"", {}, "no document with any text"),
        ("a.jsonl", b'{"text": "  "}\n', {}, "no document with any text"),
        ("a.jsonl", b'{"text": "x"}\nnot json\n', {}, "line 2: not JSON"),
        ("a.jsonl", b"[1]\n", {}, "line 1: not a JSON object"),
        ("a.jsonl", b'{"text": 3}\n', {}, "holds int, not text"),
        ("a.jsonl", b'{"body": "x", "y": 1}\n', {}, "no column 'text'; the columns: body, y"),
        ("a.jsonl", b'{"text": "x"}\n', {"label_column": "kind"}, "no column 'kind'; the columns: text"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 999, mtime=0)[:-12], {}, "unreadable or truncated"),
        ("a.jsonl.gz", b"plain", {}, "unreadable or truncated"),
        ("a.parquet", b"PAR1 but no more", {}, "unreadable or truncated"),
        ("a.txt", b"\xff\xfe\x00", {}, "not UTF-8"),
        ("a.csv", b"a,b", {}, "not a kind of file"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, columns: dict, said: str):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=said) as caught:
        list(open_corpus(str(path), **columns))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("", "is empty"),
        ("/nowhere/a.jsonl", "no such file"),
        ("/nowhere/a", "no such file"),
        (".", "a folder"),
        ("one/two,three/four", "only local files"),
    ],
)
def test_bad_names(dataset: str, said: str):
    with pytest.raises(CorpusError, match=said):
        open_corpus(dataset)


def test_unknown_parquet_column(tmp_path: Path):
    with pytest.raises(CorpusError, match="no column 'body'; the columns: text, kind"):
        open_corpus(_write(tmp_path, "a.parquet"), text_column="body")


def test_hub_without_a_network(monkeypatch: pytest.MonkeyPatch):
    import datasets

    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach the hub\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        CorpusError, match=r"some/set: not loaded from the hub .Couldn't reach the hub.: check"
    ):
        open_corpus("some/set")
