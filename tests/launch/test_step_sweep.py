"""The step sweep: its rows against what they must equal, one way gone once, what is shared, resuming and mistakes."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from mistakes import refuses
from problems import sparse_problem, toy_sae

import amortjax as aj
from amortjax.errors import AmortjaxError
from amortjax.inference import modes, objective, unrolled
from amortjax.inference.codes import from_dense
from amortjax.inference.modes import Options, relevant
from amortjax.launch import flagged, section5, step_sweep
from amortjax.metrics import bench, streaming, walk
from amortjax.metrics.measure import Knobs
from amortjax.metrics.plan import pose_subject
from amortjax.metrics.uncertainty import interval
from amortjax.price import rows_of
from amortjax.report import sweep
from amortjax.report.tables import read_results

STEPS = (0, 2, 200)


def config(folder, out, **flags) -> step_sweep.Config:
    given = {"ckpts": folder / "toy", "acts": "unused", "out": out, "steps": ",".join(map(str, STEPS)),
             "chunk": 512, "alista_layers": 3, "alista_fit_steps": 20}  # fmt: skip
    return flagged.parse(step_sweep.Config, [f"--{name}={value}" for name, value in (given | flags).items()])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sae")
    aj.save_sae(toy_sae(), path / "toy" / "sae.safetensors")
    return path


@pytest.fixture(autouse=True)
def activations(small_store, monkeypatch):
    monkeypatch.setattr(section5, "activations", lambda config: small_store)


@pytest.fixture(scope="module")
def whole(small_store, folder, tmp_path_factory):
    """The results' folder, the rows, and (mode, condition's lambda) of every measurement made."""
    out, made = tmp_path_factory.mktemp("out"), []
    inner = bench.measure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(section5, "activations", lambda config: small_store)
        patch.setattr(bench, "measure", lambda s, mode, *rest: made.append(mode) or inner(s, mode, *rest))
        rows = step_sweep.run(config(folder, out))
    return out, rows, made


def of(rows, condition, start):
    return {
        row.get("steps"): row for row in rows if (row["condition"], row.get("start")) == (condition, start)
    }


def of_optimum(rows, condition):
    return next(row for row in rows if row["condition"] == condition and row["mode"] == "optimal")


def test_every_number_of_steps_has_its_row_and_what_is_shared_is_measured_once(whole):
    out, rows, made = whole
    for condition in ("same_lambda", "same_l0"):
        for start in ("encoder", "alista"):
            assert tuple(of(rows, condition, start)) == STEPS
    assert len(rows) == 2 * (1 + 2 * len(STEPS))
    # Each of 2 x 2 ways, without the encoder's own start, and the encoder and the optimum once.
    assert sorted(set(made)) == ["amortized", "optimal", "semi_amortized"]
    assert made.count("optimal") == made.count("amortized") == 1
    assert made.count("semi_amortized") == 4 * len(STEPS) - 2
    assert len(read_results(out)) == len(rows)
    for name in ("report.md", "report.html", "config.json", "results.csv", "figures/step_sweep.png"):
        assert (out / name).stat().st_size > 300
    assert not list(out.rglob("*.part"))


def test_no_steps_from_the_encoder_are_the_encoder(whole, small_store):
    plan = step_sweep.make_plan(step_sweep.Config(ckpts=("a",), out="b", acts="c", chunk=512))
    alone = dataclasses.replace(plan, modes=("amortized",), conditions=("same_l0",))
    [encoder] = rows_of(toy_sae(), small_store, alone, progress=False)
    for condition in ("same_lambda", "same_l0"):
        row = of(whole[1], condition, "encoder")[0]
        assert row["mode"] == "amortized" and row["forwards"] == 1
        for name in ("nmse", "nmse_lo", "l0", "dead", "dead_half", "df1", "absorption", "absorption_chance"):
            assert row[name] == encoder[name], name
        assert row["jaccard_encoder"] == 1 and "jaccard_previous" not in row


def test_many_steps_are_the_optimum(whole):
    best = of_optimum(whole[1], "same_lambda")
    for start in ("encoder", "alista"):
        way = of(whole[1], "same_lambda", start)
        last = way[200]
        assert 0 < last["suboptimality_upper"] < 1e-3 < way[2]["suboptimality_lower"]
        assert last["jaccard_optimal"] > 0.97 and last["nmse"] == pytest.approx(best["nmse"], rel=0.02)
        assert abs(last["nmse_minus_optimal"]) < 0.02 * best["nmse"]
        assert last["jaccard_encoder"] == pytest.approx(best["jaccard_encoder"], abs=0.02)
    assert best["jaccard_optimal"] == 1


def test_p_falls_along_the_way_and_supports_stay_within_bounds(whole):
    rows = whole[1]
    for start in ("encoder", "alista"):
        way = list(of(rows, "same_lambda", start).values())
        values = [row["objective"] for row in way]
        assert values == sorted(values, reverse=True)
        assert [row.get("rises") for row in way] == [None, 0, 0]
        assert all(0 < row["decay"] < 1 for row in way[1:])
        decays = np.prod([row["decay"] ** n for row, n in zip(way[1:], (2, 198), strict=True)])
        assert decays == pytest.approx(way[-1]["gap_upper"] / way[0]["gap_upper"])
    for row in rows:
        for name in ("jaccard_encoder", "jaccard_optimal", "jaccard_previous"):
            if row.get(name) is not None:
                assert 0 <= row[f"{name}_lo"] <= row[name] <= row[f"{name}_hi"] <= 1
    assert [row["forwards"] for row in of(rows, "same_l0", "alista").values()] == [5, 9, 405]
    first = of(rows, "same_lambda", "encoder")[2]
    assert first["jaccard_previous"] == first["jaccard_encoder"]


def test_at_equal_l0_every_number_of_steps_has_its_own_lambda(whole):
    for start in ("encoder", "alista"):
        way = of(whole[1], "same_l0", start)
        found = [row["lam"] for row in way.values() if row["lam"] is not None]
        assert len(set(found)) == len(found) == (2 if start == "encoder" else 3)
        assert all(row["l0_calibration"] == pytest.approx(4, rel=0.011) for row in way.values())
        assert "suboptimality_upper" not in way[200] or way[200]["suboptimality_upper"] is None


@given(seed=st.integers(0, 1000), share=st.floats(0.02, 0.9), more=st.sampled_from([1, 4]))
@settings(max_examples=12, deadline=None)
def test_steps_never_raise_p_wherever_they_start(seed, share, more):
    atoms, t = sparse_problem(seed)
    problem = objective.pose_dictionary(atoms)
    lam = share * float(objective.lam_max(problem, t).max())
    z = np.random.default_rng(seed).exponential(size=(len(t), len(atoms))) * (np.arange(len(atoms)) % 3 == 0)
    last = objective.certify(problem, t, from_dense(z), lam).objective
    codes = from_dense(z)
    for _ in range(3):
        codes, _ = modes.solve(
            "semi_amortized", problem, t, codes, lam, 1.0, Options(semi_steps=more, chunk=24)
        )
        now = objective.certify(problem, t, codes, lam).objective
        assert (now <= last * (1 + 1e-5)).all()
        last = now


def posed(small_store, steps, alista=(), memory=None) -> walk.Walk:
    plan = step_sweep.make_plan(step_sweep.Config(ckpts=("a",), out="b", acts="c", chunk=512))
    options = dataclasses.replace(plan.options, semi_steps=steps, alista=alista)
    subject = pose_subject(toy_sae(), small_store, dataclasses.replace(plan, options=options))
    given = {field.name: getattr(subject, field.name) for field in dataclasses.fields(subject)}
    return walk.Walk(**given, **({} if memory is None else {"memory": memory}))


@pytest.mark.parametrize("alista", [(), ((1.2, 0.9), (0.8, 1.1), (1.0, 1.0))])
def test_going_on_is_what_starting_again_gives(small_store, alista):
    memory, knobs = {}, Knobs(0.5)
    rows = posed(small_store, 1).test_rows[:512]
    for steps in (0, 1, 3):
        there = posed(small_store, steps, alista, memory)
        x, t, _ = there.batch(rows)
        codes, iterations = there.solve("semi_amortized", knobs, rows, x, t)
        fresh, others = posed(small_store, steps, alista).solve("semi_amortized", knobs, rows, x, t)
        np.testing.assert_allclose(codes.dense(), fresh.dense(), atol=1e-5)
        assert (iterations == others).all() and iterations[0] == steps + len(alista)
    before = len(memory)
    again, _ = there.solve("semi_amortized", Knobs(0.7), rows, x, t)  # another lambda is another way
    assert len(memory) == before + 1 and not np.allclose(again.dense(), codes.dense())
    there.forget_all_but(there.place("semi_amortized", knobs))
    assert set(memory) == {there.place("semi_amortized", knobs)}


def test_overlaps_are_those_of_the_dense_codes(small_store):
    here, few = posed(small_store, 2), posed(small_store, 1)
    point, encoder = (
        walk.Point(here, "semi_amortized", Knobs(0.5)),
        walk.Point(here, "amortized", Knobs(None)),
    )
    other = walk.Point(few, "semi_amortized", Knobs(0.5))
    found = walk.overlaps(point, {"encoder": encoder, "other": other, "itself": point})
    backwards = walk.overlaps(other, {"point": point})["point"]
    x, t, _ = here.batch(here.test_rows)
    fires = [
        p.walk.solve(p.mode, p.knobs, here.test_rows, x, t)[0].dense() != 0 for p in (point, encoder, other)
    ]
    for name, theirs in (("encoder", fires[1]), ("other", fires[2])):
        assert found[name].sum(axis=1).tolist() == [(fires[0] & theirs).sum(), (fires[0] | theirs).sum()]
    np.testing.assert_array_equal(backwards, found["other"])
    weights = np.ones((3, streaming.N_BLOCKS))
    assert walk.jaccard(found["itself"], weights).value == 1
    assert interval(walk.jaccard(found["itself"], weights)) == (1, 1)
    assert walk.jaccard(np.zeros((2, streaming.N_BLOCKS)), None).value == 1  # codes that are empty agree
    apart = np.zeros((2, streaming.N_BLOCKS))
    apart[1, :5] = 3
    assert walk.jaccard(apart, None).value == 0


def test_a_network_is_its_constants():
    problem = objective.pose_dictionary(sparse_problem(3)[0])
    network = unrolled.init_alista(problem, 4)
    network = dataclasses.replace(network, gamma=network.gamma * 1.5, theta=network.theta * 0.25)
    again = unrolled.with_constants(problem, unrolled.constants(network))
    for name in ("matrix", "step", "gamma", "theta"):
        np.testing.assert_array_equal(getattr(again, name), getattr(network, name))
    assert not again.learns_matrix
    key = id(problem)
    assert key in unrolled._analytic
    del problem
    assert key not in unrolled._analytic


def test_a_measurement_depends_on_its_own_options_only():
    other = Options(semi_steps=7, ista_steps=9, alista=((1.0, 1.0),))
    for mode in ("amortized", "encoder_refit", "omp", "optimal"):
        assert relevant(mode, other) == relevant(mode, Options())
    assert relevant("semi_amortized", other) != relevant("semi_amortized", Options())
    assert relevant("non_amortized", other) != relevant("non_amortized", Options())
    for mode in modes.MODES:
        assert relevant(mode, Options(tol=1e-3)) != relevant(mode, Options())
    assert relevant("optimal", Options(solver="fista")) != relevant("optimal", Options())


def test_a_second_run_measures_nothing(whole, folder, monkeypatch):
    out, before, _ = whole
    monkeypatch.setattr(bench, "measure", lambda *a: pytest.fail("measured again"))
    monkeypatch.setattr(walk.Walk, "solve", lambda *a: pytest.fail("solved again"))
    monkeypatch.setattr(unrolled, "fit", lambda *a, **k: pytest.fail("trained again"))
    again = step_sweep.run(config(folder, out))
    assert [row["nmse"] for row in again] == [row["nmse"] for row in before]
    assert [row["jaccard_optimal"] for row in again] == [row["jaccard_optimal"] for row in before]


def test_a_killed_run_goes_on(whole, folder, tmp_path, monkeypatch):
    flags = {"conditions": "same_lambda"}
    inner = bench.measure

    def killed(subject, mode, *rest):
        if subject.options.semi_steps == 200:
            raise KeyboardInterrupt
        return inner(subject, mode, *rest)

    monkeypatch.setattr(bench, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        step_sweep.run(config(folder, tmp_path, **flags))
    assert [row["steps"] for row in read_results(tmp_path)] == [0, 2, None]  # the optimum is shown last
    for kept in tmp_path.glob("rows/overlaps_*.json"):
        kept.write_text(json.dumps({"encoder": "what?"}))  # what can't be read is made again
    made = []
    monkeypatch.setattr(bench, "measure", lambda s, mode, *rest: made.append(mode) or inner(s, mode, *rest))
    rows = step_sweep.run(config(folder, tmp_path, **flags))
    assert made == ["semi_amortized"] * 4
    for start in ("encoder", "alista"):
        ours, theirs = (of(found, "same_lambda", start) for found in (rows, whole[1]))
        for steps in STEPS:
            for name in ("objective", "nmse", "l0", "df1", "jaccard_optimal", "jaccard_encoder"):
                assert ours[steps][name] == pytest.approx(theirs[steps][name], rel=1e-3), (start, steps, name)


def test_words_say_what_the_rows_hold(whole):
    said = "\n".join(sweep.sentences(whole[1]))
    assert "from encoder: (P-P*)/P* is" in said and "at most 1 % from 200 steps on" in said
    assert "P never rises, on any token" in said and "NMSE falls with every number of steps" in said
    assert (
        "the starts cost encoder 1 and ALISTA 5" in said or "the starts cost ALISTA 5 and encoder 1" in said
    )
    way = [
        {"steps": n, "nmse": v, "suboptimality_upper": v}
        for n, v in ((0, 3.5), (5, 0.8), (10, 0.2), (20, 0.4))
    ]
    assert sweep.settles(way, lambda row: row["nmse"] < 0.5) == 10
    assert sweep.settles(way, lambda row: row["nmse"] < 0.3) is None
    assert sweep.about_nmse(way, {}) == ["NMSE is not monotone: 3.50 at 0, .400 at 20, least .200 at 10."]
    assert "no latent is dead on these tokens" in said
    best = {"dead_half_lo": 0.0, "dead_half_hi": 1e-6, "n_latents": 64, "nmse_lo": 0.3, "nmse_hi": 0.5}
    assert sweep.about_agreement([{"steps": 0, "dead_half": 0.01, "nmse": 0.6}], best) == [
        "within the optimum's interval, by steps: NMSE not even at the last; dead latents from 0."
    ]
    dead = [{"steps": 0, "dead": 0.25}, {"steps": 5, "dead": 0.125}]
    assert sweep.about_dead(dead, {"dead": 0.0}) == ["dead@N is .250 at 0, .125 at 5; the optimum's is 0."]
    assert sweep.predicted(way) == pytest.approx(10 + 5 * np.log(20) / np.log(4))
    tables = sweep.tables(whole[1])
    assert [len(table.body) for table in tables] == [1 + 2 * len(STEPS)] * 4
    assert [line[:2] for line in tables[0].body[:3]] == [["optimum", "-"], ["encoder", "0"], ["encoder", "2"]]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"steps": "-1,5"}, "--steps=-1,5: a number of steps can't be negative"),
        ({"steps": ""}, "--steps is empty"),
        ({"steps": "many"}, "--steps=many: not an int"),
        ({"starts": "zero"}, "--starts=zero: not a choice"),
        ({"alista_layers": 0}, "--alista_layers=0: must be at least 1"),
        ({"alista_fit_steps": -1}, "--alista_fit_steps=-1"),
        ({"eval_tokens": 0}, "--eval_tokens=0: must be above 0"),
        ({"target_l0": -2}, "--target_l0=-2.0: must be above 0"),
        ({"ckpts": "nowhere"}, "nowhere"),
        ({"ckpts": ""}, "--ckpts is empty"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(flags, said, folder, tmp_path, monkeypatch):
    given = {"ckpts": folder / "toy", "acts": "unused", "out": "out"} | flags
    refuses(step_sweep, [f"--{name}={value}" for name, value in given.items()], said, tmp_path, monkeypatch)


def test_an_l0_that_no_optimum_has_is_refused_at_once(folder, tmp_path):
    with pytest.raises(AmortjaxError, match=r"no optimum has an L0 of 40: at most rank\(W\) = 16"):
        step_sweep.run(config(folder, tmp_path / "out", target_l0=40))
    assert not (tmp_path / "out").exists()


def test_fires_are_ones_where_codes_are_not_zero(small_store):
    here = posed(small_store, 0)
    rows = here.test_rows[:512]
    x, t, _ = here.batch(rows)
    fires = walk.Point(here, "amortized", Knobs(None)).fires(rows, x, t)
    assert isinstance(fires, scipy.sparse.csr_array) and set(fires.data) == {1.0}
    known = here.memory[walk.Place("amortized", None)][walk.chunk_of(rows)]
    np.testing.assert_array_equal(fires.toarray(), known.toarray() != 0)
