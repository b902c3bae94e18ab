"""Published values of the second paper's sweeps (arXiv 2411.13117, the authors' result files), as plain tables.

    published({"sweep": "l1", "method": "sae", "lam": 0.01, ...})      # {"mcc": 0.595, "mse": 0.0001, "l0": 0.507}

Facts only. What is not here is shown without a published value.
"""

from collections.abc import Mapping
from typing import Any

METHODS = ("sae", "mlp", "sparse_coding")
# K = 3, 50 000 steps. {(dimensions, sources): latent MCC, its std and dictionary MCC of SAE, MLP-32, sparse coding}
SIZE = {
    (8, 16): (0.638, 0.036, 0.746, 0.593, 0.040, 0.807, 0.733, 0.029, 0.878),
    (8, 32): (0.392, 0.019, 0.759, 0.451, 0.037, 0.811, 0.514, 0.022, 0.807),
    (8, 64): (0.256, 0.011, 0.801, 0.284, 0.005, 0.817, 0.422, 0.002, 0.841),
    (8, 128): (0.213, 0.012, 0.836, 0.246, 0.009, 0.822, 0.328, 0.004, 0.871),
    (16, 16): (0.958, 0.055, 0.969, 0.870, 0.097, 0.932, 0.974, 0.003, 1.000),
    (16, 32): (0.577, 0.025, 0.684, 0.533, 0.049, 0.689, 0.928, 0.054, 0.973),
    (16, 64): (0.374, 0.019, 0.665, 0.388, 0.022, 0.665, 0.661, 0.007, 0.819),
    (16, 128): (0.286, 0.010, 0.661, 0.271, 0.023, 0.649, 0.471, 0.008, 0.756),
    (32, 16): (1.000, 0.000, 1.000, 0.918, 0.058, 0.951, 0.941, 0.000, 1.000),
    (32, 32): (0.999, 0.001, 1.000, 0.909, 0.029, 0.946, 0.946, 0.003, 1.000),
    (32, 64): (0.547, 0.040, 0.646, 0.409, 0.002, 0.591, 0.918, 0.016, 0.980),
    (32, 128): (0.420, 0.005, 0.606, 0.316, 0.017, 0.516, 0.869, 0.017, 0.945),
}
# 16 sources, 8 dimensions, 3 active. {lambda: (MSE, share of codes above 1e-3, latent MCC) of each method}
L1 = {
    0.001: ((0.0001, 0.835, 0.538), (0.0000, 0.510, 0.550), (0.0002, 0.457, 0.739)),
    0.005: ((0.0000, 0.534, 0.619), (0.0001, 0.493, 0.599), (0.0003, 0.453, 0.736)),
    0.01: ((0.0000, 0.507, 0.595), (0.0001, 0.488, 0.607), (0.0003, 0.458, 0.730)),
    0.05: ((0.0003, 0.480, 0.597), (0.0005, 0.453, 0.606), (0.0007, 0.441, 0.751)),
    0.1: ((0.0010, 0.459, 0.617), (0.0014, 0.443, 0.615), (0.0013, 0.421, 0.728)),
    0.5: ((0.0173, 0.325, 0.593), (0.0146, 0.286, 0.701), (0.0119, 0.290, 0.836)),
    1.0: ((0.0483, 0.229, 0.559), (0.0396, 0.202, 0.680), (0.0378, 0.235, 0.722)),
    2.0: ((0.1250, 0.118, 0.414), (0.1104, 0.126, 0.491), (0.0978, 0.148, 0.651)),
    5.0: ((0.3111, 0.023, 0.208), (0.3446, 0.010, 0.065), (0.2727, 0.037, 0.446)),
}
# {k: (MSE, latent MCC) of each method}
TOPK = {
    1: ((0.127, 0.326), (0.144, 0.233), (0.221, 0.205)),
    2: ((0.051, 0.561), (0.060, 0.432), (0.162, 0.201)),
    3: ((0.028, 0.637), (0.026, 0.504), (0.125, 0.193)),
    4: ((0.013, 0.610), (0.012, 0.505), (0.101, 0.197)),
    5: ((0.005, 0.611), (0.006, 0.490), (0.088, 0.202)),
    8: ((0.000, 0.507), (0.000, 0.328), (0.085, 0.185)),
    10: ((0.000, 0.469), (0.000, 0.388), (0.086, 0.187)),
    15: ((0.000, 0.447), (0.000, 0.405), (0.086, 0.188)),
}
AFTER_TOPK = {
    0: 0.836,
    1: 0.718,
    3: 0.830,
    5: 0.835,
    10: 0.836,
}  # sparse coding at lambda .5, TopK when coding only
# With bias, without: latent MCC; dictionary MCC where known.
BIAS = {
    "sae": (0.563, 0.567, 0.709, 0.730),
    "sparse_coding": (0.623, 0.669, 0.816, 0.821),
    "mlp": (0.529, 0.608),
}
SKLEARN = {(16, 8, 3): {"mcc": 0.932, "dict_mcc": 0.986}}
# Unknown codes and dictionary, 16/8/3, 40 000 steps.
UNKNOWN = {
    "sae": {"mcc": 0.566, "mcc_std": 0.011, "dict_mcc": 0.745},
    "mlp": {"mcc": 0.623, "mcc_std": 0.070, "dict_mcc": 0.791},
    "sparse_coding": {"mcc": 0.691, "mcc_std": 0.051, "dict_mcc": 0.837},
}


def published(row: Mapping[str, Any]) -> dict[str, float]:
    """{mcc, mcc_std, dict_mcc, mse, l0}: those that are known of a cell with this setting; {} if none is."""
    size = (row["sources"], row["dimensions"], row["active"])
    column = METHODS.index(row["method"]) if row["method"] in METHODS else None
    if row["sweep"] == "ceilings" and row["method"] == "sklearn" and row.get("data") == "sklearn":
        return SKLEARN.get(size, {})
    if column is None:
        return {}
    if row["sweep"] == "size" and row["active"] == 3:
        found = SIZE.get((row["dimensions"], row["sources"]))
        known = found[3 * column : 3 * column + 3] if found and row["hidden"] in (0, 32) else ()
        return dict(zip(("mcc", "mcc_std", "dict_mcc"), known, strict=False))
    return _small(row, column) if size == (16, 8, 3) else {}


def _small(row: Mapping[str, Any], column: int) -> dict[str, float]:
    """Of the sweeps at 16 sources, 8 dimensions, 3 active."""
    if row["sweep"] == "l1" and row["lam"] in L1:
        return dict(zip(("mse", "l0", "mcc"), L1[row["lam"]][column], strict=True))
    if row["sweep"] == "topk" and row["k"] in TOPK:
        return dict(zip(("mse", "mcc"), TOPK[row["k"]][column], strict=True))
    if row["sweep"] == "topk" and row["method"] == "sparse_coding" and row["k_after"] in AFTER_TOPK:
        return {"mcc": AFTER_TOPK[row["k_after"]]}
    if row["sweep"] == "bias" and row["hidden"] in (0, 64):
        return dict(zip(("mcc", "dict_mcc"), BIAS[row["method"]][0 if row["bias"] else 1 :: 2], strict=False))
    if row["sweep"] == "ceilings" and row["hidden"] in (0, 32):
        return UNKNOWN[row["method"]]
    return {}
