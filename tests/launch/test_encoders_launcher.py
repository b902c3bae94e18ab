"""`encoders` from end to end on a small store: recipes in the paper's units, rows, costs, resuming, mistakes."""

import dataclasses
import json
import re
import typing
from pathlib import Path

import numpy as np
import pytest

from amortjax.activations.store import MemoryStore
from amortjax.errors import AmortjaxError
from amortjax.launch import encoders, encoders_parts, encoders_training, flagged, section5, train
from amortjax.metrics import bench, flops
from amortjax.report.tables import read_results
from amortjax.saes.formats import load_sae, save_sae
from amortjax.training import lca_loop, plan
from tests.activations import tiny
from tests.problems import toy_sae

ACTIVATIONS = section5.activations
D, M, STEPS, BATCH = 16, 32, 60, 128
FLAGS = {
    "acts": "unused", "n_latents": M, "lam": 0.02, "mlp_lam": 0.02, "lr": 0.01, "steps": STEPS, "batch_size": BATCH,
    "resample_every": 25, "calibration_tokens": 1024, "eval_tokens": 1200, "probe_tokens": 256, "chunk": 256,
    "factors": "0.6", "judge_latents": 12, "checkpoint_every": 20, "eval_every": 30, "tol": 1e-3,
}  # fmt: skip


def config(out, **flags) -> encoders.Config:
    return flagged.parse(encoders.Config, [f"--{k}={v}" for k, v in (FLAGS | {"out": out} | flags).items()])


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    """6 000 tokens of 300 documents, made of 3 of 24 atoms each; a token's word is its strongest atom."""
    r = np.random.default_rng(5)
    atoms = r.standard_normal((24, D))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    z = np.zeros((6000, 24))
    for row in z:
        row[r.choice(24, 3, replace=False)] = r.exponential(size=3) + 0.5
    x = 10 * (z @ atoms + 0.05 * r.standard_normal((6000, D)) + np.linspace(-1, 1, D))
    splits = ["sae_train", "sae_train", "calibrate", "probe_train", "test"]
    return MemoryStore.build(
        x.astype(np.float32), np.repeat(np.arange(300), 20), [splits[i % 5] for i in range(300)],
        token_ids=z.argmax(axis=1).astype(np.int32), vocab=[f" word{i}" for i in range(24)],
        corpus_fingerprint="words", layer_index=3, hook="resid_pre",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def activations(store, monkeypatch):
    monkeypatch.setattr(section5, "activations", lambda config: store)


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(section5, "activations", lambda config: store)
        rows = encoders.run(config(out))
    return out, rows


def of(rows, method, mode, matched, condition="same_l0"):
    [row] = [
        r for r in rows
        if (r["method"], r["mode"], r["matched"], r["condition"]) == (method, mode, matched, condition)
    ]  # fmt: skip
    return row


def test_recipes_are_in_the_papers_units():
    made = encoders_training.recipes(config("x", steps=50000, lam=1e-4, mlp_lam=7e-5, hidden=""), 80.0)
    assert made["sae"].lam == pytest.approx(8e-3) and made["mlp"].lam == pytest.approx(5.6e-3)
    assert made["mlp"].hidden == M // 2 and made["mlp"].hidden_only
    # The lasso's P is half the SAE's loss.
    assert made["lca"].lam == pytest.approx(4e-3) and made["lca"].codes == "certified"
    for name in ("sae", "mlp"):
        recipe = made[name].check()
        assert (recipe.warmup_steps, recipe.sparsity_warmup_steps, recipe.decay_from) == (0, 0, 1.0)
        assert recipe.unit_decoder and recipe.resample_every == 25
    gentle = encoders_training.recipes(config("x", mlp_lr=1e-3, warmup=6), 80.0)
    assert (gentle["sae"].lr, gentle["mlp"].lr) == (0.01, 1e-3)
    assert gentle["sae"].warmup_steps == gentle["mlp"].warmup_steps == 6
    literal = encoders_training.recipes(config("x", lca="literal"), 80.0)["lca"]
    assert (literal.lam, literal.lr, literal.batch_size, literal.iterations) == (0.1, 3e-3, 128, 300)


def test_the_gpt2_preset_is_the_papers(monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    own = flagged.parse(encoders.Config, ["--flagfile=configs/encoders/gpt2_l9.flags"]).checked()
    made = encoders_training.recipes(own, 80.0)
    assert own.steps * own.batch_size == 406_400_000 and own.stream
    assert own.prepend_bos and own.max_seq_len == 128
    assert (own.layer_index, own.hook, own.n_latents, own.width) == (9, "resid_pre", 22 * 768, 8448)
    assert made["sae"].check().lam == pytest.approx(80e-4) and made["mlp"].check().lam == pytest.approx(56e-4)
    assert made["lca"].check().batch_size == 128
    assert all(made[name].resample_every == 15000 and made[name].lr == 3e-4 for name in made)


def test_help_of_a_methods_own_flags_names_the_method():
    hints = typing.get_type_hints(encoders.Config, include_extras=True)
    for start, method in (("lca_", "LCA dictionary: "), ("mlp_", "MLP: ")):
        own = {name: hint.__metadata__[0] for name, hint in hints.items() if name.startswith(start)}
        assert own and all(text.startswith(method) for text in own.values()), own


def test_every_method_is_there_at_every_l0(whole):
    out, rows = whole
    found = {(r["method"], r["mode"], r["matched"]) for r in rows if r["condition"] == "same_l0"}
    searched = {(m, mode) for m in ("sae_optimal", "lca") for mode in ("optimal", "optimal_refit")}
    wanted = {(*pair, whose) for pair in searched for whose in ("sae", "mlp", "sae x 0.6")}
    wanted |= {("sae", "amortized", "sae"), ("mlp", "amortized", "mlp")}
    wanted |= {("mlp_optimal", mode, "mlp") for mode in ("optimal", "optimal_refit")}
    assert found == wanted
    assert len(read_results(out)) == len(rows)
    for name in (
        "report.md",
        "report.html",
        "config.json",
        "figures/encoders.png",
        "training.png",
        "results.csv",
    ):
        assert (out / name).stat().st_size > 300
    for name in ("sae", "mlp", "lca"):
        assert load_sae(str(out / name)).info.trained_on == "words"
    assert not list(out.rglob("*.part")) and not (out / "state").exists() and not (out / "lca_state").exists()


def test_rows_are_matched_and_paired(whole):
    rows = whole[1]
    for whose in ("sae", "mlp"):
        base = of(rows, whose, "amortized", whose)
        for method in ("sae_optimal", "lca"):
            for mode in ("optimal", "optimal_refit"):
                row = of(rows, method, mode, whose)
                assert row["l0_calibration"] == pytest.approx(base["l0_calibration"], rel=0.02)
                assert row["nmse_minus_encoder"] == pytest.approx(row["nmse"] - base["nmse"])
                assert (
                    row["nmse_minus_encoder_lo"] <= row["nmse_minus_encoder"] <= row["nmse_minus_encoder_hi"]
                )
                assert row["n_tokens"] == base["n_tokens"] and row["nmse_literal"] < row["nmse"]
        # The optimum is below the encoder on the encoder's own objective, and its certificate says so.
        assert base["star_suboptimality_upper"] >= base["star_suboptimality_lower"] > 0
        assert base["trained_suboptimality_upper"] > 0
        assert of(rows, f"{whose}_optimal", "optimal", whose)["star_suboptimality_upper"] < 2e-3
    half = of(rows, "lca", "optimal", "sae x 0.6")
    assert half["l0_calibration"] == pytest.approx(
        0.6 * of(rows, "sae", "amortized", "sae")["l0_calibration"], rel=0.02
    )
    own = of(rows, "lca", "optimal", "own", "trained_lambda")
    assert own["lam"] == pytest.approx(load_sae(str(whole[0] / "lca")).info.lam_train / 2)


def test_costs_are_the_closed_forms(whole):
    rows = whole[1]
    tokens = STEPS * BATCH
    sae, mlp = of(rows, "sae", "amortized", "sae"), of(rows, "mlp", "amortized", "mlp")
    assert sae["train_flops"] == flops.total("sae", D, M, steps=STEPS, batch=BATCH).train
    assert mlp["train_flops"] == flops.total("mlp", D, M, steps=STEPS, batch=BATCH, hidden=M // 2).train
    assert sae["inference_flops"] == flops.total("sae", D, M, test_samples=1).inference
    assert mlp["inference_flops"] == flops.total("mlp", D, M, test_samples=1, hidden=M // 2).inference
    best, lca = of(rows, "sae_optimal", "optimal", "sae"), of(rows, "lca", "optimal", "sae")
    assert best["train_flops"] == sae["train_flops"] and best["inference_flops"] > sae["inference_flops"]
    record = json.loads((whole[0] / "lca" / "train.json").read_text())
    search = flops.active_set(D, M, 1, round(record["summary"]["l0"])) * record["summary"]["iterations"]
    assert lca["train_flops"] == pytest.approx(tokens * (search + 7 * D * M), abs=2)
    assert encoders_parts.train_flops(load_sae(str(whole[0] / "sae")), "sae", {"recipe": None}) is None


def test_the_judge_is_asked_about_each_method(whole):
    out, rows = whole
    for method, mode, whose in (
        ("sae", "amortized", "sae"),
        ("mlp", "amortized", "mlp"),
        ("lca", "optimal", "sae"),
    ):
        row = of(rows, method, mode, whose)
        assert 0 < row["judge_n_scored"] <= 12 and 0 <= row["macro_f1"] <= 1
        assert (out / "judge" / f"{method}.jsonl").stat().st_size > 0
    assert "macro_f1" not in of(rows, "lca", "optimal", "mlp")


def test_a_second_run_trains_and_measures_nothing(whole, monkeypatch, capsys):
    out, rows = whole

    def never(*_, **__):
        raise AssertionError("made again")

    monkeypatch.setattr(lca_loop, "train", never)
    monkeypatch.setattr(bench, "measure", never)
    again = encoders.run(config(out))
    assert "trained already" in capsys.readouterr().err
    names = ("method", "mode", "matched", "condition", "nmse", "l0", "dead", "macro_f1", "train_flops")
    few = lambda rows: [[row.get(name) for name in names] for row in rows]  # noqa: E731
    assert few(again) == few(rows)
    with pytest.raises(AmortjaxError, match="lam="):
        encoders.run(config(out, lam=0.05))
    with pytest.raises(AmortjaxError, match="finished dictionary trained with tol="):
        encoders.run(config(out, lca_tol=0.01))


def test_a_run_killed_while_it_measures_goes_on(whole, tmp_path, monkeypatch):
    out, rows = whole
    lent = ",".join(f"{name}={out / name}" for name in ("sae", "lca"))
    own = config(tmp_path / "out", ckpts=lent, methods="sae,lca", factors="", judge="none")
    measure, measured = bench.measure, []

    def killed(*args, **kwargs):
        if len(measured) == 4:
            raise KeyboardInterrupt
        measured.append(None)
        return measure(*args, **kwargs)

    monkeypatch.setattr(bench, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        encoders.run(own)
    monkeypatch.setattr(bench, "measure", lambda *a, **k: measured.append(None) or measure(*a, **k))
    again = encoders.run(own)
    # Nothing twice: as many measurements as there are files of them.
    assert (
        len(measured)
        == len([path for path in (tmp_path / "out/rows").iterdir() if path.suffix == ".npz"])
        > 5
    )
    for method, mode in (("sae", "amortized"), ("sae_optimal", "optimal"), ("lca", "optimal_refit")):
        assert of(again, method, mode, "sae")["nmse"] == of(rows, method, mode, "sae")["nmse"]


def test_streamed_as_gpt2_is(tmp_path, monkeypatch):
    """The preset's way: straight from a model whose tokenizer adds no BOS, nothing stored, an evaluation after it."""
    monkeypatch.setattr(section5, "activations", ACTIVATIONS)
    model, text, out = tmp_path / "gpt2", tmp_path / "text.txt", tmp_path / "out"
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    tiny.module("gpt2").save_pretrained(model)
    tokenizer.save_pretrained(model)
    text.write_text("\n".join(tiny.texts(900)))
    rows = encoders.run(config(
        out, acts="", stream=True, model_name=model, layer_index=1, hook="resid_pre", dataset=text, prepend_bos=True,
        max_seq_len=32, steps=12, checkpoint_every=0, eval_every=0, resample_every=0, methods="sae,lca", factors="",
        judge="none", buffer_tokens=4096, calibration_tokens=256, eval_tokens=512, probe_tokens=256,
    ))  # fmt: skip
    assert of(rows, "sae_optimal", "optimal", "sae")["nmse"] > 0
    policy = json.loads((out / "units.json").read_text())["rows"]["token_policy"]
    assert policy["bos"] == "prepended" and policy["special"] == "excluded"
    assert not list(tmp_path.rglob("*.zarr")) and not list(out.rglob("manifest.json"))


def test_lent_saes_are_not_trained(whole, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("trained")

    monkeypatch.setattr(train, "train_all", never)
    save_sae(toy_sae("standard", d=D, m=M), tmp_path / "toy" / "sae.safetensors")
    few = {
        "methods": "sae,lca",
        "factors": "",
        "judge": "none",
        "lca": "literal",
        "lca_steps": 3,
        "lca_iterations": 9,
    }
    rows = encoders.run(config(tmp_path / "out", ckpts=f"sae={whole[0] / 'sae'}", **few))
    assert of(rows, "sae", "amortized", "sae")["nmse"] == of(whole[1], "sae", "amortized", "sae")["nmse"]
    assert (
        of(rows, "sae", "amortized", "sae")["train_flops"]
        == of(whole[1], "sae", "amortized", "sae")["train_flops"]
    )
    released = of(rows, "lca", "released", "own", "released")
    assert released["lam"] == 0.1 and 0 < released["l0"] <= M and 0 < released["iterations"] <= 100
    assert released["nmse"] == released["nmse_literal"] and "macro_f1" not in released
    # From zero, without an encoder's pass: four products an iteration, and one that decodes.
    per_iteration = 8 * D * M + 2 * D + 8 * M
    assert released["inference_flops"] == round(released["iterations"] * per_iteration) + 2 * D * M
    own = config(tmp_path / "b", ckpts=f"sae={tmp_path / 'toy'}", methods="sae")
    found = encoders_training.trained(own, None, encoders_training.lent_saes(own))["sae"]
    assert found.info.name == "sae" and found.info.lam_train is None


def test_lent_saes_are_looked_at_before_anything_is_collected_or_trained(tmp_path, monkeypatch, store):
    def never(*_, **__):
        raise AssertionError("too late")

    for module, name in ((train, "train_all"), (lca_loop, "train")):
        monkeypatch.setattr(module, name, never)
    save_sae(toy_sae("standard", d=D + 1, m=M), tmp_path / "wide" / "sae.safetensors")
    with pytest.raises(
        AmortjaxError, match=f"--ckpts: sae takes .* width {D + 1}, .* have width {D}: "
    ) as wide:
        encoders.run(config(tmp_path / "out", ckpts=f"sae={tmp_path / 'wide'}"))
    # From a language model there is no store yet: the source says how wide rows are.
    source = dataclasses.make_dataclass("S", ["d_model"])(D)
    monkeypatch.setattr(encoders_training._Sources, "_make", lambda self, n: source)
    own = config(tmp_path / "out", ckpts=f"sae={tmp_path / 'wide'}")
    with pytest.raises(AmortjaxError, match=f"width {D + 1}"):
        encoders_training.trained(own, None, encoders_training.lent_saes(own))
    monkeypatch.setattr(section5, "activations", never)
    with pytest.raises(
        AmortjaxError, match=r"--ckpts=sae=/nonexistent: .*no such file or folder; give"
    ) as gone:
        encoders.run(config(tmp_path / "out", ckpts="sae=/nonexistent"))
    assert "\n" not in str(wide.value) + str(gone.value) and not (tmp_path / "out").exists()


def test_the_searched_dictionarys_memory_is_planned_before_it_is_trained(tmp_path, monkeypatch, capsys):
    def never(*_, **__):
        raise AssertionError("begun")

    monkeypatch.setattr(lca_loop, "train", never)
    monkeypatch.setattr(plan, "host_free", lambda: 2**20)
    with pytest.raises(AmortjaxError, match=r"not enough memory: .*--lca_batch_size=2048"):
        encoders.run(config(tmp_path / "out", methods="lca", lca="literal", lca_batch_size=2048))
    assert "memory plan: LCA dictionary, literal, M = 32, D = 16, 2048 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", '{"scale": "x", "rows": {}}', '{"scale": -1, "rows": {}}', '{"scale": 1e999, "rows": {}}',
        '{"scale": 1, "rows": 3}', '{"rows": {}}',
    ],
)  # fmt: skip
def test_a_broken_units_file_is_one_line(tmp_path, text, store):
    (tmp_path / "units.json").write_text(text)
    source = dataclasses.make_dataclass("S", ["manifest"])(store.manifest)
    with pytest.raises(AmortjaxError, match="holds no scale of the activations: delete it") as caught:
        encoders_training.kept_scale(tmp_path / "units.json", source)
    assert "\n" not in str(caught.value)


def test_units_of_other_activations_are_refused(tmp_path, store):
    (tmp_path / "units.json").write_text(json.dumps({"scale": 2.0, "rows": {"corpus_fingerprint": "other"}}))
    source = dataclasses.make_dataclass("S", ["manifest"])(store.manifest)
    with pytest.raises(AmortjaxError, match="is of other activations"):
        encoders_training.kept_scale(tmp_path / "units.json", source)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"lam": 0}, "--lam=0.0: must be above 0"),
        ({"lca_lam": "nan"}, "--lca_lam=nan: must be above 0"),
        ({"hidden": -3}, "--hidden=-3"),
        ({"mlp_lr": 0}, "--mlp_lr=0.0: must be above 0"),
        ({"warmup": 60}, "--warmup=60: must be less than --steps=60"),
        ({"resample_every": -1}, "--resample_every=-1: must not be negative"),
        ({"methods": ""}, "--methods is empty"),
        ({"factors": "1,-2"}, "--factors: multiples"),
        ({"ckpts": "outputs/sae"}, "--ckpts=outputs/sae: say NAME=PATH"),
        ({"ckpts": "topk=a"}, "NAME one of --methods=sae,mlp,lca"),
        ({"ckpts": "sae=a,sae=b"}, "each NAME once"),
        ({"acts": ""}, "give --acts, or --model_name and --layer_index"),
        (
            {"stream": True},
            "--stream takes activations from a language model: give --model_name and --layer_index",
        ),
        ({"stream": True, "model_name": "gpt2"}, "give --model_name and --layer_index"),
        ({"batch_size": 2**30}, "more than 1073741824 tokens are not counted"),
        ({"lca": "rozell"}, "Choices: certified, lca, literal"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(flags, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AmortjaxError, match=re.escape(text)) as caught:
        encoders.run(config("out", **flags))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
