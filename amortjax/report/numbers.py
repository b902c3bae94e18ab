"""Numbers as text: three significant digits, no leading zero, "-" where not defined."""

import math

MISSING = "-"


def short(value: float | int | None, digits: int = 3) -> str:
    """.163, 31.8, 412, 6.0e-11; no leading zero."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if isinstance(value, int):
        return str(value)
    size = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if size < -3 or size >= 6:
        mantissa, exponent = f"{value:.{max(digits - 2, 0)}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    text = f"{value:.{max(digits - 1 - size, 0)}f}"
    return _bare(text)


def _bare(text: str) -> str:
    """Without the zero before the point."""
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def with_interval(value: float | None, lo: float | None, hi: float | None) -> str:
    """ ".163 ±.004", or ".002 [0, .009]" where the interval is lopsided. The value has no digit beyond the
    interval's own two (one, if it begins with 3 or more)."""
    if value is None or lo is None or hi is None:
        return short(value)
    half, lopsided = (hi - lo) / 2, abs((hi - value) - (value - lo))
    if not lo <= value <= hi or lopsided > 0.25 * (hi - lo):
        return f"{short(value)} [{short(lo, 2)}, {short(hi, 2)}]"
    if half == 0:
        return f"{short(value)} ±0"
    size = math.floor(math.log10(half))
    decimals = max(0, -size + (half / 10**size < 3))
    if decimals > 6:
        return f"{short(value)} ±{short(half, 2)}"
    return f"{_bare(f'{value:.{decimals}f}')} ±{_bare(f'{half:.{decimals}f}')}"


def between(lower: float | None, upper: float | None) -> str:
    """A quantity known from both sides: ".310" if the bounds print alike, "[.305, .312]", "≤6.0e-11",
    "≥.305"."""
    if lower is None and upper is None:
        return MISSING
    if upper is None:
        return f"≥{short(lower)}"
    if lower is None or lower <= 0:
        return "0" if upper == 0 else f"≤{short(upper)}"
    if short(lower) == short(upper):
        return short(lower)
    return f"[{short(lower)}, {short(upper)}]"


def percent(value: float) -> str:
    """31 %, 0.96 %, 140 %."""
    size = abs(100 * value)
    return f"{100 * value:.0f} %" if size >= 9.95 else f"{100 * value:.2g} %"


def grouped_digits(n: int | float | None) -> str:
    """8 192."""
    return MISSING if n is None else f"{int(n):,}".replace(",", " ")
