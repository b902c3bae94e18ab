"""Held-out pairs never meet in training, always in the test of new pairs; a lookup of training supports fails there."""

import numpy as np
import pytest

from amortjax.errors import AmortjaxError
from amortjax.synthetic import compositions, trees


def uniform(sources: int = 16, active: int = 3):
    def draw(seed: int, n: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        fires = rng.random((n, sources)).argsort(axis=1) < active
        return np.where(fires, np.abs(rng.standard_normal((n, sources))), 0).astype(np.float32)

    return draw


def split(**options) -> compositions.Split:
    return compositions.draw_split(uniform(), 16, 600, 200, seed=1, **options)


DICTIONARY = np.linalg.qr(np.random.default_rng(0).standard_normal((16, 16)))[0].astype(np.float32)


@pytest.mark.parametrize("pairs", [None, 1, 20])
def test_pairs_meet_only_where_they_are_tested(pairs):
    found = split(pairs=pairs)
    assert len(found.pairs) == (8 if pairs is None else pairs)
    both = np.einsum("ni,nj->ij", *(2 * [(found.train != 0).astype(int)]))
    assert not both[tuple(found.pairs.T)].any()
    other = np.triu(both, 1) + np.eye(16) + np.tril(np.ones((16, 16)))
    other[tuple(found.pairs.T)] = 1
    assert other.all()  # all other pairs were seen
    assert not compositions.holds_pair(found.test_in, found.pairs).any()
    assert compositions.holds_pair(found.test_out, found.pairs).all()
    assert (len(found.train), len(found.test_in), len(found.test_out)) == (600, 200, 200)
    assert (found.train != 0).any(axis=0).all()


def test_pairs_are_distinct_disjoint_at_first_and_seeded():
    pairs = compositions.held_out_pairs(3, 9, 20)
    assert len({tuple(p) for p in pairs}) == 20 and (pairs[:, 0] < pairs[:, 1]).all()
    assert len(set(pairs[:4].ravel())) == 8
    assert np.array_equal(pairs, compositions.held_out_pairs(3, 9, 20))
    assert len(compositions.held_out_pairs(0, 5, 10)) == 10


def test_any_distribution_can_be_parted():
    draw = lambda seed, n: trees.draw_tree_codes(seed, n, 16, 4)  # noqa: E731
    found = compositions.draw_split(draw, 16, 300, 50, 4)
    assert not compositions.holds_pair(found.train, found.pairs).any()


def test_the_truth_scores_one_on_both_and_a_memory_of_training_supports_does_not():
    found = split()
    exact = compositions.scores(lambda x: x @ DICTIONARY.T, found, DICTIONARY, lam=0.0025)
    for row in exact:
        assert row["mcc"] == pytest.approx(1, abs=1e-4) and row["support_exact"] == 1 and row["mse"] < 1e-10
        assert row["l0"] == pytest.approx(3, abs=0.02) and 0 < row["objective"] < 0.01
    assert exact[1]["pair_found"] == 1

    def nearest(x: np.ndarray) -> np.ndarray:
        known = found.train
        cosine = (x @ (known @ DICTIONARY).T) / np.linalg.norm(known, axis=1)
        return known[cosine.argmax(axis=1)]

    inside, outside = compositions.scores(nearest, found, DICTIONARY)
    assert outside["pair_found"] == 0 and outside["support_exact"] == 0
    assert inside["support_exact"] > 0.1 and inside["mcc"] > outside["mcc"] + 0.02


def test_latents_keep_their_partner_out_of_distribution():
    """Matched where it is tested, an encoder that swaps two latents on new pairs would be forgiven."""
    found = split()
    order = np.random.default_rng(0).permutation(16)
    turned = compositions.scores(
        lambda x: (x @ DICTIONARY.T)[:, order], found, DICTIONARY, atoms=DICTIONARY[order]
    )
    assert [row["mcc"] for row in turned] == pytest.approx([1, 1], abs=1e-4)
    assert turned[1]["pair_found"] == 1 and turned[1]["mse"] < 1e-10
    as_is = compositions.scores(lambda x: (x @ DICTIONARY.T)[:, order], found, DICTIONARY, identity=True)
    assert abs(as_is[0]["mcc"]) < 0.3


def test_mistakes_are_said():
    with pytest.raises(AmortjaxError, match="there are 1, and 1"):
        compositions.held_out_pairs(0, 2, 5)
    with pytest.raises(AmortjaxError, match="activate more"):
        compositions.draw_split(uniform(16, 1), 16, 50, 50)
    with pytest.raises(AmortjaxError, match="activate fewer"):
        compositions.draw_split(uniform(4, 3), 4, 50, 50)
    with pytest.raises(AmortjaxError, match="not of 7 sources"):
        compositions.draw_split(uniform(), 7, 50, 50)
