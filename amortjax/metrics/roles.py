"""Which latents a class leans on: the main latent of each probe task, those that fire in its place, and a second
one that the probe needs.

Latents are ranked by the encoder's codes on probe_train, as `probes` and `absorption` rank them; the rates are
taken on test units, under the encoder's codes and, of the same latents, under the optimum's.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from amortjax.inference.api import encode_codes
from amortjax.metrics import labels
from amortjax.metrics.absorption import absorbed, chance
from amortjax.metrics.labels import Units, usable_tasks
from amortjax.metrics.measure import Subject
from amortjax.metrics.probes import blocks_of_test, columns, f1_counts, join, rank_latents

SPLITTING = 0.03  # gain in F1 from which a second latent counts as splitting (SAEBench's threshold)


class Role(NamedTuple):
    """One task. `ranked` (<= 6,): its latents, the main one first. Rates are shares of the positive test units."""

    task: str
    ranked: np.ndarray
    f1: tuple[float, float]  # of probes on one latent and on two
    absorption: float  # the main latent silent, another of `ranked` fires: the encoder's codes
    absorption_optimum: float
    absorption_chance: float  # the encoder's, had its latents fired independently
    absorbing: int | None  # the latent that fires most often where the main one is silent
    places: np.ndarray  # test tokens absorbed by the encoder's codes; none where units are documents


def units_of(subject: Subject, codes: scipy.sparse.csr_array, rows: np.ndarray) -> Units:
    """Codes (n, M) of store rows (n,) as units: documents if the subject's probes are of documents, else tokens."""
    doc_ids = subject.acts.doc_ids[rows]
    if subject.units == "documents":
        return labels.document_units(codes, doc_ids, subject.acts.documents["label"])
    return labels.token_units(codes, doc_ids, subject.acts.token_strings(subject.acts.token_ids[rows]))


def find_roles(
    subject: Subject,
    rows: np.ndarray,
    encoder: scipy.sparse.csr_array,
    optimum: scipy.sparse.csr_array,
    min_documents: int = labels.MIN_DOCUMENTS,
) -> tuple[list[Role], str]:
    """A Role per usable task from both codes (N, M) of the test rows (N,), and where the labels come from, or
    why there are none."""
    fitted, sae = subject.probe_rows, subject.sae
    parts = [scipy.sparse.csr_array((0, sae.n_latents), dtype=np.float32)]
    for i in range(0, len(fitted), subject.options.chunk):
        x = subject.batch(fitted[i : i + subject.options.chunk])[0]
        parts.append(encode_codes(sae, x, subject.options.chunk).csr())
    # Probes see a latent's sign and scale as encode gives them; the folded codes differ by a factor per latent.
    codes = scipy.sparse.csr_array(scipy.sparse.vstack(parts))
    weights = scipy.sparse.diags_array(np.asarray(subject.problem.weights, np.float64))
    train = units_of(subject, scipy.sparse.csr_array(codes @ weights), fitted)
    test, best = (units_of(subject, codes, rows) for codes in (encoder, optimum))
    names, reason = usable_tasks(train, test, min_documents)
    if reason:
        return [], reason
    split = join(train, test, names)
    counts = f1_counts(split, blocks_of_test(split)).sum(axis=-1)  # (2, T, 2)
    f1 = np.divide(
        counts[:, :, 0], counts[:, :, 1], out=np.zeros(counts.shape[:2]), where=counts[:, :, 1] > 0
    )
    held = ~split.train
    roles = []
    for t, ranked in enumerate(rank_latents(split)):
        if len(ranked):
            fires = columns(split, ranked)[held] > 0
            there = np.asarray(best.codes[:, ranked].toarray()) > 0
            roles.append(_role(names[t], ranked, f1[:, t], fires, there, split.tasks[held, t], subject.units))
    return roles, test.source


def _role(
    task: str, ranked: np.ndarray, f1: np.ndarray, fires: np.ndarray, there: np.ndarray, y: Any, units: str
) -> Role:
    """fires and there (U, <= 6): the encoder's and the optimum's firings on the test units, y (U,) the class."""
    own, best = fires[y], there[y]
    gone = absorbed(own)
    rates = own.mean(axis=0)
    instead = own[gone, 1:].sum(axis=0)
    return Role(
        task=task,
        ranked=ranked,
        f1=(float(f1[0]), float(f1[1])),
        absorption=float(gone.mean()),
        absorption_optimum=float(absorbed(best).mean()),
        absorption_chance=float(chance(rates[0], rates[1:])),
        absorbing=int(ranked[1 + instead.argmax()]) if instead.sum() else None,
        places=np.zeros(0, np.int64) if units == "documents" else np.flatnonzero(y)[gone],
    )
