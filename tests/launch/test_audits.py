"""dead_audit, nulls and consistency from end to end, on SAEs of which the answer is known by construction."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from mistakes import refuses

import amortjax as aj
from amortjax.activations.store import MemoryStore
from amortjax.errors import AmortjaxError
from amortjax.launch import audits, consistency, dead_audit, flagged, nulls, section5
from amortjax.metrics import coded
from amortjax.report.tables import read_results
from amortjax.saes.sae import SAE, Info

D = 16
USEFUL = 12  # the first directions make the tokens; no token has the others
UNUSED, SPARE, DECOY = (
    12,
    13,
    14,
)  # latents: an unused direction, and two between a useful direction and an unused one
SILENCED = 3  # a useful atom whose encoder has a bias of -40


def sae() -> SAE:
    """Atoms: the axes 0 to 12, and two that lie between axes 5 and 14, and 7 and 15, which the lasso never needs."""
    atoms = np.zeros((15, D), np.float32)
    atoms[:13, :13] = np.eye(13)
    atoms[SPARE, [5, 14]] = atoms[DECOY, [7, 15]] = 0.5**0.5
    bias = np.full(15, -1.2, np.float32)
    bias[[SILENCED, SPARE, UNUSED]] = -40
    none, encoder = jnp.zeros(D), jnp.asarray(atoms.T)
    return SAE(
        encoder, jnp.asarray(bias), jnp.asarray(atoms), none, none, {}, "standard", info=Info(name="known")
    )


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    """2 304 tokens of 384 documents in two classes; class 1 always has direction 0. A split is 3 chunks of 256."""
    r = np.random.default_rng(7)
    label = r.integers(0, 2, 384)
    x = np.zeros((2304, D), np.float32)
    for i, row in enumerate(x):
        row[1 + r.choice(USEFUL - 1, 4, replace=False)] = r.uniform(1, 4, 4)
        row[0] = 3.0 * label[i // 6]
    splits = np.array(["calibrate", "probe_train", "test"])[np.arange(384) % 3]
    return MemoryStore.build(x, np.repeat(np.arange(384), 6), list(splits), [f"class {i}" for i in label])


@pytest.fixture(scope="module")
def ckpts(tmp_path_factory):
    """The SAE, a copy with its latents in another order, and one of random atoms."""
    folder, known = tmp_path_factory.mktemp("ckpts"), sae()
    order = np.random.default_rng(0).permutation(15)
    turned = dataclasses.replace(
        known, W_enc=known.W_enc[:, order], b_enc=known.b_enc[order], W_dec=known.W_dec[order]
    )
    atoms = np.random.default_rng(1).standard_normal((15, D)).astype(np.float32)
    atoms = jnp.asarray(atoms / np.linalg.norm(atoms, axis=1, keepdims=True))
    other = dataclasses.replace(known, W_enc=atoms.T, W_dec=atoms, b_enc=jnp.full(15, -0.8))
    for name, one in (("known", known), ("permuted", turned), ("other", other)):
        aj.save_sae(one, folder / name, "native")
    return folder, order


@pytest.fixture
def activations(store, monkeypatch):
    monkeypatch.setattr(section5, "activations", lambda config: store)


def config(launcher, ckpts, out, names=("known",), **more):
    given = {"ckpts": ",".join(str(ckpts[0] / name) for name in names), "acts": "unused", "out": out}
    given |= {"chunk": 256, "ista_steps": 4} | more
    return flagged.parse(launcher.Config, [f"--{name}={value}" for name, value in given.items()])


def forbid_solving(monkeypatch):
    def refuse(*_):
        raise AssertionError("codes are made again")

    monkeypatch.setattr(coded, "_solve", refuse)


# --- the dead-latent audit ---

FEW = {"first_tokens": 60, "tolerances": "1e-4,1e-6"}


@pytest.fixture(scope="module")
def audited(store, ckpts, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(section5, "activations", lambda config: store)
        rows = dead_audit.run(config(dead_audit, ckpts, out, ("known", "permuted"), **FEW))
    return out, rows


def classes(out, name: str, tol: str = "1e-06") -> list[str]:
    return pd.read_csv(out / "latents" / f"{name}.csv")[f"class_tol{tol}"].tolist()


def test_every_latent_is_in_the_class_it_was_built_for(audited):
    out, rows = audited
    wanted = {UNUSED: "dead", SILENCED: "encoder_only", SPARE: "under_converged", DECOY: "optimum_only"}
    for tol in ("0.0001", "1e-06"):
        assert classes(out, "known", tol) == [wanted.get(j, "alive") for j in range(15)]
    table = pd.read_csv(out / "latents" / "known.csv")
    assert table["certified_dead"].tolist() == [j in (UNUSED, SPARE, DECOY) for j in range(15)]
    assert table["fires_optimum_at_lambda_of_ista"][SPARE] == 0 < table["fires_ista"][SPARE]
    row = next(row for row in rows if row["tol"] == 1e-6)
    assert (row["n_alive"], row["n_dead"], row["n_encoder_only"]) == (11, 1, 1)
    assert (row["n_under_converged"], row["n_under_converged_confirmed"], row["n_optimum_only"]) == (1, 1, 1)
    assert row["dead_encoder"] == pytest.approx(3 / 15) and row["dead_optimum"] == pytest.approx(3 / 15)
    assert (
        row["l0_optimum"]
        == pytest.approx(row["l0_target"], rel=0.05)
        == pytest.approx(row["l0_ista"], rel=0.1)
    )
    assert row["certified"] == 1
    assert row["encoder_only_half_lo"] <= row["encoder_only_half"] <= row["encoder_only_half_hi"]


def test_the_order_of_latents_changes_nothing(audited, ckpts):
    out, rows = audited
    assert classes(out, "permuted") == [classes(out, "known")[j] for j in ckpts[1]]
    one, two = (
        {key: value for key, value in row.items() if isinstance(value, float) and key != "seconds"}
        for row in (next(r for r in rows if r["checkpoint"] == name) for name in ("known", "permuted"))
    )
    assert one == pytest.approx(two, rel=1e-3)


def test_curves_fall_and_end_at_the_whole(audited):
    out, rows = audited
    curves = [c for c in read_results(out, "curves") if c["checkpoint"] == "known" and c["tol"] == 1e-4]
    whole = next(row for row in rows if row["tol"] == 1e-4)
    for kind in ("nested", "expected"):
        own = [c for c in curves if c["kind"] == kind]
        assert len(own) > 3 and own[-1]["n_tokens"] == whole["n_tokens"]
        for name in ("dead_encoder", "dead_optimum", "dead_ista"):
            shares = [c[name] for c in own]
            assert np.all(np.diff(shares) < 1e-9) and shares[-1] == pytest.approx(whole[name])
        assert sum(own[0][name] for name in dead_audit_names()) == pytest.approx(1)
    nested = [c for c in curves if c["kind"] == "nested"]
    assert all(c["certified_dead"] <= c["dead_optimum"] + 1e-12 for c in nested)
    assert nested[0]["n_tokens"] == 60 and nested[1]["n_tokens"] == 120


def dead_audit_names() -> tuple[str, ...]:
    from amortjax.metrics.dead_audit import NAMES

    return NAMES


def test_the_audits_report_says_what_was_found(audited):
    out, _ = audited
    page = (out / "report.md").read_text()
    assert "known: of 15 latents the encoder leaves 3 silent" in page
    assert (
        "1 fire under the optimum, 1 only in ISTA that stopped early (of which 1 confirmed), 1 under neither"
        in page
    )
    assert "figures/dead_audit.png" in page and (out / "figures" / "dead_audit.svg").stat().st_size > 1000
    assert "Why latents are dead" in (out / "report.html").read_text()
    assert json.loads((out / "config.json").read_text())["first_tokens"] == 60
    assert not list(out.rglob("*.part"))


def test_a_second_audit_makes_only_what_is_missing(audited, ckpts, activations, monkeypatch):
    out, before = audited
    given = config(dead_audit, ckpts, out, ("known", "permuted"), **FEW)
    with monkeypatch.context() as patch:
        forbid_solving(patch)
        assert dead_audit.run(given) == before
    parts = sorted((out / "rows").glob("part_*.npz"))
    parts[0].unlink()
    parts[1].write_bytes(parts[1].read_bytes()[:50])
    assert dead_audit.run(given) == before
    assert len(sorted((out / "rows").glob("part_*.npz"))) == len(parts)


def test_parts_and_chunks_do_not_matter(audited, ckpts, activations, tmp_path, monkeypatch):
    monkeypatch.setattr(coded, "PART_CHUNKS", 2)
    rows = dead_audit.run(config(dead_audit, ckpts, tmp_path, first_tokens=60, chunk=128, tolerances="1e-6"))
    wanted = next(row for row in audited[1] if row["checkpoint"] == "known" and row["tol"] == 1e-6)
    for name in (*dead_audit_names(), "certified_dead", "dead_ista", "under_converged_half"):
        assert rows[0][name] == pytest.approx(wanted[name], abs=1e-9), name
    assert classes(tmp_path, "known") == classes(audited[0], "known")


def test_an_encoder_denser_than_any_optimum_is_kept(ckpts, activations, tmp_path):
    dense = dataclasses.replace(
        sae(), b_enc=jnp.full(45, 40.0), W_enc=jnp.tile(sae().W_enc, 3), W_dec=jnp.tile(sae().W_dec, (3, 1))
    )
    aj.save_sae(dense, tmp_path / "dense", "native")
    given = dataclasses.replace(config(dead_audit, ckpts, tmp_path / "out"), ckpts=(str(tmp_path / "dense"),))
    [row] = dead_audit.run(given)
    assert "unmatchable" in row["flags"] and row["dead_encoder"] == 0
    assert "denser than any optimum" in (tmp_path / "out" / "report.md").read_text()


# --- null models ---


@pytest.fixture(scope="module")
def nulled(store, ckpts, tmp_path_factory):
    out = tmp_path_factory.mktemp("nulls")
    every = "random_encoder,shuffled_codes,shuffled_optimum,random_dictionary,random_support,random_support_optimum"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(section5, "activations", lambda config: store)
        return out, nulls.run(config(nulls, ckpts, out, null_draws=2, nulls=every))


def test_nulls_stand_beside_the_encoder_and_the_optimum(nulled):
    _, rows = nulled
    by_mode = {row["mode"]: row for row in rows}
    encoder = by_mode["amortized"]
    assert list(by_mode)[:2] == ["amortized", "optimal"] and len(by_mode) == 8
    for name in ("shuffled_codes", "random_support"):
        for metric in ("l0", "dead", "dense@0.1", "dense@0.2"):
            assert by_mode[name][metric] == pytest.approx(encoder[metric]), (name, metric)
    assert by_mode["random_support_optimum"]["l0"] == pytest.approx(by_mode["optimal"]["l0"])
    assert by_mode["random_encoder"]["l0"] == pytest.approx(encoder["l0"], rel=0.1)
    assert by_mode["random_dictionary"]["l0"] == pytest.approx(encoder["l0"], rel=0.1)
    for name, row in by_mode.items():
        assert row["nmse_refit"] <= row["nmse"] + 1e-9, name
        if name not in ("amortized", "optimal"):
            assert row["nmse_refit_minus_amortized_lo"] > 0 and row["nmse_refit_spread"] is not None, name
            assert row["null_draws"] == 2
        assert row["nmse_lo"] < row["nmse"] < row["nmse_hi"]
    # Direction 0 tells the classes, and no shuffled code does.
    assert encoder["f1@1"] > 0.95 > 0.7 > by_mode["shuffled_codes"]["f1@1"]


def test_the_encoders_row_is_section_5s(nulled, ckpts, store):
    from amortjax import price

    known = aj.load_sae(str(ckpts[0] / "known"))
    table = price(
        known, store, modes=("amortized", "optimal", "encoder_refit"), conditions=("same_l0",), chunk=256
    )
    for mode in ("amortized", "optimal"):
        own = next(row for row in nulled[1] if row["mode"] == mode)
        wanted = table[table["mode"] == mode].iloc[0]
        for name in ("nmse", "nmse_lo", "dead", "dead_half", "dense@0.1", "f1@1", "df1", "absorption"):
            assert own[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-7), (mode, name)
    refit = table[table["mode"] == "encoder_refit"].iloc[0]["nmse"]
    assert next(row for row in nulled[1] if row["mode"] == "amortized")["nmse_refit"] == pytest.approx(refit)


def test_section_5_shows_them_beside_its_table(nulled, ckpts, activations, tmp_path, capsys):
    few = {"encode_modes": "amortized,optimal", "conditions": "same_l0", "explorer_latents": 0}
    section5.run(config(section5, ckpts, tmp_path, nulls="true", **few))
    found = read_results(tmp_path, "nulls")
    for row in found:
        wanted = next(other for other in nulled[1] if other["mode"] == row["mode"])
        assert row["l0"] == pytest.approx(wanted["l0"], rel=0.1)
        if row["mode"] in ("amortized", "optimal"):
            assert row["f1@1"] == pytest.approx(wanted["f1@1"]), "flags shared with section5"
    assert [row["mode"] for row in found][2:] == list(nulls.NULLS)
    said = capsys.readouterr().out
    for text in (said, (tmp_path / "report.html").read_text()):
        assert "random dictionary" in text and "shuffled codes" in text
    assert "nulls.png" in (tmp_path / "report.md").read_text()
    with pytest.raises(AmortjaxError, match=r"--nulls.*literal"):
        config(section5, ckpts, tmp_path, nulls="true", protocol="literal").checked()


def test_a_second_run_of_the_nulls_makes_only_what_is_missing(nulled, ckpts, activations, monkeypatch):
    out, before = nulled
    names = ",".join(row["mode"] for row in before[2:])
    forbid_solving(monkeypatch)
    found = nulls.run(config(nulls, ckpts, out, null_draws=2, nulls=names))
    for one, two in zip(found, before, strict=True):
        assert one["nmse"] == two["nmse"] and one["nmse_hi"] == pytest.approx(two["nmse_hi"], rel=1e-6)


def test_the_nulls_report(nulled):
    out, _ = nulled
    page = (out / "report.md").read_text()
    assert "random dictionary, its optimum" in page and "the same by construction" in page
    assert "(above)" in page and "figures/nulls.png" in page
    assert "Metrics beside their null models" in (out / "report.html").read_text()


# --- consistency ---


@pytest.fixture(scope="module")
def compared(store, ckpts, tmp_path_factory):
    out = tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(section5, "activations", lambda config: store)
        return out, consistency.run(config(consistency, ckpts, out, ("known", "permuted", "other")))


def test_a_permuted_copy_agrees_and_another_does_not(compared):
    out, rows = compared
    assert len(rows) == 3 * 4
    same = {row["mode"]: row for row in rows if row["checkpoint"] == "known | permuted"}
    apart = {row["mode"]: row for row in rows if row["checkpoint"] == "known | other"}
    for mode, row in same.items():
        assert row["mcc"] == pytest.approx(1, abs=1e-4), mode
        assert apart[mode]["mcc"] < 0.8 and row["mcc_chance"] < 0.8
    assert same["optimal"]["mcc_lo"] == pytest.approx(1, abs=1e-3)
    assert same["optimal"]["mcc_by_dictionary"] == pytest.approx(1 - 1 / 12, abs=1e-3), (
        "the decoy is silent there"
    )
    assert same["amortized"]["mcc_by_dictionary"] == pytest.approx(1, abs=1e-4)
    assert same["amortized"]["n_alive_a"] == 12 and same["dictionary"]["shared"] == 1
    assert apart["amortized"]["mcc_lo"] < apart["amortized"]["mcc"] < apart["amortized"]["mcc_hi"]
    assert abs(same["optimal"]["mcc_chance"]) < 0.3
    page = (out / "report.md").read_text()
    assert "codes, optimum" in page and "figures/consistency.png" in page


def test_a_second_comparison_measures_nothing(compared, ckpts, activations, monkeypatch):
    out, before = compared
    forbid_solving(monkeypatch)
    monkeypatch.setattr("amortjax.metrics.consistency.match", None)
    found = consistency.run(config(consistency, ckpts, out, ("known", "permuted", "other")))
    assert [row["mcc"] for row in found] == [row["mcc"] for row in before]


def test_large_matrices_are_matched_among_candidates(compared, ckpts, activations, tmp_path):
    given = config(
        consistency, ckpts, tmp_path, ("known", "permuted"), most_cells=1, encode_modes="amortized"
    )
    rows = consistency.run(given)
    assert [row["matched_whole"] for row in rows] == [False, False]
    assert all(row["mcc"] == pytest.approx(1, abs=1e-4) for row in rows)


# --- mistakes ---


@pytest.mark.parametrize(
    ("launcher", "flags", "said"),
    [
        (dead_audit, ["--ckpts="], "--ckpts is empty"),
        (dead_audit, ["--ckpts=nowhere"], "nowhere: no such file"),
        (dead_audit, ["--tolerances="], "--tolerances"),
        (dead_audit, ["--tolerances=2"], "--tolerances"),
        (dead_audit, ["--first_tokens=0"], "--first_tokens=0: must be above 0"),
        (dead_audit, ["--tol=nan"], "--tol=nan: must be above 0"),
        (dead_audit, ["--seed=-1"], "--seed=-1: must not be negative"),
        (nulls, ["--null_draws=0"], "--null_draws=0: must be at least 1"),
        (nulls, ["--nulls=nothing"], "--nulls=nothing: not a choice"),
        (nulls, ["--probe_tokens=0"], "--probe_tokens=0: must be above 0"),
        (consistency, [], "--ckpts: give at least two"),
        (consistency, ["--ckpts=a,b", "--min_fires=0"], "--min_fires=0: must be at least 1"),
        (consistency, ["--ckpts=a,b", "--encode_modes="], "--encode_modes is empty"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(launcher, flags, said, tmp_path, monkeypatch):
    refuses(launcher, ["--ckpts=one", "--acts=unused", "--out=out", *flags], said, tmp_path, monkeypatch)


def test_calibrations_are_shared_with_section_5(ckpts, store, tmp_path):
    """The same flags give the same names, so that a folder of rows is of use."""
    given = config(dead_audit, ckpts, tmp_path)
    posed = audits.pose(given, section5.load_all(given.section5())[0], store, dead_audit.MODES)
    plan = section5.make_plan(dataclasses.replace(given.section5(), probe_tokens=given.probe_tokens))
    from amortjax.metrics.bench import Bench
    from amortjax.metrics.plan import pose_subject

    other = Bench(pose_subject(posed.sae, store, plan), plan, None, False)
    assert other.identity == posed.coder.bench.identity
