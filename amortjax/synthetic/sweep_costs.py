"""What a sweep's cells are counted by: thresholds of active codes, FLOPs, and steps that cost as much as an SAE's."""

from typing import TYPE_CHECKING, Any

from amortjax.metrics import flops

if TYPE_CHECKING:
    from amortjax.synthetic.sweeps import Cell

ACTIVE_ABOVE = (1e-3, 1e-4, 1e-5, 0.0)  # thresholds of density@T
TRAINED = (
    "sae",
    "mlp",
    "sparse_coding",
)  # methods whose steps are counted; also their names in metrics.flops


def cost(cell: "Cell") -> dict[str, int]:
    """train_flops of a run, all steps, and inference_flops of one sample, in the linear convention, and both with
    _paper in the paper's. {} of solvers, whose rounds are not counted."""
    if cell.method not in TRAINED:
        return {}
    row = {}
    conventions: tuple[tuple[str, flops.Convention], ...] = (("", "linear"), ("_paper", "paper"))
    for end, convention in conventions:
        paid = _paid(cell, cell.method, cell.steps, convention)
        row |= {f"train_flops{end}": paid.train, f"inference_flops{end}": paid.inference}
    return row


def equal_steps(cell: "Cell") -> int:
    """Steps of the cell's method for the training FLOPs of an SAE of its size in `cell.steps`, at least one."""
    return max(1, round(cell.steps * _paid(cell, "sae", 1).train / _paid(cell, cell.method, 1).train))


def _paid(cell: "Cell", method: str, steps: int, convention: flops.Convention = "linear") -> flops.Total:
    supervised, topk = cell.goal == "codes", cell.k or cell.k_after
    given: dict[str, Any] = {
        "hidden": cell.hidden, "batch": cell.batch or cell.samples // 2, "decode": not supervised, "active": topk,
        "learn_dictionary": not supervised, "iterations": cell.code_steps if method == "sparse_coding" else 0,
    }  # fmt: skip
    kind = f"{method}_topk" if topk else method
    sizes = (cell.dimensions, cell.sources)
    return flops.total(kind, *sizes, steps=steps, test_samples=1, convention=convention, **given)
