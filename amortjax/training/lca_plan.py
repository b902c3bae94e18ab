"""What training a dictionary of searched codes (`training.lca_dictionary`) will take, as `training.plan` tells it.

Upper estimates, fitted to what XLA sets aside on a CPU; the tests hold each search's step against it.
"""

from pathlib import Path
from typing import Any

import jax

from amortjax.training import loop
from amortjax.training.feed import AHEAD
from amortjax.training.lca_dictionary import LcaRecipe
from amortjax.training.plan import Held, Plan, announced, rows_of
from amortjax.training.scratch import F, Term

CHUNK = 1024  # tokens that `inference.chunks` and the active set take at a time
# Of the active set (`active_set._shape`): bytes of all Gram matrices at most, and atoms gathered at a time.
GRAM, GATHERED = 256 << 20, 160 * CHUNK


def plan(
    recipe: LcaRecipe, d: int, *, rows: Held | None = None, evaluate: bool = True, sample: int = 0,
    checkpoints: int = 2, shared: bool = False,
) -> Plan:  # fmt: skip
    """Terms of a training on rows of D = d; arguments as in `plan.plan`. All is on one device."""
    m, n, held = recipe.n_latents, recipe.batch_size, rows or Held()
    narrow, short = f"lower --n_latents={m}", f"lower --lca_batch_size={n}"
    weights = F * (m * d + d)
    state = 3 * weights + F * (m + 16)
    # One after the other, so the largest counts: first weights or the atoms of certificates, float64; the rows for
    # scale and centre; a checkpoint on its way to disk.
    doubles = (24 if evaluate and recipe.codes != "lca" else 16) * m * d
    passing = max(doubles, state, 24 * sample * d)
    terms = [
        Term("atoms", weights, "device", narrow),
        Term("Adam's two moments, counters", state - weights, "device", narrow),
        Term("batch, raw and scaled", 2 * F * n * d, "device", short),
        *_search(recipe, d, shared),
        Term("rows of activations", held.nbytes, "host", held.remedy, held.held),
        Term("batches read ahead", (AHEAD + 2) * F * n * d, "host", short),
        Term("codes (N x M)", F * max(3 * CHUNK, n) * m * (recipe.codes == "lca"), "host", narrow),
        Term("atoms, first or certified, float64", passing, "host", narrow),
        Term("checkpoints", checkpoints * state, "disk", "free some disk, or --checkpoint_every=0"),
        Term("trained dictionary", 2 * weights + F * (m + d), "disk", "free some disk, or use another --out"),
    ]
    title = f"LCA dictionary, {recipe.codes}, M = {m}, D = {d}, {n} tokens a step"
    return Plan(title, tuple(term for term in terms if term.nbytes), shared)


def _search(recipe: LcaRecipe, d: int, cpu: bool) -> list[Term]:
    """Device memory of a batch's codes and the atoms' gradient beside them."""
    m, n, k = recipe.n_latents, recipe.batch_size, min(d, recipe.n_latents)
    narrow, short = f"lower --n_latents={m}", f"lower --lca_batch_size={n}"
    if recipe.literal:
        # Of each iteration the start is kept; what is between is computed again.
        kept, turns = F * n * m * recipe.iterations, f"lower --lca_iterations={recipe.iterations}, or {short}"
        return [
            Term("gradient through the search", 7 * F * m * d, "device", narrow),
            Term("codes and correlations (N x M)", int(5.5 * F * n * m), "device", short),
            Term("iterations gone back through (N x M each)", kept, "device", turns),
        ]
    # Unit atoms while searching, then gradients; the entries of codes with k slots a token.
    gradient = Term("gradients and unit atoms", 3 * F * m * d, "device", narrow)
    entries = Term("entries of codes", 8 * F * n * k, "device", short)
    if recipe.codes == "lca":
        # The start is made of the whole batch, the rest of chunks.
        dense = int(F * m * max(4.2 * CHUNK, 2.1 * n)) + 2 * F * CHUNK * d
        turn = short if n > 2 * CHUNK else narrow
        return [gradient, entries, Term("codes and correlations (N x M)", dense, "device", turn)]
    return [gradient, entries, Term("correlations and Gram matrices", _round(n, m, d, cpu), "device", short)]


def _round(n: int, m: int, d: int, cpu: bool) -> int:
    """Bytes of the active set's round on n tokens, were min(M, D) latents each in use: Gram matrices before and after,
    and of a block of tokens the correlations, copies of their Gram matrices and, but on a CPU, their atoms."""
    rows, k = min(n, CHUNK), min(m, d)
    gram = min(F * rows * k * k, GRAM)
    if cpu:  # blocks stay in its cache
        block = min(rows, 256)
        scratch = min(F * block * m, GRAM // 8) + 4 * min(F * block * k * k, GRAM // 16)
    else:
        scratch = F * rows * m + 4 * gram + F * d * min(rows * k, GATHERED)
    return int(2.3 * gram) + scratch + 2 * F * rows * d


def announce(recipe: LcaRecipe, source: Any, out: Path, pace: Any) -> Plan:
    """Prints the plan of a `lca_loop.train` into OUT/lca with this `loop.Pace` to stderr, and refuses what can't fit
    (AmortjaxError)."""
    made = plan(
        recipe, source.d_model, rows=rows_of(source), evaluate=bool(pace.eval_every),
        sample=loop.SAMPLE, checkpoints=2 if pace.checkpoint_every else 0, shared=jax.default_backend() == "cpu",
    )  # fmt: skip
    return announced(made, out / "lca", out / "lca_state")
