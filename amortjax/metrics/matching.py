"""What is held equal: each condition's lambda for each mode, found on the calibration rows only."""

import dataclasses

import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.inference import modes, objective
from amortjax.inference.api import bar_of, match_l0
from amortjax.inference.calibrate import Calibration, lam_bounds, match
from amortjax.inference.modes import MODES
from amortjax.metrics.measure import Knobs, Subject, decoded
from amortjax.saes.literal import DENSITY_TARGET, LAMBDA_GRID

# In order: same_l0 starts from same_lambda's answer.
CONDITIONS = ("same_lambda", "same_l0", "same_nmse", "trained_lambda")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One mode under one condition: its knobs, or why the target can't be reached."""

    knobs: Knobs
    columns: dict  # what the result row says of the calibration
    flags: tuple[str, ...] = ()
    evaluate: bool = True


def check_target(subject: Subject, l0: float) -> None:
    """Refuses an L0 that no optimum of this dictionary can have, with the bound."""
    bound, m = subject.problem.rank_bound, subject.problem.n_latents
    if l0 > bound:
        raise AmortjaxError(
            f"no optimum has L0 {l0:g} (density {l0 / m:.3g}): at most rank(W) = {bound} of {m} latents can be "
            f"active (density {bound / m:.3g}). Give a smaller --target_l0 or --target_dense, or use "
            "--protocol=literal, which marks such rows."
        )
    if not l0 > 0:
        raise AmortjaxError(f"a target L0 of {l0:g} means nothing: give a positive one")


def star(subject: Subject, l0: float) -> Calibration:
    """lambda*: where the certified optimum has the target L0."""
    t, encoder, _, _ = subject.calibration
    return match_l0("optimal", subject.problem, t, encoder, l0, subject.options, progress=subject.progress)


def nmse_of(subject: Subject, mode: str, knobs: Knobs, rows: slice = slice(None)) -> float:
    """NMSE of a mode on the calibration rows, raw units."""
    t, encoder, x, stats = subject.calibration
    t, x = t[rows], x[rows]
    stats = type(stats)(stats.scale[rows], stats.shift[rows])
    encoder = encoder.rows(0, len(t))
    with bar_of(subject.progress, len(t), f"calibrating {mode} to the NMSE") as bar:
        knob, options = (knobs.lam or 0.0, knobs.scale), subject.options
        codes, _ = modes.solve(mode, subject.problem, t, encoder, *knob, options, bar=bar)
    residual = t - subject.problem.fold(codes).csr(np.float64) @ subject.problem.unit64
    error, base = decoded(subject, x, t, residual, stats)
    return float(np.sum(np.square(error)) / np.sum(np.square(base)))


def match_nmse(subject: Subject, mode: str, target: float, start: float) -> Calibration:
    """The lambda at which `mode` has the target NMSE on the calibration rows."""
    bounds = lam_bounds(objective.lam_max(subject.problem, subject.calibration[0]))
    n = len(subject.calibration[0])
    at = lambda rows: lambda lam: nmse_of(subject, mode, Knobs(lam), rows)  # noqa: E731
    few = min(n, max(1024, n // 10))
    if few < n:
        rough = match(
            at(slice(0, few)), target, start=start, bounds=bounds, rising=True, tol=0.02, name="nmse"
        )
        start = rough.lam
    return match(
        at(slice(None)), target, start=start, bounds=bounds, rising=True, max_evaluations=8, name="nmse"
    )


def _of(calibration: Calibration) -> dict:
    low, high = calibration.interval
    found = {
        "lam": calibration.lam,
        "lam_lo": low,
        "lam_hi": high,
        "calibration_reached": calibration.reached,
    }
    return found | {f"{calibration.statistic}_calibration": calibration.achieved}


def _scale(subject: Subject, mode: str, lam: float) -> float:
    t, encoder, _, _ = subject.calibration
    if MODES[mode].knob != "scale":
        return 1.0
    return modes.best_scale(subject.problem, t, subject.problem.fold(encoder), lam)


def missed(calibration: Calibration) -> tuple[str, ...]:
    """The flag of a calibration that did not reach its target."""
    if calibration.reached:
        return ()
    return ("unmatchable",) if calibration.at_bound else ("calibration_off",)


def at_lambda(subject: Subject, mode: str, lam: float, columns: dict) -> Setting:
    """Every mode at one lambda: same_lambda and trained_lambda."""
    return Setting(Knobs(lam, _scale(subject, mode, lam)), {"lam": lam} | columns)


def at_l0(subject: Subject, mode: str, l0: float, lam_star: Calibration | None) -> Setting:
    """`mode` recalibrated to the target L0 by its own lambda; modes without one are what they are. Without a
    `lam_star` the target is beyond every optimum; steps that stop early may reach it all the same."""
    columns = {"l0_target": l0}
    if MODES[mode].knob != "lam":
        measured = float(subject.calibration[1].l0.mean())
        return Setting(Knobs(None, _scale(subject, mode, 0.0)), columns | {"l0_calibration": measured})
    if lam_star is None and mode in ("optimal", "optimal_refit"):
        return Setting(Knobs(None), columns, ("unmatchable",), evaluate=False)
    found = lam_star
    if found is None or mode != "optimal":
        t, encoder, _, _ = subject.calibration
        start = None if lam_star is None else lam_star.lam
        found = match_l0(
            mode, subject.problem, t, encoder, l0, subject.options, start, progress=subject.progress
        )
    return Setting(Knobs(found.lam), columns | _of(found), missed(found))


def at_nmse(subject: Subject, mode: str, target: float, start: float) -> Setting | None:
    """`mode` recalibrated to the encoder's NMSE; None for modes that have no lambda to do so."""
    if mode == "amortized":
        return Setting(Knobs(None), {"nmse_target": target, "nmse_calibration": target})
    if MODES[mode].knob != "lam":
        return None
    found = match_nmse(subject, mode, target, start)
    return Setting(Knobs(found.lam), {"nmse_target": target} | _of(found), missed(found))


def literal(subject: Subject, mode: str, choices: tuple[str, ...], encoder_l0: float) -> Setting:
    """The released calibration: the grid value, after a quarter of the steps, whose density is nearest."""
    m = subject.problem.n_latents
    density = DENSITY_TARGET if "density_target" in choices else encoder_l0 / m
    columns = {"density_target": density}
    if MODES[mode].knob != "lam":
        return Setting(Knobs(None, _scale(subject, mode, 0.0)), columns)
    t, encoder, _, _ = subject.calibration
    if mode in ("optimal", "optimal_refit") and density * m > subject.problem.rank_bound:
        return Setting(Knobs(None), columns, ("unmatchable",), evaluate=False)
    if "lambda_grid" not in choices:
        found = match_l0(mode, subject.problem, t, encoder, density * m, subject.options)
        return Setting(Knobs(found.lam), columns | _of(found), missed(found))
    quick = dataclasses.replace(
        subject.options,
        semi_steps=max(1, subject.options.semi_steps // 4),
        ista_steps=max(1, subject.options.ista_steps // 4),
    )
    n = min(len(t), 2048)
    tried = {}
    for lam in LAMBDA_GRID:
        codes, _ = modes.solve(mode, subject.problem, t[:n], encoder.rows(0, n), lam, 1.0, quick)
        tried[lam] = float((np.asarray(codes.values) > 0).sum() / n)
    lam = min(tried, key=lambda lam: abs(tried[lam] / m - density))
    return Setting(Knobs(lam), columns | {"lam": lam, "l0_calibration": tried[lam]})


def literal_gap(objective_of: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The papers' amortization gap: mean and median over tokens of P - P(ISTA-200), half form, at the latter's
    lambda. Not clipped, because ISTA-200 is no optimum; the papers' full form is twice this."""
    gap = objective_of - reference
    return {"literal_gap_mean": float(gap.mean()), "literal_gap_median": float(np.median(gap))}
