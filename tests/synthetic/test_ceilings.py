"""Exact steps find the dictionary; certified codes are the reference's; scikit-learn's part runs as published."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from amortjax.errors import AmortjaxError
from amortjax.metrics import recovery
from amortjax.synthetic import ceilings, dictionary_learner, generators

LAM = 0.0025


@pytest.fixture(scope="module")
def data() -> generators.Data:
    return generators.make_data(20240625)


def test_certified_codes_are_the_references(data):
    """MCC .9924 and mean objective .00608078, of the reference's independent solver (float64, gap below 1e-14)."""
    z, proof = dictionary_learner.certified_codes(data.dictionary, data.x_test, LAM)
    assert recovery.mcc(data.codes_test, z).mcc == pytest.approx(0.99236, abs=1e-4)
    assert proof.objective.mean() == pytest.approx(0.0060807769, abs=1e-8)
    assert proof.gap.mean() < 1e-4 * proof.objective.mean()


def test_exact_steps_find_what_gradient_sparse_coding_does_not(data):
    """Published for gradient sparse coding at this size: .69 of latents, .84 of the dictionary."""
    found = dictionary_learner.learn(data.x_train, 16, LAM, restarts=3, rounds=120, seed=1)
    assert recovery.mcc(data.dictionary.T, found.dictionary.T).mcc > 0.97
    assert np.linalg.norm(found.dictionary, axis=1) == pytest.approx(np.ones(16), abs=1e-5)
    assert found.relative_gap < 2e-3 and len(found.tried) == 3 and (np.diff(found.tried) >= 0).all()
    assert found.objective == pytest.approx(found.tried[0], rel=2e-3)
    truth = dictionary_learner.certified_codes(data.dictionary, data.x_train, LAM)[1].objective.mean()
    assert found.objective < 1.01 * truth


def test_both_steps_only_ever_lower_the_objective(data):
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((16, 8))
    atoms = jnp.asarray(atoms / np.linalg.norm(atoms, axis=1, keepdims=True), jnp.float32)
    x, z, costs = jnp.asarray(data.x_train[:200]), jnp.zeros((16, 200)), []
    for _ in range(4):
        z = dictionary_learner.lasso(atoms, x, z, 0.05)
        costs.append(float(dictionary_learner._mean_objective(x, atoms, z, 0.05)))
        atoms = dictionary_learner.updated(atoms, x, z)
        costs.append(float(dictionary_learner._mean_objective(x, atoms, z, 0.05)))
    assert all(b <= a * (1 + 1e-5) for a, b in itertools.pairwise(costs)) and costs[-1] < 0.95 * costs[0]
    assert np.linalg.norm(atoms, axis=1) == pytest.approx(np.ones(16), abs=1e-5)


def test_the_rounds_lasso_is_the_certified_one(data):
    atoms, x = jnp.asarray(data.dictionary), jnp.asarray(data.x_train[:200])
    z = dictionary_learner.lasso(atoms, x, jnp.zeros((16, 200)), 0.05, 1e-6, 2000)
    best = dictionary_learner.certified_codes(data.dictionary, data.x_train[:200], 0.05)[1].objective.mean()
    assert float(dictionary_learner._mean_objective(x, atoms, z, 0.05)) == pytest.approx(best, rel=1e-4)


def test_an_unused_atom_stays_where_it_is():
    atoms, x = jnp.eye(3), jnp.asarray([[1.0, 0.5, 0.0]] * 4)
    z = jnp.asarray([[1.0] * 4, [0.0] * 4, [0.0] * 4])
    after = np.asarray(dictionary_learner.updated(atoms, x, z))
    assert after[1:] == pytest.approx(np.eye(3)[1:])
    assert after[0] == pytest.approx(np.array([1, 0.5, 0]) / np.hypot(1, 0.5), abs=1e-6)


def test_scikit_learn_on_its_own_kind_of_data():
    data = ceilings.published_data(6, 4, 2, n=300)
    assert (data.codes_train < 0).any() and np.all((data.codes_train != 0).sum(axis=1) == 2)
    assert data.x_test == pytest.approx(data.codes_test @ data.dictionary, abs=1e-5)
    found = ceilings.sklearn_learned(data.x_train, 6)
    codes = ceilings.sklearn_codes(found, data.x_test)
    assert recovery.mcc(data.codes_test, codes).mcc > 0.6
    turned = ceilings.turned(-found, data.x_train)
    assert np.abs(np.sum(turned * found, axis=1)) == pytest.approx(np.ones(6), abs=1e-4)
    assert (ceilings.sklearn_codes(turned, data.x_train).mean(axis=0) > -1e-6).all()


def test_data_that_can_not_be_learned_from_is_said():
    for x in (np.zeros((10, 4)), np.full((10, 4), np.nan), np.zeros((0, 4))):
        with pytest.raises(AmortjaxError, match="not all zero"):
            dictionary_learner.learn(x, 6)
    with pytest.raises(AmortjaxError, match="above 0"):
        dictionary_learner.learn(np.ones((10, 4)), 0)
