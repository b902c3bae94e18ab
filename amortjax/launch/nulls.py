"""Every pathology metric beside what it is when nothing was learned.

For every checkpoint: dead and dense latents, F1 of one latent and what a second adds, absorption, NMSE, under the
encoder, under the certified optimum, and under null models at the same L0: a random encoder (the encoder's directions
rotated, one threshold matched), shuffled codes (dealt to other tokens), a random dictionary of equal coherence (rotated
atoms, its own certified optimum), random supports (each token's L0 and each latent's rate kept, amplitudes refitted).
Intervals are over documents, paired with the encoder's. Writes results.parquet, .csv and .json, nulls.png, report.md
and report.html; finished parts are skipped when the command is given again.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.launch import audits, flagged, section5

Null = Literal[
    "random_encoder", "shuffled_codes", "shuffled_optimum", "random_dictionary", "random_support",
    "random_support_optimum",
]  # fmt: skip


NULLS: tuple[Null, ...] = ("random_encoder", "shuffled_codes", "random_dictionary", "random_support")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(audits.Config):
    nulls: Annotated[tuple[Null, ...], "Null models beside the encoder and the optimum."] = NULLS
    null_draws: Annotated[int, "Times each null model is drawn: shown are the mean and the spread."] = 3

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag."""
        super().checked()
        if self.null_draws < 1:
            raise AmortjaxError(f"--null_draws={self.null_draws}: must be at least 1")
        if self.probe_tokens < 1:
            raise AmortjaxError(f"--probe_tokens={self.probe_tokens}: must be above 0")
        return self


def run(config: Config) -> list[dict[str, Any]]:
    """Measures, writes and prints; returns the rows."""
    config = config.checked()
    # Heavy imports after the flags' checks, so that --help and mistakes are quick.
    from amortjax.report import figures_audit, null_report, tables

    saes, acts = audits.prepare(config)
    rows: list[dict[str, Any]] = []
    for sae in saes:
        for row in rows_of(config, audits.pose(config, sae, acts, ("optimal",)), acts):
            rows.append(row)
            tables.write_results(rows, config.folder)
    pictures = figures_audit.draw_nulls(rows, config.folder / "figures")
    audits.write_report(config, null_report.report(rows, section5.about_run(acts, saes), pictures))
    return rows


def beside(given: section5.Config, out: Path, acts: Any, saes: list[Any]) -> list[dict[str, Any]]:
    """Rows of SAEs that launch.section5 evaluates, with its flags and its finished parts, `out`/rows."""
    shared = {field.name for field in dataclasses.fields(Config)}
    own = {f.name: getattr(given, f.name) for f in dataclasses.fields(given) if f.name in shared}
    config = Config(**own | {"kept": str(out / "rows"), "nulls": NULLS})
    posed = (audits.pose(config, sae, acts, ("optimal",)) for sae in saes)
    return [row for one in posed for row in rows_of(config, one, acts)]


def rows_of(config: Config, posed: audits.Posed, acts: Any) -> list[dict[str, Any]]:
    """One SAE's rows: the encoder, the optimum where there is one, and the nulls."""
    from amortjax.metrics import null_bench, uncertainty

    setting = posed.settings["optimal"]
    found = {"amortized": [scored(config, posed, "amortized", 0, acts)]}
    if setting.evaluate:
        found["optimal"] = [scored(config, posed, "optimal", 0, acts)]
    for null in config.nulls:
        if setting.evaluate or null not in (
            "shuffled_optimum",
            "random_dictionary",
            "random_support_optimum",
        ):
            found[null] = [scored(config, posed, null, draw, acts) for draw in range(config.null_draws)]
    rows, base = [], found["amortized"][0]
    for name, drawn in found.items():
        mean, spread = null_bench.averaged(drawn)
        row = describe(posed, name, len(drawn)) | uncertainty.flatten(mean)
        if name != "amortized":
            row |= uncertainty.flatten_differences(mean, base)
        rows.append(row | {f"{key}_spread": value for key, value in spread.items()})
    return rows


def describe(posed: audits.Posed, name: str, draws: int) -> dict[str, Any]:
    """What a row says beside its metrics. Its mode is the null's name."""
    mode = name if name in posed.settings else "optimal" if name == "random_dictionary" else "amortized"
    setting = posed.settings[mode]
    row = posed.coder.bench.row("same_l0", mode, setting, None, None)
    lam = row["lam"] if name == mode else None
    counts = {
        "n_tokens": len(posed.doc_ids),
        "n_documents": len(np.unique(posed.doc_ids)),
        "null_draws": draws,
    }
    flags = row["flags"] if name != "random_dictionary" else posed.settings["amortized"].flags
    return row | {"mode": name, "condition": "same_l0", "lam": lam, "flags": flags} | counts


def scored(config: Config, posed: audits.Posed, name: str, draw: int, acts: Any) -> dict[str, Any]:
    """Estimates of one draw, from disk or measured now."""
    from amortjax.inference.gaps import Proof
    from amortjax.metrics import coded, kept, null_bench

    bench = posed.coder.bench
    about = {"null": name, "draw": draw, "numbers": coded.NUMBERS, "knobs": posed.settings["optimal"].knobs}
    path = config.parts / f"null_{name}_{kept.key_of(bench.identity | about)}.npz"
    found = kept.load(path)
    if found is None:
        subject, test, train = makers()[name](config, posed, [config.seed, draw], acts)
        label = f"{posed.name}: {name}" + (f" {draw + 1}" if name in config.nulls else "")
        estimates = null_bench.score(subject, test, train, config.seed, True, label)
        nothing = Proof(np.zeros(0), np.zeros(0), subject.problem.record)
        found = kept.Kept({}, estimates, nothing)
        kept.save(path, found)
    return found.estimates


# --- what makes each kind of codes: (subject, codes of the test rows, codes of the probe rows) ---


def makers() -> dict[str, Callable[..., tuple]]:
    return {
        "amortized": _of_mode,
        "optimal": lambda *a: _of_mode(*a, mode="optimal"),
        "random_encoder": _random_encoder,
        "shuffled_codes": _shuffled,
        "shuffled_optimum": lambda *a: _shuffled(*a, mode="optimal"),
        "random_dictionary": _random_dictionary,
        "random_support": _random_support,
        "random_support_optimum": lambda *a: _random_support(*a, mode="optimal"),
    }


def _codes(posed: audits.Posed, mode: str) -> list[Any]:
    knobs = posed.settings[mode].knobs
    return [posed.coder.codes(split, mode, knobs) for split in ("test", "probe")]


def _of_mode(config: Config, posed: audits.Posed, seed: list[int], acts: Any, mode: str = "amortized"):
    from amortjax.metrics.null_bench import Drawn

    return posed.coder.subject, *(Drawn.of(z) for z in _codes(posed, mode))


def _shuffled(config: Config, posed: audits.Posed, seed: list[int], acts: Any, mode: str = "amortized"):
    from amortjax.metrics import nulls
    from amortjax.metrics.null_bench import Drawn

    return posed.coder.subject, *(Drawn.of(nulls.shuffled(z, seed)) for z in _codes(posed, mode))


def _random_support(config: Config, posed: audits.Posed, seed: list[int], acts: Any, mode: str = "amortized"):
    from amortjax.metrics import null_bench, nulls

    subject = posed.coder.subject
    drawn = []
    for z, rows in zip(_codes(posed, mode), (subject.test_rows, subject.probe_rows), strict=True):
        support = nulls.random_support(z, seed)
        drawn.append(null_bench.Drawn(support, null_bench.fitted(subject, support, rows)))
    return subject, *drawn


def _random_encoder(config: Config, posed: audits.Posed, seed: list[int], acts: Any):
    from amortjax.inference.api import encode_codes
    from amortjax.metrics import nulls
    from amortjax.metrics.null_bench import Drawn

    subject, chunk = posed.coder.subject, config.chunk
    l0 = float(subject.calibration[1].l0.mean())
    sae = nulls.with_l0(nulls.random_encoder(subject.sae, seed), subject.calibration[2], l0, chunk)
    both = (subject.test_rows, subject.probe_rows)
    codes = [encode_codes(sae, subject.acts.read(rows), chunk).csr() for rows in both]
    return subject, *map(Drawn.of, codes)


def _random_dictionary(config: Config, posed: audits.Posed, seed: list[int], acts: Any):
    """The optimum of rotated atoms, at its own lambda of the encoder's L0."""
    from amortjax.metrics import nulls
    from amortjax.metrics.null_bench import Drawn

    l0 = float(posed.coder.subject.calibration[1].l0.mean())
    turned = nulls.rotated_dictionary(posed.sae, seed)
    turned = dataclasses.replace(turned, info=dataclasses.replace(turned.info, name=f"{posed.name}, rotated"))
    other = audits.pose(config, turned, acts, ("optimal",), l0)
    return other.coder.subject, *(Drawn.of(z) for z in _codes(other, "optimal"))


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.nulls")
