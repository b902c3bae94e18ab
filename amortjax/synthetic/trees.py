"""Sources in a tree: a child fires only with its parent.

The synthetic tree of MP-SAE (Costa et al., arXiv 2506.03093, as third-party notes have it): 20 concepts, 11 of them
without a parent, 3 of these with 3 children each, magnitudes N(1.5, 0.25^2). Rates are ours: roots fire independently
and equally often, each child in `child_rate` of the samples in which its parent does, and the mean number of active
sources is what was asked for.

    z = draw_tree_codes(seed=0, n=2048, sources=20, active=3)       # (n, sources) float32
    inclusion(make_tree(20), active=3)                               # how often each source fires
"""

from typing import NamedTuple

import numpy as np

from amortjax.errors import AmortjaxError

CHILD_RATE = 0.5
MAGNITUDE = (1.5, 0.25)  # mean and standard deviation of an active source
_PUBLISHED = (20, 3)  # sources, and how many of them have 3 children


class Tree(NamedTuple):
    """parent (sources,) int: whose child a source is, -1 for a root. Parents come before their children."""

    parent: np.ndarray

    @property
    def roots(self) -> np.ndarray:
        return np.flatnonzero(self.parent < 0)

    @property
    def children(self) -> np.ndarray:
        return np.flatnonzero(self.parent >= 0)


def make_tree(sources: int, families: int | None = None, children: int = 3) -> Tree:
    """`families` of the roots have `children` each; the default share of families is MP-SAE's, 3 of 20 sources (16: 2
    families, 10 roots). Roots first, then the children of the first root, of the second, and so on."""
    if sources < 1 or children < 1:
        raise AmortjaxError(
            f"a tree of {sources} sources with {children} children each: both must be at least 1"
        )
    whole, share = _PUBLISHED
    if families is None:
        families = min(max(1, round(sources * share / whole)), sources // (1 + children))
    roots = sources - families * children
    if families < 0 or roots < families:
        raise AmortjaxError(f"{families} families of {children} children do not fit in {sources} sources: "
                            f"at most {sources // (1 + children)} do")  # fmt: skip
    return Tree(
        np.concatenate([np.full(roots, -1), np.repeat(np.arange(families), children)]).astype(np.int64)
    )


def _checked(tree: Tree) -> Tree:
    """AmortjaxError unless parents come before their children, as drawing needs it."""
    parent = np.asarray(tree.parent)
    if parent.ndim != 1 or not len(parent) or not np.issubdtype(parent.dtype, np.integer):
        raise AmortjaxError("a tree is one integer for each source: its parent, or -1")
    late = parent >= np.arange(len(parent))
    if late.any() or parent.min() < -1:
        raise AmortjaxError(
            f"source {int(np.argmax(late | (parent < -1)))} of a tree: its parent must come before it"
        )
    return Tree(parent)


def inclusion(tree: Tree, active: float, child_rate: float = CHILD_RATE) -> np.ndarray:
    """(sources,) float64: the share of samples in which each source fires; they sum to `active`."""
    parent = _checked(tree).parent
    if not 0 < child_rate <= 1:
        raise AmortjaxError(f"child_rate {child_rate}: must be above 0 and at most 1")
    relative = np.ones(len(parent))  # to a root's rate
    for source in np.flatnonzero(parent >= 0):
        relative[source] = child_rate * relative[parent[source]]
    rate = active / relative.sum()
    if not 0 < rate <= 1:
        raise AmortjaxError(f"{active} active sources of {len(parent)}: this tree has more than 0 and at most "
                            f"{relative.sum():.3g} active on average")  # fmt: skip
    return rate * relative


def draw_tree_codes(
    seed: int,
    n: int,
    sources: int,
    active: float = 3,
    tree: Tree | None = None,
    child_rate: float = CHILD_RATE,
    magnitude: tuple[float, float] = MAGNITUDE,
) -> np.ndarray:
    """Codes (n, sources) float32, `active` of them non-zero on average; magnitudes N(mean, sd^2) by their size."""
    tree = make_tree(sources) if tree is None else _checked(tree)
    if len(tree.parent) != sources:
        raise AmortjaxError(f"a tree of {len(tree.parent)} sources can't give codes of {sources}")
    rates = inclusion(tree, active, child_rate)
    rng = np.random.default_rng(seed)
    given_parent = np.where(tree.parent < 0, rates, child_rate)
    fires = rng.random((n, sources), dtype=np.float32) < given_parent
    for source in tree.children:
        fires[:, source] &= fires[:, tree.parent[source]]
    mean, deviation = magnitude
    values = np.abs(mean + deviation * rng.standard_normal((n, sources), dtype=np.float32))
    return np.where(fires, values, np.float32(0)).astype(np.float32)
