"""Certified optimal codes: an active-set method that looks at the whole dictionary only to find violators.

Each round takes a few candidate atoms into a token's small lasso (`support`), solves it, and takes one full
product U r, which both certifies the token (duality gap) and names the next candidates: the atoms that violate
optimality most. Certified tokens leave. The small lasso's Gram matrix grows with the candidates, so that no
inner product is taken twice; slots grow when a token needs more room, and nothing is truncated. A token that
can't be certified within the rounds comes back with its honest gap.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.inference import exact
from amortjax.inference.codes import Codes, concatenate, round_up
from amortjax.inference.objective import Problem, certify
from amortjax.inference.request import Precision, Request, Solved
from amortjax.inference.rounds import MOST_EFFORT, Found, Slots, first_candidates, run_rounds

MAX_ROUNDS = 60
_DOUBTFUL = 0.02  # lambda / ||t|| below which float32's own gap is checked in float64
_TIGHTEST = 1e-7  # KKT residual of the small lasso relative to lam; below that float32 has nothing to say


class _Batch(NamedTuple):
    """Tokens not yet certified, on the host but for `gram`: their rows, their slots (the last `fresh` of them
    new), and where the Gram entries of the others are known: row `place` (n,) and slots `order` (n, K - fresh)
    of `gram`. `n_new`: candidates the next round shall name."""

    rows: np.ndarray
    slots: Slots
    fresh: int
    n_new: int
    gram: Any
    place: np.ndarray
    order: np.ndarray
    precision: Precision
    effort: int = 2  # rounds of the small lasso: few while candidates are missing anyway

    def take(self, keep: Any) -> "_Batch":
        slots = Slots(*(a[keep] for a in self.slots))
        return self._replace(
            rows=self.rows[keep], slots=slots, place=self.place[keep], order=self.order[keep]
        )


_CAPACITIES = (32, 48, 64, 80, 96, 128, 192, 256, 384, 512, 768)


def _capacity(n: int) -> int:
    """Few distinct slot counts, so few compilations."""
    return next((c for c in _CAPACITIES if n <= c), -(-n // 512) * 512)


def _shape(n: int, n_slots: int, n_latents: int) -> tuple[int, int]:
    """Rows of the buffers (at least n, unless the Gram matrices of so many would not fit in 256 MiB) and of a
    block, whose correlations and Gram matrices should stay in cache on a CPU. Few distinct pairs."""
    most = 1024 if n_slots <= 160 else 256 if n_slots <= 320 else 64 if n_slots <= 768 else 16
    rows = min(most, next((r for r in (64, 256) if n <= r), 1024))
    if jax.default_backend() != "cpu":
        return rows, rows
    fits = max(8, (32 << 20) // (4 * max(n_latents, 2 * n_slots**2)))
    return rows, min(rows, 256, 1 << (fits.bit_length() - 1))


def _padded(a: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(a, [(0, rows - len(a))] + [(0, 0)] * (a.ndim - 1))


@functools.partial(jax.jit, static_argnames="n_slots")
def _widened(gram: jax.Array, n_slots: int) -> jax.Array:
    """As if of `n_slots` slots, so that `run_rounds` is not compiled for every pair of widths."""
    extra = n_slots - gram.shape[1]
    return jnp.pad(gram, ((0, 0), (0, extra), (0, extra)))


def _run(problem: Problem, t, lam, inner, batch: _Batch) -> tuple[Found, jax.Array]:
    """A round for a batch that fits its buffers: what it found, on the host, and the new Gram matrices."""
    n, n_slots = batch.slots.indices.shape
    rows, block = _shape(n, n_slots, problem.n_latents)
    gram = jnp.zeros((1, 1, 1)) if batch.gram is None else _widened(batch.gram, n_slots)
    pad = lambda a: _padded(a, rows)  # noqa: E731
    args = (pad(t), np.maximum(pad(lam), 1e-30), pad(inner), Slots(*(pad(a) for a in batch.slots)))
    options = {"block": block, "fresh": batch.fresh, "n_new": batch.n_new, "signed": problem.signed}
    options |= {"effort": np.int32(batch.effort), "precision": batch.precision}
    place, order = pad(batch.place), pad(batch.order)
    found, gram = run_rounds(problem.unit, gram, place, order, -(-n // block), args, **options)
    return Found(*(np.asarray(a)[:n] for a in found)), gram


def _initial(problem: Problem, t: np.ndarray, start: Codes | None, precision: Precision) -> _Batch:
    """From given codes' supports, or from the best-correlated atoms."""
    n, m = len(t), problem.n_latents
    if start is not None:
        values = np.asarray(start.values) if problem.signed else np.maximum(np.asarray(start.values), 0.0)
        slots = Slots(np.asarray(start.indices), np.sign(values), np.abs(values), values != 0)
        order = np.argsort(~slots.used, axis=1, kind="stable")
        n_slots = _capacity(int(slots.used.sum(axis=1).max(initial=0)))
        slots = _ordered(slots, order, n_slots)
    else:
        n_slots = min(32, m)
        rows, block = _shape(n, n_slots, problem.n_latents)
        options = {"count": n_slots, "block": block, "signed": problem.signed, "precision": precision}
        score, index, sign = (
            np.asarray(a)[:n]
            for a in first_candidates(problem.unit, _padded(t, rows), -(-n // block), **options)
        )
        slots = Slots(index, sign, np.zeros_like(score), score > 0)
    place, order = np.zeros(n, np.int32), np.zeros((n, 0), np.int32)
    # More candidates a round, so fewer rounds, where the product over the dictionary is the dear part.
    n_new = 32 if problem.unit.size >= 1 << 22 else 16
    return _Batch(np.arange(n), slots, n_slots, min(n_new, m), None, place, order, precision)


def _ordered(slots: Slots, order: np.ndarray, n_slots: int) -> Slots:
    """The first `n_slots` slots in the given order, padded with unused ones."""
    order = order[:, :n_slots]
    pad = ((0, 0), (0, n_slots - order.shape[1]))
    slots = Slots(*(np.pad(np.take_along_axis(a, order, axis=1), pad) for a in slots))
    return slots._replace(sign=np.where(slots.used, slots.sign, 1.0).astype(np.float32))


def _following(batch: _Batch, found: Found, gram: jax.Array, open_: np.ndarray, n_latents: int) -> _Batch:
    """The tokens still open: active slots first and all kept while there is room, candidates behind them."""
    batch = batch.take(open_)
    found = Found(*(a[open_] for a in found))
    sign = np.where(found.flip, -batch.slots.sign, batch.slots.sign)
    slots = batch.slots._replace(v=found.v, sign=sign)
    n_active, wanted = (found.v > 0).sum(axis=1), found.wanted.sum(axis=1)
    fresh = min(found.candidates.shape[1], _few(np.quantile(wanted, 0.95)))
    n_slots = max(
        _capacity(int(n_active.max()) + fresh), batch.slots.indices.shape[1]
    )  # never back: fewer shapes
    order = np.argsort(np.where(found.v > 0, 0, np.where(slots.used, 1, 2)), axis=1, kind="stable")
    order = order[:, : n_slots - fresh].astype(np.int32)
    kept = _ordered(slots, order, n_slots - fresh)
    order = np.pad(order, ((0, 0), (0, n_slots - fresh - order.shape[1])))
    new = Slots(found.candidates, found.sign, np.zeros_like(found.sign), found.wanted)
    new = Slots(*(a[:, :fresh] for a in new))
    slots = Slots(*(np.concatenate(pair, axis=1) for pair in zip(kept, new, strict=True)))
    # Where nearly all that were taken in are active, many more are to come; after the second round, few.
    dense = n_active.mean() > 0.8 * batch.slots.indices.shape[1]
    n_new = 2 * fresh if dense else 16
    # While candidates are missing, accuracy is wasted.
    effort = min(2 * batch.effort, MOST_EFFORT // 2 if wanted.mean() > 4 else MOST_EFFORT)
    place = np.flatnonzero(open_).astype(np.int32)
    # Two rounds at a lower precision; only `highest` certifies.
    precision: Precision = batch.precision if batch.gram is None else "highest"
    return _Batch(batch.rows, slots, fresh, min(n_new, 128, n_latents), gram, place, order, precision, effort)


def _few(n: float) -> int:
    """Few distinct numbers of candidates."""
    return next((c for c in (16, 32, 64) if n <= c), 128)


def optimum(
    problem: Problem,
    t: np.ndarray,
    lam: np.ndarray,
    start: Codes | None,
    tol: float = 1e-4,
    precision: Precision = "highest",
) -> Solved:
    """Optimal folded codes of t (N, D) at lam (N,) to a relative gap of `tol`, and the rounds each token took.

    `start`: folded codes to begin from, or None. With lam = 0 it stops at the KKT conditions of non-negative
    least squares (relative to ||t||), where the scaled dual point says nothing.
    """
    t = np.asarray(t, np.float32)
    lam = np.broadcast_to(np.asarray(lam, np.float32), (len(t),))
    solved = []
    for i in range(0, len(t), 1024):
        part = slice(i, i + 1024)
        own = None if start is None else start.rows(i, i + 1024)
        solved.append(_solve_part(problem, t[part], lam[part], own, tol, precision))
    codes = concatenate([part[0] for part in solved])
    rounds, closed = (np.concatenate([part[i] for part in solved]) for i in (1, 2))
    # Where lambda is small against ||t||, float32 can take a gap for closed that is not.
    doubtful = ~closed | (lam < _DOUBTFUL * np.linalg.norm(t, axis=1))
    doubtful = np.flatnonzero(doubtful & (lam > 0))
    return _mended(problem, t, lam, codes, doubtful, tol), rounds


def _solve_part(
    problem: Problem,
    t: np.ndarray,
    lam: np.ndarray,
    start: Codes | None,
    tol: float,
    precision: Precision,
) -> tuple[Codes, np.ndarray, np.ndarray]:
    """Rounds until every token is done; those still open stay together while their buffers fit. Codes, rounds
    and whether float32 saw the gap close."""
    norm, rounds, closed = np.linalg.norm(t, axis=1), np.zeros(len(t), np.int32), np.zeros(len(t), bool)
    best = np.full(len(t), np.inf)
    inner = np.full(len(t), max(0.1 * np.sqrt(tol), _TIGHTEST), np.float32)
    kept: list[tuple[np.ndarray, Slots]] = []
    pending = _pieces(_initial(problem, t, start, precision), problem.n_latents)
    while pending:
        batch = pending.pop()
        rows = batch.rows
        found, gram = _run(problem, t[rows], lam[rows], inner[rows], batch)
        rounds[rows] += 1
        optimal = np.where(
            lam[rows] > 0, found.gap <= 0.9 * tol * found.objective, found.excess <= 1e-5 * norm[rows]
        )
        # Without a violator it is the small lasso that wants accuracy; at its tightest, what remains is rounding.
        idle = ~np.any(found.wanted, axis=1) & ~np.any(found.flip, axis=1)
        # So it is where lambda is small: near the rank, float32 trades one atom for another without an end.
        trading = (lam[rows] < _DOUBTFUL * norm[rows]) & (found.objective >= best[rows] * (1 - 1e-6))
        stuck = (idle | trading) & (inner[rows] <= _TIGHTEST)
        best[rows] = np.minimum(best[rows], found.objective)
        tighter = rows[idle | trading]
        inner[tighter] = np.maximum(inner[tighter] * 0.1, _TIGHTEST)
        done = (optimal | stuck) & (batch.precision == "highest") | (rounds[rows] >= MAX_ROUNDS)
        closed[rows] = optimal
        kept.append((rows[done], Slots(*(a[done] for a in batch.slots._replace(v=found.v)))))
        if not done.all():
            following = _following(batch, found, gram, ~done, problem.n_latents)
            pending += _pieces(following, problem.n_latents)
    return _gathered(kept, len(t), problem.n_latents), rounds, closed


def _pieces(batch: _Batch, n_latents: int) -> list[_Batch]:
    """The batch, cut to what its buffers hold."""
    rows, _ = _shape(len(batch.rows), batch.slots.indices.shape[1], n_latents)
    return [batch.take(slice(i, i + rows)) for i in range(0, len(batch.rows), rows)]


def solve(request: Request) -> Solved:
    """Certified optima of a request; see `optimum`."""
    settings = request.settings
    return optimum(request.problem, request.t, request.lam, request.start, settings.tol, settings.precision)


def _mended(
    problem: Problem, t: np.ndarray, lam: np.ndarray, codes: Codes, rows: np.ndarray, tol: float
) -> Codes:
    """The codes, with those of `rows` that the certificate refuses solved again in float64: at most one token in
    sixteen (at least 16), the worst, because that is slow. The others keep their honest gap."""
    if not len(rows):
        return codes
    own = Codes(codes.indices[rows], codes.values[rows], codes.n_latents)
    proof = certify(problem, t[rows], problem.unfold(own), lam[rows])
    worst = np.argsort(-proof.relative_gap, kind="stable")
    short = rows[worst[proof.relative_gap[worst] > tol]]
    # Below this, float32 codes can't be certified however they are found.
    short = short[lam[short] > 1e-4 * np.linalg.norm(t[short], axis=1)][: max(16, len(t) // 16)]
    for i in short:
        found = exact.solve_token(
            problem.unit64, t[i].astype(np.float64), float(lam[i]), codes.indices[i], codes.values[i],
            problem.signed, 0.1 * tol,
        )  # fmt: skip
        k = len(found.indices)
        codes = codes.widened(round_up(k))
        codes.indices[i], codes.values[i] = 0, 0.0
        codes.indices[i, :k], codes.values[i, :k] = found.indices, found.values
    return codes


def _gathered(kept: list[tuple[np.ndarray, Slots]], n: int, n_latents: int) -> Codes:
    """The codes of all tokens in order, with no more slots than the densest needs."""
    most = max([int((slots.v > 0).sum(axis=1).max(initial=0)) for _, slots in kept], default=0)
    capacity = round_up(most, at_least=16)
    indices, values = np.zeros((n, capacity), np.int32), np.zeros((n, capacity), np.float32)
    for rows, slots in kept:
        order = np.argsort(slots.v <= 0, axis=1, kind="stable")[:, :capacity]
        own = _ordered(slots._replace(used=slots.used & (slots.v > 0)), order, capacity)
        indices[rows] = np.where(own.used, own.indices, 0)
        values[rows] = np.where(own.used, own.sign * own.v, 0.0)
    return Codes(indices, values, n_latents)
