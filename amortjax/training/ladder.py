"""The rungs between an encoder and the optimum: what a better guess could have saved, capacity by capacity.

    encoder -> one scale -> a scale per latent -> ReLU of an affine map -> with a hidden layer -> T unrolled layers

Each is fitted to the same P at the same lambda on training tokens, starts as the one before (`affine_start` says
where it can't), and is chosen on validation tokens. All act on targets t and give folded codes; see `encoder_fit`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.inference import modes, unrolled
from amortjax.inference.codes import Codes, concatenate, from_dense
from amortjax.inference.objective import HIGHEST, Problem
from amortjax.saes.sae import SAE
from amortjax.training import encoder_fit
from amortjax.training.encoder_fit import CHUNK, Arrays, Net, Pace, rms
from amortjax.training.scales import fit_scales, price_of_codes, scaled

FITTED = ("scaled", "scaled_each", "affine", "mlp", "lista")
QUANTILE_TOKENS = 16384  # on which the affine start's thresholds are set


class Sample(NamedTuple):
    """Training tokens t (N, D) and the encoder's codes of them in the SAE's units; and validation tokens."""

    train: np.ndarray
    train_codes: Codes
    validation: np.ndarray
    validation_codes: Codes


class Rung(NamedTuple):
    """A fitted rung: its name, its arrays, and what the table says of it. `train` and `validation` in `about`: mean
    P, objective units."""

    name: str
    arrays: dict[str, np.ndarray]
    about: dict[str, Any]


class Fit(NamedTuple):
    """How the networks are fitted: hidden units of the MLP, layers of LISTA, and the pace."""

    hidden: int
    layers: int
    pace: Pace = Pace()


# --- networks ---


def _affine(params: Arrays, fixed: Arrays, t: jax.Array) -> jax.Array:
    return jax.nn.relu(_linear(params, fixed, t)) * fixed["live"]


def _linear(params: Arrays, fixed: Arrays, t: jax.Array) -> jax.Array:
    return jnp.matmul(t - fixed["centre"], params["weight"], precision=HIGHEST) + params["bias"]


def _mlp(params: Arrays, fixed: Arrays, t: jax.Array) -> jax.Array:
    """As variant `mlp`: the linear map plus a hidden layer's contribution."""
    c = t - fixed["centre"]
    hidden = jax.nn.relu(jnp.matmul(c, params["hidden"], precision=HIGHEST) + params["hidden_bias"])
    more = jnp.matmul(hidden, params["up"], precision=HIGHEST)
    return jax.nn.relu(_linear(params, fixed, t) + more) * fixed["live"]


def _lista(params: Arrays, fixed: Arrays, t: jax.Array) -> jax.Array:
    """T layers from the code of the rung before, whose weights stay as they are."""
    step, lam = fixed["step"], jnp.full(len(t), fixed["lam"])
    network = unrolled.Unrolled(params["matrix"], step, params["gamma"], params["theta"])
    return unrolled.forward(network, fixed["unit"], t, lam, _mlp(fixed, fixed, t))


APPLY = {"affine": _affine, "mlp": _mlp, "lista": _lista}
LEARNED = {
    "affine": ("weight", "bias"),
    "mlp": ("weight", "bias", "hidden", "hidden_bias", "up"),
    "lista": ("matrix", "gamma", "theta"),
}


def net_of(rung: Rung, problem: Problem) -> Net:
    """A rung's network."""
    name = rung.name
    arrays = {key: jnp.asarray(a, jnp.float32) for key, a in rung.arrays.items()}
    learned = {key: arrays.pop(key) for key in LEARNED[name]}
    arrays["live"] = jnp.any(problem.unit != 0, axis=1).astype(jnp.float32)
    if name == "lista":
        arrays["unit"] = problem.unit
    return Net(APPLY[name], learned, arrays, {})


def affine_start(sae: SAE, problem: Problem, sample: Sample, lam: float, scales: np.ndarray) -> Net:
    """The scaled encoder as ReLU of an affine map of t. Exactly that for a plain ReLU encoder. Where the encoder's
    own rule is another (TopK, thresholds, a hidden layer) it is the linear part, with biases under which each latent
    fires as often, and scales fitted anew."""
    # norm_in(x) - pre_bias = t + b_dec - pre_bias.
    centre = sample.train.mean(axis=0, dtype=np.float64)
    rescale = np.linalg.norm(np.asarray(sae.W_dec), axis=1) if sae.rescale else 1.0
    weights = np.asarray(problem.weights, np.float64) * rescale
    weight = np.asarray(sae.W_enc, np.float64) * weights
    shift = centre + np.asarray(sae.b_dec, np.float64) - np.asarray(sae.pre_bias, np.float64)
    bias = np.asarray(sae.b_enc, np.float64) * weights + shift @ weight
    if sae.variant != "standard":
        bias = bias - _thresholds(weight, bias, sample, centre)
        start = Rung("affine", {"weight": weight, "bias": bias, "centre": centre}, {})
        scales = _rescaled(start, problem, sample, lam)
    arrays = {"weight": weight * scales, "bias": bias * scales, "centre": centre}
    net = net_of(Rung("affine", arrays, {}), problem)
    typical = _typical(net, sample)
    return net._replace(sizes={"weight": rms(arrays["weight"]), "bias": typical})


def _thresholds(weight, bias, sample: Sample, centre: np.ndarray) -> np.ndarray:
    """(M,): the pre-activation that each latent exceeds as often as its encoder fires."""
    n = min(len(sample.train), QUANTILE_TOKENS)
    codes = sample.train_codes.rows(0, n).csr()
    fires = np.diff(codes.tocsc().indptr)
    out = np.empty(len(bias))
    for i in range(0, len(bias), CHUNK):  # latents at a time: (tokens, CHUNK) in memory
        part = slice(i, i + CHUNK)
        pre = np.sort((sample.train[:n] - centre) @ weight[:, part] + bias[part], axis=0)
        # The mean of the last that should fire and the first that should not; a silent latent's highest.
        place = np.minimum(n - fires[part], n - 1)
        column = np.arange(pre.shape[1])
        out[part] = 0.5 * (pre[place, column] + pre[np.maximum(place - 1, 0), column])
        out[part] = np.where(fires[part] == 0, pre[-1], out[part])
    return out


def _rescaled(start: Rung, problem: Problem, sample: Sample, lam: float) -> np.ndarray:
    train, validation = (coder(start, problem)(t, None) for t in (sample.train, sample.validation))
    one = modes.best_scale(problem, sample.train, train, lam)
    both = (sample.train, train.csr(np.float64)), (sample.validation, validation.csr(np.float64))
    return fit_scales(problem, *both, lam, one)[0]


def _typical(net: Net, sample: Sample) -> float:
    """Size of the pre-activations on some tokens."""
    return rms(_linear(net.params, net.fixed, jnp.asarray(sample.train[:CHUNK])))


def mlp_start(affine: Rung, problem: Problem, sample: Sample, hidden: int, seed: int) -> Net:
    """The affine map and a hidden layer that adds nothing yet (He initialisation, on tokens of unit size)."""
    d, m = affine.arrays["weight"].shape
    spread = rms(sample.train - affine.arrays["centre"])
    rng = np.random.default_rng([seed, 12])
    own = {
        "hidden": rng.standard_normal((d, hidden)) * np.sqrt(2 / d) / spread,
        "hidden_bias": np.zeros(hidden),
        "up": np.zeros((hidden, m)),
    }
    net = net_of(Rung("mlp", affine.arrays | own, {}), problem)
    size = _typical(net, sample)
    sizes = {"weight": rms(affine.arrays["weight"]), "bias": size, "hidden": rms(own["hidden"])}
    return net._replace(sizes=sizes | {"hidden_bias": 1.0, "up": size / np.sqrt(hidden)})


def lista_start(mlp: Rung, problem: Problem, sample: Sample, lam: float, layers: int) -> tuple[Net, str]:
    """T layers from the MLP's code: ISTA's or ALISTA's, whichever is better on the validation tokens as it is."""
    found = []
    for name, init in (("ISTA", unrolled.init_lista), ("ALISTA", unrolled.init_alista)):
        first = init(problem, layers)
        own = {"matrix": first.matrix, "gamma": first.gamma, "theta": first.theta, "step": first.step}
        arrays = (
            mlp.arrays | {key: np.asarray(a) for key, a in own.items()} | {"lam": np.asarray(lam, np.float32)}
        )
        net = net_of(Rung("lista", arrays, {}), problem)
        net = net._replace(sizes={"matrix": rms(first.matrix), "gamma": 1.0, "theta": 1.0})
        found.append((encoder_fit.mean_price(net, problem, sample.validation, lam), name, net))
    _, name, net = min(found, key=lambda one: one[0])
    return net, name


# --- the ladder ---


def fit_rung(
    name: str,
    sae: SAE,
    problem: Problem,
    sample: Sample,
    lam: float,
    before: dict[str, Rung],
    how: Fit,
    bar_of: Callable[[int, str], Any],
) -> Rung:
    """One of FITTED, given those before it. bar_of(total, text) makes a tqdm bar."""
    check_ladder(sae, problem)
    if name in ("scaled", "scaled_each"):
        return _scale_rung(name, problem, sample, lam, before)
    start, note = None, {}
    if name == "affine":
        start = affine_start(sae, problem, sample, lam, before["scaled_each"].arrays["scales"])
    elif name == "mlp":
        start = mlp_start(before["affine"], problem, sample, how.hidden, how.pace.seed)
        note = {"hidden": how.hidden}
    else:
        start, layers = lista_start(before["mlp"], problem, sample, lam, how.layers)
        note = {"layers": how.layers, "layers_from": layers}
    with bar_of(how.pace.steps, f"fitting {name}") as bar:
        found = encoder_fit.fit(start, problem, sample.train, sample.validation, lam, how.pace, bar)
    kept = {key: a for key, a in start.fixed.items() if key not in ("live", "unit")}
    arrays = {key: np.asarray(a) for key, a in (kept | found.params).items()}
    about = {key: getattr(found, key) for key in found._fields if key != "params"}
    return Rung(name, arrays, about | note | _cost(arrays, name))


def _scale_rung(name: str, problem: Problem, sample: Sample, lam: float, before: dict[str, Rung]) -> Rung:
    folded = problem.fold(sample.train_codes)
    train = sample.train, folded.csr(np.float64)
    validation = sample.validation, problem.fold(sample.validation_codes).csr(np.float64)
    one = modes.best_scale(problem, sample.train, folded, lam)
    if name == "scaled":
        scales, n = np.full(problem.n_latents, one), 1
    else:
        one = float(before["scaled"].arrays["scales"][0])
        scales, n = fit_scales(problem, train, validation, lam, one)[0], problem.n_latents
    about = {
        which: price_of_codes(problem, t, scaled(codes, scales), lam)
        for which, (t, codes) in (("train", train), ("validation", validation))
    }
    return Rung(name, {"scales": scales}, about | {"scale": one, "parameters": n, "forwards": 1.0})


def _cost(arrays: dict[str, np.ndarray], name: str) -> dict[str, float]:
    """Learned numbers, those of the rungs it builds on included, and multiplications per token over D x M."""
    learned = LEARNED[name] + (LEARNED["mlp"] if name == "lista" else ())
    product = arrays["weight"].size
    forwards = 1.0
    if name != "affine":
        forwards += (arrays["hidden"].size + arrays["up"].size) / product
    if name == "lista":
        forwards += 2.0 * len(arrays["gamma"])
    return {"parameters": int(sum(np.size(arrays[key]) for key in learned)), "forwards": forwards}


def coder(rung: Rung, problem: Problem) -> Callable[[np.ndarray, Codes | None], Codes]:
    """A rung as a function of t (n, D) and the encoder's codes in the SAE's units (for scales; else not looked at),
    which gives folded codes."""
    if "scales" in rung.arrays:
        return lambda t, encoder: problem.fold(_needed(encoder).scaled(rung.arrays["scales"]))
    net = net_of(rung, problem)

    def code(t: np.ndarray, encoder: Codes | None) -> Codes:
        del encoder
        starts = range(0, len(t), CHUNK)
        return concatenate([from_dense(encoder_fit.codes_of(net, t[i : i + CHUNK])) for i in starts])

    return code


def _needed(encoder: Codes | None) -> Codes:
    if encoder is None:
        raise ValueError("a scale needs the encoder's codes")
    return encoder


def check_ladder(sae: SAE, problem: Problem) -> None:
    """AmortjaxError for an SAE whose price these rungs can't divide."""
    if problem.signed:
        raise AmortjaxError(
            f"{sae.info.name} is a {sae.variant} SAE, whose codes may be negative: the ladder's encoders are ReLUs, "
            "so its price can't be decomposed; amortjax.launch.section5 gives the price"
        )
