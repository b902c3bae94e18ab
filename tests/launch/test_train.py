"""The train launcher: what it writes, that it does nothing twice, and its one-line errors."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from amortjax.activations.store import MemoryStore
from amortjax.errors import AmortjaxError
from amortjax.launch import flagged
from amortjax.launch import train as launcher
from amortjax.saes.formats import load_sae


@pytest.fixture
def store() -> MemoryStore:
    x = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
    return MemoryStore.build(
        x, np.repeat(np.arange(6), 100), ["sae_train"] * 5 + ["test"], model_name="tiny", layer_index=2,
        corpus_fingerprint="words",
    )  # fmt: skip


def _config(folder, **more) -> launcher.Config:
    given = {"acts": "unused", "n_latents": 16, "k": 2, "steps": 6, "batch_size": 50, **more}
    return launcher.Config(out=str(folder), **given)


def test_writes_a_checkpoint_that_says_where_it_comes_from(store, tmp_path):
    path = launcher.train(_config(tmp_path / "sae"), store)
    sae = load_sae(path)
    assert (sae.variant, sae.k, sae.n_latents, sae.d_in) == ("topk", 2, 16, 8)
    info = sae.info
    assert (info.name, info.model_name, info.layer_index, info.hook) == ("sae", "tiny", 2, "resid_post")
    assert info.trained_on == "words"
    assert json.loads((tmp_path / "sae/train.json").read_text())["summary"]["step"] == 6
    names = {file.name for file in (tmp_path / "sae").iterdir()}
    assert names == {"sae.safetensors", "sae.json", "train.json", "metrics.jsonl"}  # the state is gone
    assert load_sae(tmp_path / "sae").k == 2


def test_a_finished_training_is_not_made_twice(store, tmp_path, capsys):
    path = launcher.train(_config(tmp_path), store)
    before = path.stat().st_mtime_ns
    assert launcher.train(_config(tmp_path), store) == path
    assert path.stat().st_mtime_ns == before and "trained already" in capsys.readouterr().err
    with pytest.raises(AmortjaxError, match=r"trained with k=2, not 3.*another --out"):
        launcher.train(_config(tmp_path, k=3), store)
    store.manifest["corpus_fingerprint"] = "other"
    with pytest.raises(AmortjaxError, match="corpus_fingerprint=words, not other"):
        launcher.train(_config(tmp_path), store)


def test_a_training_killed_before_its_last_file_is_finished_again(store, tmp_path):
    first = load_sae(launcher.train(_config(tmp_path), store))
    (tmp_path / "train.json").unlink()
    again = load_sae(launcher.train(_config(tmp_path), store))
    np.testing.assert_array_equal(first.W_enc, again.W_enc)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--acts=absent", "--out=x", "--k=2"], "absent"),
        (["--acts=absent", "--out=x"], "needs --k"),
        (["--acts=absent", "--out=x", "--variant=nonsense"], "Choices: standard, topk"),
        (["--acts=absent", "--out=x", "--k=2", "--lam=0.1"], "does nothing"),
        (["--acts=absent", "--out=x", "--k=2", "--steps=0"], "--steps=0: must be above 0"),
        (["--acts=absent", "--out=x", "--k=2", "--log_every=0"], "--log_every=0"),
        (["--out=x"], "needed: --acts"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(flags, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AmortjaxError, match=text) as caught:
        launcher.train(flagged.parse(launcher.Config, flags))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_help_is_quick_and_lists_the_flags():
    start = time.perf_counter()
    command = [sys.executable, "-m", "amortjax.launch.train", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert time.perf_counter() - start < 6  # 3 s on a quiet machine
    for flag in ("--acts", "--variant", "--n_latents", "--target_l0", "--seed", "--out"):
        assert flag in shown
