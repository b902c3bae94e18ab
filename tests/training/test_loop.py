"""Whole trainings on planted dictionaries: they learn, they resume bit for bit, and refuse what can't go well."""

import json
from typing import Any

import jax
import numpy as np
import pytest

from amortjax.errors import AmortjaxError
from amortjax.saes import api
from amortjax.training import loop, modules, step
from amortjax.training.recipe import Recipe
from tests.training.conftest import SCALE, planted_activations

SPARSITY: dict[str, dict[str, Any]] = {
    "standard": {"lam": 0.3},
    "gated": {"lam": 0.6},
    "jumprelu": {"target_l0": 4.0},
}


def _recipe(variant: Any, **more: Any) -> Recipe:
    given: dict[str, Any] = {
        "n_latents": 64,
        "steps": 400,
        "batch_size": 128,
        "lr": 4e-3,
        "groups": "0.5/0.5",
    }
    return Recipe(variant=variant, **(given | SPARSITY.get(variant, {"k": 3}) | more))


def _measure(sae, x: np.ndarray) -> tuple[float, float]:
    """(FVU, L0) on raw activations."""
    z = api.encode(sae, x)
    fvu = np.sum((x - api.decode(sae, z)) ** 2) / np.sum((x - x.mean(axis=0)) ** 2)
    return float(fvu), float((z > 0).sum(axis=1).mean())


# Loose bounds: what each reaches is about half of its FVU. FVU is 1 for predicting the mean.
@pytest.mark.parametrize(
    ("variant", "most_fvu", "l0"),
    [
        ("topk", 0.12, (2.9, 3.0)),
        ("batch_topk", 0.25, (2.7, 3.3)),
        ("matryoshka", 0.35, (2.7, 3.3)),
        ("standard", 0.3, (3.0, 9.0)),
        ("jumprelu", 0.2, (3.6, 4.4)),
        ("gated", 0.25, (1.5, 5.0)),
    ],
)
def test_training_learns_and_the_saved_sae_acts_on_raw_activations(variant, most_fvu, l0, planted, tmp_path):
    # The auxiliary loss has tests of its own; without it each variant compiles once, not twice.
    trained = loop.train(planted, _recipe(variant, auxk=0.0), tmp_path)
    held_out, atoms = planted.read(planted.rows("test")), planted_activations(1)[1]
    fvu, mean_l0 = _measure(trained.sae, held_out)
    assert fvu < most_fvu
    assert l0[0] <= mean_l0 <= l0[1]
    # What training reports, in scaled units and with its own rule, is what the folded SAE does on raw rows.
    assert fvu == pytest.approx(trained.summary["fvu"], rel=0.15)
    assert mean_l0 == pytest.approx(trained.summary["l0"], rel=0.1)
    w_dec = np.asarray(trained.sae.W_dec)
    np.testing.assert_allclose(np.linalg.norm(w_dec, axis=1), 1, rtol=1e-5)
    # Chance is about 0.4: the best of 64 random directions in 32 dimensions.
    assert (w_dec @ atoms.T).max(axis=0).mean() > 0.7
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(50, 401, 50))
    assert lines[-1]["fvu"] < lines[0]["fvu"]


def test_the_penalty_is_recorded_in_raw_units(planted, tmp_path):
    x = planted.read(planted.rows("sae_train"))
    rms = np.sqrt(np.mean(np.sum((x - x.mean(axis=0)) ** 2, axis=1)))
    trained = loop.train(planted, _recipe("standard", steps=2, lam=0.5), tmp_path)
    assert trained.sae.info.lam_train == pytest.approx(0.5 * rms, rel=1e-3)
    assert rms > SCALE


class Killed(Exception):
    pass


def _state(store, recipe, folder, stop: int | None = None, **options) -> step.State:
    """The state after the last step, or after `stop` steps, when the run is killed."""
    last = []

    def watch(done: int, state: step.State) -> None:
        last[:] = [jax.tree.map(np.array, state)]
        if done == stop:
            raise Killed

    try:
        loop.train(store, recipe, folder, on_step=watch, checkpoint_every=50, log_every=20, **options)
    except Killed:
        assert stop is not None
    return last[0]


# Few enough tokens make a latent count as dead that the auxiliary loss is at work. One recipe for several tests,
# because each recipe is compiled anew.
SHORT: dict[str, Any] = {"steps": 240, "lr": 1e-3, "dead_tokens": 256}


@pytest.mark.parametrize(
    ("variant", "memory"), [("topk", None), ("topk", 32 * 4 * 4096), ("jumprelu", None)], ids=str
)
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(variant, memory, planted, tmp_path):
    recipe = _recipe(variant, **SHORT)
    straight = _state(planted, recipe, tmp_path / "straight", memory=memory)
    killed = _state(planted, recipe, tmp_path / "resumed", stop=130, memory=memory)
    resumed = _state(planted, recipe, tmp_path / "resumed", memory=memory)
    assert int(killed.step) == 130 and int(straight.step) == int(resumed.step) == 240
    assert jax.tree.structure(straight) == jax.tree.structure(resumed)
    for a, b in zip(jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    if variant == "topk":
        assert (killed.silent >= 256).any()
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("straight", "resumed")]
    speed = "tokens_per_second"
    a, b = ([{k: v for k, v in json.loads(line).items() if k != speed} for line in log] for log in logs)
    assert a == b


def test_a_state_of_another_recipe_is_not_resumed(planted, tmp_path):
    _state(planted, _recipe("topk", **SHORT), tmp_path, stop=60)
    with pytest.raises(AmortjaxError, match=r"--lr=0.001, not 0.002.*another --out"):
        loop.train(planted, _recipe("topk", **(SHORT | {"lr": 2e-3})), tmp_path)


def test_another_seed_is_another_run(planted, tmp_path):
    one = _state(planted, _recipe("topk", **SHORT), tmp_path / "0", stop=1)
    other = _state(planted, _recipe("topk", **SHORT, seed=1), tmp_path / "1", stop=1)
    assert (one.weights["w_dec"] != other.weights["w_dec"]).any()


def test_divergence_is_told_and_no_bad_state_is_kept(planted, tmp_path):
    recipe = _recipe("standard", steps=40, lr=1e25)
    with pytest.raises(AmortjaxError, match=r"diverged.*before step 10.*Lower --lr"):
        loop.train(planted, recipe, tmp_path, checkpoint_every=10, log_every=20)
    assert not [folder for folder in (tmp_path / "state").iterdir() if folder.name.isdigit()]


def test_the_auxiliary_loss_brings_dead_latents_back():
    """Half of the latents start with a bias under which they hardly fire."""
    x, _ = planted_activations(4000)
    x = x - x.mean(axis=0)
    x /= np.sqrt(np.mean(np.sum(x**2, axis=1)))
    dead, mean = {}, np.zeros(32, np.float32)
    for auxk in (1 / 32, 0.0):
        recipe = _recipe("topk", **SHORT, auxk=auxk)
        graph, weights = modules.split(modules.start(recipe, mean))
        weights["b_enc"] = weights["b_enc"] - np.where(np.arange(64) % 2, 0.6, 0.0).astype(np.float32)
        state, rng = step.init(weights, recipe), np.random.default_rng(0)
        for _ in range(240):
            batch = x[rng.integers(0, len(x), 128)]
            state, _ = step.train_step(state, batch, mean, graph=graph, recipe=recipe)
        codes = api.encode(modules.as_sae(graph, state.weights), x)
        dead[auxk] = int((codes.max(axis=0) <= 0).sum())
    assert dead[0.0] >= 20
    assert dead[1 / 32] <= dead[0.0] / 2
