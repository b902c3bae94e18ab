import json
import math
from pathlib import Path

import pytest

from amortjax.activations import pydoc
from amortjax.activations.models import EMBEDDED_FOLDER
from amortjax.activations.splits import PYDOC_FRACTIONS, Splitter
from amortjax.assets import train_lm

RECORD = json.loads((EMBEDDED_FOLDER / train_lm.PROVENANCE).read_text())
# Written for this test, in the manner of the corpus.
TEXT = (
    "Compute the mean of the elements along a given axis.\n\nParameters\n----------\nx : array_like\n"
    "    Input array.\naxis : int, optional\n    The axis along which to compute the mean. If None, the array "
    "is flattened.\n\nReturns\n-------\nout : ndarray\n    The mean of the elements."
)


def test_size():
    files = list(EMBEDDED_FOLDER.parent.rglob("*"))
    assert sum(file.stat().st_size for file in files if file.is_file()) < 8e6
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in files}


def test_readme_gives_the_record_of_the_run():
    text = (EMBEDDED_FOLDER.parent / "README.md").read_text()
    for value in ("nats_per_token", "bits_per_byte"):
        assert f"{RECORD['held_out'][value]:.3f}" in text
    assert f"{RECORD['parameters']:,}".replace(",", " ") in text
    assert RECORD["split_fractions"] == PYDOC_FRACTIONS


def test_predicts_documentation():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_FOLDER, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    found = train_lm.held_out(model, tokenizer, [TEXT], 128)
    assert found["nats_per_token"] < 3
    words = TEXT.split()
    shuffled = " ".join(sorted(words))
    assert (
        train_lm.held_out(model, tokenizer, [shuffled], 128)["bits_per_byte"] > 1.5 * found["bits_per_byte"]
    )
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"], skip_special_tokens=True) == TEXT
    greedy = train_lm.sample(model, tokenizer, "Return the", 0, temperature=0.0)
    assert greedy.startswith("Return the ") and greedy == train_lm.sample(
        model, tokenizer, "Return the", 1, 0.0
    )


def test_script_trains_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    documents = [(f"{TEXT} Number {i}, which is {i * i} squared.", "a") for i in range(300)]
    monkeypatch.setattr(pydoc, "load", lambda cache_dir: documents)
    config = train_lm.Config(
        out=str(tmp_path / "lm"), minutes=0.03, d_model=16, n_layers=1, n_heads=2, vocab_size=300, context=32
    )
    record = train_lm.run(config)
    # Better than a uniform guess over the vocabulary, on documents it was not trained on.
    assert record["held_out"]["nats_per_token"] < math.log(300)
    splitter = Splitter(PYDOC_FRACTIONS, near_copies=False)
    trained = [text for text, _ in documents if splitter.assign(text) == "lm_train"]
    assert 120 < len(trained) < 240
    assert json.loads((tmp_path / "lm" / train_lm.PROVENANCE).read_text()) == record
    assert (tmp_path / "lm" / "model.safetensors").stat().st_mode & 0o044
