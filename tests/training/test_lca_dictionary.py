"""Dictionaries of searched codes: the released search against a plain loop, exact codes, learning, resuming."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import sparse_problem

from amortjax.errors import AmortjaxError
from amortjax.inference import objective
from amortjax.inference.codes import from_dense
from amortjax.saes.encoders import encode
from amortjax.saes.sae import decode
from amortjax.training import lca_dictionary, lca_loop, loop, released_lca
from amortjax.training.batches import Batches
from amortjax.training.lca_dictionary import LcaRecipe
from tests.training.conftest import planted_activations

M = 64
RECIPE = LcaRecipe(n_latents=M, lam=0.1, steps=100, batch_size=256, lr=0.02)
LCA = dataclasses.replace(RECIPE, codes="lca", iterations=60)


def unit_problem(n: int = 24) -> tuple[np.ndarray, np.ndarray]:
    atoms, t = sparse_problem(3, n=n)
    return (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).astype(np.float32), t


def by_hand(x, w, lam, iterations, tol):
    """The released search, token by token in float64: codes, iterations, and the factor of eta of each (n,)."""
    n, m, factors = len(x), len(w), []
    u, eta, last = np.zeros((n, m)), np.full(n, 1 / m), np.full(n, np.inf)
    loss = lambda u, i: np.mean((x[i] - np.maximum(u, 0) @ w) ** 2) + lam * np.mean(np.maximum(u, 0))  # noqa: E731
    for count in range(iterations):
        now = np.array([loss(u[i], i) for i in range(n)])
        if np.max(last - now) < tol:
            return np.maximum(u, 0), count, factors
        last = now
        factors.append(np.ones(n))
        for i in range(n):
            slope = (np.maximum(u[i], 0) @ w - x[i]) @ w.T + lam
            tried = [u[i] - f * eta[i] * slope for f in (0.5, 2.0)]
            best = int(np.argmin([loss(v, i) for v in tried]))
            factors[-1][i] = (0.5, 2.0)[best]
            u[i], eta[i] = tried[best], eta[i] * factors[-1][i]
    return np.maximum(u, 0), iterations, factors


@pytest.mark.parametrize(("iterations", "tol"), [(12, 1e-6), (200, 1e-3)])
def test_the_released_search_is_the_plain_loop(iterations, tol):
    w, x = unit_problem()
    wanted, count, _ = by_hand(x.astype(np.float64), w.astype(np.float64), 0.05, iterations, tol)
    found, taken = released_lca.codes(x, w, 0.05, iterations, tol)
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    assert int(taken) == count
    assert (iterations == 200) == (count < iterations)


def test_the_released_loss_is_differentiated_through_the_search():
    w, x = unit_problem()
    _, _, factors = by_hand(x.astype(np.float64), w.astype(np.float64), 0.05, 6, 1e-6)

    def unrolled(w):
        """The same choices of eta, held fixed: the loss is not continuous in them."""
        u, eta = jnp.zeros((len(x), len(w))), jnp.full((len(x), 1), 1 / len(w))
        for factor in factors:
            eta = eta * factor[:, None]
            u = u - eta * ((jax.nn.relu(u) @ w - x) @ w.T + 0.05)
        return released_lca.nmse(x, jax.nn.relu(u), w)

    slope = jax.grad(lambda w: released_lca.nmse(x, released_lca.codes(x, w, 0.05, 6)[0], w))(jnp.asarray(w))
    wanted = jax.grad(unrolled)(jnp.asarray(w))
    np.testing.assert_allclose(slope, wanted, atol=1e-4 * float(jnp.abs(wanted).max()))
    held = released_lca.codes(x, w, 0.05, 6)[0]
    outside = jax.grad(lambda w: released_lca.nmse(x, held, w))(jnp.asarray(w))
    assert float(jnp.linalg.norm(outside - wanted)) > 0.1 * float(jnp.linalg.norm(wanted))


def test_both_searches_find_the_optimum():
    w, t = unit_problem()
    problem = objective.pose_dictionary(w)
    recipe = dataclasses.replace(RECIPE, n_latents=len(w), lam=0.3, tol=1e-5)
    exact, _ = lca_dictionary.search(jnp.asarray(w), t, recipe)
    lca = dataclasses.replace(recipe, codes="lca", iterations=600)
    found, taken = lca_dictionary.search(jnp.asarray(w), t, lca)
    p = [objective.certify(problem, t, codes, 0.3) for codes in (exact, found)]
    assert p[0].relative_gap.max() <= 1e-5 and set(taken.tolist()) == {600}
    np.testing.assert_allclose(p[1].objective, p[0].objective, rtol=1e-3)


def test_the_thresholded_start_has_its_best_factor():
    w, t = unit_problem()
    start = np.asarray(lca_dictionary.thresholded(jnp.asarray(w), t, 0.3))
    problem = objective.pose_dictionary(w)
    p = {
        f: objective.certify(problem, t, from_dense(f * start), 0.3).objective for f in (0.0, 0.8, 1.0, 1.25)
    }
    for factor in (0.0, 0.8, 1.25):
        assert (p[1.0] <= p[factor] + 1e-5).all()
    assert not np.asarray(lca_dictionary.thresholded(jnp.asarray(w), np.zeros_like(t), 0.3)).any()


@pytest.fixture(scope="module")
def learned(planted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lca")
    source = Batches(planted, RECIPE.batch_size, 0)
    return lca_loop.train(
        source, LCA, folder / "lca", folder / "state", loop.Pace(log_every=40, eval_every=40)
    )


def test_it_learns_the_planted_atoms_and_is_an_sae_of_raw_inputs(learned, planted):
    sae, true = learned.sae, planted_activations(1)[1]
    cosine = np.abs(true @ np.asarray(sae.W_dec).T).max(axis=1)
    assert np.mean(cosine > 0.97) > 0.95
    assert learned.summary["val_fvu"] < 0.06 and learned.summary["val_l0"] == pytest.approx(3.5, abs=1.5)
    assert learned.summary["iterations"] == 60
    np.testing.assert_allclose(np.linalg.norm(sae.W_dec, axis=1), 1, rtol=1e-5)
    scale = float(sae.extra["norm_factor"])
    assert sae.info.lam_train == pytest.approx(2 * RECIPE.lam * scale) and sae.info.trained_on == "planted"
    x = planted.read(planted.rows("test"))[:200]
    codes = lca_dictionary.search(sae.W_dec, np.asarray((x - sae.b_dec) / scale), LCA)[0].dense() * scale
    error = np.sum(np.square(x - np.asarray(decode(sae, codes))))
    assert error / np.sum(np.square(x - x.mean(axis=0))) < 0.06
    # What stands in for an encoder is one thresholding at the trained lambda.
    wanted = np.maximum((x - np.asarray(sae.b_dec)) @ np.asarray(sae.W_dec).T - sae.info.lam_train / 2, 0)
    np.testing.assert_allclose(encode(sae, x), wanted, atol=1e-2)


@pytest.mark.parametrize("codes", ["certified", "literal"])
def test_a_killed_training_goes_on_to_the_same_bits(planted, tmp_path, codes):
    recipe = dataclasses.replace(RECIPE, steps=8, batch_size=64, codes=codes, iterations=10, resample_every=3)
    pace = loop.Pace(checkpoint_every=3, log_every=2, eval_every=0)
    source = lambda: Batches(planted, 64, 0)  # noqa: E731
    whole = lca_loop.train(source(), recipe, tmp_path / "a", tmp_path / "a_state", pace)

    class Killed(Exception): ...

    def kill(i: int):
        if i == 5:
            raise Killed
        return inner(i)

    dying = source()
    inner = dying.__getitem__
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Batches, "__getitem__", lambda self, i: kill(i) if self is dying else inner(i))
        lca_loop.train(dying, recipe, tmp_path / "b", tmp_path / "b_state", pace)
    resumed = lca_loop.train(source(), recipe, tmp_path / "b", tmp_path / "b_state", pace)
    for name in ("W_dec", "b_dec"):
        np.testing.assert_array_equal(getattr(whole.sae, name), getattr(resumed.sae, name))
    assert whole.summary["iterations"] == resumed.summary["iterations"]
    lines = (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len((tmp_path / "a" / "metrics.jsonl").read_text().splitlines())
    if codes == "literal":
        assert not np.asarray(whole.sae.b_dec).any() and float(whole.sae.extra["norm_factor"]) == 1
        with pytest.raises(AmortjaxError, match="of a training with") as caught:
            other = dataclasses.replace(recipe, lam=0.5)
            lca_loop.train(source(), other, tmp_path / "b", tmp_path / "b_state", pace)
        assert "lam" in str(caught.value) and "\n" not in str(caught.value)


def test_dead_atoms_become_tokens_and_the_rest_stays():
    recipe = dataclasses.replace(RECIPE, resample_every=5)
    x = planted_activations(256)[0] / 20
    state = lca_dictionary.first(recipe, x.mean(axis=0))
    state, _, each = lca_dictionary.advance(state, x, x.mean(axis=0), recipe)
    silent = np.where(np.arange(M) < 7, 5, 4).astype(np.int32)
    before, moments = np.asarray(state.weights["w_dec"]), np.asarray(state.optimizer[0].mu["w_dec"])
    state = lca_dictionary.resample(state._replace(silent=jnp.asarray(silent)), x, each, recipe=recipe)
    after = np.asarray(state.weights["w_dec"])
    np.testing.assert_array_equal(after[7:], before[7:])
    centred = x - np.asarray(state.weights["b_dec"])
    cosine = after[:7] @ (centred / np.linalg.norm(centred, axis=1, keepdims=True)).T
    assert (cosine.max(axis=1) > 0.9999).all() and len(set(cosine.argmax(axis=1))) == 7
    np.testing.assert_array_equal(np.asarray(state.optimizer[0].mu["w_dec"])[:7], 0)
    np.testing.assert_array_equal(np.asarray(state.optimizer[0].mu["w_dec"])[7:], moments[7:])
    assert np.asarray(state.silent).tolist() == [0] * 7 + [4] * (M - 7)


def test_rounds_take_turns_on_a_batch(monkeypatch):
    recipe, starts = dataclasses.replace(RECIPE, rounds=2), []
    inner = lca_dictionary.search
    monkeypatch.setattr(
        lca_dictionary, "search", lambda w, t, r, start=None: starts.append(start) or inner(w, t, r, start)
    )
    x = planted_activations(256)[0] / 20
    state = lca_dictionary.first(recipe, x.mean(axis=0))
    state, report, _ = lca_dictionary.advance(state, x, x.mean(axis=0), recipe)
    once = lca_dictionary.first(RECIPE, x.mean(axis=0))
    once, first, _ = lca_dictionary.advance(once, x, x.mean(axis=0), RECIPE)
    assert int(state.step) == 2 and starts[0] is None and starts[1].l0.mean() > 1
    assert float(report.loss) < float(first.loss)


@pytest.mark.parametrize(
    ("change", "text"),
    [({"lam": 0.0}, "lambda 0.0: must be above 0"), ({"lam": float("nan")}, "lambda nan"),
     ({"steps": 0}, "steps=0: must be above 0"), ({"tol": -1.0}, "tol=-1.0"), ({"seed": -1}, "seed must not")],
)  # fmt: skip
def test_mistakes_are_one_line(change, text):
    with pytest.raises(AmortjaxError, match=re.escape(text)) as caught:
        dataclasses.replace(RECIPE, **change).check()
    assert "\n" not in str(caught.value)
