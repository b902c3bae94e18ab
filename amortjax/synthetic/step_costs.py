"""FLOPs of a training step and of inference, of each method of a scenario, in three counts: the paper's, linear, XLA's.

counted(setup, "sae")       # {"scenario", "method", "train_paper", "train_linear", "train_xla", "inference_...", ...}
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from amortjax.metrics import flops
from amortjax.synthetic import coding, scenarios
from amortjax.synthetic.encoders import encode
from amortjax.synthetic.scenarios import Setup
from amortjax.synthetic.training import Batch, Fit, Numbers, State, one_step, start


def counted(setup: Setup, method: str) -> dict[str, Any]:
    """A row of `metrics.flops.beside`. XLA's count is of what is compiled here; nothing is run. Codes by optimisation
    are one compiled iteration, times their number."""
    hidden, half = scenarios.hidden_of(method) or 0, setup.samples // 2
    optimises = method in ("sae_ito", "sparse_coding")
    free = optimises and setup.scenario == "known_dictionary"  # nothing is trained
    iterations = (setup.steps if free else setup.iterations) if optimises else 0
    kind = "mlp" if hidden else "ito" if free or method == "sae_ito" else method
    trained = "sae" if method == "sae_ito" else method
    setting: dict[str, Any] = {
        "hidden": hidden, "batch": half, "learn_dictionary": setup.learn_dictionary,
        "decode": setup.scenario != "known_codes", "iterations": iterations,
    }  # fmt: skip
    step = None if free else _step(setup, trained)
    row = flops.beside(
        kind, setup.dimensions, setup.sources, step, _coded(setup, method, iterations), **setting
    )
    return {"scenario": setup.scenario} | row | {"method": method}


def _one(state: State) -> State:
    return jax.tree.map(lambda leaf: leaf[0], state)


def _step(setup: Setup, method: str) -> flops.XlaCost:
    fit = scenarios.fit_of(setup.scenario, method)
    state = _one(start(scenarios.first_weights(setup, method)))
    return _compiled(state, scenarios.batch_of(setup.data(), fit), setup, fit)


def _coded(setup: Setup, method: str, iterations: int) -> flops.XlaCost:
    """Of coding `samples // 2` samples."""
    data, hidden = setup.data(), scenarios.hidden_of(method)
    x, atoms = jnp.asarray(data.x_train), jnp.asarray(data.dictionary)
    if hidden is None or iterations:
        one = _compiled(
            _one(start(coding.log_codes(1, len(x), setup.sources))),
            Batch(x, None, atoms),
            setup,
            coding.CODES,
        )
        return one._replace(flops=None if one.flops is None else one.flops * iterations)
    weights = _one(start(scenarios.first_weights(setup, method))).weights
    encoder = scenarios.encoder_of(setup.scenario, method)

    def inferred(weights: Any, x: jax.Array) -> jax.Array:
        z = encode(weights, x, encoder)
        return z if setup.scenario == "known_codes" else z @ atoms

    return flops.xla_flops(inferred, weights, x)


def _compiled(state: State, batch: Batch, setup: Setup, fit: Fit) -> flops.XlaCost:
    return flops.xla_flops(functools.partial(one_step, fit=fit), state, batch, Numbers(setup.lam, setup.lr))
