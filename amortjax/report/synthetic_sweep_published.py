"""The published value beside a cell of the second paper's sweeps (arXiv 2411.13117, the authors' result files).

    published({"sweep": "l1", "method": "sae", "lam": 0.01, ...})      # {"mcc": 0.595, "mse": 0.0001, "l0": 0.507}

What is not in `synthetic_sweep_tables` is shown without a published value.
"""

from collections.abc import Mapping
from typing import Any

from amortjax.report import synthetic_sweep_tables as tables

METHODS = ("sae", "mlp", "sparse_coding")  # the order of the tables
_FOUR = ("mcc", "mcc_std", "dict_mcc", "dict_mcc_std")


def published(row: Mapping[str, Any]) -> dict[str, float]:
    """{mcc, mcc_std, dict_mcc, dict_mcc_std, mse, l0}: those known of a cell with this setting; {} if none is."""
    size = (row["sources"], row["dimensions"], row["active"])
    if row["sweep"] == "ceilings" and row["method"] == "sklearn" and row.get("data") == "sklearn":
        return dict(zip(("mcc", "dict_mcc"), tables.SKLEARN.get(size, ()), strict=False))
    if row["method"] not in METHODS or row.get("data", "uniform") != "uniform":
        return {}
    column = METHODS.index(row["method"])
    if row["sweep"] == "size" and row["hidden"] in (0, 32):
        found = tables.SIZE.get(row["active"], {}).get((row["dimensions"], row["sources"]), ())
        return dict(zip(_FOUR, found[4 * column : 4 * column + 4], strict=False))
    if row["sweep"] == "width":
        return dict(zip(_FOUR, tables.WIDTH.get(size, {}).get(row["hidden"], ()), strict=False))
    return _small(row, column) if size == (16, 8, 3) else {}


def _small(row: Mapping[str, Any], column: int) -> dict[str, float]:
    """Of the sweeps at 16 sources, 8 dimensions, 3 active."""
    if row["sweep"] == "l1" and row["lam"] in tables.L1:
        return dict(zip(("mse", "l0", "mcc"), tables.L1[row["lam"]][column], strict=True))
    if row["sweep"] == "topk" and row["k"] in tables.TOPK:
        return dict(zip(("mse", "mcc"), tables.TOPK[row["k"]][column], strict=True))
    if row["sweep"] == "topk" and row["method"] == "sparse_coding" and row["k_after"] in tables.AFTER_TOPK:
        return {"mcc": tables.AFTER_TOPK[row["k_after"]]}
    if row["sweep"] == "bias" and row["hidden"] in (0, 64):
        return dict(zip(_FOUR, tables.BIAS[row["method"]][bool(row["bias"])], strict=True))
    if row["sweep"] == "ceilings" and row["hidden"] in (0, 32):
        return tables.UNKNOWN[row["method"]]
    return {}
