"""Reports made of sheets: a table and what is said of it. For a terminal, as report.md and as report.html."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from amortjax.files import write_atomically
from amortjax.report import html, trajectories
from amortjax.report.schema import FLAGS


class Sheet(NamedTuple):
    title: str
    header: list[str]
    body: list[list[str]]
    text: str = ""

    @property
    def table(self) -> trajectories.Table:
        return trajectories.Table(self.title, self.header, self.body)


def noted(flags: Iterable[str]) -> str:
    """A row's flags in words."""
    return "; ".join(str(FLAGS.get(flag, flag)) for flag in flags)


class Report(NamedTuple):
    """`about`: what was measured, {label: value}; `explained`: paragraphs, parted by blank lines."""

    title: str
    about: Mapping[str, str]
    sentences: Sequence[str]
    sheets: Sequence[Sheet]
    explained: str
    pictures: Sequence[Path] = ()


def printed(report: Report) -> str:
    """For a terminal."""
    return "\n\n".join(
        [*(trajectories.printed(sheet.table) for sheet in report.sheets), "\n".join(report.sentences)]
    )


def write(report: Report, folder: Path, versions: Mapping[str, str], flags: Mapping[str, Any]) -> None:
    """report.md and report.html in `folder`, atomically. Pictures lie below it."""
    about = ["| measured | |", "|---|---|", *(f"| {key} | {value} |" for key, value in report.about.items())]
    parts = [f"# {report.title}", "\n".join(about)]
    if report.sentences:
        parts += ["## In words", "\n".join(f"- {sentence}" for sentence in report.sentences)]
    shown = [path for path in report.pictures if path.suffix == ".png"]
    parts += [f"![{path.stem}]({path.relative_to(folder).as_posix()})" for path in shown]
    for sheet in report.sheets:
        text = (f"## {sheet.title}", sheet.text, trajectories.markdown(sheet.table))
        parts += [part for part in text if part]
    parts += ["## What the numbers mean", report.explained]
    parts += ["## Versions", ", ".join(f"{name} {version}" for name, version in versions.items())]
    write_atomically(folder / "report.md", "\n\n".join(parts) + "\n")
    html.write_html(
        [], folder, report.about, report.pictures, None, sections(report), versions, flags, title=report.title,
        sentences=report.sentences,
    )  # fmt: skip


def sections(report: Report, explained: str = "What the numbers mean") -> list[html.Section]:
    """Its sheets and explanation as parts of a page."""
    found = [html.Section(sheet.title, sheet.text, sheet.header, sheet.body) for sheet in report.sheets]
    return [*found, html.Section(explained, report.explained)]
