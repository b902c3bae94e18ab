"""FLOPs of training and inference, in closed form, and XLA's own count beside it.

    total("mlp", d=8, m=16, hidden=32, steps=20_000)         # Total(train, inference), linear
    total("sparse_coding", 8, 16, steps=20_000, iterations=10_000, convention="paper")
    xla_flops(step, params, x)                               # XlaCost(flops, loops, custom_calls)

Sizes are this code's: D dimensions (the paper's M), M latents (the paper's N). All counts are whole numbers.

Conventions (arXiv 2411.13117; closed forms of its released calculator):
- `paper`: the published numbers to the digit. Sparse coding's training counts the batch twice, a term in batch^2.
- `linear` (default): the same per sample, and sparse coding linear in the batch like every other method.

Both count a matmul as 2 operations per multiply-add, take forward and backward as about three forwards, put Adam and
the atoms' renormalisation into the constants per sample, and count inference of an encoder as encode and decode.
`decode=False` (known codes: no decoder is used) leaves decoding out.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from amortjax.errors import AmortjaxError
from amortjax.metrics.xla_cost import XlaCost, xla_flops

__all__ = ["FLOPS", "Setting", "Total", "XlaCost", "beside", "published", "total", "xla_flops"]

Convention = Literal["linear", "paper"]


class Setting(NamedTuple):
    """What a method's cost depends on. `iterations`: of an inference that iterates; `active`: L0 of the codes (TopK's
    k, or what an active set holds); `warm`: the iterations start from an encoder's codes, which cost an encode."""

    d: int
    m: int
    hidden: int = 0
    batch: int = 1024
    iterations: int = 0
    active: int = 0
    learn_dictionary: bool = True
    decode: bool = True
    warm: bool = False
    convention: Convention = "linear"


class Total(NamedTuple):
    """FLOPs of all training steps, and of coding all test samples once."""

    train: int
    inference: int


# --- encoders, per sample ---


def sae_train(d: int, m: int, learn_dictionary: bool = True, decode: bool = True) -> int:
    """One sample of one training step of a linear encoder with ReLU."""
    return 6 * d * m + 5 * m + _decoder(d, m, learn_dictionary, decode)


def sae_inference(d: int, m: int, decode: bool = True) -> int:
    """Encode, and decode, one sample."""
    return 2 * d * m + m + 2 * d * m * decode


def mlp_train(d: int, m: int, hidden: int, learn_dictionary: bool = True, decode: bool = True) -> int:
    """One sample of one training step of D -> hidden -> M, ReLU after both."""
    own = 6 * d * hidden + 6 * hidden * m + 5 * hidden + 5 * m
    return own + _decoder(d, m, learn_dictionary, decode)


def mlp_inference(d: int, m: int, hidden: int, decode: bool = True) -> int:
    """Encode, and decode, one sample."""
    return 2 * d * hidden + hidden + 2 * hidden * m + m + 2 * d * m * decode


def _decoder(d: int, m: int, learn_dictionary: bool, decode: bool) -> int:
    """What decoding adds to a training step, and learning and renormalising the atoms to that."""
    return (4 * d * m + 3 * d * m * learn_dictionary) * decode


def topk_select(m: int, k: int) -> int:
    """Comparisons that keep the k largest of M: a heap of k entries. The paper counts none."""
    return m * max(1, k).bit_length()


# --- codes by optimisation ---


def optimised_inference(d: int, m: int, iterations: int) -> int:
    """One sample's code by so many gradient steps with Adam: sparse coding, and inference-time optimisation (ITO)."""
    return d * m + m + iterations * (4 * d * m + 2 * d + 11 * m)


def sparse_coding_train(
    d: int, m: int, batch: int, learn_dictionary: bool = True, convention: Convention = "linear"
) -> int:
    """One joint step on the codes of `batch` samples and the dictionary (whole step, not per sample); 0 if the
    dictionary is known, because then codes are inference."""
    if not learn_dictionary:
        return 0
    if _checked(convention) == "linear":
        return batch * (6 * d * m + 3 * m + 2 * d + 2 * m) + 10 * d * m
    forward = 2 * d * m + m + 3 * d * m
    return batch * (3 * forward + (2 * d + m) * batch + m * batch + d * m)


def ista(d: int, m: int, iterations: int) -> int:
    """One sample: each step decodes (2 D M), takes the residual (D), correlates (2 D M), and shrinks (4 M)."""
    return iterations * (4 * d * m + d + 4 * m)


def fista(d: int, m: int, iterations: int) -> int:
    """As `ista`, and the momentum of each step (3 M)."""
    return ista(d, m, iterations) + iterations * 3 * m


def active_set(d: int, m: int, rounds: int, active: int) -> int:
    """One sample's certified optimum, estimated from its rounds and the L0 k: a round correlates the residual with all
    atoms (2 D M), forms it (2 k D + D), and solves for k values (a k x k Gram matrix, 2 k^2 D, factored, 2 k^3 / 3)."""
    small = 2 * active * d + d + 2 * active**2 * d + 2 * active**3 // 3
    return rounds * (2 * d * m + m + small)


def dictionary_update(d: int, m: int, batch: int) -> int:
    """One least-squares update of the dictionary from the codes of `batch` samples: Z'Z, Z'X, a Cholesky solve and the
    renormalisation of the atoms (whole update)."""
    return 2 * batch * m * m + 2 * batch * m * d + m**3 // 3 + 2 * m * m * d + 3 * d * m


# --- the table of methods ---


class Method(NamedTuple):
    """`train`: FLOPs of one step on `batch` samples; `inference`: of one sample."""

    label: str
    train: Callable[[Setting], int]
    inference: Callable[[Setting], int]


def _train_sae(s: Setting) -> int:
    return s.batch * sae_train(s.d, s.m, s.learn_dictionary, s.decode)


def _train_mlp(s: Setting) -> int:
    return s.batch * mlp_train(s.d, s.m, s.hidden, s.learn_dictionary, s.decode)


def _train_coding(s: Setting) -> int:
    return sparse_coding_train(s.d, s.m, s.batch, s.learn_dictionary, s.convention)


def _train_exact(s: Setting) -> int:
    """Certified codes of the batch, then the dictionary's least squares; 0 if it is known."""
    update = s.batch * _exact(s) + dictionary_update(s.d, s.m, s.batch)
    return update * s.learn_dictionary


def _train_ito(s: Setting) -> int:
    """The SAE's, whose dictionary it uses; nothing where the dictionary is known ("zero training FLOPs")."""
    return _train_sae(s) * s.learn_dictionary


def _nothing(s: Setting) -> int:
    return 0


def _sae(s: Setting) -> int:
    return sae_inference(s.d, s.m, s.decode)


def _mlp(s: Setting) -> int:
    return mlp_inference(s.d, s.m, s.hidden, s.decode)


def _selected(s: Setting) -> int:
    return topk_select(s.m, s.active) if s.convention == "linear" else 0


def _optimised(s: Setting) -> int:
    start = sae_inference(s.d, s.m, decode=False) if s.warm else 0
    return optimised_inference(s.d, s.m, s.iterations) + start


def _exact(s: Setting) -> int:
    return active_set(s.d, s.m, s.iterations, s.active)


FLOPS: dict[str, Method] = {
    "sae": Method("SAE", _train_sae, _sae),
    "mlp": Method("MLP", _train_mlp, _mlp),
    "sparse_coding": Method("sparse coding", _train_coding, _optimised),
    "ito": Method("SAE + inference-time optimisation", _train_ito, _optimised),
    "sae_topk": Method(
        "SAE, TopK", lambda s: _train_sae(s) + s.batch * _selected(s), lambda s: _sae(s) + _selected(s)
    ),
    "mlp_topk": Method(
        "MLP, TopK", lambda s: _train_mlp(s) + s.batch * _selected(s), lambda s: _mlp(s) + _selected(s)
    ),
    "sparse_coding_topk": Method(
        "sparse coding, TopK", lambda s: _train_coding(s) + s.batch * _selected(s),
        lambda s: _optimised(s) + _selected(s),
    ),
    "ista": Method("ISTA", _nothing, lambda s: ista(s.d, s.m, s.iterations)),
    "fista": Method("FISTA", _nothing, lambda s: fista(s.d, s.m, s.iterations)),
    "active_set": Method("certified optimum", _nothing, _exact),
    "exact_dictionary": Method("exact dictionary learning", _train_exact, _exact),
}  # fmt: skip


def _checked(convention: str) -> Convention:
    if convention not in ("linear", "paper"):
        raise AmortjaxError(f"FLOP convention {convention!r}: choose linear or paper")
    return convention  # pyright: ignore[reportReturnType]


def total(
    method: str,
    d: int,
    m: int,
    *,
    steps: int = 0,
    test_samples: int = 1024,
    convention: Convention = "linear",
    **setting: Any,
) -> Total:
    """FLOPs of `steps` training steps on `batch` samples, and of coding `test_samples`.

    `setting`: the other fields of Setting (hidden, batch, iterations, active, learn_dictionary, decode, warm). A curve
    logged at step t, as the released files are, has taken t + 1 steps. AmortjaxError names an unknown method.
    """
    if method not in FLOPS:
        raise AmortjaxError(f"no FLOP count for {method!r}: choose one of {', '.join(FLOPS)}")
    at = Setting(d, m, convention=_checked(convention), **setting)
    numbers = {"steps": steps, "test_samples": test_samples, **at._asdict()}
    del numbers["convention"]
    wrong = [f"{name}={value}" for name, value in numbers.items() if value < 0]
    if wrong:
        raise AmortjaxError(f"FLOPs of {method}: {', '.join(wrong)} must not be negative")
    if method.startswith("mlp") and not at.hidden:
        raise AmortjaxError(f"FLOPs of {method} need hidden=..., the width of its hidden layer")
    return Total(steps * FLOPS[method].train(at), test_samples * FLOPS[method].inference(at))


# --- the x-axes of the released files ---

Scenario = Literal["known_codes", "known_dictionary", "unknown"]


def published(
    scenario: Scenario,
    method: Literal["sae", "mlp", "ito", "sparse_coding"],
    step: int,
    d: int = 8,
    m: int = 16,
    *,
    hidden: int = 0,
    batch: int = 1024,
    test_samples: int = 1024,
    iterations: int = 10_000,
) -> Total:
    """The released files' FLOPs at logged step `step` (which has taken step + 1 steps), to the digit.

    known_codes and known_dictionary have one axis, training and one inference together: the sum of the two numbers
    here. There the files leave out the SAE's inference (known_codes), and ITO's axis is its own iterations, `step` + 1
    of them, without training. In `unknown`, ITO is charged the SAE's training and `iterations` on the test samples.
    """
    known = scenario != "unknown"
    own: dict[str, Any] = {"hidden": hidden, "batch": batch, "test_samples": test_samples}
    own |= {"learn_dictionary": not known, "decode": scenario != "known_codes"}
    own["iterations"] = step + 1 if known else iterations
    found = total(method, d, m, steps=step + 1, convention="paper", **own)
    if scenario == "known_codes" and method == "sae":
        return found._replace(inference=0)
    return found


def beside(
    method: str, d: int, m: int, step: XlaCost | None = None, code: XlaCost | None = None, **setting: Any
) -> dict[str, Any]:
    """A row of the table paper | linear | XLA: FLOPs of one training step and of one sample's inference.

    `step`, `code`: XLA's counts of one training step on `batch` samples and of coding `batch` samples once.
    """
    row: dict[str, Any] = {"method": method, "label": FLOPS[method].label if method in FLOPS else method}
    batch = setting.get("batch", Setting(d, m).batch)
    conventions: tuple[Convention, ...] = ("paper", "linear")
    for convention in conventions:
        one = total(method, d, m, steps=1, test_samples=1, convention=convention, **setting)
        row |= {f"train_{convention}": one.train, f"inference_{convention}": one.inference}
    for name, cost, share in (("train", step, 1), ("inference", code, max(batch, 1))):
        row[f"{name}_xla"] = None if cost is None or cost.flops is None else cost.flops / share
        row[f"{name}_xla_whole"] = None if cost is None else cost.whole
    return row
