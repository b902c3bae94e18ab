"""The paper's large known-codes experiment: 1000 sources, 200 dimensions, 20 active, 500 000 training samples.

Codes are kept as their indices and values (60 MB, not 2 GB) and made dense a minibatch at a time on the device; x is
never kept. Minibatches go through the samples in a new order each epoch; the incomplete last one is left out. The
released loop counts epochs and the text steps: here it is steps. All runs have one set of data, drawn by NumPy's newer
generator (no result was published that the older one could meet), and differ in first weights and order; they follow
each other, because one fills a CPU or a GPU. Training goes on from its last saved thousand.
"""

import dataclasses
import functools
import io
import time
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.files import write_atomically
from amortjax.metrics import recovery
from amortjax.synthetic import generators, training
from amortjax.synthetic.dictionary_learner import certified_codes
from amortjax.synthetic.encoders import Encoder, encode, init, stacked
from amortjax.synthetic.sweep_costs import ACTIVE_ABOVE, cost
from amortjax.synthetic.sweeps import Cell

MODEL_SEED = 42
CERTIFIED_SAMPLES = 2048  # of the test data that the certified solver codes
_CHUNK = 8192  # samples that are dense at a time
_PART = 50  # steps of one call
_SAVE_EVERY = 1000
_encode = jax.jit(encode, static_argnames="encoder")


class Sparse(NamedTuple):
    """Codes of n samples: indices (n, K) int32, each row distinct, values (n, K) float32."""

    indices: np.ndarray
    values: np.ndarray

    def dense(self, rows: slice, sources: int) -> np.ndarray:
        out = np.zeros((len(self.indices[rows]), sources), np.float32)
        np.put_along_axis(out, self.indices[rows], self.values[rows], axis=1)
        return out


def draw_sparse(seed: int, n: int, sources: int, active: int) -> Sparse:
    """|N(0, 1)| on `active` sources of each sample, all supports equally likely; a chunk at a time."""
    rng = np.random.default_rng([seed, sources, active])
    indices, values = np.empty((n, active), np.int32), np.empty((n, active), np.float32)
    for i in range(0, n, _CHUNK):
        rows = slice(i, min(i + _CHUNK, n))
        drawn = rng.random((rows.stop - i, sources), dtype=np.float32)
        chosen = np.argpartition(drawn, active - 1, axis=1) if active < sources else np.argsort(drawn, axis=1)
        indices[rows] = chosen[:, :active]
        values[rows] = np.abs(rng.standard_normal((rows.stop - i, active), dtype=np.float32))
    return Sparse(indices, values)


@functools.partial(jax.jit, static_argnames="fit", donate_argnums=0)
def _steps(state, rows, indices, values, dictionary, lr, *, fit: training.Fit):
    """One update for each row of `rows` (T, batch) of samples, whose codes are made dense here."""

    def step(state, take):
        which, what = indices[take], values[take]
        codes = jnp.zeros((len(take), len(dictionary))).at[jnp.arange(len(take))[:, None], which].set(what)
        batch = training.Batch(codes @ dictionary, codes, dictionary)
        return training.advance(state, batch, training.Numbers(0.0, lr), 1, fit=fit), None

    return jax.lax.scan(step, state, rows)[0]


def _order(seed: int, epoch: int, n: int, batch: int) -> np.ndarray:
    """(steps of an epoch, batch) int32."""
    order = np.random.default_rng([seed, epoch]).permutation(n).astype(np.int32)
    return order[: n // batch * batch].reshape(-1, batch)


def trained(
    cell: Cell, codes: Sparse, dictionary: np.ndarray, kept: Path, progress: bool, run: int = 0
) -> Any:
    """Weights of one run, going on from `kept` if it is there."""
    from tqdm import tqdm

    if cell.batch > len(codes.indices):
        raise AmortjaxError(f"--batch={cell.batch}: more than the {len(codes.indices)} samples of --samples")
    encoder = Encoder(cell.hidden, cell.bias)
    fit = training.Fit(encoder, "codes")
    state = training.start(
        stacked([init(cell.seed + run + MODEL_SEED, encoder, cell.sources, cell.dimensions, False)])
    )
    state, done = _restored(kept, state)
    arrays = (
        jnp.asarray(codes.indices),
        jnp.asarray(codes.values),
        jnp.asarray(dictionary),
        jnp.float32(cell.lr),
    )
    per_epoch, epoch, order = len(codes.indices) // cell.batch, -1, np.zeros((0, 0), np.int32)
    with tqdm(
        total=cell.steps, initial=done, desc=cell.name, unit="step", leave=False, disable=not progress
    ) as bar:
        while done < cell.steps:
            if done // per_epoch != epoch:
                epoch = done // per_epoch
                order = _order(cell.seed + run, epoch, len(codes.indices), cell.batch)
            first = done % per_epoch
            n = min(_PART, cell.steps - done, per_epoch - first)
            state = jax.block_until_ready(
                _steps(state, jnp.asarray(order[first : first + n]), *arrays, fit=fit)
            )
            if (done + n) // _SAVE_EVERY > done // _SAVE_EVERY and done + n < cell.steps:
                _save(kept, state, done + n)
            done += n
            bar.update(n)
    return jax.tree.map(lambda leaf: leaf[0], state.weights)


def _leaves(state: training.State) -> list[Any]:
    return jax.tree.leaves((state.weights, state.adam))


def _save(path: Path, state: training.State, done: int) -> None:
    buffer = io.BytesIO()
    leaves: dict[str, Any] = {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(_leaves(state))}
    np.savez(buffer, done=done, **leaves)
    write_atomically(path, buffer.getvalue())


def _restored(path: Path, state: training.State) -> tuple[training.State, int]:
    if not path.exists():
        return state, 0
    try:
        with np.load(path) as file:
            done, leaves = int(file["done"]), [file[f"leaf_{i}"] for i in range(len(_leaves(state)))]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise AmortjaxError(f"{path}: not a saved training ({error}): remove it and begin again") from None
    if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in _leaves(state)] or done < 0:
        raise AmortjaxError(f"{path}: saved from a training of another size: remove it and begin again")
    weights, adam = jax.tree.unflatten(
        jax.tree.structure((state.weights, state.adam)), map(jnp.asarray, leaves)
    )
    return training.State(weights, adam, state.key), done


class _Moments:
    """Sums over samples of two (n, M) sides, for the correlation of column j with column j."""

    def __init__(self, columns: int) -> None:
        self.n, self.sums = 0, np.zeros((5, columns))

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        a, b = a.astype(np.float64), b.astype(np.float64)
        self.n += len(a)
        self.sums += [side.sum(axis=0) for side in (a, b, a * a, b * b, a * b)]

    def correlations(self) -> np.ndarray:
        """(M,) signed Pearson; 0 where a side's variance is below the papers' threshold."""
        mean_a, mean_b, aa, bb, ab = self.sums / self.n
        var_a, var_b = aa - mean_a**2, bb - mean_b**2
        varies = (var_a >= recovery.FLAT) & (var_b >= recovery.FLAT)
        return np.where(varies, (ab - mean_a * mean_b) / np.sqrt(np.where(varies, var_a * var_b, 1.0)), 0.0)


def measured(cells: list[Cell], folder: Path, progress: bool = False) -> dict[Cell, list[dict[str, Any]]]:
    """Rows of cells of one size: identity-matched signed MCC on the test samples."""
    one = cells[0]
    if one.active > one.sources or min(one.samples, one.test_samples, one.batch) < 1:
        raise AmortjaxError(
            f"{one.active} active of {one.sources} sources, {one.samples} samples: sizes that make no data"
        )
    dictionary = generators.draw_dictionary(one.seed, one.sources, one.dimensions)
    train, test = (draw_sparse(s, n, one.sources, one.active)
                   for s, n in ((one.seed, one.samples), (one.seed + 1, one.test_samples)))  # fmt: skip
    rows: dict[Cell, list[dict[str, Any]]] = {}
    chance = _untrained(test, dictionary)
    for cell, run in [(each, run) for each in cells for run in range(each.runs)]:
        began = time.perf_counter()
        if cell.method == "true_dictionary":
            row = _certified_row(cell, test, dictionary)
        else:
            kept = folder / f"{cell.name}_{run}.part.npz"
            weights = trained(cell, train, dictionary, kept, progress, run)
            row = _encoder_row(cell, weights, test, dictionary) | cost(cell)
            kept.unlink(missing_ok=True)
        row |= {"run": run, "mcc_chance": chance, "mcc_corrected": recovery.corrected(row["mcc"], chance)}
        row["seconds"] = time.perf_counter() - began
        rows.setdefault(cell, []).append(dataclasses.asdict(cell) | row)
    return rows


def _encoder_row(cell: Cell, weights: Any, test: Sparse, dictionary: np.ndarray) -> dict[str, Any]:
    moments, encoder = _Moments(cell.sources), Encoder(cell.hidden, cell.bias)
    active = dict.fromkeys(ACTIVE_ABOVE, 0.0)
    for i in range(0, len(test.indices), _CHUNK):
        truth = test.dense(slice(i, i + _CHUNK), cell.sources)
        z = np.asarray(_encode(weights, jnp.asarray(truth @ dictionary), encoder=encoder))
        moments.add(truth, z)
        active = {above: n + float((z > above).sum()) for above, n in active.items()}
    each = moments.correlations()
    row = {"mcc": float(each.mean()), "mcc_least": float(each.min()), "n_samples": moments.n}
    shares = {f"density@{above:g}": n / (moments.n * cell.sources) for above, n in active.items()}
    return row | shares


def _certified_row(cell: Cell, test: Sparse, dictionary: np.ndarray) -> dict[str, Any]:
    truth = test.dense(slice(0, CERTIFIED_SAMPLES), cell.sources)
    z, proof = certified_codes(dictionary, truth @ dictionary, cell.lam_half)
    found = recovery.mcc(truth, z, "identity")
    row = {"mcc": found.mcc, "mcc_least": float(found.each.min()), "n_samples": len(truth)}
    row |= {f"density@{above:g}": float((z > above).mean()) for above in ACTIVE_ABOVE}
    row["objective_exact"] = float(proof.objective.mean())
    return row | {"exact_gap": float(proof.gap.mean() / proof.objective.mean())}


def _untrained(test: Sparse, dictionary: np.ndarray) -> float:
    """MCC of a ReLU encoder with random weights, without any matching: near 0."""
    truth = test.dense(slice(0, CERTIFIED_SAMPLES), len(dictionary))
    weights = np.random.default_rng(7).standard_normal(dictionary.shape[::-1])
    z = np.maximum(truth @ dictionary @ weights, 0)
    moments = _Moments(len(dictionary))
    moments.add(truth, z)
    return float(moments.correlations().mean())
