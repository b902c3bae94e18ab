"""The amortization gap's theorem made visible (arXiv 2411.13117, theorem 3.1).

Sparse codes of more sources than dimensions: one linear map and a ReLU can't return the exact values of all of them,
while other methods can. Shows the rank argument on several encoders; controls in which an encoder is exact (one active
source of a simplex or of antipodal pairs, as many dimensions as sources) and one that is none (a random dictionary,
against Cover's count); what the best linear map leaves; and where ReLU encoders fail, by the number of active sources,
by the angle between two, and as a map of the plane. The statement is about exact values, not about supports. Writes
results.parquet, .csv and .json, pictures, report.md and report.html; finished parts are skipped when the command is
given again.
"""

import dataclasses
import io
import json
import sys
import zipfile
from typing import Annotated, Any

from amortjax.errors import AmortjaxError
from amortjax.files import write_atomically
from amortjax.launch import flagged

POSITIVE = ("sources", "dimensions", "samples", "test_samples", "starts", "steps", "lam", "dictionaries")
VERSION = 2  # of the parts: one that another version left is measured again


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(flagged.Out):
    sources: Annotated[int, "The paper's N."] = 16
    dimensions: Annotated[int, "The paper's M, below --sources."] = 8
    active: Annotated[int, "The paper's K: active sources of a sample, from 2 on."] = 3
    sparsities: Annotated[tuple[int, ...], "Numbers of active sources at which encoders and optima are compared."] = (
        1, 2, 3, 4, 6,
    )  # fmt: skip
    samples: Annotated[int, "On which encoders are trained."] = 1024
    test_samples: Annotated[int, "On which codes are compared."] = 256
    starts: Annotated[int, "Of the encoder trained on the true codes; each source keeps its best."] = 4
    steps: Annotated[int, "Of each training."] = 2000
    lam: Annotated[
        float, "Of the lasso, half form; small, so that its shrinkage is no error to speak of."
    ] = 1e-5
    dictionaries: Annotated[int, "Random dictionaries for each point of Cover's count."] = 200
    seed: Annotated[int, "Of the dictionary (as the paper's released code draws it) and of all else."] = (
        20240625
    )

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag."""
        for name in POSITIVE:
            if not 0 < getattr(self, name) < float("inf"):
                raise AmortjaxError(f"--{name}={getattr(self, name)}: must be above 0, and finite")
        if self.seed < 0:
            raise AmortjaxError(f"--seed={self.seed}: must not be negative")
        if self.sources <= self.dimensions:
            raise AmortjaxError(
                f"--dimensions={self.dimensions}: must be below --sources={self.sources}, for with as many dimensions "
                "an exact encoder exists (a control shows it)"
            )
        if not 2 <= self.active <= self.sources:
            raise AmortjaxError(f"--active={self.active}: the theorem is about 2 to --sources={self.sources}")
        wrong = [k for k in self.sparsities if not 1 <= k <= self.sources]
        if wrong or not self.sparsities:
            named = ",".join(map(str, wrong)) or "empty"
            raise AmortjaxError(f"--sparsities={named}: each must be from 1 to --sources={self.sources}")
        return self


def run(config: Config) -> list[dict[str, Any]]:
    """Measures, writes and prints; returns the rows."""
    config = config.checked()
    # Heavy imports after the flags' checks, so that --help and mistakes are quick.
    from tqdm import tqdm

    from amortjax.launch import theorem_facts, theorem_parts
    from amortjax.report import tables

    sizes = sizes_of(config)
    rows: list[dict[str, Any]] = []
    bar = tqdm(theorem_parts.PARTS.items(), desc="theorem", file=sys.stderr, disable=None)
    for name, part in bar:
        bar.set_postfix_str(name)
        rows += kept(config, name, lambda part=part: part(sizes))
    rows = theorem_facts.facts(sizes, rows) + rows
    plane = kept_plane(config)
    tables.write_results(rows, config.folder)
    report(config, rows, plane)
    return rows


def sizes_of(config: Config) -> Any:
    from amortjax.launch.theorem_parts import Sizes

    given: dict[str, Any] = {name: getattr(config, name) for name in Sizes._fields}
    given["sparsities"] = tuple(sorted({*config.sparsities, config.active}))
    return Sizes(**given)


def _key(config: Config) -> str:
    from amortjax.metrics import kept as store

    return store.key_of(dataclasses.asdict(config) | {"out": "", "version": VERSION})


def kept(config: Config, name: str, measure: Any) -> list[dict[str, Any]]:
    """A part's rows, from disk or measured now."""
    from amortjax.report import tables

    stem = f"{name}_{_key(config)}"
    rows = tables.read_results(config.folder / "rows", stem)
    if not rows:
        tables.write_results(measure(), config.folder / "rows", stem)
        rows = tables.read_results(config.folder / "rows", stem)
    return rows


def kept_plane(config: Config) -> dict[str, Any]:
    """The arrays of the plane's picture, from disk or measured now."""
    import numpy as np

    from amortjax.synthetic import plane

    path = config.folder / "rows" / f"plane_{_key(config)}.npz"
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as file:
                return {**json.loads(str(file["about"])), **{k: file[k] for k in file.files if k != "about"}}
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            EOFError,
            zipfile.BadZipFile,
        ):  # damaged: measured again
            pass
    found = plane.simplex_plane(config.samples, config.starts, config.steps, config.lam, config.seed)
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
    about = {name: value for name, value in found.items() if name not in arrays}
    arrays["about"] = np.array(json.dumps(about))
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())
    return found


def report(config: Config, rows: list[dict[str, Any]], plane: dict[str, Any]) -> None:
    """Pictures, report.md, report.html and config.json; prints the tables."""
    from amortjax.launch import section5
    from amortjax.report import figures_theorem, sheets, theorem

    out = config.folder
    pictures = figures_theorem.draw(rows, plane, out / "figures")
    page = theorem.report(rows, pictures)
    sheets.write(page, out, section5.used_versions(), dataclasses.asdict(config))
    write_atomically(out / "config.json", flagged.to_json(config))
    print(sheets.printed(page))
    print(f"\nresults {out}/results.csv, pictures {out}/figures, report {out}/report.md and report.html")


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.theorem")
