"""Result rows with the numbers of a real measurement (a TopK SAE, k = 32, M = 6144), rounded."""

import pytest

# mode, steps; at the same lambda: P, (P-P*)/P*, own gap, L0, NMSE, dead;
# at the same L0: lambda, L0, NMSE, dead, dead_half, F1@1, dF1, absorption
NUMBERS = """
amortized       -   1.31   .31    .81   32.0 .163  .030   -    32.0 .163  .030 .071 .61 .071 .225
encoder_scaled  -   1.124  .124   .5    32.0 .210  .030   -    32.0 .210  .030 .071 .61 .071 .225
encoder_refit   -   -      -      -     31.2 .149  .030   -    31.2 .149  .031 .072 .60 .068 .210
semi_amortized  30  1.099  .099   .35   40.2 .188  .013   .150 31.8 .220  .035 .080 .63 .050 .200
non_amortized   200 1.0096 .0096  .11   45.2 .258  .012   .190 32.5 .313  .046 .090 .60 .060 .190
optimal         -   1      6e-11  6e-11 31.8 .249  .031   .123 31.8 .249  .031 .070 .64 .045 .180
optimal_refit   -   -      -      -     31.8 .128  .030   .123 31.8 .128  .030 .070 .63 .046 .180
omp             -   -      -      -     32.0 .1005 .002   -    32.0 .1005 .002 .010 .58 .090 .160
"""


def read(line):
    mode, *values = line.split()
    return [mode, *(None if value == "-" else float(value) for value in values)]


def with_bounds(name, value, half):
    return {name: value, f"{name}_lo": value - half, f"{name}_hi": value + half}


def objective_row(base, n):
    mode, steps, p, sub, own, l0, nmse, dead = n[:8]
    row = {**base, "mode": mode, "steps": steps, "condition": "same_lambda", "lam": 0.123, "l0_target": 32.0}
    row |= {"l0": l0, "dead": dead}
    row |= with_bounds("nmse", nmse, 0.004) | {"objective": p, "own_gap": own}
    if sub is not None:
        at_least = 0.0 if mode == "optimal" else sub
        row |= {"suboptimality_lower": at_least, "suboptimality_upper": sub * 1.00005}
        row |= {"gap_lower": at_least, "gap_upper": sub * 1.00005, "certified": float(mode == "optimal")}
        row |= {"price_amplitude": 0.6 * at_least, "price_amplitude_upper": 0.6 * sub if at_least else sub}
        row |= {"price_support": 0.4 * at_least, "price_support_lower": 0.4 * at_least * 0.99999}
        row |= {"price_support_upper": 0.4 * sub * 1.00005 if at_least else sub}
        row |= {"gap_lower_median": at_least * 0.9, "gap_upper_median": sub * 0.9}
    return row


def matched_row(base, n):
    mode, steps, own = n[0], n[1], n[4]
    lam, l0, nmse, dead, half, f1, df1, absorption = n[8:]
    row = {**base, "mode": mode, "steps": steps, "condition": "same_l0", "lam": lam, "l0_target": 32.0}
    row |= {"l0": l0, "l0_calibration": 32.0, "dead": dead, "dense@0.1": 0.011, "own_gap": own}
    row["fvu"] = nmse * 1.04
    if mode != "amortized":
        row |= with_bounds("l0_minus_amortized", l0 - 32.0, 0.1)
    row |= with_bounds("nmse", nmse, 0.004) | with_bounds("dead_half", half, 0.006) | {"f1@1": f1}
    row |= with_bounds("df1", df1, 0.012) | with_bounds("absorption", absorption, 0.02)
    row |= {"absorption_chance": 0.8 * absorption, "absorption_null": 0.8 * absorption}
    return row | with_bounds("nmse_minus_amortized", nmse - 0.163, 0.003)


@pytest.fixture
def rows():
    """Two conditions of one checkpoint, every mode."""
    base = {
        "checkpoint": "topk_32", "variant": "topk", "protocol": "controlled", "n_tokens": 20480,
        "n_documents": 423, "n_latents": 6144, "d_model": 384, "seconds": 12.5,
        "probe_labels": "document labels", "n_probe_tasks": 4,
        "flags": ("shrinkage_mismatch",), "record": {"form": "half", "lam": 0.123, "weights": "norm"},
    }  # fmt: skip
    numbers = [read(line) for line in NUMBERS.strip().splitlines()]
    return [make(base, n) for n in numbers for make in (matched_row, objective_row)]
