"""Why a latent is dead: the dictionary, the encoder, or steps that stopped early.

A latent is dead under codes if it fires on none of the tokens. `classify` puts each latent in one of CLASSES by
whether it fires under the encoder, the certified optimum at lambda*, and ISTA brought to the same L0. All shares are
sums of expected shares of latents silent under unions of codes, which rarefaction over documents gives exactly
(Hurlbert 1971, with documents as individuals).

    seen = Seen.of({"encoder": z_a, "optimum": z, "ista": z_i}, doc_ids)
    classify(seen.fires("encoder") > 0, seen.fires("optimum") > 0, seen.fires("ista") > 0)
    expected(seen, drawn=100)       # {class: share} of a random 100 documents, exactly
    halves(seen)                    # {class: Estimate} of a random half, with jackknife intervals
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.sparse

from amortjax.metrics import streaming, uncertainty
from amortjax.metrics.coded import shape
from amortjax.metrics.uncertainty import MIN_DOCUMENTS, Estimate, unseen

CLASSES = {
    "alive": "fires under the encoder and the optimum",
    "encoder_only": "dead under the encoder, alive under the optimum: the encoder's doing",
    "under_converged": "dead under the encoder and the optimum, alive in ISTA at the same L0: steps that stopped early",
    "dead": "dead under the encoder, the optimum and ISTA: the dictionary's doing",
    "optimum_only": "alive under the encoder, dead under the optimum",
}
NAMES = tuple(CLASSES)
# Shares as sums of the shares of latents silent under all of some codes: {share: {codes: factor}}.
_E, _O, _I, _EO, _OI, _EOI = (
    ("encoder",), ("optimum",), ("ista",), ("encoder", "optimum"), ("optimum", "ista"), ("encoder", "optimum", "ista"),
)  # fmt: skip
SHARES: dict[str, dict[tuple[str, ...], int]] = {
    "alive": {(): 1, _E: -1, _O: -1, _EO: 1},
    "encoder_only": {_E: 1, _EO: -1},
    "under_converged": {_EO: 1, _EOI: -1},
    "dead": {_EOI: 1},
    "optimum_only": {_O: 1, _EO: -1},
    "dead_encoder": {_E: 1},
    "dead_optimum": {_O: 1},
    "dead_ista": {_I: 1},
    "ista_not_optimum": {_O: 1, _OI: -1},  # alive in ISTA, dead under the optimum, whatever the encoder does
    "optimum_not_ista": {_I: 1, _OI: -1},
}


def classify(encoder: np.ndarray, optimum: np.ndarray, ista: np.ndarray) -> np.ndarray:
    """(M,) place in CLASSES of each latent, from whether it fires (M,) bool."""
    cases = [encoder & optimum, ~encoder & optimum, ~encoder & ~optimum & ista, ~encoder & ~optimum]
    return np.select(cases, [0, 1, 2, 3], default=4)


class Seen(NamedTuple):
    """`presence` {codes: (U, M) csr}: tokens of each document on which a latent fires; documents `ids` (U,), their
    sizes `tokens` (U,)."""

    presence: Mapping[str, scipy.sparse.csr_array]
    ids: np.ndarray
    tokens: np.ndarray

    @classmethod
    def of(cls, codes: Mapping[str, scipy.sparse.csr_array], doc_ids: np.ndarray) -> "Seen":
        """From codes (n, M) of tokens of documents doc_ids (n,)."""
        ids, place, tokens = np.unique(np.asarray(doc_ids), return_inverse=True, return_counts=True)
        n = len(place)
        member = scipy.sparse.csr_array((np.ones(n, np.int64), (place, np.arange(n))), shape=(len(ids), n))
        tables = {
            name: scipy.sparse.csr_array(member @ z.astype(bool).astype(np.int64))
            for name, z in codes.items()
        }
        for table in tables.values():
            table.eliminate_zeros()
        return cls(tables, ids, tokens)

    @property
    def n_latents(self) -> int:
        return shape(next(iter(self.presence.values())))[1]

    def fires(self, name: str, documents: np.ndarray | None = None) -> np.ndarray:
        """(M,) tokens on which each latent fires, of all documents or of those a (U,) bool picks."""
        table = self.presence[name] if documents is None else self.presence[name][np.flatnonzero(documents)]
        return np.asarray(table.sum(axis=0)).ravel().astype(np.int64)

    def union(self, names: tuple[str, ...]) -> scipy.sparse.csr_array:
        """(U, M): where a latent fires under any of the codes."""
        table = self.presence[names[0]]
        for name in names[1:]:
            table = table + self.presence[name]
        return scipy.sparse.csr_array(table)

    def documents_of(self, names: tuple[str, ...]) -> np.ndarray:
        """(M,) documents in which each latent fires under any of the codes."""
        return np.bincount(self.union(names).indices, minlength=self.n_latents)


def realised(seen: Seen, documents: np.ndarray | None = None) -> dict[str, float]:
    """Every share of SHARES on all documents, or on those a (U,) bool picks."""
    alive = {name: seen.fires(name, documents) > 0 for name in ("encoder", "optimum", "ista")}
    silent = {
        names: float(np.mean(~np.any([alive[name] for name in names], axis=0)))
        for names in (_E, _O, _I, _EO, _OI, _EOI)
    }
    return _shares(silent)


def expected(seen: Seen, drawn: int) -> dict[str, float]:
    """Every share of SHARES on `drawn` documents, chosen at random without replacement: its expectation, exactly."""
    table = unseen(len(seen.ids), drawn)
    unions = (_E, _O, _I, _EO, _OI, _EOI)
    return _shares({names: float(table[seen.documents_of(names)].mean()) for names in unions})


def _shares(silent: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    known = {(): 1.0, **silent}
    sums = {name: sum(f * known[names] for names, f in parts.items()) for name, parts in SHARES.items()}
    return {name: max(value, 0.0) for name, value in sums.items()}  # sums of floats: -1e-17 is no share


def halves(seen: Seen) -> dict[str, Estimate]:
    """Every share of SHARES expected on a random half of the documents (in up to 200 blocks), with what its
    delete-a-block jackknife interval is made of, as `uncertainty.rarefied_dead`; none under MIN_DOCUMENTS."""
    block = streaming.block_of(seen.ids)
    n = len(seen.ids)
    member = scipy.sparse.csr_array(
        (np.ones(n, np.int64), (block, np.arange(n))), shape=(streaming.N_BLOCKS, n)
    )
    tokens = np.bincount(block, seen.tokens, streaming.N_BLOCKS).astype(np.int64)
    empty = streaming.init(1, 1)._replace(tokens=tokens)
    found: dict[tuple[str, ...], Estimate] = {}
    for names in (_E, _O, _I, _EO, _OI, _EOI):
        fires = scipy.sparse.csr_array(member @ seen.union(names)).toarray().astype(np.int32)
        found[names] = uncertainty.rarefied_dead(empty._replace(fires=fires), n >= MIN_DOCUMENTS)
    return {name: _combined(found, parts) for name, parts in SHARES.items()}


def _combined(found: Mapping[tuple[str, ...], Estimate], parts: Mapping[tuple[str, ...], int]) -> Estimate:
    value, draws, whole = 0.0, np.zeros(()), True
    for names, factor in parts.items():
        own = Estimate(1.0, np.ones(())) if names == () else found[names]
        value += factor * (own.value or 0.0)
        whole = whole and own.draws is not None
        draws = draws + factor * (own.draws if own.draws is not None else 0.0)
    return Estimate(value, draws if whole else None, "jackknife")


def stages_of(budgets: list[np.ndarray], rows: np.ndarray, doc_ids: np.ndarray) -> np.ndarray:
    """(n,) the first of some growing sets of rows that holds the document of each row (n,)."""
    stage = np.full(len(rows), len(budgets) - 1, np.int64)
    own = doc_ids[rows]
    for i in range(len(budgets) - 1, -1, -1):
        stage[np.isin(own, np.unique(doc_ids[budgets[i]]))] = i
    return stage


def doubling(first: int, last: int) -> list[int]:
    """first, 2 first, 4 first, ... below `last`, and `last`."""
    out = []
    while first < last:
        out.append(first)
        first *= 2
    return [*out, last]


def spaced(first: int, last: int, n: int) -> list[int]:
    """At most n whole numbers from first to last, in about equal ratios."""
    return sorted({round(float(value)) for value in np.geomspace(max(first, 1), last, n)})
