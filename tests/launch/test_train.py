"""The train launcher: what it writes, that it does nothing twice, and its one-line errors."""

import json
import os
import subprocess
import sys
import time

import jax
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
    [path] = launcher.train(_config(tmp_path / "sae"), store)
    sae = load_sae(path)
    assert (sae.variant, sae.k, sae.n_latents, sae.d_in) == ("topk", 2, 16, 8)
    info = sae.info
    assert (info.name, info.model_name, info.layer_index, info.hook) == ("sae", "tiny", 2, "resid_post")
    assert info.trained_on == "words"
    assert json.loads((tmp_path / "sae/train.json").read_text())["summary"]["step"] == 6
    names = {file.name for file in (tmp_path / "sae").iterdir()}
    # The state is gone.
    assert names == {
        "sae.safetensors",
        "sae.json",
        "train.json",
        "metrics.jsonl",
        "training.png",
        "training.svg",
    }
    assert load_sae(tmp_path / "sae").k == 2


def test_a_finished_training_is_not_made_twice(store, tmp_path, capsys):
    [path] = launcher.train(_config(tmp_path), store)
    before = path.stat().st_mtime_ns
    assert launcher.train(_config(tmp_path), store) == [path]
    assert path.stat().st_mtime_ns == before and "trained already" in capsys.readouterr().err
    with pytest.raises(AmortjaxError, match=r"trained with k=2, not 3.*another --out"):
        launcher.train(_config(tmp_path, k=3), store)
    store.manifest["corpus_fingerprint"] = "other"
    with pytest.raises(AmortjaxError, match="corpus_fingerprint=words, not other"):
        launcher.train(_config(tmp_path), store)


def test_a_training_killed_before_its_last_file_is_finished_again(store, tmp_path):
    first = load_sae(*launcher.train(_config(tmp_path), store))
    (tmp_path / "train.json").unlink()
    again = load_sae(*launcher.train(_config(tmp_path), store))
    np.testing.assert_array_equal(first.W_enc, again.W_enc)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--acts=absent", "--out=x", "--k=2"], "absent"),
        (["--acts=absent", "--out=x"], "needs --k"),
        (["--acts=absent", "--out=x", "--variant=nonsense"], "Choices: standard, april"),
        (["--acts=absent", "--out=x", "--k=2", "--lam=0.1"], "does nothing"),
        (["--acts=absent", "--out=x", "--k=2", "--steps=0"], "--steps=0: must be above 0"),
        (["--acts=absent", "--out=x", "--k=2", "--log_every=0"], "--log_every=0"),
        (["--acts=absent"], "needed: --out"),
        (["--out=x", "--k=2"], "give --acts, or --model_name and --layer_index"),
        (["--out=x", "--k=2", "--model_name=embedded"], "give --acts, or --model_name and --layer_index"),
        (["--acts=absent", "--out=x", "--k=2", "--save_at=2"], "--save_at"),
        (["--acts=absent", "--out=x", "--k=2", "--eval_every=-1"], "--eval_every=-1"),
        (["--acts=absent", "--out=x", "--sweep=k"], "--sweep=k: write it as FLAG:VALUE/VALUE"),
        (["--acts=absent", "--out=x", "--sweep=q:1/2"], "--q is not a flag of the recipe"),
        (["--acts=absent", "--out=x", "--sweep=k:1/x"], "--k=x: not an int"),
        (["--acts=absent", "--out=x", "--sweep=k:1/1"], "there twice"),
        (["--acts=absent", "--out=x", "--sweep=k:1,k:2"], "there twice"),
        (["--acts=absent", "--out=x", "--k=2", "--seed=-1"], "--seed=-1: must not be negative"),
        (
            ["--acts=absent", "--out=x", "--k=2", "--warmup=1200"],
            "--warmup=1200: must be less than --steps=1200",
        ),
        (["--acts=absent", "--out=x", "--k=2", "--dead_tokens=3000000000"], "are not counted"),
        (
            ["--acts=absent", "--out=x", "--variant=batch_topk", "--k=2", "--batch_size=1048576"],
            "ranks a batch's latents together",
        ),
        (["--acts=absent", "--out=x", "--sweep=acts:1/x"], "--acts is not a flag of the recipe"),
        (["--acts=absent", "--out=x", "--configs=absent.flags"], "absent.flags is not a file"),
        (["--acts=absent", "--out=x", "--k=2", "--init=absent"], "absent: no such file"),
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


def test_a_width_that_does_not_fit_is_told_before_anything_is_written(store, tmp_path):
    [path] = launcher.train(_config(tmp_path / "first"), store)
    wide = MemoryStore.build(
        np.zeros((100, 9), np.float32) + np.arange(100)[:, None], np.zeros(100, int), ["sae_train"]
    )
    with pytest.raises(AmortjaxError, match=r"takes activations of width 8, but these have width 9"):
        launcher.train(_config(tmp_path / "second", init=str(path)), wide)
    assert not (tmp_path / "second").exists()


def test_a_sweep_and_a_list_of_flagfiles_share_their_batches(store, tmp_path, capsys):
    (tmp_path / "relu.flags").write_text("--variant=standard\n--lam=0.3\n")
    (tmp_path / "top.flags").write_text("--k=2\n")
    files = (str(tmp_path / "relu.flags"), str(tmp_path / "top.flags"))
    config = _config(tmp_path / "out", k=None, configs=files, sweep=("n_latents:16/24",))
    paths = launcher.train(config, store)
    assert "trained already" not in capsys.readouterr().err
    names = [path.parent.name for path in paths]
    assert names == ["relu_n_latents_16", "relu_n_latents_24", "top_n_latents_16", "top_n_latents_24"]
    saes = [load_sae(path) for path in paths]
    assert [(sae.variant, sae.n_latents, sae.k) for sae in saes] == [
        ("standard", 16, None), ("standard", 24, None), ("topk", 16, 2), ("topk", 24, 2),
    ]  # fmt: skip
    assert (tmp_path / "out/training.png").stat().st_size > 1000
    [alone] = launcher.train(_config(tmp_path / "alone", n_latents=24), store)
    np.testing.assert_array_equal(load_sae(alone).W_enc, saes[3].W_enc)
    (tmp_path / "top.flags").write_text("--k=2\n--acts=another\n")
    with pytest.raises(
        AmortjaxError, match=r"top.flags sets --acts=another, but SAEs trained in one pass share it"
    ):
        launcher.train(config, store)


KILLED = """
import os, signal, sys
import numpy as np
from amortjax.activations.store import MemoryStore
from amortjax.launch import train as launcher
from amortjax.training import loop
x = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
store = MemoryStore.build(x, np.repeat(np.arange(6), 100), ["sae_train"] * 5 + ["test"], model_name="tiny")
out, kill_at = sys.argv[1], int(sys.argv[2])
step = loop._Run.step
def watched(self, x, done):
    step(self, x, done)
    if done == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
loop._Run.step = watched
config = launcher.Config(acts="unused", out=out, n_latents=16, k=2, steps=40, batch_size=50, checkpoint_every=10)
launcher.train(config, store)
"""


def test_killed_with_sigkill_and_resumed_gives_the_same_bits(store, tmp_path):
    """2 N steps, here, are N steps, kill -9, and the rest, in processes of their own: to the saved file's bytes."""

    def run(out: str, kill_at: int) -> int:
        return subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / out), str(kill_at)]).returncode

    launcher.train(_config(tmp_path / "straight", steps=40, checkpoint_every=10), store)
    assert run("killed", 27) == -9
    assert not (tmp_path / "killed/sae.safetensors").exists()
    assert (tmp_path / "killed/state/20").is_dir()
    assert run("killed", 0) == 0
    first, second = (load_sae(tmp_path / name) for name in ("straight", "killed"))
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_no_room_for_the_next_checkpoint_is_told_before_it_is_written(store, tmp_path, monkeypatch):
    from amortjax.training import room

    free = [10**12]
    monkeypatch.setattr(room, "disk_free", lambda folder: free[0])
    save = launcher_saved().Checkpoints.save

    def last_one_that_fits(self, done, *rest):
        save(self, done, *rest)
        free[0] = 100

    monkeypatch.setattr(launcher_saved().Checkpoints, "save", last_one_that_fits)
    with pytest.raises(AmortjaxError, match=r"are to be written and .* are free.*free some disk"):
        launcher.train(_config(tmp_path, steps=30, checkpoint_every=10), store)
    assert [f.name for f in (tmp_path / "state").iterdir() if f.name.isdigit()] == ["10"]


def launcher_saved():
    from amortjax.training import saved

    return saved


def test_straight_from_a_language_model(tmp_path):
    config = launcher.Config(
        out=str(tmp_path / "sae"), model_name="embedded", layer_index=1, dataset=_words(tmp_path), n_latents=16, k=2,
        steps=6, batch_size=32, buffer_tokens=256, eval_every=3, cache_dir=str(tmp_path),
    )  # fmt: skip
    [path] = launcher.train(config)
    sae = load_sae(path)
    assert sae.info.model_name == "embedded" and sae.info.layer_index == 1
    line = json.loads((tmp_path / "sae/metrics.jsonl").read_text().splitlines()[-1])
    assert line["step"] == 6 and line["val_fvu"] > 0


def _words(folder) -> str:
    rng = np.random.default_rng(0)
    names = [
        "latent",
        "token",
        "sparse",
        "code",
        "norm",
        "layer",
        "model",
        "guess",
        "price",
        "optimum",
        "shard",
        "seed",
    ]
    lines = [json.dumps({"text": " ".join(rng.choice(names, 40))}) for _ in range(120)]
    (folder / "words.jsonl").write_text("\n".join(lines))
    return str(folder / "words.jsonl")


EIGHT = """
import sys
import jax, numpy as np
from amortjax.activations.store import MemoryStore
from amortjax.launch import train as launcher
x = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
store = MemoryStore.build(x, np.repeat(np.arange(6), 100), ["sae_train"] * 5 + ["test"])
for variant in ("topk", "batch_topk"):
    config = launcher.Config(
        acts="unused", out=f"{sys.argv[1]}/{variant}", variant=variant, n_latents=16, k=2, steps=8, batch_size=64
    )
    launcher.train(config, store)
print(jax.device_count())
"""


def test_eight_devices_train_the_same_saes_as_one(store, tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    env = os.environ | {"XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", EIGHT, str(tmp_path / "8")], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "8" and jax.device_count() == 1
    for variant in ("topk", "batch_topk"):
        [path] = launcher.train(
            _config(tmp_path / "1" / variant, variant=variant, steps=8, batch_size=64), store
        )
        one, eight = load_sae(path), load_sae(tmp_path / "8" / variant)
        np.testing.assert_allclose(one.W_enc, eight.W_enc, atol=2e-5)
        np.testing.assert_allclose(one.W_dec, eight.W_dec, atol=2e-5)


def test_a_killed_run_does_not_go_on_with_other_rows(store, tmp_path, monkeypatch):
    from amortjax.training import loop

    step = loop._Run.step

    def killed(self, x, done):
        step(self, x, done)
        if done == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop._Run, "step", killed)
    config = _config(tmp_path, steps=20, checkpoint_every=10)
    with pytest.raises(KeyboardInterrupt):
        launcher.train(config, store)
    monkeypatch.undo()
    store.manifest["seed"] = 5  # other documents would be sae_train
    with pytest.raises(AmortjaxError, match="store's seed=None, not 5: use another --out"):
        launcher.train(config, store)
    del store.manifest["seed"]
    launcher.train(config, store)


def test_nothing_but_its_own_checkpoints_is_removed(store, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state/notes.txt").write_text("mine")
    launcher.train(_config(tmp_path), store)
    assert (tmp_path / "state/notes.txt").read_text() == "mine"
    (tmp_path / "state.flags").write_text("--k=2\n")
    with pytest.raises(AmortjaxError, match="state: a folder of that name is the trainer's own"):
        launcher.train(_config(tmp_path / "more", k=None, configs=(str(tmp_path / "state.flags"),)), store)


def test_a_sweep_that_grew_trains_what_is_new_only(store, tmp_path, capsys):
    launcher.train(_config(tmp_path, k=None, sweep=("k:1/2",)), store)
    kept = (tmp_path / "k_1/sae.safetensors").stat().st_mtime_ns
    paths = launcher.train(_config(tmp_path, k=None, sweep=("k:1/3",)), store)
    assert [path.parent.name for path in paths] == ["k_1", "k_3"] and all(path.is_file() for path in paths)
    assert (tmp_path / "k_1/sae.safetensors").stat().st_mtime_ns == kept
    assert "1 of 2 trained already" in capsys.readouterr().err
