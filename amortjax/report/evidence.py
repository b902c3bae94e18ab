"""What result rows say for or against a claim, and the verdict: from numbers with intervals, never from numbers alone.

    excess = minus(paired(row, "dead_half"))              # encoder's minus this mode's, with its interval
    one = effect("topk", "dead", excess, least=0.01)      # Evidence, on one of SIDES
    decide([one, ...], literal, command="python -m ...")  # Verdict

An effect counts as claimed if its interval excludes 0 and not everything of size `least`; it is excluded if the whole
interval is below `least`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from amortjax.report.numbers import short, with_interval

HOLDS, IN_PART, FAILS, UNTESTABLE = "holds", "holds in part", "does not hold here", "not testable here"
VERDICTS = (HOLDS, IN_PART, FAILS, UNTESTABLE)
# What one piece of evidence says, and how a reason puts it.
SIDES = {
    "for": "as claimed in",
    "opposite": "the opposite in",
    "small": "an effect large enough to matter is excluded in",
    "undecided": "the interval leaves it open in",
    "absent": "nothing there to explain in",
    "no interval": "no interval, so no verdict, in",
}
DECIDED = ("for", "opposite", "small")

Row = Mapping[str, Any]


class Triple(NamedTuple):
    """A value with its 95 % interval, None where there is none."""

    value: float
    lo: float | None
    hi: float | None


class Evidence(NamedTuple):
    """What one SAE, or one line of training, says of a claim. `value` is signed so that positive is as claimed."""

    subject: str
    what: str
    found: Triple
    side: str

    @property
    def text(self) -> str:
        return f"{self.name}: {with_interval(*self.found)}"

    @property
    def name(self) -> str:
        return f"{self.subject}, {self.what}" if self.what else self.subject


class Verdict(NamedTuple):
    verdict: str
    reason: str
    controlled: tuple[Evidence, ...] = ()
    literal: tuple[Evidence, ...] = ()


# --- numbers of rows ---


def number(row: Row, key: str) -> float | None:
    """A finite number, or None whatever else is there."""
    value = row.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) else None


def triple(row: Row, key: str, lower: str | None = None, upper: str | None = None) -> Triple | None:
    """Of `key` and its interval; with `lower` and `upper`, of a number known from both sides: the lower end of the
    lower bound's interval to the upper end of the upper bound's."""
    value = number(row, key)
    ends = number(row, f"{lower or key}_lo"), number(row, f"{upper or key}_hi")
    return None if value is None else Triple(value, *ends)


def paired(row: Row, key: str, against: str = "amortized") -> Triple | None:
    """A mode's number minus the reference's, from the same resamples."""
    return triple(row, f"{key}_minus_{against}")


def minus(t: Triple | None) -> Triple | None:
    return t and Triple(-t.value, None if t.hi is None else -t.hi, None if t.lo is None else -t.lo)


def apart(a: Triple | None, b: Triple | None) -> Triple | None:
    """a - b of numbers that are not paired: their intervals, end from end, which is wider than need be."""
    if a is None or b is None:
        return None
    lo = None if a.lo is None or b.hi is None else a.lo - b.hi
    hi = None if a.hi is None or b.lo is None else a.hi - b.lo
    return Triple(a.value - b.value, lo, hi)


def change(a: Row, b: Row, key: str) -> Triple | None:
    """b - a of two rows on the same tokens, by whichever common reference leaves the narrowest interval."""
    ways = [apart(triple(b, key), triple(a, key))]
    ways += [apart(_against(b, key, mode), _against(a, key, mode)) for mode in ("optimal", "amortized")]
    known = [way for way in ways if way is not None]
    return min(known, key=_width) if known else None


def _against(row: Row, key: str, mode: str) -> Triple | None:
    """Minus that of a mode; of the mode itself nothing."""
    itself = row.get("mode") == mode and number(row, key) is not None
    return Triple(0.0, 0.0, 0.0) if itself else paired(row, key, mode)


def _width(t: Triple) -> float:
    return math.inf if t.lo is None or t.hi is None else t.hi - t.lo


# --- sides ---


def effect(
    subject: str, what: str, found: Triple | None, least: float, level: Triple | None = None
) -> list[Evidence]:
    """Evidence for a positive effect; [] if it was not measured. `level`: the encoder's own number; where even its
    interval is below `least` there is nothing to explain."""
    if found is None:
        return []
    if found.lo is None or found.hi is None:
        side = "no interval"
    elif found.lo > 0 and found.hi >= least:
        side = "for"
    elif found.hi < 0:
        side = "opposite"
    elif found.hi < least:
        side = "absent" if level and level.hi is not None and level.hi < least else "small"
    else:
        side = "undecided"
    return [Evidence(subject, what, found, side)]


def within(subject: str, what: str, found: Triple | None, bound: float) -> list[Evidence]:
    """Evidence that a number is at most `bound` away from 0; [] if it was not measured."""
    return _bounded(subject, what, found, -bound, bound)


def at_most(subject: str, what: str, found: Triple | None, bound: float) -> list[Evidence]:
    """Evidence that a number is at most `bound`; [] if it was not measured."""
    return _bounded(subject, what, found, -math.inf, bound)


def _bounded(subject: str, what: str, found: Triple | None, least: float, most: float) -> list[Evidence]:
    if found is None:
        return []
    if found.lo is None or found.hi is None:
        side = "no interval"
    elif least <= found.lo and found.hi <= most:
        side = "for"
    else:
        side = "opposite" if found.lo > most or found.hi < least else "undecided"
    return [Evidence(subject, what, found, side)]


# --- the verdict ---


def decide(
    controlled: Sequence[Evidence],
    literal: Sequence[Evidence] = (),
    command: str = "",
    missing: str = "no result file holds the numbers",
    left_out: Sequence[str] = (),
    notes: Iterable[str] = (),
) -> Verdict:
    """Holds: all is as claimed, nothing is open and none was left out. In part: some is, or only under `literal`. Does
    not hold: none is, and at least half is decided. Else not testable, with what is missing and the `command` for it.
    What has no interval, or nothing to explain, counts for neither.

    left_out: what was measured, but not at the encoder's L0.
    """
    controlled, literal = tuple(controlled), tuple(literal)
    if left_out:
        notes = [*notes, f"not at the encoder's L0, so left out: {'; '.join(left_out)}"]
        missing, command = "it needs a closer calibration (--calibration_tokens)", ""
    told = [e for e in controlled if e.side in DECIDED]
    agree = [e for e in told if e.side == "for"]
    released = [e for e in literal if e.side == "for"]
    reasons = [*_reasons(controlled), *notes]
    bearing = len(told) + sum(e.side == "undecided" for e in controlled)
    enough = told and 2 * len(told) >= bearing
    if agree:
        verdict = HOLDS if len(agree) == bearing and not left_out else IN_PART
    elif enough and released:
        verdict, reasons = IN_PART, ["under the literal protocol only", *reasons]
    elif enough:
        verdict = FAILS
    else:
        verdict = UNTESTABLE
        reasons += _remedy(controlled, literal, command, missing)
    return Verdict(verdict, "; ".join(reasons), controlled, literal)


def _remedy(
    controlled: Sequence[Evidence], literal: Sequence[Evidence], command: str, missing: str
) -> list[str]:
    sides = {e.side for e in controlled}
    if not controlled:
        only = "only rows of the literal protocol are there" if literal else missing
        return [f"{only}; make them with: {command}" if command else only]
    if sides == {"absent"}:
        return ["an SAE is needed whose encoder has more of it"]
    if "undecided" in sides:
        return ["too little is decided: it needs more documents (--eval_tokens)"]
    return ["intervals need at least 50 documents (--eval_tokens)"]


def _reasons(found: Sequence[Evidence]) -> list[str]:
    out = []
    for side, words in SIDES.items():
        names = [e.name for e in found if e.side == side]
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 5 else ""
            out.append(
                f"{words} {'; '.join(names[:4] if more else names)}{more} ({len(names)} of {len(found)})"
            )
    return out


def summary(found: Sequence[Evidence]) -> str:
    """Up to three pieces of evidence as they are; of more, for each number how many are as claimed, and the range."""
    if len(found) <= 3:
        return "; ".join(e.text for e in found)
    out = []
    for what, own in _by_what(found).items():
        values, agree = [e.found.value for e in own], sum(e.side == "for" for e in own)
        out.append(f"{what}as claimed in {agree} of {len(own)}, {short(min(values))} to {short(max(values))}")
    return "; ".join(out)


def hull(found: Sequence[Evidence]) -> str:
    """For each number, from the lowest lower end to the highest upper end."""
    out = []
    for what, own in _by_what(found).items():
        lows = [e.found.lo for e in own if e.found.lo is not None]
        highs = [e.found.hi for e in own if e.found.hi is not None]
        if lows and highs:
            out.append(f"{what}[{short(min(lows))}, {short(max(highs))}]")
    return "; ".join(out)


def _by_what(found: Sequence[Evidence]) -> dict[str, list[Evidence]]:
    """By number; its name is left out where there is only one."""
    several = len({e.what for e in found}) > 1
    out: dict[str, list[Evidence]] = {}
    for e in found:
        out.setdefault(f"{e.what}: " if several else "", []).append(e)
    return out
