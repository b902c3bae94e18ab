"""The training benchmark: our side alone, the protocol with a peer that trains nothing, the real one if there is
one (AMORTJAX_PEER_PYTHON), what is written, and mistakes."""

import json
import os
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pandas as pd
import pytest
from mistakes import refuses

from amortjax.activations.store import MemoryStore
from amortjax.errors import AmortjaxError
from amortjax.launch import bench_training as launcher
from amortjax.launch.bench_parts import train_data, train_measure, train_options, train_process, train_score
from amortjax.launch.bench_parts.train_ours import Ours

D, M, K, B = 16, 64, 4, 32
TINY = {
    "d_model": D,
    "n_latents": M,
    "k": K,
    "batch_size": B,
    "rounds": 3,
    "round_steps": 2,
    "dead": ("0.25",),
}
# Answers as train_peer does, at a made-up speed, with codes of zero.
FAKE = """
import json, sys
import numpy as np
told = {}
for line in sys.stdin:
    asked = json.loads(line)
    do = asked["do"]
    if do == "hello":
        said = {"versions": {"torch": "0", "dictionary-learning": "0", "numpy": "0"}}
    elif do == "setup":
        told, done = asked, 0
        order = np.load(told["order"], mmap_mode="r")
        said = {"device": "fake"}
    elif do == "train":
        done += asked["steps"]
        assert done <= len(order)
        said = {"seconds": 0.5 * asked["steps"], "dead": 0}
    elif do == "quieten":
        said = {"dead": len(np.load(asked["latents"]))}
    elif do == "encode":
        m, d = told["options"]["dict_size"], told["options"]["activation_dim"]
        none = np.zeros(0, int)
        zeros = {"values": np.zeros(0), "w_dec": np.zeros((m, d)), "b_dec": np.zeros(d)}
        np.savez(asked["out"], rows=none, latents=none, **zeros)
        said = {"seconds": 0.0}
    print(json.dumps(said), flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """No test looks at compile times: what one has compiled serves the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "clear_caches", lambda: None)
        yield


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    r = np.random.default_rng(0)
    atoms = r.standard_normal((M, D))
    z = r.exponential(size=(1200, M)) * (r.random((1200, M)) < K / M)
    splits = ["sae_train", "sae_train", "sae_train", "test"] * 3
    return MemoryStore.build((5 * z @ atoms).astype(np.float32), np.repeat(np.arange(12), 100), splits)


@pytest.fixture
def fake(tmp_path, monkeypatch) -> str:
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(train_process.Peer.__init__, "__defaults__", (script,))
    return sys.executable


def config(folder, **more) -> launcher.Config:
    return launcher.Config(**{"out": str(folder / "out"), **TINY, **more})


def quality(folder, **more) -> launcher.Config:
    given = {"part": "quality", "acts": "unused", "steps": 20, "points": 2, "eval_rows": 200, **more}
    return config(folder, **given)


def test_our_side_alone_is_measured(tmp_path, capsys):
    rows = launcher.run(config(tmp_path, variants=("gated", "topk", "batch_topk")))
    expected = [("topk", 0), ("topk", 0.25), ("batch_topk", 0), ("batch_topk", 0.25), ("gated", 0)]
    assert [(row["variant"], row["dead_share"]) for row in rows] == expected
    for row in rows:
        assert row["ours_lo"] <= row["ours_tokens_per_second"] <= row["ours_hi"] and row["ours_lo"] > 0
        assert len(row["ours_each"]) == 3 and "ratio" not in row and row["peer"] is None
        # AuxK is at work where it should be, and only there; in so few dimensions some latent may come back.
        most = round(row["dead_share"] * M)
        assert most / 2 <= row["dead_at_last"] <= row["dead_at_first"] <= most
    out = tmp_path / "out"
    assert len(pd.read_csv(out / "training.csv")) == len(json.loads((out / "training.json").read_text())) == 5
    assert (out / "throughput.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "batches").exists()
    text = (out / "report.md").read_text()
    assert "dictionary_learning was not measured" in text and "| topk, 25 % dead |" in text
    assert "dictionary_learning was not measured" in capsys.readouterr().out


def test_sides_take_turns_and_the_ratio_is_of_rounds(tmp_path, fake):
    [row] = launcher.run(config(tmp_path, variants=("topk",), dead=(), peer_python=fake))
    assert row["peer_each"] == [2 * B / 1.0] * 3
    assert row["ratio"] == pytest.approx(np.median(row["ours_each"]) / (2 * B))
    assert row["ratio_lo"] <= row["ratio"] <= row["ratio_hi"]
    assert row["peer"]["options"]["k"] == K and row["peer"]["device"] == "fake"
    assert "dictionary_learning 0 with torch 0 on fake" in (tmp_path / "out/report.md").read_text()


def test_finished_rows_are_kept_and_new_ones_join_them(tmp_path, fake, monkeypatch, capsys):
    first = launcher.run(config(tmp_path, variants=("topk",), dead=(), peer_python=fake))
    # A row with a peer serves where none is asked for.
    rows = launcher.run(config(tmp_path, variants=("topk", "gated"), dead=()))
    assert [row["variant"] for row in rows] == ["topk", "gated"]
    assert rows[0]["ours_each"] == first[0]["ours_each"]
    assert "1 of 2 rows are finished" in capsys.readouterr().err
    with pytest.raises(AmortjaxError, match="use another --out"):
        launcher.run(config(tmp_path, variants=("topk",), rounds=4))
    # The gated row was measured without a peer.
    monkeypatch.setattr(train_measure, "throughput", lambda *_: pytest.fail("measured again"))
    with pytest.raises(pytest.fail.Exception):
        launcher.run(config(tmp_path, variants=("topk", "gated"), dead=(), peer_python=fake))


def test_quality_scores_both_sides_on_held_out_rows(tmp_path, fake, store, capsys):
    rows = launcher.run(quality(tmp_path, seeds=("0", "1"), peer_python=fake), store)
    names = ["topk", "topk", "batch_topk", "batch_topk", "jumprelu", "jumprelu"]
    assert [row["variant"] for row in rows] == names
    for row in rows:
        # Codes of zero and a bias of zero leave the mean in: FVU of at least 1; every latent is dead.
        assert row["peer_fvu"] >= 1 and row["peer_l0"] == 0 and row["peer_dead"] == 1
        assert np.isfinite(row["ours_fvu"]) and 0 < row["ours_l0"] <= M and 0 <= row["ours_dead"] < 1
        assert [point["step"] for point in row["curve"]] == [10, 20]
        assert row["curve"][-1]["ours_fvu"] == row["ours_fvu"]
        assert row["eval_tokens"] == 200
    assert all(row["ours_l0"] <= K and row["ours_fvu"] < 1 for row in rows if row["variant"] == "topk")
    assert len({row["ours_fvu"] for row in rows}) == len(rows)  # seeds differ
    text = (tmp_path / "out/report.md").read_text()
    assert "| topk | mean |" in text and "![quality](quality.png)" in text
    # The other part joins it in the same folder.
    launcher.run(config(tmp_path, variants=("topk",), dead=(), acts="unused", peer_python=fake), store)
    text = (tmp_path / "out/report.md").read_text()
    assert "## Quality" in text and "## Throughput" in text


def test_fvu_l0_and_dead_are_what_they_say():
    r = np.random.default_rng(0)
    x, w, b = r.standard_normal((50, D)), r.standard_normal((M, D)), r.standard_normal(D)
    z = r.exponential(size=(50, M)) * (r.random((50, M)) < 0.1)
    z[:, :7] = 0
    at = np.nonzero(z)
    found = train_score.score(train_score.Codes(*at, z[at], w, b), x)
    left, spread = np.sum((x - z @ w - b) ** 2), np.sum((x - x.mean(axis=0)) ** 2)
    assert found.fvu == pytest.approx(left / spread)
    assert found.l0 == pytest.approx(np.count_nonzero(z) / 50)
    assert found.dead == pytest.approx(1 - np.mean(z.any(axis=0))) and found.dead >= 7 / M


def test_our_codes_are_those_of_the_sae_with_its_threshold(tmp_path, store):
    cfg = quality(tmp_path, variants=("batch_topk",))
    data = train_data.stored(tmp_path, store, B, 20, 0, "test", 100)
    ours = Ours(launcher._plan(cfg, launcher.cases(cfg)[0], D), data)
    assert ours.train(20) > 0 and ours.done == 20
    x = np.load(data.held_out)
    codes = ours.encode(x)
    w_enc, b_enc = np.asarray(ours.state.weights["w_enc"]), np.asarray(ours.state.weights["b_enc"])
    pre = (x - codes.b_dec) @ w_enc.T + b_enc
    z = np.where(pre > float(ours.state.threshold), np.maximum(pre, 0), 0)
    dense = np.zeros_like(z)
    dense[codes.rows, codes.latents] = codes.values
    np.testing.assert_allclose(dense, z, atol=1e-5)


def test_both_sides_read_the_same_scaled_rows_and_every_row_once_per_epoch(tmp_path, store):
    data = train_data.stored(tmp_path, store, B, 60, 0, "test", 150)
    rows, order = np.load(data.rows), np.load(data.order)
    assert order.shape == (60, B) and len(rows) == 900
    assert np.mean(np.sum(rows**2, axis=1)) == pytest.approx(1, rel=1e-5)
    first = np.sort(order[: 900 // B].ravel())
    assert len(np.unique(first)) == len(first)
    raw = store.read(store.rows("test"))
    held = np.load(data.held_out) * data.scale
    assert len(held) == 150
    assert all(np.isclose(raw, row, rtol=1e-5).all(axis=1).any() for row in held[::30])
    other = np.load(train_data.stored(tmp_path / "b", store, B, 60, 1).order)
    assert (other != order).any()


@pytest.mark.parametrize("variant", launcher.ALL)
def test_what_the_peer_is_told_is_the_recipe(variant, tmp_path):
    cfg = quality(tmp_path, variants=(variant,), steps=100, dead_tokens=777)
    plan = launcher._plan(cfg, launcher.cases(cfg)[0], D)
    recipe, told = plan.recipe(), plan.for_peer("cpu")
    options = told["options"]
    assert options["lr"] == recipe.lr and options["steps"] == recipe.steps and options["dict_size"] == M
    assert options["warmup_steps"] == recipe.warmup_steps == 5
    assert options["decay_start"] == 80
    assert options.get("k", K) == K and options.get("auxk_alpha", 1 / 32) == recipe.auxk
    assert options.get("l1_penalty", recipe.lam) == recipe.lam
    assert options.get("sparsity_warmup_steps", 10) == recipe.sparsity_warmup_steps == 10
    assert told["attributes"].get("dead_feature_threshold", 777) == recipe.dead_after
    assert variant in train_options.THEIRS


def test_a_peer_that_dies_is_one_line_with_its_last_words(tmp_path, monkeypatch):
    script = tmp_path / "dies.py"
    script.write_text("import sys; sys.stdin.readline(); sys.exit('out of luck')")
    monkeypatch.setattr(train_process.Peer.__init__, "__defaults__", (script,))
    with pytest.raises(AmortjaxError, match=r"hello failed: no answer \(out of luck\)") as caught:
        launcher.run(config(tmp_path, peer_python=sys.executable))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_an_error_in_the_peer_is_said(tmp_path):
    with (
        train_process.Peer(sys.executable) as peer,
        pytest.raises(AmortjaxError, match=r"quieten failed: KeyError: 'latents'"),
    ):
        peer.ask("quieten")


def test_a_python_without_the_peer_says_how_to_make_one(tmp_path):
    script = tmp_path / "lacks.py"
    script.write_text(
        textwrap.dedent("""
        import json, sys
        sys.stdin.readline()
        print(json.dumps({"error": "ModuleNotFoundError: No module named 'dictionary_learning'"}), flush=True)
        """)
    )
    with (
        train_process.Peer(sys.executable, script) as peer,
        pytest.raises(AmortjaxError, match="pip install torch dictionary-learning"),
    ):
        peer.ask("hello")


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--out=x", "--variants=nonsense"], "--variants=nonsense: not a choice. Choices: topk"),
        (["--out=x", "--part=nonsense"], "Choices: throughput, quality"),
        (["--out=x", "--k=7000"], "--k=7000: must be at most --n_latents=6144"),
        (["--out=x", "--rounds=0"], "--rounds=0: must be above 0"),
        (["--out=x", "--dead=many"], "--dead=many: not numbers"),
        (["--out=x", "--dead=1.5"], "--dead=1.5: shares must be above 0 and below 1"),
        (["--out=x", "--part=quality"], "--part=quality needs --acts"),
        (["--out=x", "--part=quality", "--acts=absent"], "absent"),
        (
            ["--out=x", "--part=quality", "--acts=a", "--seeds=one"],
            "--seeds=one: name at least one whole number",
        ),
        (["--out=x", "--part=quality", "--acts=a", "--warmup=1900"], "below the 1600 steps"),
        (["--out=x", "--part=quality", "--acts=a", "--decay_from=0"], "--decay_from=0"),
        (["--out=x", "--peer_python=/no/such/python"], "--peer_python=/no/such/python: No such file"),
        (["--out=x", "--peer_python=/bin/cat"], "--peer_python=/bin/cat: hello failed"),
        ([], "needed: --out"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(flags, text, tmp_path, monkeypatch):
    refuses(launcher, flags, text, tmp_path, monkeypatch)


def test_a_store_with_fewer_rows_than_a_batch_is_refused(tmp_path, store):
    with pytest.raises(AmortjaxError, match="900 sae_train rows, fewer than one batch"):
        launcher.run(quality(tmp_path, batch_size=1000), store)


def test_help_is_light_and_lists_the_flags():
    command = [sys.executable, "-m", "amortjax.launch.bench_training", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for flag in ("--peer_python", "--part", "--acts", "--variants", "--dead", "--seeds", "--out"):
        assert flag in shown


@pytest.mark.parametrize("part", ["throughput", "quality"])
def test_dictionary_learning_itself(part, tmp_path, store):
    """Every variant's trainer takes what it is told, and counts as dead what it should."""
    python = os.environ.get("AMORTJAX_PEER_PYTHON", "")
    if not python:
        pytest.skip("AMORTJAX_PEER_PYTHON names no Python with torch and dictionary-learning")
    make = config if part == "throughput" else quality
    variants = launcher.ALL if part == "throughput" else ("topk", "batch_topk", "standard", "jumprelu")
    rows = launcher.run(make(tmp_path, acts="unused", peer_python=python, variants=variants), store)
    for row in rows:
        if part == "throughput":
            assert row["ratio"] > 0
            if row["variant"] not in ("standard", "april", "gated"):
                most = round(row["dead_share"] * M)
                assert most / 2 <= row["peer_dead_at_last"] <= row["peer_dead_at_first"] <= most
        else:
            assert np.isfinite(row["peer_fvu"]) and 0 < row["peer_l0"] <= M and 0 <= row["peer_dead"] < 1
        if part == "quality" and row["variant"] == "topk":
            # Both learn alike from the same batches: only their first weights differ.
            assert row["peer_l0"] == row["ours_l0"] == K and abs(row["peer_fvu"] - row["ours_fvu"]) < 0.4
