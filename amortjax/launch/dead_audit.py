"""Why are latents dead: the dictionary, the encoder, or steps that stopped early?

Puts each latent of every checkpoint in a class, by whether it fires under the encoder, under the certified optimum (to
three tolerances) and in ISTA brought to the same L0, on the same test tokens: dead under the optimum too, dead in the
encoder only, alive only because ISTA stopped early, dead under the optimum but not in the encoder. The gap-safe test
says which are dead at every optimum. Since dead latents depend on how many tokens are seen, all is given as a function
of their number: on nested documents, and as the exact expectation over documents. Writes results.parquet, .csv and
.json, curves.csv, latents/NAME.csv, pictures, report.md and report.html; finished parts are skipped when the command is
given again.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.launch import audits, flagged, section5

MODES = ("non_amortized", "optimal")
EXPECTED_POINTS = 16  # of the expected curve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(audits.Config):
    tolerances: Annotated[tuple[float, ...], "Relative gaps of the optimum; classes are shown at each."] = (
        1e-3, 1e-4, 1e-6,
    )  # fmt: skip
    first_tokens: Annotated[int, "Tokens of the first point of the curves, doubled up to all."] = 512

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag."""
        super().checked()
        if not self.tolerances or not all(0 < tol < 1 for tol in self.tolerances):
            raise AmortjaxError("--tolerances: give relative gaps above 0 and below 1, as in 1e-3,1e-4,1e-6")
        if self.first_tokens < 1:
            raise AmortjaxError(f"--first_tokens={self.first_tokens}: must be above 0")
        return self


class Audit(NamedTuple):
    """One SAE's result rows, the points of its curves, and its latents' table."""

    rows: list[dict[str, Any]]
    curves: list[dict[str, Any]]
    latents: dict[str, Any]


def run(config: Config) -> list[dict[str, Any]]:
    """Audits, writes and prints; returns the rows."""
    config = config.checked()
    # Heavy imports after the flags' checks, so that --help and mistakes are quick.
    from amortjax.report import audit, figures_audit, tables

    saes, acts = audits.prepare(config)
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for sae in saes:
        found = audit_one(config, audits.pose(config, sae, acts, MODES))
        rows, curves = rows + found.rows, curves + found.curves
        write_latents(config.folder / "latents", sae.info.name, found.latents)
        tables.write_results(rows, config.folder)
        tables.write_results(curves, config.folder, "curves")
    pictures = figures_audit.draw_dead(curves, config.folder / "figures")
    audits.write_report(config, audit.report(rows, curves, section5.about_run(acts, saes), pictures))
    return rows


def audit_one(config: Config, posed: audits.Posed) -> Audit:
    """One SAE: codes from disk or made now, then counts."""
    from amortjax.metrics import dead_audit
    from amortjax.metrics.measure import Knobs

    settings, coder = posed.settings, posed.coder
    star, ista = settings["optimal"], settings["non_amortized"]
    encoder = coder.codes("test", "amortized", Knobs(None))
    base = describe(posed, settings, len(encoder.indptr) - 1)
    if not star.evaluate:  # its encoder is denser than any optimum can be
        dead = float(np.mean(np.bincount(encoder.indices, minlength=encoder.shape[1]) == 0))
        return Audit([base | {"dead_encoder": dead, "flags": (*base["flags"], *star.flags)}], [], {})
    stage, budgets = stages(config, posed)
    slow = coder.codes("test", "non_amortized", ista.knobs)
    # Whether what ISTA keeps alive is alive at the optimum of ISTA's own lambda: if not, the steps did it.
    there = coder.codes("test", "optimal", ista.knobs)
    rows, curves, proved = [], [], np.zeros(encoder.shape[1], bool)
    columns: dict[str, Any] = {}
    for tol in sorted(config.tolerances, reverse=True):
        optimum = coder.codes("test", "optimal", star.knobs, tol)
        screened = coder.screen(optimum, "test", star.knobs.lam, stage, tol)
        codes = {"encoder": encoder, "optimum": optimum, "ista": slow, "there": there}
        seen = dead_audit.Seen.of(codes, posed.doc_ids)
        about = base | {
            "tol": tol,
            "l0_optimum": optimum.nnz / optimum.shape[0],
            "certified": screened.certified,
        }
        rows.append(about | {"l0_ista": slow.nnz / slow.shape[0]} | whole(seen, screened.open))
        curves += curve(seen, screened.open, budgets, posed.coder.subject, base | {"tol": tol})
        columns |= latent_columns(seen, tol)
        proved |= ~screened.open.any(axis=0)
    return Audit(rows, curves, columns | {"certified_dead": proved})


def describe(posed: audits.Posed, settings: dict[str, Any], n_tokens: int) -> dict[str, Any]:
    """What all rows of an SAE share."""
    row = posed.coder.bench.row("same_l0", "optimal", settings["optimal"], None, None)
    flags = dict.fromkeys((*row["flags"], *settings["non_amortized"].flags))
    about = {
        "condition": "dead_audit",
        "lam_ista": settings["non_amortized"].knobs.lam,
        "flags": tuple(flags),
    }
    documents = len(np.unique(posed.doc_ids))
    return row | about | {"n_tokens": n_tokens, "n_documents": documents}


def stages(config: Config, posed: audits.Posed) -> tuple[np.ndarray, list[np.ndarray]]:
    """The stage of each test token, and the nested rows of the curves' points: documents in one shuffled order."""
    from amortjax.metrics import dead_audit

    subject = posed.coder.subject
    rows = subject.test_rows
    budgets = [
        subject.acts.rows(config.eval_split, n, seed=config.seed)
        for n in dead_audit.doubling(config.first_tokens, len(rows))[:-1]
    ]
    # Whole documents overshoot: points that came out alike, or as all, are one.
    distinct = {len(own): own for own in budgets if len(own) < len(rows)}
    nested = [*distinct.values(), rows]
    return dead_audit.stages_of(nested, rows, subject.acts.doc_ids), nested


def whole(seen: Any, open_: np.ndarray) -> dict[str, Any]:
    """Counts on all test tokens, and expectations on half of the documents with their intervals."""
    from amortjax.metrics import dead_audit, uncertainty

    shares = dead_audit.realised(seen)
    half = dead_audit.halves(seen)
    named = {f"{name}_half": estimate for name, estimate in half.items()}
    out = shares | uncertainty.flatten(named)
    d = uncertainty.difference(half["dead_encoder"], half["dead_optimum"])
    key = "dead_encoder_minus_optimum_half"
    out |= {key: d and d.value, f"{key}_lo": d and d.lo, f"{key}_hi": d and d.hi}
    own = dead_audit.classify(*(seen.fires(name) > 0 for name in ("encoder", "optimum", "ista")))
    early = dead_audit.NAMES.index("under_converged")
    confirmed = (own == early) & (seen.fires("there") == 0)
    counts = {f"n_{name}": int((own == i).sum()) for i, name in enumerate(dead_audit.NAMES)}
    certified = {"certified_dead": float(1 - open_.any(axis=0).mean())}
    return out | counts | certified | {"n_under_converged_confirmed": int(confirmed.sum())}


def curve(
    seen: Any, open_: np.ndarray, budgets: list[np.ndarray], subject: Any, base: dict[str, Any]
) -> list[dict[str, Any]]:
    """Shares on the nested documents, and what is expected of so many documents at random."""
    from amortjax.metrics import dead_audit

    out, base = [], base | {"condition": "curve"}
    for i, rows in enumerate(budgets):
        documents = np.isin(seen.ids, np.unique(subject.acts.doc_ids[rows]))
        own = {"kind": "nested", "n_tokens": len(rows), "n_documents": int(documents.sum())}
        own["certified_dead"] = float(1 - open_[: i + 1].any(axis=0).mean())
        out.append(base | own | dead_audit.realised(seen, documents))
    for n in dead_audit.spaced(out[0]["n_documents"], len(seen.ids), EXPECTED_POINTS):
        # Any n documents hold this many tokens on average.
        own = {"kind": "expected", "n_tokens": round(n * float(seen.tokens.mean())), "n_documents": n}
        out.append(base | own | dead_audit.expected(seen, n))
    return out


def latent_columns(seen: Any, tol: float) -> dict[str, Any]:
    """Columns of the latents' table at one tolerance."""
    from amortjax.metrics import dead_audit

    own = dead_audit.classify(*(seen.fires(name) > 0 for name in ("encoder", "optimum", "ista")))
    fires = {"encoder": "encoder", "ista": "ista", "there": "optimum_at_lambda_of_ista"}
    columns: dict[str, Any] = {"latent": np.arange(seen.n_latents)}
    columns |= {f"fires_{label}": seen.fires(name) for name, label in fires.items()}
    columns |= {f"fires_optimum_tol{tol:g}": seen.fires("optimum")}
    return columns | {f"class_tol{tol:g}": np.asarray(dead_audit.NAMES)[own]}


def write_latents(folder: Path, name: str, columns: dict[str, Any]) -> None:
    """NAME.csv, a line per latent."""
    import re

    import pandas as pd

    from amortjax.files import write_atomically

    if columns:
        stem = re.sub(r"[^A-Za-z0-9=.-]+", "_", name)
        write_atomically(folder / f"{stem}.csv", pd.DataFrame(columns).to_csv(index=False))


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.dead_audit")
