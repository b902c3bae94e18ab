"""The three scenarios of arXiv 2411.13117, as released: what is known, what is trained, what is logged when.

    known_codes        codes and x are known; encoders are trained on the codes (cosine loss)
    known_dictionary   the dictionary is known; encoders, or the test codes themselves, minimise mse + lam mean |z|
    unknown            only x is known; the dictionary is learned with encoders or with free codes

`points` yields what each method has at its log points: codes of the test samples and dictionaries, of all seeds.
Encoder curves are logged after the update at a step (step + 1 updates), optimised codes of a known dictionary before.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.synthetic import coding
from amortjax.synthetic.encoders import Encoder, Weights, init, stacked
from amortjax.synthetic.generators import Data, check_sizes, make_data
from amortjax.synthetic.torch_random import TorchStream
from amortjax.synthetic.training import Batch, Fit, Numbers, State, advance, codes_of, dictionary_of, start

Scenario = Literal["known_codes", "known_dictionary", "unknown"]
SCENARIOS: tuple[str, ...] = get_args(Scenario)
SEEDS = {"known_codes": 20240625, "known_dictionary": 20240625, "unknown": 20240926}  # the authors'
NARROW = 64  # hidden width up to which float64 is cheap
MODEL_SEED = 42  # added to a run's seed before its weights are drawn
RATE_KNOWN, RATE_UNKNOWN = 1e-3, 3e-3  # of the codes' optimiser in the two released scripts
METHODS = {
    "known_codes": ("sae", "mlp32", "mlp256", "mlp1024"),
    "known_dictionary": ("sae", "sae_ito", "mlp32", "mlp256"),
    "unknown": ("sae", "sae_ito", "sparse_coding", "mlp32", "mlp256"),
}
LOG_EVERY = {"known_codes": 200, "known_dictionary": 200, "unknown": 500}


@dataclasses.dataclass(frozen=True)
class Setup:
    """One scenario on one distribution. sources, dimensions, active: the paper's N, M, K. samples: half train, half
    test. seed: of the data; run i trains from seed + i. iterations: of test codes under a learned dictionary."""

    scenario: str = "known_dictionary"
    distribution: str = "uniform"
    sources: int = 16
    dimensions: int = 8
    active: int = 3
    samples: int = 2048
    steps: int = 20_000
    seeds: int = 5
    seed: int = SEEDS["known_dictionary"]
    lam: float = 0.01
    lr: float = 1e-3
    iterations: int = 10_000
    precision: str = "auto"  # of training, see `computing`

    @property
    def learn_dictionary(self) -> bool:
        return self.scenario == "unknown"

    @property
    def lam_half(self) -> float:
        return coding.half_form(self.lam, self.sources, self.dimensions)

    def data(self, run: int = 0) -> Data:
        """Of seed + run. `literal` has the data of run 0 for all runs."""
        sizes = (self.sources, self.dimensions, self.active, self.samples)
        return make_data(self.seed + run, *sizes, self.distribution)

    def checked(self) -> "Setup":
        """Itself, or AmortjaxError naming the flag."""
        check_sizes(self.sources, self.dimensions, self.active, self.samples)
        if self.scenario not in SCENARIOS:
            raise AmortjaxError(f"--scenario={self.scenario}: not one of {', '.join(SCENARIOS)}")
        for name in ("steps", "seeds", "lr", "iterations"):
            if not getattr(self, name) > 0:
                raise AmortjaxError(f"--{name}={getattr(self, name)}: must be above 0")
        if self.lam < 0 or self.seed < 0:
            raise AmortjaxError(f"--lam={self.lam} --seed={self.seed}: must not be negative")
        return self


class Point(NamedTuple):
    """What a method has at a log point. codes (S, n_test, sources) and dictionaries (S, sources, dimensions) on the
    host, None: the known one. updates: training steps taken; iterations: of the test codes' optimiser."""

    step: int
    codes: np.ndarray
    dictionaries: np.ndarray | None
    updates: int
    iterations: int = 0


def check_methods(scenario: str, methods: Iterable[str]) -> None:
    """AmortjaxError on a method that the scenario does not have."""
    for name in methods:
        if hidden_of(name) is not None:
            continue
        if name not in METHODS[scenario] and (scenario, name) != ("known_dictionary", "sparse_coding"):
            known = ", ".join(["mlpWIDTH", *(m for m in METHODS[scenario] if not m.startswith("mlp"))])
            raise AmortjaxError(f"--methods={name}: {scenario} has {known}")


def hidden_of(method: str) -> int | None:
    """256 of mlp256, 0 of sae; None of what is not an encoder."""
    found = re.fullmatch(r"mlp([1-9]\d{0,5})", method)
    return int(found[1]) if found else 0 if method == "sae" else None


def encoder_of(scenario: str, method: str) -> Encoder:
    """Biases are used with known codes only, as released."""
    return Encoder(hidden_of(method) or 0, bias=scenario == "known_codes")


def fit_of(scenario: str, method: str) -> Fit:
    if method == "sparse_coding":
        return coding.SPARSE_CODING
    goal = "codes" if scenario == "known_codes" else "reconstruction"
    return Fit(encoder_of(scenario, method), goal, scenario == "unknown")


def log_points(steps: int, every: int) -> list[int]:
    """0, every, 2 every, ..., and the last step."""
    return sorted({*range(0, steps, every), steps - 1})


def first_weights(setup: Setup, method: str) -> Weights:
    """The released runs' first weights, of all seeds.

    With known codes, models are made before their run's seed is set again, so that the SAE of run 0 follows on the
    dictionary's draw, that of run i > 0 has the seed of run i - 1, and MLPs have their own run's. The published curves
    are met by this only.
    """
    sizes = (setup.sources, setup.dimensions)
    seeds = [setup.seed + run for run in range(setup.seeds)]
    if method == "sparse_coding":
        return coding.sparse_coding([s + MODEL_SEED for s in seeds], setup.samples // 2, *sizes)
    streams = [TorchStream(s) for s in seeds]
    if setup.scenario != "known_codes":
        streams = [TorchStream(s + MODEL_SEED) for s in seeds]
    elif method == "sae":
        first = TorchStream(setup.seed)
        first.randn(*sizes)
        streams = [first, *streams[:-1]]
    encoder = encoder_of(setup.scenario, method)
    return stacked(init(stream, encoder, *sizes, setup.learn_dictionary) for stream in streams)


def points(
    setup: Setup, method: str, at: Iterable[int], moved: Callable[[int], Any] = lambda n: None
) -> Iterator[Point]:
    """Log points of `literal` at the steps `at`, ascending; `moved` is told the steps taken since the last."""
    data = setup.data()
    if setup.scenario == "known_dictionary" and method in ("sae_ito", "sparse_coding"):
        yield from _ito_known(setup, data, at, moved)
        return
    trained = "sae" if method == "sae_ito" else method
    fit, x_test = fit_of(setup.scenario, trained), data.x_test
    for step, state in trained_states(
        setup, fit, batch_of(data, fit), first_weights(setup, trained), at, moved
    ):
        if method in ("sae_ito", "sparse_coding"):
            # Released sparse coding takes its atoms as the last update left them, not brought back to norm 1.
            raw = method == "sparse_coding"
            atoms = np.asarray(state.weights["atoms"]) if raw else atoms_of(setup, state, fit)
            yield Point(step, test_codes(setup, x_test, atoms), atoms, step + 1, setup.iterations)
        else:
            yield Point(step, encoded(setup, state, x_test, fit), atoms_of(setup, state, fit), step + 1)


def batch_of(data: Data, fit: Fit) -> Batch:
    codes = jnp.asarray(data.codes_train) if fit.goal == "codes" else None
    known = None if fit.learn_dictionary or fit.goal == "codes" else jnp.asarray(data.dictionary)
    return Batch(jnp.asarray(data.x_train), codes, known)


def trained_states(
    setup: Setup, fit: Fit, batch: Batch, weights: Weights, at: Iterable[int], moved: Callable[[int], Any]
) -> Iterator[tuple[int, State]]:
    """(step, state after step + 1 updates). A state is gone once the next is asked for."""
    with computing(setup, fit):
        precision = precision_of(setup, fit)
        weights, batch = jax.tree.map(lambda a: jnp.asarray(a, precision), (weights, batch))
        state, done = start(weights), 0
    numbers = Numbers(setup.lam, setup.lr)
    for step in at:
        with computing(setup, fit):
            state = jax.block_until_ready(advance(state, batch, numbers, step + 1 - done, fit=fit))
        moved(step + 1 - done)
        done = step + 1
        yield step, state


def precision_of(setup: Setup, fit: Fit) -> str:
    """auto: float64 for encoders up to NARROW wide, float32 for wide ones and for codes."""
    if setup.precision != "auto":
        return setup.precision
    return "float64" if fit.encoder is not None and fit.encoder.hidden <= NARROW else "float32"


def computing(setup: Setup, fit: Fit) -> Any:
    """The context in which arrays of a training are made and used.

    float64 because ReLU networks amplify rounding: with known codes, float32 moves one latent of one MLP-32 and with it
    the mean MCC at step 500 by .011, float64 meets the published value to 2e-6.
    """
    return jax.enable_x64(precision_of(setup, fit) == "float64")


def _ito_known(setup: Setup, data: Data, at: Iterable[int], moved: Callable[[int], Any]) -> Iterator[Point]:
    """The test codes themselves, logged before the update. Nothing is random: all runs are the same."""
    state, done = start(coding.log_codes(1, len(data.x_test), setup.sources)), 0
    batch = Batch(jnp.asarray(data.x_test), None, jnp.asarray(data.dictionary))
    for step in at:
        state = advance(state, batch, Numbers(setup.lam, RATE_KNOWN), step - done, fit=coding.CODES)
        moved(step - done)
        done = step
        z = np.broadcast_to(np.asarray(coding.codes_in(state)), (setup.seeds, *data.codes_test.shape))
        yield Point(step, z, None, 0, step)


def encoded(setup: Setup, state: State, x: Any, fit: Fit) -> np.ndarray:
    """(S, n, sources) of x (n, dimensions), or of x (S, n, dimensions), one for each seed."""
    axes = (0, 0 if jnp.ndim(x) == 3 else None)
    with computing(setup, fit):
        return np.asarray(jax.vmap(lambda w, x: codes_of(w, x, fit), in_axes=axes)(state.weights, x))


def atoms_of(setup: Setup, state: State, fit: Fit) -> np.ndarray | None:
    """(S, sources, dimensions) unit rows, or None if nothing is learned."""
    if not fit.learn_dictionary:
        return None
    with computing(setup, fit):
        return np.asarray(jax.vmap(lambda w: dictionary_of(w, None, fit))(state.weights))


def test_codes(setup: Setup, x_test: Any, atoms: Any) -> np.ndarray:
    """Codes of the test samples under learned dictionaries, as released: `iterations` of Adam from u = -10."""
    atoms = jnp.asarray(atoms, jnp.float32)
    begin = coding.log_codes(len(atoms), x_test.shape[-2], setup.sources)
    numbers = Numbers(setup.lam, RATE_UNKNOWN)
    return np.asarray(coding.optimised(x_test, atoms, begin, setup.iterations, numbers))
