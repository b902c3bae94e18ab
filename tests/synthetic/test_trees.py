"""A child never fires without its parent, and sources fire as often as the tree says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amortjax.errors import AmortjaxError
from amortjax.synthetic import trees


@st.composite
def random_trees(draw) -> trees.Tree:
    """Of any depth: each source's parent is one before it, or none."""
    n = draw(st.integers(1, 12))
    return trees.Tree(np.array([draw(st.integers(-1, i - 1)) for i in range(n)]))


@settings(max_examples=40, deadline=None)
@given(random_trees(), st.integers(0, 100), st.floats(0.1, 1))
def test_a_child_implies_its_parent_in_any_tree(tree, seed, child_rate):
    sources = len(tree.parent)
    z = trees.draw_tree_codes(seed, 400, sources, 0.3, tree, child_rate)
    assert z.shape == (400, sources) and z.dtype == np.float32 and z.min() >= 0
    fires = z > 0
    for source in tree.children:
        assert not np.any(fires[:, source] & ~fires[:, tree.parent[source]])


def test_the_published_tree():
    tree = trees.make_tree(20)
    assert len(tree.roots) == 11 and np.array_equal(np.bincount(tree.parent[tree.children]), [3, 3, 3])
    small = trees.make_tree(16)
    assert len(small.roots) == 10 and len(small.children) == 6
    assert len(trees.make_tree(3).roots) == 3  # too few for a family


def test_rates_magnitudes_and_seeds():
    tree = trees.make_tree(20)
    z = trees.draw_tree_codes(1, 40000, 20, 3)
    fires, rates = (z > 0).mean(axis=0), trees.inclusion(tree, 3)
    assert rates.sum() == pytest.approx(3) and fires == pytest.approx(rates, abs=0.012)
    assert rates[tree.children] == pytest.approx(0.5 * rates[tree.parent[tree.children]])
    values = z[z > 0]
    assert values.mean() == pytest.approx(1.5, abs=0.01) and values.std() == pytest.approx(0.25, abs=0.01)
    assert np.array_equal(z[:100], trees.draw_tree_codes(1, 40000, 20, 3)[:100])
    assert not np.array_equal(z, trees.draw_tree_codes(2, 40000, 20, 3))


def test_without_children_sources_are_independent_of_parents():
    """The property above is the tree's, not the draw's: of unrelated sources some fire without each other."""
    z = trees.draw_tree_codes(0, 2000, 4, 1, trees.Tree(np.full(4, -1))) > 0
    assert all(np.any(z[:, a] & ~z[:, b]) for a in range(4) for b in range(4) if a != b)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: trees.make_tree(0), "at least 1"),
        (lambda: trees.make_tree(10, families=3), "at most 2 do"),
        (lambda: trees.inclusion(trees.Tree(np.array([1, -1])), 1), "must come before"),
        (lambda: trees.inclusion(trees.Tree(np.array([0.5])), 1), "one integer"),
        (lambda: trees.inclusion(trees.make_tree(20), 16), "at most 15.5"),
        (lambda: trees.inclusion(trees.make_tree(20), 1, 0), "child_rate"),
        (lambda: trees.draw_tree_codes(0, 5, 7, 1, trees.make_tree(20)), "of 20 sources"),
    ],
)
def test_mistakes_are_said(make, said):
    with pytest.raises(AmortjaxError, match=said):
        make()
