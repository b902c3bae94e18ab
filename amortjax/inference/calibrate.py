"""The lambda at which a mode's codes have a wanted L0 (or NMSE): a bracketed secant in log-log coordinates.

L0 is not monotone in lambda token by token, but its average over thousands of tokens is in practice; the
bracket keeps the search honest where it is not, and the answer comes with the bracket's width.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from amortjax.errors import AmortjaxError


@dataclasses.dataclass(frozen=True)
class Calibration:
    """`lam` (half form) and what it achieved on the calibration rows; `interval`: the lambdas between which the
    target was seen to lie (the measured points nearest to it on either side; on a side where none was measured,
    where the local slope puts the tolerance beyond it). `slope`: d log(statistic) / d log(lam) there, if two
    points were measured."""

    lam: float
    achieved: float
    target: float
    interval: tuple[float, float]
    evaluations: int
    reached: bool  # within the tolerance
    at_bound: bool = False  # not reached, and lambda can go no further: nothing reaches the target
    statistic: str = "l0"
    slope: float | None = None

    @property
    def l0(self) -> float:
        return self.achieved if self.statistic == "l0" else float("nan")


class Unreachable(AmortjaxError):
    """No lambda gives the target."""


def match(
    statistic: Callable[[float], float],
    target: float,
    *,
    start: float,
    bounds: tuple[float, float],
    rising: bool = False,
    tol: float = 0.01,
    max_evaluations: int = 12,
    slope: float | None = None,
    name: str = "l0",
) -> Calibration:
    """The lam in `bounds` with statistic(lam) = target to a relative `tol`.

    `statistic` falls with lam (`rising`: rises). `slope` is what is known of d log(statistic) / d log(lam), from
    other rows say. A target beyond what the bounds reach comes back with reached=False and the nearest point.
    """
    sign = 1.0 if rising else -1.0
    stride = 1.0 if slope else 1.1  # a guessed slope steps a little too far, so as to bracket
    points: list[tuple[float, float]] = []  # (log lam, log(statistic / target)), in order of evaluation
    at, slope = float(np.clip(np.log(start), *np.log(bounds))), slope or sign * 1.0
    for _ in range(max_evaluations):
        value = statistic(float(np.exp(at)))
        points.append((at, float(np.log(max(value, 1e-12) / target))))
        if abs(value / target - 1) <= tol:
            break
        following = _next(points, sign, slope, stride, np.log(bounds))
        if following is None:
            break
        at = following
    best = min(points, key=lambda p: abs(p[1]))
    slope = _local_slope(points, sign) or slope
    interval = _interval(points, sign, slope, best, tol, bounds)
    achieved = float(target * np.exp(best[1]))
    reached = abs(achieved / target - 1) <= tol
    at_bound = not reached and bool(np.min(np.abs(best[0] - np.log(bounds))) < 1e-6)
    lam = float(np.exp(best[0]))
    measured = _local_slope(points, sign)
    return Calibration(lam, achieved, target, interval, len(points), reached, at_bound, name, measured)


def _local_slope(points, sign) -> float | None:
    """Between the two points nearest to the target, if it has the right sign."""
    near = sorted(points, key=lambda p: abs(p[1]))[:2]
    if len(near) < 2 or near[0][0] == near[1][0]:
        return None
    slope = (near[1][1] - near[0][1]) / (near[1][0] - near[0][0])
    return slope if slope * sign > 0.05 else None


def _interval(points, sign, slope, best, tol, bounds) -> tuple[float, float]:
    low, high = _bracket(points, sign)
    # Where the slope takes the target itself, give or take the tolerance.
    there, reach = best[0] - best[1] / slope, tol / abs(slope)
    below = low[0] if low else min(there - reach, best[0])
    above = high[0] if high else max(there + reach, best[0])
    return float(np.clip(np.exp(below), *bounds)), float(np.clip(np.exp(above), *bounds))


def _bracket(points, sign):
    """The measured points nearest to the target whose lambda is too small, and too large (or None)."""
    below = [p for p in points if sign * p[1] < 0]
    above = [p for p in points if sign * p[1] >= 0]
    return max(below, default=None), min(above, default=None)


def _next(points, sign, slope, stride, log_bounds) -> float | None:
    """Where to look next: a secant inside the bracket, or a widening step outside; None at a bound."""
    low, high = _bracket(points, sign)
    if low and high:
        if high[0] - low[0] < 1e-6:
            return None
        secant = low[0] - low[1] * (high[0] - low[0]) / (high[1] - low[1])
        if len(points) > 2 and (points[-1][1] > 0) == (points[-2][1] > 0) == (points[-3][1] > 0):
            return (low[0] + high[0]) / 2  # one end stands still: halve, as bisection would
        margin = 0.02 * (high[0] - low[0])
        return float(np.clip(secant, low[0] + margin, high[0] - margin))
    last = points[-1]
    if len(points) > 1 and points[-1][0] != points[-2][0]:
        measured = (points[-1][1] - points[-2][1]) / (points[-1][0] - points[-2][0])
        slope = measured if measured * sign > 0.05 else slope
    step = float(np.clip(-last[1] / slope * stride, -1.5, 1.5))
    if last[0] in log_bounds and (step > 0) == (last[0] == log_bounds[1]):
        return None
    return float(np.clip(last[0] + step, *log_bounds))


def lam_bounds(lam_max: np.ndarray) -> tuple[float, float]:
    """Where lambda is looked for: below the largest lam_max every code would be zero; at 1e-4 of the median
    float32 can no longer certify."""
    top = float(np.max(lam_max))
    if not top > 0:
        raise Unreachable("no atom correlates with any token: every optimum is zero at every lambda")
    return 1e-4 * float(np.median(lam_max[lam_max > 0])), 0.999 * top
