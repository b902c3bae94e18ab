"""Classes of dead latents and their curves: against enumeration, and unchanged by what must not matter."""

import itertools

import numpy as np
import pytest
import scipy.sparse

from amortjax.metrics import dead_audit, uncertainty
from amortjax.metrics.dead_audit import NAMES, SHARES, Seen

CODES = ("encoder", "optimum", "ista")


def seen_of(seed: int = 0, documents: int = 7, m: int = 40, rate: float = 0.05) -> Seen:
    rng = np.random.default_rng(seed)
    doc_ids = np.repeat(3 * np.arange(documents), rng.integers(1, 5, documents))
    dense = {name: (rng.random((len(doc_ids), m)) < rate) * 1.5 for name in CODES}
    return Seen.of({name: scipy.sparse.csr_array(z) for name, z in dense.items()}, doc_ids)


def test_every_case_has_its_class():
    cases = np.array(list(itertools.product([True, False], repeat=3)))
    found = [NAMES[i] for i in dead_audit.classify(*cases.T)]
    assert found == [
        "alive", "alive", "optimum_only", "optimum_only", "encoder_only", "encoder_only", "under_converged", "dead",
    ]  # fmt: skip


def test_shares_are_those_of_the_classes():
    seen = seen_of()
    own = dead_audit.classify(*(seen.fires(name) > 0 for name in CODES))
    shares = dead_audit.realised(seen)
    assert {name: shares[name] for name in NAMES} == pytest.approx(
        {name: np.mean(own == i) for i, name in enumerate(NAMES)}
    )
    assert len(set(own)) == len(NAMES), "the sample holds every class"
    alive = {name: seen.fires(name) > 0 for name in CODES}
    assert shares["ista_not_optimum"] == pytest.approx(np.mean(alive["ista"] & ~alive["optimum"]))
    assert shares["optimum_not_ista"] == pytest.approx(np.mean(~alive["ista"] & alive["optimum"]))


@pytest.mark.parametrize("drawn", [1, 3, 7])
def test_expected_shares_are_means_over_all_choices_of_documents(drawn):
    seen = seen_of()
    every = []
    for chosen in itertools.combinations(range(len(seen.ids)), drawn):
        every.append(dead_audit.realised(seen, np.isin(np.arange(len(seen.ids)), chosen)))
    found = dead_audit.expected(seen, drawn)
    for name in SHARES:
        assert found[name] == pytest.approx(np.mean([one[name] for one in every]), abs=1e-12), name
    assert sum(found[name] for name in NAMES) == pytest.approx(1)


def test_halves_are_expected_shares_with_jackknife_intervals():
    seen = seen_of(documents=80, m=60, rate=0.004)
    half, wanted = dead_audit.halves(seen), dead_audit.expected(seen, 40)
    for name, estimate in half.items():
        assert estimate.value == pytest.approx(wanted[name], abs=1e-12)
        assert estimate.kind == "jackknife" and len(estimate.draws) == 80
        low, high = uncertainty.interval(estimate)
        assert low <= estimate.value <= high and high - low < 0.6
    # By hand: the class with one document less, rarefied to half of what is left.
    left = np.arange(80) != 5
    less = Seen(
        {k: v[np.flatnonzero(left)] for k, v in seen.presence.items()}, seen.ids[left], seen.tokens[left]
    )
    assert half["encoder_only"].draws[5] == pytest.approx(
        dead_audit.expected(less, 39)["encoder_only"], abs=1e-12
    )
    few = dead_audit.halves(seen_of())
    assert all(uncertainty.interval(estimate) is None for estimate in few.values())


def test_the_order_of_latents_and_of_parts_does_not_matter():
    rng, m = np.random.default_rng(1), 40
    doc_ids = np.repeat(np.arange(30), 3)
    z = {name: scipy.sparse.csr_array((rng.random((90, m)) < 0.03) * 1.0) for name in CODES}
    order = rng.permutation(m)
    turned = Seen.of({name: scipy.sparse.csr_array(own[:, order]) for name, own in z.items()}, doc_ids)
    seen = Seen.of(z, doc_ids)
    assert dead_audit.expected(turned, 9) == pytest.approx(dead_audit.expected(seen, 9))
    classes = [dead_audit.classify(*(s.fires(name) > 0 for name in CODES)) for s in (seen, turned)]
    assert np.array_equal(classes[0][order], classes[1])
    shuffled = rng.permutation(90)
    again = Seen.of(
        {name: scipy.sparse.csr_array(own[shuffled]) for name, own in z.items()}, doc_ids[shuffled]
    )
    assert dead_audit.expected(again, 9) == dead_audit.expected(seen, 9)


def test_stored_zeros_do_not_fire():
    z = scipy.sparse.csr_array((np.array([0.0, 2.0]), (np.array([0, 1]), np.array([0, 1]))), shape=(2, 3))
    seen = Seen.of(dict.fromkeys(CODES, z), np.array([0, 1]))
    assert seen.documents_of(("encoder",)).tolist() == [0, 1, 0]


def test_stages_are_nested():
    doc_ids = np.repeat(np.arange(10), 2)
    budgets = [np.array([4, 5]), np.array([4, 5, 8, 9]), np.arange(2, 20)]
    assert dead_audit.stages_of(budgets, np.arange(2, 20), doc_ids).reshape(-1, 2)[:, 0].tolist() == [
        2, 0, 2, 1, 2, 2, 2, 2, 2,
    ]  # fmt: skip
    assert dead_audit.doubling(512, 2000) == [512, 1024, 2000]
    assert dead_audit.doubling(512, 100) == [100]
    assert dead_audit.spaced(1, 4, 16) == [1, 2, 3, 4]
