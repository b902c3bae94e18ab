"""What the report's latent explorer shows: chosen latents, and tokens in context on which encoder and optimum differ.

    found = explore(subject, plan, lam, n_latents=200, folder=out / "rows")      # plain values, ready for JSON
    found["latents"][0]     # {"id", "kinds", "price", "parts", "fires", "notes", "examples": [...]}

Both codes are those of one lambda, on up to TOKENS tokens of whole test documents. Activations are shown times
the norm of the latent's atom, so that they compare between latents.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from amortjax.errors import AmortjaxError
from amortjax.files import write_atomically
from amortjax.inference import gaps, modes
from amortjax.inference.api import bar_of, encode_codes
from amortjax.metrics import kept
from amortjax.metrics.bench import Bench
from amortjax.metrics.measure import Subject
from amortjax.metrics.plan import Plan
from amortjax.metrics.roles import SPLITTING, Role, find_roles

TOKENS = 8192
WINDOW = 12  # tokens of context on each side
AGREE = 0.1  # both codes fire and differ by at most this share of the larger
NUMBERS = 1  # raised with every change of what is collected, so that old files are not reused
# Why a latent is shown; each but the first has a part of the places, what is left goes to the largest prices.
KINDS = ("price", "absorbed", "absorbing", "split", "dead in encoder", "dead in optimum")
# Why a token is shown, and how many a latent has at most of each.
EXAMPLES = {"missed": 4, "false fire": 4, "absorbed": 3, "amplitude": 3, "agree": 3}


class Fired(NamedTuple):
    """Both codes of N tokens, (N, M), times the atoms' norms, and each latent's price on each token (N, M)."""

    rows: np.ndarray  # (N,) of the store, ascending, whole documents
    encoder: scipy.sparse.csr_array
    optimum: scipy.sparse.csr_array
    price: scipy.sparse.csr_array
    parts: np.ndarray  # (3, M): missed, spurious, rescaled, summed over tokens


def explore(
    subject: Subject,
    plan: Plan,
    lam: float,
    n_latents: int = 200,
    folder: Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """The explorer's data of one SAE at `lam` > 0 (half form), from `folder` if it was collected before.

    {"checkpoint", "lam", "n_tokens", "n_documents", "n_latents", "price" (objective units per token), "covered"
    (the share of it that the shown latents hold), "dead" {encoder, optimum, both}, "probes", "strings", "latents"}.
    """
    if not (np.isfinite(lam) and lam > 0):
        raise AmortjaxError(f"the latent explorer needs a lambda above 0, not {lam}")
    if n_latents < 1:
        raise AmortjaxError(f"explorer_latents={n_latents}: must be at least 1 to explore")
    about = {"explorer": NUMBERS, "lam": lam, "shown": n_latents, "tokens": TOKENS, "window": WINDOW}
    about["checkpoint"] = subject.sae.info.name
    key = kept.key_of(Bench(subject, plan, None, False).identity | about)
    path = folder and Path(folder) / f"explorer_{key}.json"
    found = _load(path) if path else None
    if found is None:
        found = _collect(subject, plan, lam, n_latents, progress)
        if path:
            text = json.dumps(found)
            write_atomically(path, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
    return found


def _load(path: Path) -> dict[str, Any] | None:
    """None if there is no such file or it is not as it was written: it is then collected again."""
    try:
        digest, _, text = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    return json.loads(text) if hashlib.sha256(text.encode()).hexdigest() == digest else None


def _collect(subject: Subject, plan: Plan, lam: float, n_latents: int, progress: bool) -> dict[str, Any]:
    budget = min(TOKENS, plan.eval_tokens or TOKENS)
    rows = subject.acts.rows(plan.eval_split, budget, seed=plan.seed)
    fired = fire(subject, rows, lam, progress)
    roles, source = find_roles(subject, rows, fired.encoder, fired.optimum)
    chosen = choose(fired, roles, n_latents)
    total = float(fired.parts.sum())
    covered = float(fired.parts[:, list(chosen)].sum()) / total if total > 0 else None
    alive = [_fires(codes) > 0 for codes in (fired.encoder, fired.optimum)]
    texts = Texts(subject.acts)
    latents = list(_latents(subject, fired, roles, chosen, texts))
    return {
        "checkpoint": subject.sae.info.name,
        "lam": lam,
        "n_tokens": len(rows),
        "n_documents": len(np.unique(subject.acts.doc_ids[rows])),
        "n_latents": subject.sae.n_latents,
        "price": total / len(rows),
        "covered": covered,
        "dead": {
            "encoder": int((~alive[0]).sum()),
            "optimum": int((~alive[1]).sum()),
            "both": int((~alive[0] & ~alive[1]).sum()),
        },
        "probes": source,
        "strings": texts.strings,
        "latents": latents,
    }


def fire(subject: Subject, rows: np.ndarray, lam: float, progress: bool = False) -> Fired:
    """Both codes of the store's rows (N,), a chunk at a time, and the price latent by latent (`gaps.per_latent`)."""
    problem, options = subject.problem, subject.options
    parts: list[tuple[scipy.sparse.csr_array, ...]] = []
    sums = np.zeros((3, problem.n_latents))
    with bar_of(progress, len(rows), "latent explorer") as bar:
        for i in range(0, len(rows), options.chunk):
            x, t, _ = subject.batch(rows[i : i + options.chunk])
            own = encode_codes(subject.sae, x, options.chunk)
            best, _ = modes.solve("optimal", problem, t, own, lam, 1.0, options, bar=bar)
            prices = gaps.per_latent(problem, t, own, best, lam)
            sums += np.stack([prices.missed, prices.spurious, prices.rescaled])
            parts.append((problem.fold(own).csr(), problem.fold(best).csr(), prices.per_token))
    joined = (scipy.sparse.csr_array(scipy.sparse.vstack(column)) for column in zip(*parts, strict=True))
    return Fired(rows, *joined, parts=sums)


def _fires(codes: scipy.sparse.csr_array) -> np.ndarray:
    """(M,) tokens on which each latent fires."""
    return np.asarray(codes.astype(bool).sum(axis=0)).ravel()


def choose(fired: Fired, roles: list[Role], n: int) -> dict[int, list[str]]:
    """{latent: its kinds} of at most n latents that fire under one code or the other, dearest first."""
    own, best, price = _fires(fired.encoder), _fires(fired.optimum), fired.parts.sum(axis=0)
    dearest = np.argsort(-price, kind="stable")
    by_price = [int(j) for j in dearest if own[j] or best[j]]
    ranked = {name: _distinct(latents) for name, latents in _of_roles(roles).items()}
    for name, silent, loud in (("dead in encoder", own, best), ("dead in optimum", best, own)):
        only = np.flatnonzero((silent == 0) & (loud > 0))
        ranked[name] = [int(j) for j in only[np.argsort(-loud[only], kind="stable")]]
    share = max(1, n // 8)
    chosen = _distinct([j for latents in ranked.values() for j in latents[:share]])[:n]
    rest = [j for j in by_price if j not in set(chosen)][: n - len(chosen)]
    # As dear as the last one that was chosen for its price.
    least = price[rest[-1]] if rest else np.inf
    order = sorted([*chosen, *rest], key=lambda j: (-price[j], j))
    ranked["price"] = [j for j in order if price[j] >= least]
    return {j: [kind for kind in KINDS if j in ranked[kind]] for j in order}


def _of_roles(roles: list[Role]) -> dict[str, list[int]]:
    """Latents by what they are to the probes' classes, the clearest first."""
    taken = sorted((r for r in roles if r.absorption > 0), key=lambda r: r.absorption_chance - r.absorption)
    gain = sorted(roles, key=lambda r: r.f1[0] - r.f1[1])
    pairs = [role.ranked[:2] for role in gain if role.f1[1] - role.f1[0] >= SPLITTING]
    return {
        "absorbed": [int(role.ranked[0]) for role in taken],
        "absorbing": [role.absorbing for role in taken if role.absorbing is not None],
        "split": [int(j) for pair in pairs for j in pair],
    }


def _distinct(latents: list[int]) -> list[int]:
    return list(dict.fromkeys(latents))


class Texts:
    """Token ids as places in a list of their texts, each kept once; an id without a text is shown as its number."""

    def __init__(self, acts: Any) -> None:
        self.acts, self.strings, self._place = acts, [], {}

    def places(self, rows: np.ndarray) -> list[int]:
        ids = np.asarray(self.acts.token_ids)[rows]
        out = []
        for token, text in zip(ids.tolist(), self.acts.token_strings(ids), strict=True):
            if token not in self._place:
                self._place[token] = len(self.strings)
                self.strings.append(text or f" ⟨{token}⟩")
            out.append(self._place[token])
        return out


def _latents(
    subject: Subject, fired: Fired, roles: list[Role], chosen: dict[int, list[str]], texts: Texts
) -> Iterator[dict[str, Any]]:
    """What is shown of each chosen latent. Prices are means over the tokens, in objective units."""
    n, order = len(fired.rows), list(chosen)
    dense = [np.asarray(part[:, order].toarray()) for part in (fired.encoder, fired.optimum, fired.price)]
    for i, (latent, kinds) in enumerate(chosen.items()):
        own, best, price = (part[:, i] for part in dense)
        mine = [role for role in roles if latent == role.ranked[0]]
        places = np.unique(np.concatenate([np.zeros(0, np.int64), *(role.places for role in mine)]))
        examples = pick(own, best, price, fired.rows, subject.acts.doc_ids, places)
        yield {
            "id": latent,
            "kinds": kinds,
            "price": rounded(price.sum() / n),
            "parts": [rounded(value / n) for value in fired.parts[:, latent]],
            "fires": [int((own != 0).sum()), int((best != 0).sum()), int(((own != 0) & (best != 0)).sum())],
            "notes": _notes(latent, roles),
            "examples": [_example(subject.acts, fired.rows, own, best, *e, texts) for e in examples],
        }


def pick(
    own: np.ndarray, best: np.ndarray, price: np.ndarray, rows: np.ndarray, doc_ids: Any, places: np.ndarray
) -> list[tuple[str, int]]:
    """(why, place among the N tokens) of one latent's examples. own, best and price (N,): its activations and its
    price on each token; `places`: tokens whose class it should have told. No two of a kind share a window."""
    both = own * best > 0
    near = np.abs(own - best) <= AGREE * np.maximum(np.abs(own), np.abs(best))
    found = {
        "missed": (~both & (best != 0), price),
        "false fire": (~both & (own != 0) & (best == 0), price),
        "absorbed": (np.isin(np.arange(len(own)), places) & (own == 0), np.abs(best)),
        "amplitude": (both & ~near, np.abs(own - best)),
        "agree": (both & near, np.abs(best)),
    }
    documents = np.asarray(doc_ids)[rows]
    out: list[tuple[str, int]] = []
    for why, (which, score) in found.items():
        candidates = np.flatnonzero(which)
        taken: list[int] = []
        for place in candidates[np.argsort(-score[candidates], kind="stable")].tolist():
            if len(taken) == EXAMPLES[why]:
                break
            if all(documents[place] != documents[other] or abs(place - other) > WINDOW for other in taken):
                taken.append(place)
        out += [(why, place) for place in taken]
    return out


def _example(
    acts: Any, rows: np.ndarray, own: np.ndarray, best: np.ndarray, why: str, place: int, texts: Texts
) -> dict[str, Any]:
    """The window around a token, within its document, and where in it the latent fires: [place, encoder, optimum]."""
    document = int(acts.doc_ids[rows[place]])
    start, stop = (int(acts.documents[name][document]) for name in ("start", "stop"))
    first = place - min(WINDOW, int(rows[place]) - start)
    last = place + min(WINDOW, stop - 1 - int(rows[place]))
    window = np.arange(first, last + 1)  # whole documents: neighbours in the store are neighbours here
    fires = [[int(i - first), rounded(own[i]), rounded(best[i])] for i in window if own[i] or best[i]]
    label = str(acts.documents["label"][document])
    return {
        "why": why,
        "at": place - first,
        "label": label,
        "tokens": texts.places(rows[window]),
        "fires": fires,
    }


def _notes(latent: int, roles: list[Role]) -> list[str]:
    """What the latent is to the probes' classes, in words."""
    out = []
    for role in roles:
        main, gain = int(role.ranked[0]), role.f1[1] - role.f1[0]
        rates = (
            f"encoder {100 * role.absorption:.0f} %, optimum {100 * role.absorption_optimum:.0f} %, "
            f"chance {100 * role.absorption_chance:.0f} %"
        )
        if latent == main:
            out.append(
                f"main latent of “{role.task}” (F1 {role.f1[0]:.2f}); silent while others fire: {rates}"
            )
        if latent == role.absorbing:
            out.append(
                f"fires most often where latent {main}, the main one of “{role.task}”, is silent: {rates}"
            )
        if gain >= SPLITTING and latent in role.ranked[:2]:
            other = next(int(j) for j in role.ranked[:2] if j != latent)
            out.append(f"“{role.task}” is split with latent {other}: both together gain {gain:.2f} in F1")
    return out


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{float(value):.4g}")
