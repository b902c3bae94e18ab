"""The dictionary relearned for exact codes: no round raises P, and known dictionaries are found again."""

import contextlib
import functools

import numpy as np
import pytest
from problems import sparse_problem

from amortjax.inference import modes, objective
from amortjax.inference.codes import from_dense
from amortjax.inference.modes import Options
from amortjax.inference.objective import certify, pose_dictionary
from amortjax.training.properties import nearest_cosine
from amortjax.training.relearn import relearn, update

LAM, OPTIONS = 0.1, Options(tol=1e-7, chunk=256)


def no_bar(total, text):
    return contextlib.nullcontext(type("Bar", (), {"update": lambda self, n: None})())


@functools.cache
def example():
    """A dictionary moved away from the one that the tokens are made of, with a zero atom and one that never fires."""
    atoms, t = sparse_problem(0, n=768, d=12, m=24, k=3)
    r = np.random.default_rng(1)
    moved = atoms + 0.15 * r.standard_normal(atoms.shape).astype(np.float32)
    moved[5] = 0.0
    return pose_dictionary(moved), t[:512], t[512:]


def solved(problem, t):
    nothing = from_dense(np.zeros((len(t), problem.n_latents)))
    return modes.solve("optimal", problem, t, nothing, LAM, 1.0, OPTIONS)[0]


@functools.cache
def relearned(rounds=3):
    problem, train, validation = example()
    start = tuple(from_dense(np.zeros((len(t), 24))) for t in (train, validation))
    return relearn(problem, train, validation, LAM, rounds, OPTIONS, start, no_bar)


def test_no_round_raises_p_on_the_training_tokens():
    found, (problem, train, validation) = relearned(), example()
    frozen = certify(problem, train, solved(problem, train), LAM)
    assert found.train[0] == pytest.approx(frozen.objective.mean(), rel=1e-6)
    assert all(b <= a * (1 + 1e-6) for a, b in zip(found.train, found.train[1:], strict=False))
    assert found.train[found.chosen] < 0.9 * found.train[0]
    assert found.validation[found.chosen] == min(found.validation)
    # What is handed back is the dictionary of that round.
    own = pose_dictionary(found.atoms, problem.record)
    t = (validation - found.shift).astype(np.float32)
    p = certify(own, t, solved(own, t), LAM).objective.mean()
    assert p == pytest.approx(found.validation[found.chosen], rel=1e-6)


def test_atoms_keep_their_norms_and_zero_atoms_stay_zero():
    found, (problem, _, _) = relearned(), example()
    norms = np.linalg.norm(problem.unit64 * problem.weights64[:, None], axis=1)
    np.testing.assert_allclose(np.linalg.norm(found.atoms, axis=1), norms, rtol=1e-6)
    assert not found.atoms[5].any()


def test_no_rounds_leave_the_dictionary_as_it_is():
    found, (problem, _, _) = relearned(0), example()
    np.testing.assert_allclose(found.atoms, problem.unit64 * problem.weights64[:, None], rtol=1e-12)
    assert found.chosen == 0 and not found.shift.any() and len(found.train) == 1


def test_the_update_lowers_p_of_the_same_codes_and_finds_a_bias():
    problem, train, _ = example()
    bias = np.linspace(-0.5, 0.5, 12)
    codes = problem.fold(solved(problem, train)).csr(np.float64)
    t = codes @ problem.unit64 + bias
    unit, shift = update(problem.unit64, np.zeros(12), codes, t)

    def p(unit, shift):
        r = t - shift - codes @ unit
        return 0.5 * np.sum(r * r)

    assert p(unit, shift) < 0.02 * p(problem.unit64, np.zeros(12))
    live = np.linalg.norm(problem.unit64, axis=1) > 0
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), live, atol=1e-12)


def test_order_of_latents_does_not_matter():
    problem, train, _ = example()
    codes = problem.fold(solved(problem, train)).csr(np.float64)
    order = np.random.default_rng(2).permutation(24)
    unit, shift = update(problem.unit64, np.zeros(12), codes, train)
    other, other_shift = update(problem.unit64[order], np.zeros(12), codes[:, order], train)
    np.testing.assert_allclose(other, unit[order], atol=1e-9)
    np.testing.assert_allclose(other_shift, shift, atol=1e-9)


def test_nearest_cosine(monkeypatch):
    problem, _, _ = example()
    cosines = problem.unit64 @ problem.unit64.T
    np.fill_diagonal(cosines, -np.inf)
    expected = np.where(np.arange(24) == 5, np.nan, cosines.max(axis=1))
    np.testing.assert_allclose(nearest_cosine(problem), expected, atol=1e-6)
    monkeypatch.setattr("amortjax.training.properties.CHUNK", 10)
    np.testing.assert_allclose(nearest_cosine(problem), expected, atol=1e-6)


def test_objective_of_another_dictionary_has_the_same_record():
    problem, _, _ = example()
    objective.require_same(problem.record, pose_dictionary(relearned().atoms, problem.record).record)
