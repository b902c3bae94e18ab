"""Trains and measures the cells of a sweep: all runs of a group at once, then each run's row.

    rows = measured(group)         # {Cell: [row of each run]}, of cells with the same `Cell.group()`

A row holds the cell's fields, `run`, and what `found` says of codes and atoms (Hungarian |Pearson|; identity and signed
for supervised encoders); mse, loss (released form), density@T, the share of codes above T; FLOPs. Under `controlled`
also what certified codes on the same dictionary reach: mcc_exact, objective, objective_exact and the share of it that
is certified to be its duality gap at most, exact_gap.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.metrics import recovery
from amortjax.synthetic import ceilings, compositions, found, free_codes, generators, training
from amortjax.synthetic.dictionary_learner import certified_codes, learn_many
from amortjax.synthetic.encoders import Encoder, encode, init, largest, stacked
from amortjax.synthetic.sweep_costs import ACTIVE_ABOVE, cost
from amortjax.synthetic.sweeps import Cell

MODEL_SEED = 42  # added to a run's seed for the first weights, as released
_PART = 2000  # steps between two looks of the progress bar
_encode = jax.jit(encode, static_argnames="encoder")


class Data(NamedTuple):
    """Host arrays: codes (n, sources), x (n, D), dictionary (sources, D); `split` where pairs are held out."""

    codes_train: np.ndarray
    codes_test: np.ndarray
    x_train: np.ndarray
    x_test: np.ndarray
    dictionary: np.ndarray
    split: compositions.Split | None = None


class Coder(NamedTuple):
    """What a run ends with: code(x (n, D)) -> (n, M), its dictionary (M, D), what else to tell, and the bias of its
    reconstruction (D,)."""

    code: Callable[[np.ndarray], np.ndarray]
    dictionary: np.ndarray
    about: dict[str, Any]
    offset: np.ndarray | float = 0.0


@functools.lru_cache(maxsize=16)
def _data(data: str, seed: int, sources: int, dimensions: int, active: int, samples: int, pairs: int) -> Data:
    if data == "sklearn":
        return Data(*ceilings.published_data(sources, dimensions, active, samples, seed))
    generators.check_sizes(sources, dimensions, active, samples)
    if not pairs:
        return Data(*generators.make_data(seed, sources, dimensions, active, samples, data)[:5])
    draw = lambda seed, n: generators.draw_codes(seed, n, sources, active, data)  # noqa: E731
    half = samples // 2
    split = compositions.draw_split(draw, sources, half, samples - half, pairs, seed)
    dictionary = generators.draw_dictionary(seed, sources, dimensions)
    x = (split.train @ dictionary, split.test_in @ dictionary)
    return Data(split.train, split.test_in, *x, dictionary, split)


def data_of(cell: Cell, run: int) -> Data:
    seed = cell.seed + run * cell.redraw
    return _data(cell.data, seed, cell.sources, cell.dimensions, cell.active, cell.samples, cell.pairs)


def measured(cells: Sequence[Cell], progress: bool = False) -> dict[Cell, list[dict[str, Any]]]:
    """Rows of cells of one group."""
    began = time.perf_counter()
    runs = [(cell, run) for cell in cells for run in range(cell.runs)]
    coders = _MAKERS[cells[0].method](runs, progress)
    made = (time.perf_counter() - began) / len(runs)
    rows: dict[Cell, list[dict[str, Any]]] = {cell: [] for cell in cells}
    for (cell, run), coder in zip(runs, coders, strict=True):
        began = time.perf_counter()
        row = dataclasses.asdict(cell) | {"run": run} | score(cell, data_of(cell, run), coder)
        rows[cell].append(row | {"seconds": made + time.perf_counter() - began})
    return rows


# --- what makes the coders of some runs ---


def _advanced(runs: list, state: training.State, step: Callable, progress: bool) -> training.State:
    """`step(state, n)` until all steps are done, under a bar."""
    from tqdm import tqdm

    cell = runs[0][0]
    text = f"{cell.method} {cell.sources}x{cell.dimensions}, {len(runs)} runs"
    with tqdm(total=cell.steps, desc=text, unit="step", leave=False, disable=not progress) as bar:
        for done in range(0, cell.steps, _PART):
            n = min(_PART, cell.steps - done)
            state = jax.block_until_ready(step(state, n))
            bar.update(n)
    return state


def _of_runs(runs: list, name: str) -> jax.Array:
    """An array of the data: (n, ...) if all runs share it, else (S, n, ...)."""
    cell = runs[0][0]
    each = [getattr(data_of(cell, run), name) for cell, run in runs]
    return jnp.asarray(np.stack(each) if cell.redraw else each[0])


def _numbers(runs: list) -> tuple[jax.Array, jax.Array]:
    return tuple(
        jnp.asarray([getattr(cell, name) for cell, _ in runs], jnp.float32) for name in ("lam", "lr")
    )  # pyright: ignore


def _encoders(runs: list, progress: bool) -> list[Coder]:
    one = runs[0][0]
    supervised = one.goal == "codes"
    # TopK encoders stop there: the k largest pre-activations that are positive.
    encoder = Encoder(one.hidden, one.bias, one.k, one.offset)
    fit = training.Fit(encoder, one.goal, not supervised, columns=one.columns)
    sizes = (one.sources, one.dimensions, not supervised)
    weights = stacked(init(cell.seed + run + MODEL_SEED, encoder, *sizes) for cell, run in runs)
    truth = [_of_runs(runs, "codes_train"), _of_runs(runs, "dictionary")] if supervised else [None, None]
    batch, numbers = training.Batch(_of_runs(runs, "x_train"), *truth), training.Numbers(*_numbers(runs))
    step = lambda state, n: training.advance(state, batch, numbers, n, fit=fit)  # noqa: E731
    state = _advanced(runs, training.start(weights), step, progress)
    coders = []
    for i, (cell, run) in enumerate(runs):
        own = jax.tree.map(lambda leaf: leaf[i], state.weights)  # noqa: B023
        atoms = training.dictionary_of(own, None, fit)
        atoms = data_of(cell, run).dictionary if atoms is None else np.asarray(atoms)
        code = lambda x, own=own: np.asarray(_encode(own, jnp.asarray(x), encoder=encoder))  # noqa: E731
        coders.append(_told(code, atoms, own.get("offset")))
    return coders


def _sparse_coding(runs: list, progress: bool) -> list[Coder]:
    one = runs[0][0]
    x, (lam, lr) = _of_runs(runs, "x_train"), _numbers(runs)
    sizes, free = (x.shape[-2], one.sources, one.dimensions), free_codes.Free(one.k, one.offset)
    weights = stacked(free_codes.init(cell.seed + run + MODEL_SEED, *sizes, free) for cell, run in runs)
    if one.k or one.offset:
        step = lambda state, n: free_codes.advance(state, x, lam, lr, n, free=free)  # noqa: E731
    else:
        batch, fit = training.Batch(x), training.Fit(None, learn_dictionary=True, columns=one.columns)
        step = lambda state, n: training.advance(state, batch, training.Numbers(lam, lr), n, fit=fit)  # noqa: E731
    state = _advanced(runs, training.start(weights), step, progress)
    # As released, test data are coded with the atoms as the last update left them, not brought back to norm 1.
    raw = one.protocol == "literal"
    atoms = np.asarray(state.weights["atoms"] if raw else training.unit_atoms(state.weights["atoms"]))
    offsets = np.asarray(state.weights["offset"]) if one.offset else [None] * len(runs)
    return [
        _told(functools.partial(_optimised, cell, run, own, 0.0 if offset is None else offset), own, offset)
        for (cell, run), own, offset in zip(runs, atoms, offsets, strict=True)
    ]


def _told(code: Callable[[np.ndarray], np.ndarray], atoms: np.ndarray, offset: Any) -> Coder:
    if offset is None:
        return Coder(code, atoms, {})
    return Coder(code, atoms, {"offset": float(np.linalg.norm(offset))}, np.asarray(offset))


def _optimised(cell: Cell, run: int, atoms: np.ndarray, offset: Any, x: np.ndarray) -> np.ndarray:
    """Test codes of sparse coding: Adam on free codes as released, or certified."""
    if cell.protocol == "controlled" and cell.lam > 0 and not cell.k:
        z = certified_codes(atoms, x - offset, cell.lam_half)[0]
    else:
        seed, half = cell.seed + run + MODEL_SEED, cell.samples // 2
        begin = free_codes.start_of_test(seed, half, len(x), cell.sources, cell.dimensions, cell.k)
        arrays = (jnp.asarray(x - offset), jnp.asarray(atoms), jnp.asarray(begin))
        z = free_codes.code(*arrays, cell.lam, cell.code_lr, n_steps=cell.code_steps, k=cell.k)
    return np.asarray(largest(jnp.asarray(z), cell.k_after))


def _certified_on(dictionary: np.ndarray, lam: float, about: dict[str, Any]) -> Coder:
    return Coder(lambda x: certified_codes(dictionary, x, lam)[0], dictionary, about)


def _learners(runs: list, progress: bool) -> list[Coder]:
    coders = []
    for cell in dict.fromkeys(cell for cell, _ in runs):
        x = np.stack([data_of(cell, run).x_train for run in range(cell.runs)])
        seeds = tuple(cell.seed + run for run in range(cell.runs))
        for one in learn_many(x, cell.sources, cell.lam_half, cell.restarts, cell.rounds, seeds, progress):
            about = {"train_objective": one.objective, "train_gap": one.relative_gap}
            coders.append(_certified_on(one.dictionary, cell.lam_half, about))
    return coders


def _true_dictionary(runs: list, progress: bool) -> list[Coder]:
    return [_certified_on(data_of(cell, run).dictionary, cell.lam_half, {}) for cell, run in runs]


def _sklearn(runs: list, progress: bool) -> list[Coder]:
    """As published on its own data; on ours its atoms, turned, with codes of one sign, certified."""
    coders = []
    for cell, run in runs:
        data = data_of(cell, run)
        atoms = ceilings.sklearn_learned(data.x_train, cell.sources, ceilings.SKLEARN_SEED + run)
        if cell.data == "sklearn":
            coders.append(Coder(functools.partial(ceilings.sklearn_codes, atoms), atoms, {}))
        else:
            coders.append(_certified_on(ceilings.turned(atoms, data.x_train), cell.lam_half, {}))
    return coders


_MAKERS: dict[str, Callable[[list, bool], list[Coder]]] = {
    "sae": _encoders, "mlp": _encoders, "sparse_coding": _sparse_coding, "certified_learner": _learners,
    "true_dictionary": _true_dictionary, "sklearn": _sklearn,
}  # fmt: skip


# --- what is read off a run ---


def score(cell: Cell, data: Data, coder: Coder) -> dict[str, Any]:
    """A run's numbers on the test half."""
    z = coder.code(data.x_test)
    match = "identity" if cell.goal == "codes" else "hungarian"
    row = coder.about | found.of_codes(data.codes_test, data.x_test, z, match, signed=cell.data == "sklearn")
    if cell.goal != "codes" and cell.method != "true_dictionary":
        row |= found.of_atoms(data.dictionary, coder.dictionary)
    if cell.goal != "codes":  # the cosine loss fixes no scale
        mse = float(((z @ coder.dictionary + coder.offset - data.x_test) ** 2).mean())
        row |= {"mse": mse, "loss": mse + cell.lam * float(np.abs(z).mean())}
    row |= {f"density@{above:g}": float((np.abs(z) > above).mean()) for above in ACTIVE_ABOVE} | cost(cell)
    if cell.protocol == "controlled" and cell.lam > 0 and cell.goal != "codes" and not cell.offset:
        row |= _against_exact(cell, data, coder, z)
    if data.split is not None:
        identity = cell.goal == "codes"
        args = (coder.code, data.split, data.dictionary, cell.lam_half, coder.dictionary, identity)
        scored = compositions.scores(*args)
        names = ("mcc", "support_share", "support_exact", "mse", "l0", "pair_found")
        row |= {f"{one['where']}_{key}": one[key] for one in scored for key in names if key in one}
    return row


def _against_exact(cell: Cell, data: Data, coder: Coder, z: np.ndarray) -> dict[str, float]:
    """What the codes cost against certified ones on the same dictionary (half form)."""
    best, proof = certified_codes(coder.dictionary, data.x_test, cell.lam_half)
    error = ((data.x_test.astype(np.float64) - z.astype(np.float64) @ coder.dictionary) ** 2).sum(axis=1)
    cost = float((0.5 * error + cell.lam_half * np.abs(z).sum(axis=1)).mean())
    return {
        "mcc_exact": recovery.mcc(data.codes_test, best).mcc,
        "objective": cost,
        "objective_exact": float(proof.objective.mean()),
        "exact_gap": float(proof.gap.mean() / proof.objective.mean()),
    }
