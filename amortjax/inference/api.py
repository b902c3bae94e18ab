"""`infer` and `calibrate`: inference for a whole SAE, as amortjax's public API has it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.inference import modes, objective
from amortjax.inference.calibrate import Calibration, lam_bounds, match
from amortjax.inference.codes import Codes, concatenate, from_dense
from amortjax.inference.modes import Options
from amortjax.inference.objective import Objective
from amortjax.saes import encoders
from amortjax.saes.sae import SAE

_encode = jax.jit(encoders.encode)


@dataclasses.dataclass(frozen=True)
class Solution:
    """Codes of N tokens and how good they are, each (N,): objective P, duality gap (objective units), gap / P,
    whether that is at most the tolerance, and iterations."""

    codes: Codes
    objective: np.ndarray
    gap: np.ndarray
    relative_gap: np.ndarray
    certified: np.ndarray
    iterations: np.ndarray
    record: Objective


def rows(x: Any, width: int) -> np.ndarray:
    """x (..., D) or (N, heads, d_head) as float32 (N, D); says both widths when they differ, and refuses NaN."""
    x = np.asarray(x, np.float32)
    flat = x.reshape(-1, width) if x.ndim and x.shape[-1] == width else None
    if flat is None and x.ndim == 3 and x.shape[1] * x.shape[2] == width:
        flat = x.reshape(len(x), width)
    if flat is None:
        raise AmortjaxError(f"activations of shape {x.shape} do not fit an SAE of d_model {width}")
    bad = ~np.isfinite(flat).all(axis=1)
    if bad.any():
        raise AmortjaxError(
            f"{bad.sum()} of {len(flat)} tokens hold NaN or infinity, the first is row {bad.argmax()}"
        )
    return flat


def encode_codes(sae: SAE, x: np.ndarray, chunk: int = 1024) -> Codes:
    """The encoder's codes of x (N, D), sparse. A batch rule sees `chunk` tokens at a time."""
    if not len(x):
        return Codes(np.zeros((0, 8), np.int32), np.zeros((0, 8), np.float32), sae.n_latents)
    parts = []
    for i in range(0, len(x), chunk):
        part = x[i : i + chunk]
        pad = 0 if sae.batch_rule else min(chunk, -(-len(x) // 16) * 16) - len(part)
        z = _encode(sae, np.pad(part, ((0, max(pad, 0)), (0, 0))))
        parts.append(from_dense(np.asarray(z)[: len(part)]))
    return concatenate(parts)


def infer(
    sae: SAE,
    x: Any,
    lam: Any = None,
    mode: str = "optimal",
    tol: float = 1e-4,
    target: Any = None,
    **options: Any,
) -> Solution:
    """Codes of x (..., D) under `mode`, with a certificate per token.

    lam: positive scalar or (N,), half form (papers' lambda = 2 lam), in the SAE's normalised units; 0 solves
    non-negative least squares, uncertified. target: a transcoder's recorded output (N, D_out). Further options
    are those of `inference.modes.Options` (semi_steps, ista_steps, ...).
    """
    mode = modes.resolve(mode)
    x = rows(x, sae.d_in)
    lam = _checked_lam(lam, len(x))
    problem = objective.pose(sae)
    y = None if target is None else rows(target, sae.d_out)
    t = np.asarray(objective.targets(sae, x, y)[0])
    encoder = encode_codes(sae, x)
    settings = Options(tol=tol, **options)
    folded = problem.fold(encoder)
    scale = modes.best_scale(problem, t, folded, lam) if mode == "encoder_scaled" else 1.0
    codes, iterations = modes.solve(mode, problem, t, encoder, lam, scale, settings)
    proof = _proof(problem, t, codes, lam, settings.chunk)
    certified = (proof.relative_gap <= tol) & (lam > 0)
    lam_said = float(lam[0]) if len(lam) and np.all(lam == lam[0]) else None
    record = dataclasses.replace(problem.record, lam=lam_said, target="input" if target is None else "output")
    return Solution(codes, proof.objective, proof.gap, proof.relative_gap, certified, iterations, record)


def _proof(problem: objective.Problem, t: np.ndarray, codes: Codes, lam: np.ndarray, chunk: int):
    """The certificate of all tokens without its residuals, which would be as large as the tokens twice over."""
    parts = []
    for i in range(0, max(len(t), 1), chunk):
        part = objective.certify(problem, t[i : i + chunk], codes.rows(i, i + chunk), lam[i : i + chunk])
        parts.append(part._replace(residual=np.zeros((0, t.shape[1]))))
    return objective.Certificate(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _checked_lam(lam: Any, n: int) -> np.ndarray:
    if lam is None:
        raise AmortjaxError("lam is needed; aj.calibrate(sae, x) finds the one that matches the encoder's L0")
    lam = np.asarray(lam, np.float64)
    if lam.shape not in ((), (n,)):
        raise AmortjaxError(f"lam has shape {lam.shape}: give a number, or one for each of the {n} tokens")
    if not np.all(np.isfinite(lam)) or np.any(lam < 0):
        raise AmortjaxError("lam must be finite and not negative")
    return np.broadcast_to(lam, (n,))


def calibrate(
    sae: SAE, x: Any, l0: float | None = None, mode: str = "optimal", target: Any = None, **options: Any
) -> Calibration:
    """The lambda at which `mode` has mean L0 `l0` on x (default: the encoder's own L0 there), to 1 %."""
    mode = modes.resolve(mode)
    if modes.MODES[mode].knob != "lam":
        raise AmortjaxError(f"{mode} has no lambda to calibrate")
    x = rows(x, sae.d_in)
    problem = objective.pose(sae)
    y = None if target is None else rows(target, sae.d_out)
    t = np.asarray(objective.targets(sae, x, y)[0])
    encoder = encode_codes(sae, x)
    l0 = float(encoder.l0.mean()) if l0 is None else float(l0)
    return match_l0(mode, problem, t, encoder, l0, Options(**options), refuse=True)


def match_l0(
    mode: str,
    problem: objective.Problem,
    t: np.ndarray,
    encoder: Codes,
    l0: float,
    options: Options,
    start: float | None = None,
    refuse: bool = False,
    progress: bool = False,
) -> Calibration:
    """Calibrates on t (N, D): on a sixteenth of the rows (at least 512), on a quarter, then on all of them, which
    start from the answer and its slope and so need one evaluation, rarely two."""
    if mode in ("optimal", "optimal_refit") and l0 > problem.rank_bound:
        _refuse(l0, problem)
    top = objective.lam_max(problem, t)
    bounds = lam_bounds(top)

    def l0_of(n: int) -> Callable[[float], float]:
        near: Codes | None = None

        def l0_at(lam: float) -> float:
            nonlocal near
            with bar_of(progress, n, f"calibrating {mode}, lambda {lam:.3g}") as bar:
                own = encoder.rows(0, n)
                codes, _ = modes.solve(mode, problem, t[:n], own, lam, 1.0, options, near, bar)
            near = codes
            return float(codes.l0.mean())

        return l0_at

    start, slope = start or 0.15 * float(np.median(top)), None
    for few in sorted({max(512, len(t) // 16), max(2048, len(t) // 4)}):
        if few < len(t):
            rough = match(l0_of(few), l0, start=start, bounds=bounds, tol=0.01, slope=slope)
            start, slope = rough.lam, rough.slope or slope
    found = match(l0_of(len(t)), l0, start=start, bounds=bounds, max_evaluations=8, slope=slope)
    if refuse and not found.reached and abs(found.achieved / l0 - 1) > 0.1:
        _refuse(l0, problem)
    return found


def bar_of(progress: bool, total: int, text: str) -> Any:
    """A tqdm bar of tokens, which leaves nothing behind; silent unless `progress`."""
    from tqdm import tqdm

    return tqdm(total=total, desc=text.replace("_", " "), unit="tok", leave=False, disable=not progress)


def _refuse(l0: float, problem: objective.Problem) -> None:
    bound, m = problem.rank_bound, problem.n_latents
    raise AmortjaxError(
        f"no optimum has L0 {l0:g} (density {l0 / m:.3g}): at most rank(W) <= {bound} latents can be active "
        f"(density {bound / m:.3g}). Ask for less."
    )
