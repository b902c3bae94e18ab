"""The released search's own codes of the test tokens, for `launch.encoders --lca=literal`."""

import sys
from typing import Any

import numpy as np

from amortjax.launch.encoders_training import lca_recipe

ITERATIONS = 100  # in the released evaluation


def released_row(bench: Any, config: Any) -> dict[str, Any]:
    """A row of mode `released`: codes on raw x at its own lambda, after at most 100 iterations. No objective is scored,
    because what it follows and what it keeps are two."""
    from amortjax.inference.gaps import Proof
    from amortjax.metrics import kept, uncertainty
    from amortjax.metrics.matching import Setting
    from amortjax.metrics.measure import Knobs

    recipe = lca_recipe(config, 1.0)
    about = {"released": [recipe.lam, ITERATIONS, recipe.batch_size], "numbers": 1}
    path = config.folder / "rows" / f"released_{kept.key_of(bench.identity | about)}.npz"
    found = kept.load(path)
    if found is None:
        estimates, values = _measured(bench.subject, recipe, config.seed)
        found = kept.Kept(values, estimates, Proof(np.zeros(0), np.zeros(0), bench.subject.problem.record))
        kept.save(path, found)
    # A row as of any code that has no calibrated lambda, under its own name.
    row = bench.row("released", "amortized", Setting(Knobs(None), {"lam": recipe.lam}), None, None)
    return row | {"mode": "released"} | found.values | uncertainty.flatten(found.estimates)


def _measured(subject: Any, recipe: Any, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Estimates, and what the row says beside them."""
    from amortjax.inference.api import bar_of
    from amortjax.inference.codes import from_dense
    from amortjax.metrics import streaming, uncertainty
    from amortjax.training import released_lca

    acts, rows, size = subject.acts, subject.test_rows, recipe.batch_size
    block = streaming.block_of(acts.doc_ids[rows])
    sums = streaming.init(subject.sae.n_latents, acts.d_model)
    atoms, taken = np.asarray(subject.sae.W_dec, np.float64), 0.0
    with bar_of(sys.stderr.isatty(), len(rows), "lca: released search") as bar:
        for i in range(0, len(rows), size):
            x = acts.read(rows[i : i + size])
            z, count = released_lca.codes(x, subject.sae.W_dec, recipe.lam, ITERATIONS)
            codes = from_dense(np.asarray(z)).csr()
            residual = x - codes.astype(np.float64) @ atoms
            # Its reconstruction has no bias: what is explained is x itself.
            sums = streaming.update(sums, streaming.Batch(x, residual, x, codes, block[i : i + size]))
            taken += int(count) * len(x)
            bar.update(len(x))
    n_documents = len(np.unique(acts.doc_ids[rows]))
    values = streaming.finalise(sums) | {"iterations": taken / max(len(rows), 1), "n_documents": n_documents}
    return uncertainty.estimates(sums, n_documents, seed=seed), {
        k: v for k, v in values.items() if v is not None
    }
