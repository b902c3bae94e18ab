"""Do SAEs of several seeds agree, and does exact inference make them agree more?

For each pair of checkpoints: the Hungarian-matched mean correlation (MCC) of their dictionaries (|cosine| of decoder
rows), and of their codes on the same test tokens under each inference mode, every mode at its SAE's own L0. Each beside
its level of chance, codes with intervals over documents. Also the correlation of codes of latents that the dictionaries
match, which was chosen on no token. Writes results.parquet, .csv and .json, consistency.png, report.md and report.html;
finished parts are skipped when the command is given again.
"""

import dataclasses
import itertools
from typing import Annotated, Any, Literal

import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.launch import audits, flagged, section5

Mode = Literal[
    "amortized", "encoder_refit", "semi_amortized", "non_amortized", "optimal", "optimal_refit", "omp"
]
DICTIONARY = "dictionary"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(audits.Config):
    encode_modes: Annotated[tuple[Mode, ...], "Inference modes whose codes are compared."] = (
        "amortized", "optimal", "optimal_refit",
    )  # fmt: skip
    min_fires: Annotated[int, "Latents that fire on fewer test tokens are left out."] = 10
    most_cells: Annotated[
        int,
        "Entries of the largest similarity matrix that is matched whole; larger ones among near candidates.",
    ] = 1 << 26

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag."""
        super().checked()
        if len(self.ckpts) < 2:
            raise AmortjaxError("--ckpts: give at least two SAEs, as in --ckpts=seed0,seed1")
        if not self.encode_modes:
            raise AmortjaxError("--encode_modes is empty: name at least one, as in --encode_modes=amortized")
        for name in ("min_fires", "most_cells"):
            if getattr(self, name) < 1:
                raise AmortjaxError(f"--{name}={getattr(self, name)}: must be at least 1")
        return self


def run(config: Config) -> list[dict[str, Any]]:
    """Measures, writes and prints; returns the rows."""
    config = config.checked()
    # Heavy imports after the flags' checks, so that --help and mistakes are quick.
    from amortjax.report import consistency_report, figures_audit, tables

    saes, acts = audits.prepare(config)
    posed = [audits.pose(config, sae, acts, config.encode_modes) for sae in saes]
    rows: list[dict[str, Any]] = []
    for a, b in itertools.combinations(posed, 2):
        for row in rows_of(config, a, b):
            rows.append(row)
            tables.write_results(rows, config.folder)
    pictures = figures_audit.draw_consistency(rows, config.folder / "figures")
    audits.write_report(config, consistency_report.report(rows, section5.about_run(acts, saes), pictures))
    return rows


def rows_of(config: Config, a: audits.Posed, b: audits.Posed) -> list[dict[str, Any]]:
    """One pair's rows: dictionaries, then codes under each mode, with differences from the encoder's."""
    from amortjax.metrics import uncertainty

    values, _ = dictionaries(config, a, b)
    rows = [describe(a, b, DICTIONARY) | {name: value for name, value in values.items() if name != "pairs"}]
    base = None
    for mode in dict.fromkeys(("amortized", *config.encode_modes)):
        row = describe(a, b, mode)
        if not (a.settings[mode].evaluate and b.settings[mode].evaluate):
            rows.append(row | {"flags": tuple(dict.fromkeys((*row["flags"], "unmatchable")))})
            continue
        values, found = codes(config, a, b, mode)
        row |= values | uncertainty.flatten(found)
        if base is not None:
            row |= uncertainty.flatten_differences(found, base)
        base = found if mode == "amortized" else base
        rows.append(row)
    return [row for row in rows if row["mode"] in (DICTIONARY, *config.encode_modes)]


def describe(a: audits.Posed, b: audits.Posed, mode: str) -> dict[str, Any]:
    """What a row says beside its numbers."""
    settings = [posed.settings.get(mode) for posed in (a, b)]
    flags = [flag for setting in settings if setting is not None for flag in setting.flags]
    lams = {f"lam_{side}": s and s.knobs.lam for side, s in zip("ab", settings, strict=True)}
    about = {"checkpoint": f"{a.name} | {b.name}", "mode": mode, "condition": "consistency"}
    counts = {"n_tokens": len(a.doc_ids), "n_documents": len(np.unique(a.doc_ids))}
    return about | lams | counts | {"flags": tuple(dict.fromkeys(flags))}


def dictionaries(config: Config, a: audits.Posed, b: audits.Posed) -> tuple[dict[str, Any], Any]:
    """MCC of the decoder rows of latents that fire under the encoder, its chance level, and the matched pairs."""
    from amortjax.metrics import consistency, nulls
    from amortjax.saes.sae import atoms

    def measure() -> tuple[dict[str, Any], dict[str, Any]]:
        sides = [alive(config, posed, "amortized") for posed in (a, b)]
        rows = [np.asarray(atoms(p.sae))[j] for p, j in zip((a, b), sides, strict=True)]
        counts, most = (len(sides[0]), len(sides[1])), config.most_cells
        found = consistency.match(consistency.cosines(*rows), *counts, most_cells=most)
        turned = rows[1] @ nulls.rotation(rows[1].shape[1], [config.seed, 1])
        chance = consistency.match(consistency.cosines(rows[0], turned), *counts, most_cells=most)
        values = summary(found, counts) | {"mcc": found.mcc, "mcc_chance": chance.mcc}
        values["shared"] = float((found.similarity >= 0.7).sum()) / max(found.of, 1)
        pairs = np.stack([sides[0][found.a], sides[1][found.b]])
        return values | {"pairs": pairs.tolist()}, {}

    return remembered(config, a, b, {"what": DICTIONARY}, measure)


def codes(config: Config, a: audits.Posed, b: audits.Posed, mode: str) -> tuple[dict[str, Any], Any]:
    """MCC of codes on the test tokens, matched by their own correlation and by the dictionaries, and chance."""
    from amortjax.metrics import consistency, nulls, streaming, uncertainty

    def measure() -> tuple[dict[str, Any], dict[str, Any]]:
        z = [posed.coder.codes("test", mode, posed.settings[mode].knobs) for posed in (a, b)]
        signed = a.coder.subject.problem.signed or b.coder.subject.problem.signed
        block = streaming.block_of(a.doc_ids)
        more = {"signed": signed, "with_interval": len(np.unique(a.doc_ids)) >= uncertainty.MIN_DOCUMENTS}
        sides = [consistency.alive(own, config.min_fires) for own in z]
        x, y = (own[:, side] for own, side in zip(z, sides, strict=True))
        counts, most = (len(sides[0]), len(sides[1])), config.most_cells
        similar = consistency.correlations(x, y, signed)
        found = consistency.match(similar, *counts, most_cells=most)
        dealt = nulls.shuffled(y, [config.seed, 1])
        chance = consistency.match(consistency.correlations(x, dealt, signed), *counts, most_cells=most)
        values = summary(found, counts) | {"mcc_chance": chance.mcc}
        values |= {f"l0_{side}": own.nnz / max(own.shape[0], 1) for side, own in zip("ab", z, strict=True)}
        pairs = np.asarray(dictionaries(config, a, b)[0]["pairs"], np.int64).reshape(2, -1)
        named = {"mcc": consistency.mcc(x[:, found.a], y[:, found.b], block, found.of, **more)}
        of = pairs.shape[1]
        named["mcc_by_dictionary"] = consistency.mcc(z[0][:, pairs[0]], z[1][:, pairs[1]], block, of, **more)
        order = np.random.default_rng([config.seed, 2]).permutation(of)
        by_chance = consistency.mcc(z[0][:, pairs[0]], z[1][:, pairs[1][order]], block, of, signed, False)
        return values | {"mcc_by_dictionary_chance": by_chance.value}, named

    return remembered(config, a, b, {"what": mode, "knobs": knobs_of(a, b, mode)}, measure)


def knobs_of(a: audits.Posed, b: audits.Posed, mode: str) -> list[Any]:
    return [list(posed.settings[mode].knobs) for posed in (a, b)]


def alive(config: Config, posed: audits.Posed, mode: str) -> np.ndarray:
    """Latents that fire often enough on the test tokens."""
    from amortjax.metrics import consistency

    z = posed.coder.codes("test", mode, posed.settings[mode].knobs)
    return consistency.alive(z, config.min_fires)


def summary(found: Any, counts: tuple[int, int]) -> dict[str, Any]:
    """How a matching was made."""
    exact = {"matched_whole": found.exact, "mcc_bound": found.bound, "n_matched": len(found.a)}
    return exact | {"n_alive_a": counts[0], "n_alive_b": counts[1]}


def remembered(config: Config, a: audits.Posed, b: audits.Posed, about: dict[str, Any], measure: Any):
    """Values and estimates, from disk or measured now."""
    from amortjax.inference.gaps import Proof
    from amortjax.metrics import coded, kept

    both = [posed.coder.bench.identity for posed in (a, b)]
    more = {
        "numbers": coded.NUMBERS,
        "min_fires": config.min_fires,
        "cells": config.most_cells,
        "seed": config.seed,
    }
    path = config.parts / f"pair_{kept.key_of({'both': both} | about | more)}.npz"
    found = kept.load(path)
    if found is None:
        values, estimates = measure()
        record = a.coder.subject.problem.record
        found = kept.Kept(values, estimates, Proof(np.zeros(0), np.zeros(0), record))
        kept.save(path, found)
    return found.values, found.estimates


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.consistency")
