"""The dead-latent audit as tables and words (rows of `launch.dead_audit`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from amortjax.metrics.dead_audit import CLASSES
from amortjax.report.numbers import MISSING, grouped_digits, short, with_interval
from amortjax.report.schema import Row
from amortjax.report.sheets import Report, Sheet, noted

LABELS = {
    "alive": "alive",
    "encoder_only": "dead in the encoder only",
    "under_converged": "alive in ISTA only",
    "dead": "dead under all",
    "optimum_only": "dead in the optimum only",
}
NOTHING = 0.01  # latents expected, below which an expectation is shown as none
EXPLAINED = (
    "A latent is dead under codes if it fires on none of the N tokens, so every share falls with N; it is printed with "
    "N, and its interval, a delete-a-block jackknife over documents, is of the share expected on a random half of the "
    "documents, which rarefaction gives exactly. Dead rates are never bootstrapped: resampling loses rare latents.\n\n"
    + "\n\n".join(f"{LABELS[name]}: {text}." for name, text in CLASSES.items())
    + "\n\nThe optimum is that of lambda*, where it has the encoder's L0 on the calibration tokens; ISTA has its own "
    "lambda, at which it has the same L0. That lambda is a little larger, so a latent that only ISTA keeps alive is "
    "confirmed as a matter of convergence if the optimum of ISTA's own lambda does not use it either.\n\n"
    "A gap certifies the objective, not the support: classes are given at several tolerances of the optimum. Certified "
    "dead: proved by the gap-safe test to be 0 at every optimum of each token (Ndiaye et al. 2017). A latent that is "
    "dead and not certified is silent in the codes that were computed."
)


def report(
    rows: Sequence[Row], curves: Sequence[Row], about: Mapping[str, str], pictures: Sequence[Path]
) -> Report:
    """All of a run as a Report."""
    sheets = [classes_sheet(rows), *curve_sheets(curves)]
    return Report("Why latents are dead", about, sentences(rows), sheets, EXPLAINED, pictures)


def _counted(row: Row, name: str) -> str:
    """A count on all tokens, and the share at half of the documents."""
    if row.get(f"n_{name}") is None:
        return MISSING
    return str(row[f"n_{name}"])


def _half(row: Row, name: str) -> str:
    name = name if name.endswith("_half") else f"{name}_half"
    value = row.get(name)
    if value is not None and abs(value) * row["n_latents"] < NOTHING:
        return "~0"
    return with_interval(*(row.get(f"{name}{end}") for end in ("", "_lo", "_hi")))


def _expected(row: Row, key: str) -> str:
    """A share of latents, ~0 where less than a hundredth of a latent is expected."""
    few = 0 < row[key] * row["n_latents"] < NOTHING
    return "~0" if few else short(row[key])


def classes_sheet(rows: Sequence[Row]) -> Sheet:
    """A line per SAE and tolerance: counts on all tokens, shares at half of the documents."""
    header = ["SAE", "tolerance", "N", "latents", "dead, encoder", "dead, optimum", "dead, ISTA"]
    header += [LABELS[name] for name in CLASSES if name != "alive"]
    header += ["confirmed", "certified dead", "L0 optimum", "L0 ISTA", "note"]
    body = []
    for row in rows:
        line = [row["checkpoint"], short(row.get("tol")) if "n_dead" in row else MISSING]
        line += [grouped_digits(row["n_tokens"]), str(row["n_latents"])]
        line += [short(row.get(f"dead_{name}")) for name in ("encoder", "optimum", "ista")]
        line += [_counted(row, name) for name in CLASSES if name != "alive"]
        line += [_counted(row, "under_converged_confirmed"), short(row.get("certified_dead"))]
        line += [short(row.get("l0_optimum")), short(row.get("l0_ista"))]
        body.append([*line, noted(row["flags"])])
    text = "Shares of dead latents, and numbers of latents in each class, on all N test tokens."
    return Sheet("Classes of dead latents", header, body, text)


def curve_sheets(curves: Sequence[Row]) -> list[Sheet]:
    """A table per SAE, at its middle tolerance: shares by the number of tokens."""
    out = []
    for name in dict.fromkeys(row["checkpoint"] for row in curves):
        own = [row for row in curves if row["checkpoint"] == name]
        tol = middle({row["tol"] for row in own})
        body = []
        for row in (row for row in own if row["tol"] == tol):
            line = [row["kind"], grouped_digits(row["n_tokens"]), str(row["n_documents"])]
            line += [_expected(row, f"dead_{which}") for which in ("encoder", "optimum", "ista")]
            line += [_expected(row, which) for which in CLASSES if which != "alive"]
            body.append([*line, short(row["certified_dead"]) if "certified_dead" in row else MISSING])
        header = ["documents", "N", "number", "dead, encoder", "dead, optimum", "dead, ISTA"]
        header += [*(LABELS[which] for which in CLASSES if which != "alive"), "certified dead"]
        text = (
            f"Shares of latents, optimum to {tol:g}. Nested: each point's documents hold those of the one before. "
            "Expected: the exact mean over all choices of as many documents."
        )
        out.append(Sheet(f"{name}: by the number of tokens", header, body, text))
    return out


def middle(tolerances: set[float]) -> float:
    """1e-4 where it is there, else the one in the middle."""
    ordered = sorted(tolerances)
    return 1e-4 if 1e-4 in ordered else ordered[len(ordered) // 2]


def sentences(rows: Sequence[Row]) -> list[str]:
    """What the rows show of each SAE, at its middle tolerance."""
    out = []
    for name in dict.fromkeys(row["checkpoint"] for row in rows):
        own = [row for row in rows if row["checkpoint"] == name]
        if "n_dead" not in own[0]:
            out.append(
                f"{name}: its encoder is denser than any optimum can be; {short(own[0]['dead_encoder'])} are dead."
            )
            continue
        tol = middle({row["tol"] for row in own})
        row = next(row for row in own if row["tol"] == tol)
        out += [f"{name}: {sentence}" for sentence in _about(row, own)]
    return out


def _about(row: Row, own: Sequence[Row]) -> list[str]:
    n = grouped_digits(row["n_tokens"])
    dead = row["n_dead"] + row["n_under_converged"] + row["n_encoder_only"]
    first = (
        f"of {row['n_latents']} latents the encoder leaves {dead} silent on {n} tokens: {row['n_encoder_only']} fire "
        f"under the optimum, {row['n_under_converged']} only in ISTA that stopped early (of which "
        f"{row['n_under_converged_confirmed']} confirmed), {row['n_dead']} under neither; the optimum leaves "
        f"{row['n_optimum_only']} silent that the encoder uses."
    )
    second = (
        f"on a random half of the documents, dead in the encoder only {_half(row, 'encoder_only')}, in the optimum "
        f"only {_half(row, 'optimum_only')}, alive only in ISTA {_half(row, 'under_converged')}, dead under all "
        f"{_half(row, 'dead')}; the encoder's dead share less the optimum's is "
        f"{_half(row, 'dead_encoder_minus_optimum_half')}."
    )
    proved = ", ".join(f"{short(other['certified_dead'])} to {other['tol']:g}" for other in own)
    dead_optimum = ", ".join(f"{short(other['dead_optimum'])} to {other['tol']:g}" for other in own)
    third = f"dead under the optimum {dead_optimum}; certified dead {proved}, on all {n} tokens."
    return [first, second, third]
