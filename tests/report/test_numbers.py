import math

import pytest

from amortjax.report.numbers import between, grouped_digits, percent, short, with_interval


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1634, ".163"), (-0.0123, "-.0123"), (31.84, "31.8"), (0.9999, "1.00"), (412.3, "412"),
        (6.04e-11, "6.0e-11"),
        (0.00096, "9.6e-4"), (0, "0"), (0.0, "0"), (12, "12"), (None, "-"), (math.nan, "-"), (math.inf, "-"),
        (1234567.0, "1.2e6"), (10.0, "10.0"), (100.2, "100"),
    ],
)  # fmt: skip
def test_three_digits_without_a_leading_zero(value, text):
    assert short(value) == text


@pytest.mark.parametrize(
    ("value", "lo", "hi", "text"),
    [
        (0.163, 0.159, 0.167, ".163 ±.004"), (0.0712, 0.059, 0.083, ".071 ±.012"),
        (0.0, 0.0, 0.01, "0 [0, .010]"),
        (0.5, None, None, ".500"), (None, None, None, "-"), (0.2, 0.2, 0.2, ".200 ±0"),
        (32.1, 31.0, 33.2, "32.1 ±1.1"),
        (320.0, 280.0, 360.0, "320 ±40"), (-0.063, -0.066, -0.060, "-.063 ±.003"),
    ],
)  # fmt: skip
def test_intervals(value, lo, hi, text):
    assert with_interval(value, lo, hi) == text


def test_bounds_from_both_sides():
    assert between(0.31, 0.3101) == ".310" and between(0.305, 0.312) == "[.305, .312]"
    assert between(0.0, 6e-11) == "≤6.0e-11" and between(0.0, 0.0) == "0"
    assert between(0.3, None) == "≥.300" and between(None, 0.3) == "≤.300" and between(None, None) == "-"


def test_percent_and_digits():
    assert [percent(v) for v in (0.31, 0.0096, 1.4, 0.0999)] == ["31 %", "0.96 %", "140 %", "10 %"]
    assert grouped_digits(20480) == "20 480" and grouped_digits(None) == "-"
