import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from amortjax.activations import export, models, stream
from amortjax.activations.corpus import Corpus, open_corpus
from amortjax.activations.splits import Splitter, parse_fractions
from amortjax.errors import CorpusError
from tests.activations import tiny

FRACTIONS = parse_fractions("lm_train=0.2,sae_train=0.4,calibrate=0.1,test=0.3")


def _corpus(folder: Path, count: int = 300) -> Corpus:
    path = folder / "a.jsonl"
    lines = [json.dumps({"text": text, "kind": len(text) % 3}) for text in tiny.texts(count)]
    path.write_text("\n".join(lines))
    return open_corpus(str(path), label_column="kind")


def test_windows_hold_all_documents_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream, "WINDOW_TOKENS", 1000)
    documents = list(stream.assigned(_corpus(tmp_path), FRACTIONS, 0))
    windows = list(stream.in_windows(tiny.model("gpt_neox"), documents, 64))
    assert len(windows) > 2
    assert list(itertools.chain(*(pairs for pairs, _ in windows))) == documents
    for pairs, tokens in windows:
        assert [int(own.keep.sum()) for own in tokens] == [len(document.text) for document, _ in pairs]


def test_documents_of_the_language_model_are_left_out(tmp_path: Path):
    corpus = _corpus(tmp_path)
    splitter = Splitter(FRACTIONS)
    wanted = [
        (document, split) for document in corpus if (split := splitter.assign(document.text)) != "lm_train"
    ]
    assert list(stream.assigned(corpus, FRACTIONS, 0)) == wanted
    assert list(stream.assigned(corpus, FRACTIONS, 0, limit=7)) == wanted[:7]
    assert 0.1 < 1 - len(wanted) / 300 < 0.3


def test_memory_store_of_streamed_text(tmp_path: Path):
    model = tiny.model("llama")
    store = stream.collect_in_memory(
        model, _corpus(tmp_path), 1, {"test": 500, "calibrate": 100}, max_seq_len=64, fractions=FRACTIONS
    )
    splits = store.documents["split"]
    assert set(splits.tolist()) == {"test", "calibrate"}
    # Enough, and no more than a document too much.
    assert 500 <= len(store.rows("test")) < 565 and 100 <= len(store.rows("calibrate")) < 165
    # Each document's rows are those of the document alone.
    by_text = {d.text: (d, split) for d, split in stream.assigned(_corpus(tmp_path), FRACTIONS, 0)}
    for number in (0, 5, len(splits) - 1):
        rows = slice(store.documents["start"][number], store.documents["stop"][number])
        text = "".join(store.token_strings(store.token_ids[rows]))
        document, split = by_text[text]
        assert (split, document.label) == (splits[number], store.documents["label"][number])
        alone = export.run_window(model, export.tokenise(model, [text], 64), 1, "resid_post", 64)
        np.testing.assert_allclose(store.read(rows), alone.x, atol=2e-5)
        assert (store.doc_ids[rows] == number).all()
    assert store.manifest["model_name"] == "llama"


def test_too_little_text(tmp_path: Path):
    model, corpus = tiny.model("llama"), _corpus(tmp_path)
    short = stream.collect_in_memory(model, corpus, 1, {"test": 10**9}, max_seq_len=64, fractions=FRACTIONS)
    assert set(short.documents["split"].tolist()) == {"test"}
    with pytest.raises(CorpusError, match="no document fell into probe_train"):
        stream.collect_in_memory(model, corpus, 1, {"probe_train": 5}, max_seq_len=64, fractions=FRACTIONS)


def test_fractions_by_model_and_corpus():
    pydoc = Corpus("pydoc", "f", 1, True, lambda: iter(()))
    other = Corpus("other", "f", 1, False, lambda: iter(()))
    assert stream.fractions_for("embedded", pydoc)["lm_train"] > 0.5
    assert stream.fractions_for(str(models.EMBEDDED_FOLDER), pydoc)["lm_train"] > 0.5
    assert stream.fractions_for("embedded", other)["lm_train"] == 0
    assert stream.fractions_for("EleutherAI/pythia-160m", pydoc)["lm_train"] == 0


def test_other_package_versions_are_said():
    record = json.loads((models.EMBEDDED_FOLDER / "trained_on.json").read_text())
    same = Corpus("pydoc", record["corpus_fingerprint"], 1, True, lambda: iter(()))
    changed = Corpus("pydoc", "other", 1, True, lambda: iter(()))
    assert stream.lm_train_warning("embedded", same) is None
    assert "lm_train is unknown" in (stream.lm_train_warning("embedded", changed) or "")
    assert stream.lm_train_warning("another/model", changed) is None


def test_ahead_gives_the_same_and_passes_errors_on():
    def broken():
        yield 1
        raise CorpusError("no more")

    assert list(stream.ahead(iter(range(9)))) == list(range(9))
    items = stream.ahead(broken())
    assert next(items) == 1
    with pytest.raises(CorpusError, match="no more"):
        next(items)


def test_first_rows_are_those_of_the_first_documents(tmp_path: Path):
    model, corpus = tiny.model("llama"), _corpus(tmp_path)
    found = stream.first_rows(model, corpus, [(0, "resid_post"), (1, "resid_pre")], 200, max_seq_len=64)
    assert 200 <= len(found[0].x) < 265
    np.testing.assert_array_equal(found[0].x, found[1].x)  # what leaves block 0 enters block 1
    texts = [
        document.text for document, _ in stream.assigned(corpus, stream.fractions_for("llama", corpus), 0)
    ]
    tokens = export.tokenise(model, texts[: len(found[0].sizes)], 64)
    np.testing.assert_allclose(found[0].x, export.run_window(model, tokens, 0, "resid_post", 64).x, atol=2e-5)
    assert len(stream.first_rows(model, corpus, [(0, "resid_pre")], 200, 64, num_sequences=2)[0].sizes) == 2
