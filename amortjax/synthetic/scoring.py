"""Rows of one log point: were the true codes and atoms found, how good are the codes, what did they cost."""

from typing import Any

import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.metrics import flops
from amortjax.synthetic import found
from amortjax.synthetic.coding import half_objective
from amortjax.synthetic.generators import Data
from amortjax.synthetic.scenarios import Point, Setup, hidden_of

Row = dict[str, Any]
THRESHOLDS = (1e-3, 1e-4, 1e-5, 0.0)  # above which a code counts as active; log codes are never exactly 0


def score(setup: Setup, data: Data, z: np.ndarray, dictionary: np.ndarray | None) -> Row:
    """Metrics of one run: codes z (n_test, sources), dictionary (sources, dimensions) or None: the known one.

    mcc: with known codes identity-matched and signed, else Hungarian. mse and loss: means over all entries (released
    form, lambda_c); objective: mean P per sample (half form); none with known codes, whose cosine loss fixes no scale.
    l0: mean number of codes above a threshold.
    """
    if not np.isfinite(z).all() or (dictionary is not None and not np.isfinite(dictionary).all()):
        raise AmortjaxError(
            f"{setup.scenario}: training diverged, codes hold NaN or infinity: lower --lr={setup.lr:g}"
        )
    z = np.asarray(z, np.float64)
    used = data.dictionary if dictionary is None else dictionary
    known = setup.scenario == "known_codes"
    row = found.of_codes(data.codes_test, data.x_test, z, "identity" if known else "hungarian")
    if not known:
        mse = float(np.mean((z @ used - data.x_test) ** 2))
        row |= {"mse": mse, "loss_test": mse + setup.lam * float(np.mean(np.abs(z)))}
        row["objective"] = float(half_objective(z, data.x_test, used, setup.lam_half).mean())
    for threshold in THRESHOLDS:
        row[f"l0@{threshold:g}"] = float(np.mean(np.sum(z > threshold, axis=1)))
    return row if dictionary is None else row | found.of_atoms(data.dictionary, dictionary)


def cost(setup: Setup, method: str, updates: int, iterations: int = 0, **more: Any) -> Row:
    """FLOPs of `updates` training steps and of coding all test samples, in both conventions."""
    hidden = hidden_of(method)
    kind = "mlp" if hidden else {"sae": "sae", "sae_ito": "ito", "sparse_coding": "sparse_coding"}[method]
    if setup.scenario == "known_dictionary" and kind in ("ito", "sparse_coding"):
        kind, updates = "ito", 0
    half = setup.samples // 2
    given: dict[str, Any] = {
        "hidden": hidden or 0, "batch": half, "learn_dictionary": setup.learn_dictionary,
        "decode": setup.scenario != "known_codes", "iterations": iterations,
    }  # fmt: skip
    row: Row = {}
    conventions: tuple[flops.Convention, ...] = ("linear", "paper")
    for convention in conventions:
        paid = flops.total(
            kind, setup.dimensions, setup.sources, steps=updates, test_samples=setup.samples - half,
            convention=convention, **(given | more),
        )  # fmt: skip
        end = "" if convention == "linear" else "_paper"
        row |= {f"train_flops{end}": paid.train, f"inference_flops{end}": paid.inference}
    return row


def released_cost(setup: Setup, method: str, step: int) -> Row:
    """The x-axis of the released files, which in the known scenarios is the sum of the two; see `flops.published`."""
    hidden, half = hidden_of(method) or 0, setup.samples // 2
    kind = "mlp" if hidden else {"sae_ito": "ito"}.get(method, method)
    if setup.scenario == "known_dictionary" and kind == "sparse_coding":
        kind = "ito"
    sizes: Any = (setup.scenario, kind, step, setup.dimensions, setup.sources)
    paid = flops.published(
        *sizes, hidden=hidden, batch=half, test_samples=setup.samples - half, iterations=setup.iterations
    )
    return {"train_flops_paper": paid.train, "inference_flops_paper": paid.inference}


def rows_of(
    setup: Setup, method: str, data: list[Data], point: Point, protocol: str, **more: Any
) -> list[Row]:
    """One row per run; `data`: of each run."""
    about = {
        "checkpoint": setup.scenario, "mode": method, "condition": setup.distribution, "protocol": protocol,
        "scenario": setup.scenario, "distribution": setup.distribution, "method": method,
        "n": setup.sources, "m": setup.dimensions, "k": setup.active, "lam_c": setup.lam, "lam": setup.lam_half,
        "step": point.step, "updates": point.updates, "iterations": point.iterations,
    }  # fmt: skip
    paid = cost(setup, method, point.updates, point.iterations)
    if protocol == "literal":
        paid |= released_cost(setup, method, point.step)
    rows = []
    for run, z in enumerate(point.codes):
        atoms = None if point.dictionaries is None else point.dictionaries[run]
        rows.append(
            {
                **about,
                **more,
                "run": run,
                "seed": setup.seed + run,
                **score(setup, data[run], z, atoms),
                **paid,
            }
        )
    return rows
