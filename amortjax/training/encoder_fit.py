"""Fits an encoder to P itself: folded codes v = f(t) that minimise, on average over training tokens,

    1/2 ||t - v U||^2 + lam * sum_j v_j,        v >= 0

by Adam on minibatches. The step that is best on validation tokens is kept; step 0, the start, is among them, so a
rung that starts as the one before is never worse than it there.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from amortjax.errors import AmortjaxError
from amortjax.inference.objective import HIGHEST, Problem

Arrays = dict[str, jax.Array]
CHUNK = 1024
LOOKS = 25  # times the validation tokens are looked at
WARM = 0.05  # share of the steps in which the rate rises: Adam's first steps know no curvature


class Net(NamedTuple):
    """An encoder: apply(params, fixed, t (n, D)) -> folded codes (n, M). `apply` is a function of a module, so that
    it compiles once. `sizes`: of each of params, the size its entries have; Adam's steps are in units of it."""

    apply: Callable[[Arrays, Arrays, jax.Array], jax.Array]
    params: Arrays
    fixed: Arrays
    sizes: dict[str, float]


class Pace(NamedTuple):
    """Steps, tokens of each, and Adam's peak rate, relative: a step changes a typical entry by about that share."""

    steps: int = 2000
    batch: int = 256
    lr: float = 0.03
    seed: int = 0


class Fitted(NamedTuple):
    """Parameters of the chosen step, and mean P (objective units) at the start and there, on the validation tokens
    and on as many training tokens. `falling`: what the last tenth of the steps took off the validation P, relative
    to it."""

    params: Arrays
    step: int
    train_start: float
    train: float
    validation_start: float
    validation: float
    falling: float


def rms(a: Any) -> float:
    """Root mean square of an array, 1 for one of zeros."""
    return float(np.sqrt(np.mean(np.square(np.asarray(a, np.float64))))) or 1.0


def _price(v: jax.Array, unit: jax.Array, t: jax.Array, lam: jax.Array) -> jax.Array:
    r = t - jnp.matmul(v, unit, precision=HIGHEST)
    return 0.5 * jnp.sum(r * r, axis=1) + lam * jnp.sum(v, axis=1)


@functools.partial(jax.jit, static_argnames="apply")
def _codes(params, fixed, t, *, apply):
    return apply(params, fixed, t)


@functools.partial(jax.jit, static_argnames="apply")
def _prices(params, fixed, unit, t, lam, *, apply):
    return _price(apply(params, fixed, t), unit, t, lam)


def codes_of(net: Net, t: np.ndarray) -> np.ndarray:
    """Folded codes (n, M) float32 of t (n, D), at most CHUNK tokens."""
    padded = np.pad(np.asarray(t, np.float32), ((0, CHUNK - len(t)), (0, 0)))
    return np.asarray(_codes(net.params, net.fixed, padded, apply=net.apply))[: len(t)]


def mean_price(net: Net, problem: Problem, t: np.ndarray, lam: float) -> float:
    """Mean P over t (n, D), objective units, float32 products."""
    total = 0.0
    for i in range(0, len(t), CHUNK):
        part = t[i : i + CHUNK]
        padded = np.pad(np.asarray(part, np.float32), ((0, CHUNK - len(part)), (0, 0)))
        found = _prices(net.params, net.fixed, problem.unit, padded, lam, apply=net.apply)
        total += float(np.asarray(found, np.float64)[: len(part)].sum())
    return total / len(t)


def _optimizer(lr: float, steps: int) -> optax.GradientTransformation:
    warm = max(1, int(WARM * steps))
    return optax.adam(optax.warmup_cosine_decay_schedule(lr / warm, lr, warm, max(steps, warm + 1)))


@functools.partial(jax.jit, static_argnames=("apply", "lr", "steps"))
def _advance(own, state, fixed, sizes, unit, t, places, lam, energy, *, apply, lr, steps):
    """Some steps, one for each row of places (s, batch); own: parameters in units of their sizes."""
    real = lambda own: jax.tree.map(lambda a, size: a * size, own, sizes)  # noqa: E731

    def step(carry, rows):
        own, state = carry
        loss = lambda own: jnp.mean(_price(apply(real(own), fixed, t[rows]), unit, t[rows], lam)) / energy  # noqa: E731
        updates, state = _optimizer(lr, steps).update(jax.grad(loss)(own), state, own)
        return (optax.apply_updates(own, updates), state), None

    return jax.lax.scan(step, (own, state), places)[0]


def fit(
    net: Net,
    problem: Problem,
    train: np.ndarray,
    validation: np.ndarray,
    lam: float,
    pace: Pace,
    bar: Any = None,
) -> Fitted:
    """`net` fitted at `lam` on train (N, D), its step chosen on validation (n, D). Batches are drawn with
    replacement, a function of the seed. `bar`: a tqdm bar, moved on by the steps done. AmortjaxError if P is no
    longer finite."""
    sizes = {name: float(net.sizes[name]) for name in net.params}
    own = {name: jnp.asarray(a) / sizes[name] for name, a in net.params.items()}
    energy = max(0.5 * float(np.mean(np.sum(np.square(train, dtype=np.float64), axis=1))), 1e-30)
    state = _optimizer(pace.lr, pace.steps).init(own)
    data = jnp.asarray(train, jnp.float32)
    best = net
    seen = [mean_price(net, problem, validation, lam)]
    at, marks = 0, [0]
    rng = np.random.default_rng([pace.seed, 11])
    # Parts of one length compile once; the last may be shorter.
    size = max(1, -(-pace.steps // LOOKS))
    for done in range(0, pace.steps, size):
        here = min(size, pace.steps - done)
        places = rng.integers(0, len(train), (here, min(pace.batch, len(train))))
        fixed_part = net.fixed, sizes, problem.unit, data, places, lam, energy
        own, state = _advance(own, state, *fixed_part, apply=net.apply, lr=pace.lr, steps=pace.steps)
        now = net._replace(params={name: a * sizes[name] for name, a in own.items()})
        seen.append(mean_price(now, problem, validation, lam))
        marks.append(done + here)
        if not np.isfinite(seen[-1]):
            raise AmortjaxError(f"the fit's P is not finite at step {marks[-1]}: lower --fit_lr={pace.lr:g}")
        if seen[-1] < min(seen[:-1]):
            best, at = now, len(seen) - 1
        if bar is not None:
            bar.update(here)
    tenth = seen[-max(2, len(seen) // 10 + 1)]
    sample = train[: len(validation)]
    start, end = (mean_price(n, problem, sample, lam) for n in (net, best))
    falling = (tenth - seen[-1]) / max(abs(seen[-1]), 1e-30)
    return Fitted(best.params, marks[at], start, end, seen[0], seen[at], falling)
