"""What launch.theorem checks against the theory: from its parts' rows, and from dictionaries with a known answer."""

import itertools
import math
from collections.abc import Iterator

import numpy as np

from amortjax.launch.theorem_parts import COVERED, LASSO, SPARSEST, TRAINED, Row, Sizes, codes, dictionary
from amortjax.synthetic import generators, theorem
from amortjax.synthetic.theorem import Check


def facts(sizes: Sizes, rows: list[Row]) -> list[Row]:
    """Every fact, a row each."""
    made = (rank_facts(sizes, rows), one_source(sizes), half_space_facts(rows), wide(sizes), linear(sizes),
            recovery(sizes, rows))  # fmt: skip
    return [check_row(check) for check in itertools.chain(*made)]


def _of(rows: list[Row], condition: str) -> list[Row]:
    return [row for row in rows if row["condition"] == condition]


def rank_facts(sizes: Sizes, rows: list[Row]) -> Iterator[Check]:
    own, setting = _of(rows, "encoder"), sizes.text
    bound = math.sqrt(sizes.sources - sizes.dimensions)
    names = f"{len(own)} encoders"
    most, least = max(row["rank"] for row in own), min(row["distance"] for row in own)
    text = f"rank of D W is at most M, whatever W is (largest of {names})"
    yield Check("rank", setting, text, "<=", sizes.dimensions, most)
    text = f"||D W - I|| is at least sqrt(N - M) (smallest of {names})"
    yield Check("rank", setting, text, ">=", bound, least, 1e-9)
    nearest = next(row["distance"] for row in own if row["mode"] == "pseudo-inverse")
    yield Check("rank", setting, "the pseudo-inverse attains sqrt(N - M)", "=", bound, nearest, 1e-6)


def one_source(sizes: Sizes) -> Iterator[Check]:
    """Controls in which K = 1 makes an encoder exact though M < N, and what a second source does to them."""
    for dimensions in dict.fromkeys((2, sizes.dimensions)):
        atoms = theorem.simplex(dimensions)
        setting = f"simplex, {dimensions + 1} sources in {dimensions} dimensions"
        out = theorem.relu_codes(1.7 * atoms, atoms.T)
        off = float(np.abs(out - 1.7 * np.eye(len(atoms))).max())
        yield Check(
            "one active source", setting, "W = D' is exact for K = 1 (largest error)", "<=", 0, off, 1e-9
        )
        two = np.eye(len(atoms))[0] + np.eye(len(atoms))[1]
        found = theorem.relu_codes((two @ atoms)[None], atoms.T)
        off = float(np.abs(found - two).max())
        yield Check(
            "two active sources",
            setting,
            "both at 1: each value is off by 1 / M",
            "=",
            1 / dimensions,
            off,
            1e-9,
        )
        right = theorem.errors(found, two[None]).supports
        yield Check("two active sources", setting, "and yet the support is found", "=", 1, right)
    atoms = theorem.antipodal(sizes.dimensions)
    setting = f"antipodal pairs, {len(atoms)} sources in {sizes.dimensions} dimensions"
    off = float(np.abs(theorem.relu_codes(atoms, atoms.T) - np.eye(len(atoms))).max())
    yield Check("one active source", setting, "W = D' is exact for K = 1 (largest error)", "<=", 0, off, 1e-9)
    both = np.eye(len(atoms))[0] + np.eye(len(atoms))[sizes.dimensions]
    left = float(np.linalg.norm(both @ atoms))
    yield Check(
        "two active sources", setting, "opposite atoms cancel: no method can tell (norm of x)", "=", 0, left
    )


def half_space_facts(rows: list[Row]) -> Iterator[Check]:
    for row in _of(rows, "half_space"):
        if (row["sources"], row["dimensions"]) in COVERED:
            text = (
                "random dictionary, K = 1: share of sources that can be exact is Cover's, so it is no control"
            )
            numbers = (row["theory"], row["measured"], 4 * row["standard_error"])
            yield Check("one active source", row["checkpoint"], text, "=", *numbers)


def wide(sizes: Sizes) -> Iterator[Check]:
    """As many dimensions as sources: an exact encoder exists."""
    for dimensions in (sizes.sources, sizes.sources + sizes.sources // 2):
        atoms = generators.draw_dictionary(sizes.seed, sizes.sources, dimensions).astype(np.float64)
        test = codes(sizes, sizes.active, "test")
        found = theorem.relu_codes(test @ atoms, np.linalg.pinv(atoms))
        setting = f"{sizes.sources} sources in {dimensions} dimensions"
        off = float(np.abs(found - test).max())
        yield Check("M >= N", setting, "W = pinv(D) is exact for any K (largest error)", "<=", 0, off, 1e-6)


def linear(sizes: Sizes) -> Iterator[Check]:
    """Linear maps, fitted on half of the samples and measured on the others."""
    n = int(min(1 << 16, (1 << 25) // sizes.sources))
    draw = np.random.default_rng([sizes.seed, 4])
    order = np.argsort(draw.random((n, sizes.sources)), axis=1)[:, : sizes.active]
    every = np.zeros((n, sizes.sources))
    np.put_along_axis(every, order, np.abs(draw.standard_normal(order.shape)), axis=1)
    fit, test = every[: n // 2], every[n // 2 :]
    axes = np.linalg.eigh(fit.T @ fit)[1][:, -sizes.dimensions :]
    theory = theorem.energy_left(sizes.sources, sizes.dimensions, sizes.active)
    setting = f"{sizes.text}, K = {sizes.active}"
    left = theorem.errors(test @ axes @ axes.T, test).energy
    text = "the best linear map of rank M leaves this share of the codes' energy"
    yield Check("linear", setting, text, "=", theory, left, 0.03 * theory)
    x = every @ dictionary(sizes)
    left = theorem.errors(x[n // 2 :] @ theorem.linear_encoder(fit, x[: n // 2]), test).energy
    yield Check(
        "linear", setting, "the best linear map of x leaves no less", ">=", theory, left, 0.03 * theory
    )


def recovery(sizes: Sizes, rows: list[Row]) -> Iterator[Check]:
    """Where codes are unique another method is exact; the certified lasso is exact more often than ReLU encoders."""
    least, every = theorem.least_independence(dictionary(sizes), sizes.active, sizes.seed)
    setting = f"{sizes.text}, K = {sizes.active}"
    found = {(row["active"], row["mode"]): row for row in _of(rows, "sparsity")}
    if 2 * sizes.active <= sizes.dimensions:
        which = "all" if every else "20 000 random"
        text = f"codes are unique: least singular value of any 2 K atoms is above 0 ({which} subsets)"
        yield Check("other methods", setting, text, ">=", 1e-6, least)
        oracle = found.get((sizes.active, SPARSEST))
        if oracle:
            yield Check(
                "other methods",
                setting,
                "the sparsest code is exact (share of samples)",
                "=",
                1,
                oracle["exact"],
            )
    for active in sizes.sparsities:
        lasso, relu = found[active, LASSO], found[active, TRAINED]
        setting = f"{sizes.text}, K = {active}"
        text = "the lasso's codes are certified (largest relative gap)"
        yield Check("other methods", setting, text, "<=", 0, lasso["gap"], 1e-4)
        if active > 1:
            text = "a trained ReLU encoder is exact on no more samples than the certified lasso"
            yield Check("ReLU encoders", setting, text, "<=", lasso["exact"], relu["exact"], 0.01)


def check_row(check: Check) -> Row:
    return {
        "checkpoint": check.setting,
        "mode": check.control,
        "condition": "check",
        **check._asdict(),
        "ok": check.ok,
    }
