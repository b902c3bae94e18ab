"""How `price` uses metrics and report, from codes to a page, on synthetic codes."""

import numpy as np
import scipy.sparse

from amortjax.metrics import absorption, labels, probes, streaming, uncertainty
from amortjax.report import figures, page, tables

M, D, N_DOCUMENTS, PER_DOCUMENT = 48, 12, 240, 6
CLASSES = np.array(["sport", "law", "food"])


def make_tokens(rng):
    """x = z W + noise; latents 0 to 2 are the classes, on documents of which every class has a third."""
    n = N_DOCUMENTS * PER_DOCUMENT
    doc_ids = np.repeat(np.arange(N_DOCUMENTS), PER_DOCUMENT)
    z = (rng.random((n, M)) < 0.06) * rng.uniform(0.5, 2, (n, M))
    z[:, :3] = 0
    z[np.arange(n), doc_ids % 3] = (rng.random(n) < 0.8) * 1.5
    atoms = rng.standard_normal((M, D))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    return z, atoms, z @ atoms + 0.05 * rng.standard_normal((n, D)) + 1.0, doc_ids


def evaluate(z, atoms, x, doc_ids, test):
    """One row's numbers: one pass over batches of test tokens, then intervals and probes."""
    rows, bias, lam = np.flatnonzero(test), np.ones(D), 0.1
    blocks = streaming.block_of(doc_ids[rows])
    sums = streaming.init(M, D)
    for start in range(0, len(rows), 100):
        part = rows[start : start + 100]
        codes, base = scipy.sparse.csr_array(z[part]), x[part] - bias
        residual = base - codes @ atoms
        p = 0.5 * (residual**2).sum(axis=1) + lam * z[part].sum(axis=1)
        batch = streaming.Batch(x[part], residual, base, codes, blocks[start : start + 100], objective=p)
        sums = streaming.update(sums, batch._replace(gap=0.3 * p, gap_lower=0.1 * p, gap_upper=0.11 * p))
    n_documents = len(np.unique(doc_ids[rows]))
    found = uncertainty.estimates(sums, n_documents, n_resamples=200)
    names = CLASSES[np.arange(N_DOCUMENTS) % 3]
    sides = [labels.document_units(scipy.sparse.csr_array(z[s]), doc_ids[s], names) for s in (~test, test)]
    probed = probes.evaluate_probes(*sides, min_documents=30, n_resamples=200, n_refits=2)
    absorbed = absorption.evaluate_absorption(*sides, min_documents=30, n_resamples=200, n_refits=2)
    found |= probed.estimates | absorbed.estimates
    values = streaming.finalise(sums) | uncertainty.flatten(found) | probed.row() | absorbed.row()
    return found, {**values, "n_documents": n_documents, "lam": lam}


def test_from_codes_to_the_page(tmp_path):
    rng = np.random.default_rng(0)
    z, atoms, x, doc_ids = make_tokens(rng)
    test = doc_ids % 2 == 1
    modes = {
        "amortized": z * (rng.random(z.shape) < 0.9),
        "optimal": z,
    }  # 10 % of the encoder's firings are lost
    rows, reference = [], {}
    for mode, codes in modes.items():
        found, values = evaluate(codes, atoms, x, doc_ids, test)
        reference = reference or found
        values |= uncertainty.flatten_differences(found, reference)
        for condition in ("same_lambda", "same_l0"):
            about = {
                "checkpoint": "synthetic",
                "mode": mode,
                "condition": condition,
                "protocol": "controlled",
            }
            rows.append({**about, **values, "l0_target": 3.6})
    tables.write_results(rows, tmp_path)
    rows = tables.read_results(tmp_path)
    encoder, best = (r for r in rows if r["condition"] == "same_l0")
    assert best["nmse"] < encoder["nmse_lo"] < encoder["nmse"] < encoder["nmse_hi"]
    assert best["nmse_minus_amortized_hi"] < 0 and encoder["nmse_minus_amortized"] == 0
    assert best["n_probe_tasks"] == 3 and best["f1@1"] > 0.95 and best["probe_labels"] == "document labels"
    assert best["dead_half_lo"] <= best["dead_half"] <= best["dead_half_hi"]
    assert best["suboptimality_lower"] < best["suboptimality_upper"] and best["n_tokens"] == test.sum()
    text = tables.print_table(rows)
    assert "N = 720 tokens of 120 documents, 48 latents; probes: 3 classes from document labels" in text
    pictures = figures.draw(rows, tmp_path)
    written = page.write_page(rows, tmp_path, {"model": "none"}, pictures).read_text()
    assert "synthetic: same L0" in written and "![same l0](same_l0.png)" in written
