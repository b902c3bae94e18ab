"""LISTA and ALISTA: what they are before training, what training gives, and what it must leave alone."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from problems import sparse_problem

from amortjax.errors import AmortjaxError
from amortjax.inference import objective, unrolled
from amortjax.inference.request import Request, Settings
from amortjax.inference.solvers import SOLVERS

LAM = 0.1
LAYERS = 6
HELD_OUT = 64
SIGNS = ("nonneg", "signed")
INITS = {"lista": unrolled.init_lista, "alista": unrolled.init_alista}


@functools.cache
def example(sign="nonneg"):
    """A problem with a zero atom, training tokens and held-out ones, the last of which is zero."""
    atoms, t = sparse_problem(0, n=512 + HELD_OUT, d=12, m=24, k=3)
    atoms[5] = 0.0
    t[-1] = 0.0
    return objective.pose_dictionary(atoms, objective.Objective(sign=sign)), t[:512], t[512:]


@functools.cache
def trained(name, sign="nonneg"):
    problem, t, _ = example(sign)
    return unrolled.fit(problem, t, LAM, INITS[name](problem, LAYERS), steps=400, batch=64)


def coded(name, problem, t, lam=LAM, params=None, n_steps=LAYERS):
    lam = np.broadcast_to(lam, (len(t),))
    return SOLVERS[name].solve(
        Request(problem, t, lam, settings=Settings(n_steps=n_steps, chunk=HELD_OUT, params=params))
    )


def mean_p(problem, t, codes, lam=LAM):
    return objective.certify(problem, t, problem.unfold(codes), lam).objective.mean()


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("layers", [1, LAYERS])
def test_untrained_lista_is_ista(layers, sign):
    problem, _, t = example(sign)
    lam = np.linspace(0.02, 0.5, len(t))
    ours, iterations = coded("lista", problem, t, lam, n_steps=layers)
    theirs, _ = coded("ista", problem, t, lam, n_steps=layers)
    np.testing.assert_allclose(ours.dense(), theirs.dense(), atol=1e-6)
    assert (iterations == layers).all()


def test_alista_with_the_atoms_for_weights_is_ista():
    problem, _, t = example()
    gamma = jnp.full(LAYERS, 1 / problem.lipschitz)
    params = unrolled.Unrolled(problem.unit.T, jnp.float32(1.0), gamma, gamma, learns_matrix=False)
    ours, theirs = coded("alista", problem, t, params=params)[0], coded("ista", problem, t)[0]
    np.testing.assert_allclose(ours.dense(), theirs.dense(), atol=1e-6)


def cross_energy(weights, unit):
    return np.sum((weights @ unit.T) ** 2)


def test_analytic_weights_minimise_the_cross_correlation():
    problem, _, _ = example()
    unit, r = problem.unit64, np.random.default_rng(0)
    weights, largest = unrolled.analytic_weights(unit)
    live = np.any(unit != 0, axis=1)
    np.testing.assert_allclose(np.sum(weights * unit, axis=1), np.where(live, 1.0, 0.0), atol=1e-5)
    assert not weights[~live].any()
    best = cross_energy(weights, unit)
    assert best < 0.9 * cross_energy(unit, unit)
    for size in (1e-3, 1e-1, 1.0):
        move = r.standard_normal(unit.shape)
        move -= unit * np.sum(move * unit, axis=1, keepdims=True)  # keeps W_j . U_j
        assert cross_energy(weights + size * move, unit) > best
    np.testing.assert_allclose(largest, np.abs(np.linalg.eigvals(weights.T @ unit)).max(), rtol=1e-6)


def test_analytic_weights_of_independent_atoms_are_their_pseudo_inverse():
    """Each then answers to its own atom alone, whatever the atoms' norms; a layer's step is 1."""
    unit = np.random.default_rng(0).standard_normal((5, 12))
    weights, largest = unrolled.analytic_weights(unit)
    np.testing.assert_allclose(weights @ unit.T, np.diag(np.sum(unit**2, axis=1)), atol=1e-8)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    weights, largest = unrolled.analytic_weights(unit)
    np.testing.assert_allclose(weights, np.linalg.pinv(unit).T, atol=1e-8)
    assert abs(largest - 1.0) < 1e-8


@pytest.mark.parametrize("weights", ["norm", "unit"])
@pytest.mark.parametrize("sign", SIGNS)
def test_untrained_alista_does_not_diverge(sign, weights):
    problem, _, t = example(sign)
    atoms = np.asarray(problem.unit) * np.linspace(0.2, 3.0, problem.n_latents)[:, None]
    problem = objective.pose_dictionary(atoms, objective.Objective(sign=sign, weights=weights))
    codes, _ = coded("alista", problem, t, n_steps=500)
    longer, _ = coded("alista", problem, t, n_steps=501)
    assert mean_p(problem, t, codes) < 0.5 * np.mean(np.sum(t**2, axis=1))  # better than no code
    np.testing.assert_allclose(codes.dense(), longer.dense(), atol=2e-2)


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("name", INITS)
def test_training_lowers_the_objective_of_held_out_tokens(name, sign):
    problem, _, t = example(sign)
    before = mean_p(problem, t, coded(name, problem, t)[0])
    after = mean_p(problem, t, coded(name, problem, t, params=trained(name, sign))[0])
    best = mean_p(problem, t, coded("fista", problem, t, n_steps=5000)[0])
    assert best <= after < before - 0.25 * (before - best)


@pytest.mark.parametrize("name", INITS)
def test_a_trained_network_answers_to_each_tokens_lambda(name):
    problem, _, t = example()
    one = lambda lam: coded(name, problem, t, lam, trained(name))[0]  # noqa: E731
    low, high = one(0.5 * LAM), one(2 * LAM)
    assert high.l0.sum() < one(LAM).l0.sum() < low.l0.sum()
    lam = np.where(np.arange(len(t)) % 2, 0.5 * LAM, 2 * LAM)
    mixed = one(lam).dense()
    np.testing.assert_allclose(mixed[1::2], low.dense()[1::2], atol=1e-6)
    np.testing.assert_allclose(mixed[::2], high.dense()[::2], atol=1e-6)


@pytest.mark.parametrize("name", INITS)
def test_training_wakes_no_zero_atom_and_gives_zero_tokens_nothing(name):
    problem, _, t = example()
    v = coded(name, problem, t, params=trained(name))[0].dense()
    assert not v[:, 5].any()
    assert not v[-1].any()
    assert np.isfinite(v).all()


def test_training_moves_what_each_learns_and_nothing_else():
    problem, _, _ = example()
    for name, init in INITS.items():
        before, after = init(problem, LAYERS), trained(name)
        assert after.step == before.step
        assert (after.gamma != before.gamma).all()
        assert (after.theta != before.theta).all()
        assert np.array_equal(after.matrix, before.matrix) == (name == "alista")


def test_training_repeats_with_its_seed_and_moves_the_bar():
    class Bar:
        done = 0

        def update(self, n):
            self.done += n

    problem, t, _ = example()
    bar, init = Bar(), unrolled.init_alista(problem, LAYERS)
    run = lambda seed, bar=None: unrolled.fit(problem, t, LAM, init, 5, batch=64, seed=seed, bar=bar)  # noqa: E731
    np.testing.assert_array_equal(run(0, bar).gamma, run(0).gamma)
    assert bar.done == 5
    assert not np.array_equal(run(0).gamma, run(1).gamma)


def test_a_network_of_other_atoms_is_refused():
    problem, _, t = example()
    few = objective.pose_dictionary(problem.unit[:10])
    with pytest.raises(AmortjaxError, match="atoms"):
        coded("lista", few, t, params=unrolled.init_lista(problem, LAYERS))
