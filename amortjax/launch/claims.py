"""The claims ledger: which claims of the two papers do the results at hand support?

Reads every results.json and loca.json in and below some folders (launch.section5, section43, step_sweep, dead_audit,
nulls, consistency, decompose, core_lite, loca) and gives each claim a verdict: holds, holds in part, does not hold
here, not testable here. Nothing is computed anew, and no verdict comes from a number without an interval. Writes
claims.csv, claims.json, claims.md and claims.html to --out.
"""

import dataclasses
import sys
from typing import Annotated, Any

from amortjax.errors import AmortjaxError
from amortjax.launch import flagged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(flagged.Out):
    results: Annotated[tuple[str, ...], "Folders of results, searched downward, or results.json files."]

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag."""
        if not self.results:
            raise AmortjaxError(
                "--results is empty: name at least one folder, as in --results=outputs/quickstart"
            )
        return self


def run(config: Config) -> list[dict[str, Any]]:
    """Reads, judges, writes and prints; returns the entries."""
    config = config.checked()
    from amortjax.launch.section5 import used_versions
    from amortjax.report import claims, claims_rows, html

    found = claims_rows.read(config.results)
    for notice in found.notices:
        print(notice, file=sys.stderr)
    entries, out = claims.ledger(found.rows), config.folder
    claims.write(entries, found, out)
    about = {"result files": "; ".join(f"{path.parent.name}/{path.name}" for path in found.files) or "none"}
    html.write_html(
        [], out, about, sections=[claims.section(entries)], versions=used_versions(), flags=dataclasses.asdict(config),
        name="claims.html", title=claims.TITLE, sentences=claims.headlines(entries),
    )  # fmt: skip
    print(claims.printed(entries))
    print(f"\nresults {out}/claims.csv, claims.json, claims.md and claims.html")
    return entries


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.claims")
