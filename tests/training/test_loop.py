"""Whole trainings on planted dictionaries: they learn, they resume bit for bit, and refuse what can't go well."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from amortjax.errors import AmortjaxError
from amortjax.saes import api
from amortjax.training import log, loop, modules, step
from amortjax.training.batches import Batches
from amortjax.training.recipe import Recipe
from tests.problems import toy_sae
from tests.training.conftest import SCALE, planted_activations

SPARSITY: dict[str, dict[str, Any]] = {
    "standard": {"lam": 0.3},
    "april": {"lam": 0.3},
    "p_anneal": {"lam": 0.3},
    "gated": {"lam": 0.6},
    "jumprelu": {"target_l0": 4.0},
    "loca": {"group_k": "3/1"},
    "mlp": {"k": 3, "hidden": 16},
    "matryoshka": {"k": 3, "groups": "0.5/0.5"},
}


def _recipe(variant: Any, **more: Any) -> Recipe:
    given: dict[str, Any] = {
        "n_latents": 64,
        "steps": 400,
        "batch_size": 128,
        "lr": 4e-3,
    }
    return Recipe(variant=variant, **(given | SPARSITY.get(variant, {"k": 3}) | more))


def _train(
    store, recipe: Recipe, folder, memory: int | None = None, on_step=None, **pace: Any
) -> loop.Trained:
    source = Batches(store, recipe.batch_size, recipe.order_seed, **({"memory": memory} if memory else {}))
    watch = on_step and (lambda done, states: on_step(done, states[0]))
    return loop.train(source, [loop.Job(recipe, folder)], folder / "state", loop.Pace(**pace), watch)[0]


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
        ("april", 0.3, (3.0, 9.0)),
        ("p_anneal", 0.3, (3.0, 5.0)),
        ("loca", 0.2, (3.0, 4.0)),
        ("mlp", 0.12, (2.9, 3.0)),
    ],
)
def test_training_learns_and_the_saved_sae_acts_on_raw_activations(variant, most_fvu, l0, planted, tmp_path):
    # The auxiliary loss has tests of its own; without it each variant compiles once, not twice.
    trained = _train(planted, _recipe(variant, auxk=0.0), tmp_path)
    held_out, atoms = planted.read(planted.rows("test")), planted_activations(1)[1]
    fvu, mean_l0 = _measure(trained.sae, held_out)
    assert fvu < most_fvu
    assert l0[0] <= mean_l0 <= l0[1]
    # What training reports, in scaled units and with its own rule, is what the folded SAE does on raw rows.
    assert fvu == pytest.approx(trained.summary["fvu"], rel=0.15)
    assert mean_l0 == pytest.approx(trained.summary["l0"], rel=0.1)
    w_dec = np.asarray(trained.sae.W_dec)
    norms = np.linalg.norm(w_dec, axis=1, keepdims=True)
    if variant == "april":
        w_dec = w_dec / norms
    else:
        np.testing.assert_allclose(norms, 1, rtol=1e-5)
    assert float(trained.sae.extra["norm_factor"]) > SCALE
    # Chance is about 0.4: the best of 64 random directions in 32 dimensions.
    assert (w_dec @ atoms.T).max(axis=0).mean() > 0.7
    lines = log.read(tmp_path)
    assert [line["step"] for line in lines] == list(range(50, 401, 50))
    assert lines[-1]["fvu"] < lines[0]["fvu"]
    # The store has no calibrate rows: held-out ones are of its test split.
    assert lines[-1]["val_fvu"] == pytest.approx(fvu, rel=0.02)
    assert lines[-1]["val_l0"] == pytest.approx(mean_l0, rel=0.02)


def test_the_penalty_is_recorded_in_raw_units(planted, tmp_path):
    x = planted.read(planted.rows("sae_train"))
    rms = np.sqrt(np.mean(np.sum((x - x.mean(axis=0)) ** 2, axis=1)))
    trained = _train(planted, _recipe("standard", steps=2, lam=0.5), tmp_path)
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
        pace = {"checkpoint_every": 50, "log_every": 20, "eval_every": 0}
        _train(store, recipe, folder, on_step=watch, **(pace | options))
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
    a, b = (
        [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in log.read(tmp_path / name)]
        for name in ("straight", "resumed")
    )
    assert a == b


def test_sweeps_are_trained_on_the_same_batches_as_single_runs(planted, tmp_path):
    """Several in one pass give, each, the very weights of its own run; killed and resumed together, too."""
    recipes = [
        _recipe("topk", **SHORT),
        _recipe("topk", **(SHORT | {"k": 5, "auxk": 0.0})),
        _recipe("standard", steps=240),
    ]
    jobs = [loop.Job(recipe, tmp_path / str(i)) for i, recipe in enumerate(recipes)]
    source = Batches(planted, 128, 0)
    pace = loop.Pace(checkpoint_every=50, eval_every=0)

    def kill(done: int, _: Any) -> None:
        if done == 130:
            raise Killed

    with pytest.raises(Killed):
        loop.train(source, jobs, tmp_path / "state", pace, kill)
    together = loop.train(source, jobs, tmp_path / "state", pace)
    for job, found in zip(jobs, together, strict=True):
        alone = _train(planted, job.recipe, tmp_path / f"alone{job.name}", eval_every=0)
        for a, b in zip(jax.tree.leaves(alone.sae), jax.tree.leaves(found.sae), strict=True):
            np.testing.assert_array_equal(a, b)
        assert [line["step"] for line in log.read(job.folder)][-1] == 240
    with pytest.raises(AmortjaxError, match=r"of a training of 3 SAEs, not 2"):
        _unfinished(jobs, source, tmp_path, pace)
    other = loop.Job(_recipe("topk", **(SHORT | {"steps": 100})), tmp_path / "short")
    with pytest.raises(AmortjaxError, match="short: --steps is 100, but 240 in 0"):
        loop.train(source, [jobs[0], other], tmp_path / "other", pace)


def _unfinished(jobs, source, folder, pace) -> None:
    """Two of three jobs on the state of all."""

    def kill(done: int, _: Any) -> None:
        if done == 60:
            raise Killed

    with pytest.raises(Killed):
        loop.train(source, jobs, folder / "again", pace, kill)
    loop.train(source, jobs[:2], folder / "again", pace)


def test_a_run_goes_on_from_an_sae(planted, tmp_path):
    """Steps at rate 0 from a trained SAE leave its function as it is, in raw units."""
    first = _train(planted, _recipe("topk", steps=60, auxk=0.0), tmp_path / "first", eval_every=0).sae
    x = planted.read(planted.rows("test"))
    recipe = _recipe("topk", steps=2, lr=1e-30, auxk=0.0)
    source = Batches(planted, 128, 0)
    job = loop.Job(recipe, tmp_path / "on", first)
    again = loop.train(source, [job], tmp_path / "on/state", loop.Pace(eval_every=0))[0].sae
    np.testing.assert_allclose(api.encode(again, x), api.encode(first, x), atol=1e-3 * SCALE)
    with pytest.raises(AmortjaxError, match=r"--init: .* has 64 latents, not --n_latents=32"):
        modules.from_sae(first, _recipe("topk", n_latents=32), 1.0)
    # Another bias before the encoder than after the decoder: the same function, with one bias.
    apart = dataclasses.replace(first, pre_bias=first.pre_bias + SCALE)
    graph, weights = modules.split(modules.from_sae(apart, recipe, 1.0))
    z = api.encode(apart, x)
    np.testing.assert_allclose(api.encode(modules.as_sae(graph, weights), x), z, atol=2e-3 * SCALE)
    for variant, name in (
        ("gated", "standard"),
        ("mlp", "topk"),
        ("signed_topk", "topk"),
        ("jumprelu", "standard"),
    ):
        with pytest.raises(AmortjaxError, match=f"is a {variant} SAE; as a {name} one it would lose"):
            modules.from_sae(toy_sae(variant, d=32), _recipe(name), 1.0)
    grouped = dataclasses.replace(toy_sae("loca", d=32), groups=(8, 56), group_k=(1, 3))
    with pytest.raises(AmortjaxError, match="10 is more than the group's 8 latents"):
        modules.from_sae(grouped, _recipe("loca", group_k="10/1"), 1.0)
    with pytest.raises(AmortjaxError, match=r"W_hidden of toy mlp has shape .* --hidden"):
        modules.from_sae(toy_sae("mlp", d=32), _recipe("mlp"), 1.0)
    longer = dataclasses.replace(first, W_dec=2 * first.W_dec)
    with pytest.raises(AmortjaxError, match="norms 2 to 2"):
        modules.from_sae(longer, recipe, 1.0)


def test_snapshots_are_saes_of_their_step(planted, tmp_path):
    from amortjax.saes.formats import load_sae

    _train(planted, _recipe("topk", **SHORT), tmp_path, eval_every=0, save_at=(0, 0.5, 1))
    names = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert names == ["0", "120"]  # the last step's is the SAE itself
    x = planted.read(planted.rows("test"))
    saes = [load_sae(tmp_path / "checkpoints" / name) for name in names]
    before, later = (_measure(sae, x)[0] for sae in saes)
    # What evaluation needs to refuse the rows that it was trained on.
    assert {(sae.info.trained_on, sae.info.layer_index) for sae in saes} == {("planted", 3)}
    assert later < before


def test_a_state_of_another_recipe_is_not_resumed(planted, tmp_path):
    _state(planted, _recipe("topk", **SHORT), tmp_path, stop=60)
    with pytest.raises(AmortjaxError, match=r"--lr=0.001, not 0.002.*another --out"):
        _train(planted, _recipe("topk", **(SHORT | {"lr": 2e-3})), tmp_path)


def test_another_seed_is_another_run(planted, tmp_path):
    one = _state(planted, _recipe("topk", **SHORT), tmp_path / "0", stop=1)
    other = _state(planted, _recipe("topk", **SHORT, seed=1), tmp_path / "1", stop=1)
    assert (one.weights["w_dec"] != other.weights["w_dec"]).any()


def test_divergence_is_told_and_no_bad_state_is_kept(planted, tmp_path):
    recipe = _recipe("standard", steps=40, lr=1e25)
    with pytest.raises(AmortjaxError, match=r"diverged.*not finite at step [2-9];.*Lower --lr"):
        _train(planted, recipe, tmp_path, checkpoint_every=10, log_every=20)
    assert not [folder for folder in (tmp_path / "state").iterdir() if folder.name.isdigit()]


class _Spoilt(Batches):
    """NaN in one row of one batch: what a broken store or an overflowing model gives."""

    def __getitem__(self, i: int) -> np.ndarray:
        x = super().__getitem__(i).copy()
        if i == 66:
            x[3, 2] = np.nan
        return x


def test_the_last_good_checkpoint_survives_a_loss_that_is_not_finite(planted, tmp_path):
    recipe = _recipe("topk", **SHORT)
    source = _Spoilt(planted, recipe.batch_size, 0)
    with pytest.raises(AmortjaxError, match="not finite at step 67;"):
        loop.train(
            source, [loop.Job(recipe, tmp_path)], tmp_path / "state",
            loop.Pace(checkpoint_every=30, log_every=40, eval_every=0),
        )  # fmt: skip
    kept = [folder.name for folder in (tmp_path / "state").iterdir() if folder.name.isdigit()]
    assert kept == ["60"]
    # From there, with sound data, to the end.
    assert int(_state(planted, recipe, tmp_path).step) == 240


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
