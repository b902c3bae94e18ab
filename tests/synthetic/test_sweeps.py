"""Sweeps: the published settings, groups that train as their cells would alone, and the large experiment."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from amortjax.errors import AmortjaxError
from amortjax.metrics import recovery
from amortjax.synthetic import (
    encoders,
    free_codes,
    generators,
    large,
    sweep_cells,
    sweep_costs,
    sweeps,
    training,
)

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden/papers/sparse_inference_2411_13117.json").read_text()
)
TINY = {
    "sources": (6,),
    "dimensions": (4,),
    "active": (2,),
    "samples": 64,
    "runs": 2,
    "steps": 3,
    "code_steps": 3,
}


def asked(**given) -> sweeps.Asked:
    return sweeps.Asked(**given)


def test_published_settings():
    size = sweeps.plan("size", asked())
    assert (
        len(size) == 3 * 4 * 3 * 3
        and {c.seed for c in size} == {20240927}
        and {c.code_steps for c in size} == {10_000}
    )
    assert {(c.active, c.steps) for c in size} == {(3, 50_000), (9, 50_000), (15, 25_000)}
    assert all(c.columns == (c.active == 15 and c.method == "sparse_coding") for c in size)
    assert {(c.runs, c.code_lr, c.bias == (c.method != "sparse_coding")) for c in size} == {(3, 1e-3, True)}
    assert {(c.method, c.lr) for c in size} == {("sae", 1e-3), ("mlp", 1e-3), ("sparse_coding", 3e-3)}
    assert not any(c.columns or c.offset for c in sweeps.plan("size", asked(protocol="controlled")))
    l1 = sweeps.plan("l1", asked())
    assert len(l1) == 27 and all((c.lr, c.steps, c.runs, c.redraw) == (3e-3, 100_000, 3, True) for c in l1)
    assert all(c.bias == (c.method != "sparse_coding") and not c.offset for c in l1)
    assert {(c.lr, c.redraw, c.bias) for c in sweeps.plan("width", asked())} == {(3e-4, False, False)}
    bias = sweeps.plan("bias", asked())
    assert {(c.method, c.lr) for c in bias} == {
        ("sae", 1e-3),
        ("sparse_coding", 1e-3),
        ("mlp", 1e-4),
    } and len(bias) == 6
    assert len(sweeps.plan("topk", asked())) == 24 + 5 and len(sweeps.plan("ceilings", asked())) == 45
    big = sweeps.plan("large", asked())
    assert {(c.sources, c.dimensions, c.active, c.samples, c.batch) for c in big} == {
        (1000, 200, 20, 500_000, 1024)
    }
    assert [c.steps for c in big] == [20_000] * 3 + [0] and [c.hidden for c in big] == [0, 32, 256, 0]
    assert all(c.lam_half == 0.0025 for c in sweeps.plan("ood", asked()))


def test_what_is_asked_for_replaces_what_was_published():
    cells = sweeps.plan("size", asked(protocol="controlled", **TINY))
    assert [c.method for c in cells] == [
        "sae",
        "mlp",
        "sparse_coding",
        "certified_learner",
        "true_dictionary",
    ]
    assert all(c.sources == 6 and c.samples == 64 for c in cells) and cells[-1].runs == 2
    assert len({c.name for c in cells}) == 5
    assert dataclasses.replace(cells[0], seed=1).name != cells[0].name
    with pytest.raises(AmortjaxError, match="nothing of"):
        sweeps.plan("l1", asked(methods=("sklearn",)))
    with pytest.raises(AmortjaxError, match="--protocol=controlled"):
        sweeps.plan("l1", asked(methods=("certified_learner",)))


def test_controlled_is_equal_terms():
    """Fresh data for every run, and about the SAE's training FLOPs for every method, as they are reported."""
    for sweep in ("size", "l1", "width", "bias", "ceilings", "ood"):
        cells = sweeps.plan(sweep, asked(protocol="controlled", steps=50_000, sources=(16,), active=(3,)))
        assert all(c.redraw for c in cells)
        sae = sweeps.Cell("sae", steps=50_000)
        for cell in cells:
            paid = sweep_costs.cost(cell)
            if cell.method in ("mlp", "sparse_coding") and cell.goal != "codes" and cell.dimensions == 8:
                assert paid["train_flops"] == pytest.approx(sweep_costs.cost(sae)["train_flops"], rel=1e-3)
    supervised = [c for c in sweeps.plan("ood", asked(protocol="controlled")) if c.goal == "codes"]
    assert len({round(sweep_costs.cost(c)["train_flops"], -8) for c in supervised}) == 1


def test_published_flops():
    assert sweep_costs.cost(sweeps.Cell("sae", steps=50_000))["train_flops_paper"] == 89_292_800_000
    found = sweep_costs.cost(sweeps.Cell("sparse_coding", steps=50_000))
    assert found["train_flops_paper"] == 2_623_897_600_000
    assert found["inference_flops_paper"] * 1024 == 7_209_107_456


def test_flags_of_other_sweeps_are_refused():
    for given in ({"lams": (0.5,)}, {"topks": (3,)}, {"widths": (64,)}, {"pairs": 2}, {"batch": 8}):
        with pytest.raises(AmortjaxError, match=f"--{next(iter(given))}: not a flag of --sweep=size"):
            sweeps.plan("size", asked(**given))
    with pytest.raises(AmortjaxError, match="--active=1"):
        sweeps.plan("ood", asked(active=(1,)))
    with pytest.raises(AmortjaxError, match="--distribution=zipf"):
        sweeps.plan("large", asked(distribution="zipf"))
    assert {c.data for c in sweeps.plan("l1", asked(distribution="zipf"))} == {"zipf"}


@pytest.mark.parametrize("method", ["sae", "sparse_coding"])
def test_a_group_trains_as_its_cells_do_alone(method):
    cells = [c for c in sweeps.plan("l1", asked(lams=(0.01, 0.5), **TINY)) if c.method == method]
    together = sweep_cells.measured(cells)
    for cell in cells:
        alone = sweep_cells.measured([cell])[cell]
        assert len(alone) == 2 and alone[0]["mse"] != alone[1]["mse"]  # data and weights of another seed
        for a, b in zip(alone, together[cell], strict=True):
            assert a["mse"] == pytest.approx(b["mse"], rel=1e-4) and a["dict_mcc"] == pytest.approx(
                b["dict_mcc"], abs=1e-4
            )
    assert together[cells[0]][0]["loss"] != together[cells[1]][0]["loss"]


def test_sparse_coding_begins_where_the_published_one_does():
    cell = sweeps.Cell("sparse_coding", steps=1, runs=5, code_steps=1)
    found = [row["dict_mcc"] for row in sweep_cells.measured([cell])[cell]]
    published = GOLDEN["unknown_uniform"]["points"]["SparseCoding"]["0"]
    assert np.mean(found) == pytest.approx(published["dict_mcc"], abs=1e-5)
    assert np.std(found) == pytest.approx(published["dict_mcc_std"], abs=1e-5)


def test_numbers_of_a_row():
    cell = sweeps.plan("l1", asked(protocol="controlled", methods=("sae",), lams=(0.01,), **TINY))[0]
    row = sweep_cells.measured([cell])[cell][0]
    assert row["objective"] >= row["objective_exact"] > 0 and 0 <= row["exact_gap"] < 1e-3
    assert row["loss"] >= row["mse"] and row["density@0.001"] <= row["density@0"] <= 1
    assert row["dict_mcc_chance"] == recovery.chance(4, 6, 6).mean and 0 < row["mcc_chance"] < 1
    truth = dataclasses.replace(cell, method="true_dictionary", runs=1)
    best = sweep_cells.measured([truth])[truth][0]
    assert best["mcc"] > 0.9 and best["mcc"] == best["mcc_exact"] and "dict_mcc" not in best


def test_compositions_of_a_row():
    cells = sweeps.plan("ood", asked(methods=("sae",), pairs=2, **TINY))
    assert [c.goal for c in cells] == ["codes", "reconstruction"]
    row = sweep_cells.measured([cells[0]])[cells[0]][0]
    assert {"in_distribution_mcc", "new_pairs_mcc", "new_pairs_pair_found", "new_pairs_support_exact"} <= set(
        row
    )
    data = sweep_cells.data_of(cells[0], 0)
    assert data.split is not None and len(data.split.pairs) == 2
    assert row["mcc"] == pytest.approx(
        row["in_distribution_mcc"], abs=1e-9
    )  # identity matching: the run's own


# --- free codes ---


def test_free_codes_without_extras_are_the_training_cores():
    x = jnp.asarray(generators.make_data(3, 6, 4, 2, 64).x_train)
    weights = encoders.stacked([free_codes.init(1, 32, 6, 4), free_codes.init(2, 32, 6, 4)])
    copy = jax.tree.map(jnp.copy, weights)
    fit = training.Fit(None, learn_dictionary=True)
    core = training.advance(
        training.start(weights), training.Batch(x), training.Numbers(0.01, 1e-2), 5, fit=fit
    )
    own = free_codes.advance(training.start(copy), x, 0.01, 1e-2, 5, free=free_codes.Free())
    for name in ("log_codes", "atoms"):
        assert np.asarray(own.weights[name]) == pytest.approx(np.asarray(core.weights[name]), abs=1e-6)


def test_topk_of_free_codes_moves_only_what_was_dealt():
    """Why TopK sparse coding stays below chance: what begins below 0 has no gradient."""
    x, free = jnp.asarray(generators.make_data(3, 6, 4, 2, 64).x_train), free_codes.Free(k=2)
    begin = free_codes.init(1, 32, 6, 4, free)["relu_codes"]
    state = training.start(encoders.stacked([free_codes.init(1, 32, 6, 4, free)]))
    state = free_codes.advance(state, x, 0.0, 1e-2, 1, free=free)
    moved = np.asarray(state.weights["relu_codes"][0]) != begin
    rank = np.argsort(np.argsort(-begin, axis=1), axis=1)
    assert np.array_equal(moved, (rank < 2) & (begin > 0))
    torch.manual_seed(1)
    torch.randn(4, 6)
    assert np.allclose(begin, torch.randn(32, 6).numpy(), atol=3e-6)
    assert np.allclose(free_codes.start_of_test(1, 32, 20, 6, 4, 2), torch.randn(20, 6).numpy(), atol=3e-6)
    assert (free_codes.start_of_test(1, 32, 20, 6, 4, 0) == free_codes.LOG_START).all()


def test_a_bias_takes_up_an_offset_of_the_data():
    x = jnp.asarray(generators.make_data(3, 6, 4, 2, 64).x_train) + 2.0
    state = training.start(encoders.stacked([free_codes.init(1, 32, 6, 4, free_codes.Free(bias=True))]))
    state = free_codes.advance(state, x, 0.01, 0.05, 200, free=free_codes.Free(bias=True))
    assert float(jnp.mean(state.weights["offset"])) > 1


# --- the large experiment ---


@pytest.fixture
def small_large() -> sweeps.Cell:
    size = {
        "sources": (12,),
        "dimensions": (6,),
        "active": (2,),
        "samples": 200,
        "test_samples": 300,
        "batch": 32,
    }
    return sweeps.plan("large", asked(methods=("sae",), steps=12, **size))[0]


def test_codes_are_kept_sparse_and_made_dense_as_they_were():
    codes = large.draw_sparse(0, 400, 12, 3)
    dense = codes.dense(slice(100, 300), 12)
    assert dense.shape == (200, 12) and np.all((dense > 0).sum(axis=1) == 3)
    assert np.take_along_axis(dense, codes.indices[100:300], 1) == pytest.approx(codes.values[100:300])
    share = (codes.dense(slice(0, 400), 12) > 0).mean(axis=0)
    assert share == pytest.approx(np.full(12, 0.25), abs=0.1)


def test_an_epoch_holds_each_sample_once_in_its_own_order():
    order = large._order(0, 0, 200, 32)
    assert order.shape == (6, 32) and len(np.unique(order)) == 192
    assert not np.array_equal(order, large._order(0, 1, 200, 32))


def test_training_goes_on_where_it_was_stopped(small_large, tmp_path, monkeypatch):
    codes, d = large.draw_sparse(0, 200, 12, 2), generators.draw_dictionary(0, 12, 6)
    monkeypatch.setattr(large, "_SAVE_EVERY", 5)
    whole = large.trained(small_large, codes, d, tmp_path / "a.npz", False)
    part = dataclasses.replace(small_large, steps=8)  # saved after 6: the first call past 5
    large.trained(part, codes, d, tmp_path / "b.npz", False)
    assert (tmp_path / "b.npz").exists()
    resumed = large.trained(small_large, codes, d, tmp_path / "b.npz", False)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        assert np.asarray(a) == pytest.approx(np.asarray(b), abs=1e-6)
    (tmp_path / "b.npz").write_bytes(b"not a file")
    with pytest.raises(AmortjaxError, match="remove it"):
        large.trained(small_large, codes, d, tmp_path / "b.npz", False)


def test_streamed_correlations_are_numpys(small_large):
    rng = np.random.default_rng(0)
    a, b = rng.random((50, 4)), rng.random((50, 4))
    b[:, 2] = 1.0
    moments = large._Moments(4)
    moments.add(a[:20], b[:20])
    moments.add(a[20:], b[20:])
    expected = recovery.mcc(a, b, "identity").each
    assert moments.correlations() == pytest.approx(expected, abs=1e-9) and expected[2] == 0


def test_large_rows_learn_and_know_their_ceiling(small_large, tmp_path):
    truth = sweeps.Cell(
        "true_dictionary", 12, 6, 2, samples=200, test_samples=300, batch=32, goal="codes", runs=1
    )
    longer = dataclasses.replace(small_large, steps=400, lr=1e-2)
    rows = {cell.method: found[0] for cell, found in large.measured([longer, truth], tmp_path).items()}
    assert rows["true_dictionary"]["mcc"] > rows["sae"]["mcc"] > rows["sae"]["mcc_chance"] + 0.3
    assert not list(tmp_path.glob("*.npz")) and rows["sae"]["n_samples"] == 300
    with pytest.raises(AmortjaxError, match="more than the 200"):
        large.measured([dataclasses.replace(small_large, batch=201)], tmp_path)
