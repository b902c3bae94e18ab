"""Dictionary learning by codes that are searched for: a batch's codes, then one Adam step of the atoms.

    P(z, W, b) = 1/2 |x - b - z W|^2 + lam * sum_j z_j,    z >= 0, |W_j| = 1

`controlled`: codes by the certified lasso solver, or by LCA's own dynamics (Rozell et al. 2008) begun at the best
multiple of the thresholded correlations. At an optimal code P's gradient in the atoms is that of the squared error
alone (the envelope theorem), so that nothing is differentiated through a solver. Inputs, first atoms, bias and units
are those of `training.loop`; lam there is twice the lam here. `literal`: as released with arXiv 2411.13117
(`training.released_lca`): raw inputs, no bias, the search differentiated through, Adam on the normalised error.

With `rounds` above 1 codes and atoms of one batch take turns, each search begun at the codes before.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from amortjax.errors import AmortjaxError
from amortjax.inference import objective
from amortjax.inference.codes import Codes, from_dense
from amortjax.inference.request import Request, Settings
from amortjax.inference.solvers import SOLVERS
from amortjax.saes.sae import SAE, Info, unscale_input
from amortjax.training import released_lca, sparse
from amortjax.training.entries import per_token
from amortjax.training.step import Report, State

LITERAL_LAM, LITERAL_LR, LITERAL_ITERATIONS = 0.1, 3e-3, 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class LcaRecipe:
    """All that changes the result. lam: half form; of inputs divided by their scale, or raw if `literal`."""

    n_latents: int
    lam: float
    steps: int
    batch_size: int
    lr: float
    codes: Literal["certified", "lca", "literal"] = "certified"
    iterations: int = 300  # of the search: lca, literal (at most)
    tol: float = 1e-3  # certified: relative gap of each token
    rounds: int = 1
    resample_every: int = 0
    seed: int = 0

    def check(self) -> "LcaRecipe":
        """Itself, or AmortjaxError naming what to change."""
        for name in ("n_latents", "steps", "batch_size", "lr", "iterations", "tol", "rounds"):
            if not getattr(self, name) > 0:
                raise AmortjaxError(f"LCA dictionary: {name}={getattr(self, name)}: must be above 0")
        if not (np.isfinite(self.lam) and self.lam > 0):
            raise AmortjaxError(f"LCA dictionary: lambda {self.lam}: must be above 0")
        if self.resample_every < 0 or self.seed < 0:
            raise AmortjaxError("LCA dictionary: resample_every and seed must not be negative")
        return self

    @property
    def literal(self) -> bool:
        return self.codes == "literal"


def first(recipe: LcaRecipe, centre: np.ndarray) -> State:
    """Atoms uniform on the sphere (those that `training.modules.start` draws), bias = centre (D,), 0 if literal."""
    shape = recipe.n_latents, len(centre)
    rows = np.random.default_rng([recipe.seed, 0]).standard_normal(shape).astype(np.float32)
    w_dec = jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    bias = jnp.zeros(len(centre)) if recipe.literal else jnp.asarray(centre, jnp.float32)
    weights = {"w_dec": w_dec, "b_dec": bias}
    adam = _adam(recipe).init(weights)
    silent = jnp.zeros((recipe.n_latents,), jnp.int32)
    return State(jnp.zeros((), jnp.int32), weights, adam, silent, jnp.full((), -1.0), jnp.zeros(3))


def advance(
    state: State, x: np.ndarray, mean: np.ndarray, recipe: LcaRecipe
) -> tuple[State, Report, jax.Array]:
    """A batch x (N, D) in scaled units (raw if literal): the next state, sums over its tokens before its last update,
    and their squared errors (N,). mean (D,): of the data, for the report."""
    if recipe.literal:
        return _literal_update(state, x, mean, recipe=recipe)
    codes, found = None, None
    for _ in range(recipe.rounds):
        t = np.asarray(x - np.asarray(state.weights["b_dec"]))
        codes, taken = search(state.weights["w_dec"], t, recipe, codes)
        state, *found = _update(state, x, mean, codes.indices, codes.values, taken.mean(), recipe=recipe)
    assert found is not None  # rounds >= 1
    return state, found[0], found[1]


def iterations(state: State) -> float:
    """Of the search: mean per token and update since the start."""
    return float(state.anneal[0])


def search(
    w_dec: jax.Array, t: np.ndarray, recipe: LcaRecipe, start: Codes | None = None
) -> tuple[Codes, np.ndarray]:
    """Codes of t (N, D) with atoms of norm 1, and the iterations taken (N,). start: codes to begin from."""
    problem = objective.pose_dictionary(w_dec)
    lam = np.full(len(t), recipe.lam)
    if recipe.codes == "certified":
        request = Request(problem, t, lam, start, settings=Settings(tol=recipe.tol))
        return SOLVERS["active_set"].solve(request)
    start = from_dense(np.asarray(thresholded(problem.unit, t, recipe.lam))) if start is None else start
    settings = Settings(n_steps=recipe.iterations)
    return SOLVERS["lca"].solve(Request(problem, t, lam, start, settings=settings))


@jax.jit
def thresholded(unit: jax.Array, t: jax.Array, lam: float) -> jax.Array:
    """(N, M): each token's relu(U t - lam) times the factor >= 0 at which P is least."""
    a = jax.nn.relu(jnp.matmul(t, unit.T, precision=objective.HIGHEST) - lam)
    y = jnp.matmul(a, unit, precision=objective.HIGHEST)
    energy, gain = jnp.sum(y * y, axis=1), jnp.sum(y * t, axis=1) - lam * jnp.sum(a, axis=1)
    factor = jnp.where(energy > 0, jnp.maximum(gain, 0) / jnp.where(energy > 0, energy, 1), 0)
    return a * factor[:, None]


def _adam(recipe: LcaRecipe) -> optax.GradientTransformation:
    return optax.adam(recipe.lr)


@functools.partial(jax.jit, static_argnames="recipe", donate_argnums=0)
def _update(state: State, x, mean, indices, values, taken, *, recipe: LcaRecipe):
    entries, n = per_token(values, indices), x.shape[0]

    def error(weights: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        y = sparse.decode(entries.values, weights["w_dec"], entries.rows, entries.latents, n)
        each = jnp.sum(jnp.square(x - y - weights["b_dec"]), axis=1)
        return jnp.sum(each) / n, each

    (mse, each), slope = jax.value_and_grad(error, has_aux=True)(state.weights)
    # As in `step`: what renormalising would undo, Adam's moments need not remember.
    radial = jnp.sum(slope["w_dec"] * state.weights["w_dec"], axis=1, keepdims=True)
    slope |= {"w_dec": slope["w_dec"] - radial * state.weights["w_dec"]}
    loss = mse + 2 * recipe.lam * jnp.sum(values) / n
    fires = entries.values > 0
    fired = jnp.zeros((recipe.n_latents,), jnp.int32).at[entries.latents].max(fires.astype(jnp.int32)) > 0
    return *_moved(state, slope, loss, each, jnp.sum(fires), fired, x, mean, taken, recipe), each


@functools.partial(jax.jit, static_argnames="recipe", donate_argnums=0)
def _literal_update(state: State, x, mean, *, recipe: LcaRecipe):
    def loss_of(w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        a, taken = released_lca.codes(x, w, recipe.lam, recipe.iterations)
        return released_lca.nmse(x, a, w), (a, taken)

    w = state.weights["w_dec"]
    (loss, (a, taken)), slope = jax.value_and_grad(loss_of, has_aux=True)(w)
    each = jnp.sum(jnp.square(x - jnp.matmul(a, w, precision=objective.HIGHEST)), axis=1)
    whole = {"w_dec": slope, "b_dec": jnp.zeros_like(state.weights["b_dec"])}
    l0, fired = jnp.sum(a > 0), jnp.any(a > 0, axis=0)
    return *_moved(state, whole, loss, each, l0, fired, x, mean, taken, recipe), each


def _moved(
    state: State, slope: dict, loss: jax.Array, each: jax.Array, l0: jax.Array, fired: jax.Array, x, mean, taken,
    recipe: LcaRecipe,
) -> tuple[State, Report]:  # fmt: skip
    """Adam, atoms back to norm 1, and who has fired."""
    update, adam = _adam(recipe).update(slope, state.optimizer, state.weights)
    weights: Any = optax.apply_updates(state.weights, update)
    norm = jnp.linalg.norm(weights["w_dec"], axis=1, keepdims=True)
    weights = weights | {"w_dec": weights["w_dec"] / jnp.maximum(norm, 1e-8)}
    # Updates, not batches, so that rounds count; 2^30 stands for long.
    silent = jnp.where(fired, 0, jnp.minimum(state.silent + 1, 2**30))
    done = state.step + 1
    anneal = state.anneal.at[0].add(
        (taken - state.anneal[0]) / done
    )  # a mean; p_anneal's numbers are not needed here
    new = state._replace(step=done, weights=weights, optimizer=adam, silent=silent, anneal=anneal)
    dead = jnp.sum(silent >= max(recipe.resample_every, 1) * recipe.rounds)
    spread = jnp.sum(jnp.square(x - mean))
    return new, Report(loss, jnp.sum(each), spread, jnp.asarray(l0, jnp.float32), dead)


@functools.partial(jax.jit, static_argnames="recipe", donate_argnums=0)
def resample(state: State, x: jax.Array, each: jax.Array, *, recipe: LcaRecipe) -> State:
    """Atoms that no code used since the last resampling get the direction of a token of x (N, D), drawn with
    probability as the square of its squared error (`each`, (N,)), each token once; Adam forgets them (Bricken et al.
    2023). With more such atoms than tokens the rest waits."""
    dead = state.silent >= recipe.resample_every * recipe.rounds
    dead = dead & (jnp.cumsum(dead) <= len(x))
    key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
    drawn = jnp.argsort(-(2 * jnp.log(jnp.maximum(each, 1e-30)) + jax.random.gumbel(key, each.shape)))
    token = drawn[jnp.clip(jnp.cumsum(dead) - 1, 0, len(x) - 1)]
    centred = x[token] - state.weights["b_dec"]
    direction = centred / jnp.maximum(jnp.linalg.norm(centred, axis=1, keepdims=True), 1e-8)
    w_dec = jnp.where(dead[:, None], direction, state.weights["w_dec"])
    anew = {"w_dec": jnp.broadcast_to(dead[:, None], w_dec.shape), "b_dec": jnp.zeros(x.shape[1], bool)}
    forget = lambda moment, new: jnp.where(new, 0, moment)  # noqa: E731
    adam = optax.tree.map_params(_adam(recipe), forget, state.optimizer, anew)
    silent = jnp.where(dead, 0, state.silent)
    return state._replace(weights=state.weights | {"w_dec": w_dec}, optimizer=adam, silent=silent)


def as_sae(state: State, recipe: LcaRecipe, scale: float, manifest: Any = None, name: str = "lca") -> SAE:
    """The dictionary as an SAE of raw inputs. It has no encoder of its own: relu(U t - lam), one thresholding, stands
    in, where solvers may start. info.lam_train is that of P, so that evaluations know the objective."""
    manifest = manifest or {}
    w_dec, b_dec = state.weights["w_dec"], state.weights["b_dec"]
    b_enc = jnp.full((recipe.n_latents,), -recipe.lam, jnp.float32)
    sae = SAE(
        W_enc=w_dec.T, b_enc=b_enc, W_dec=w_dec, b_dec=b_dec, pre_bias=b_dec, extra={}, variant="standard"
    )
    info = Info(
        name=name, model_name=str(manifest.get("model_name", "")), layer_index=manifest.get("layer_index"),
        hook=str(manifest.get("hook", "")), trained_on=str(manifest.get("corpus_fingerprint", "")),
        lam_train=2 * recipe.lam * scale,
        notes=(f"a dictionary of searched codes ({recipe.codes}); its encoder is one thresholding",),
    )  # fmt: skip
    records = {"norm_factor": jnp.asarray(scale, jnp.float32)}
    return dataclasses.replace(unscale_input(sae, scale), extra=records, info=info)
