"""report.html: the whole report in one file that needs nothing else, with sortable tables and the latent explorer.

    write_html(rows, folder, about, figures=paths, explorer=[explore(...)], sections=[Section("Claims", ...)])

Drawn with jinja2, autoescape on. The page may load nothing and run nothing but its own script (a content
security policy says so), and text of the corpus is only ever text.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from amortjax.errors import AmortjaxError
from amortjax.files import write_atomically
from amortjax.metrics.definitions import ARROWS, METRICS
from amortjax.report.numbers import MISSING, grouped_digits, short
from amortjax.report.page import CONTROLLED, LITERAL, headlines
from amortjax.report.schema import FLAGS, Row, check_row, flagged, order
from amortjax.report.svg import inline
from amortjax.report.tables import make_tables


class Section(NamedTuple):
    """A part of the page that a launcher adds. `text`: paragraphs, parted by blank lines. `rows`: cells are text,
    numbers or None, as many as `header`. `svg`: paths of svg files, or svg text."""

    title: str
    text: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    svg: str | Path | Sequence[str | Path] = ()
    notes: Sequence[str] = ()


class Cell(NamedTuple):
    text: str
    sort: str  # a number, "" where there is none, or, in a column of text, the text


class Grid(NamedTuple):
    """A table: its columns (text, whether it holds numbers) and its cells."""

    title: str
    about: str
    columns: list[tuple[str, bool]]
    body: list[list[Cell]]
    notes: list[str]


_NUMBER = r"[-−+]?(?:\d[\d ]*(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?"
_LEADING = re.compile(rf"[≤≥~]?({_NUMBER}) ?%?(?![\w.-])")
_BOUNDS = re.compile(rf"\[({_NUMBER}), ({_NUMBER})\]")


def sort_value(text: str) -> float | None:
    """What a cell is sorted by: the number it begins with (".163 ±.004", "≤6.0e-11", "8 192"), the middle of an
    interval ("[.305, .312]"), None if it is not a number."""
    bounds = _BOUNDS.match(text)
    found = bounds.groups() if bounds else _LEADING.match(text) and [_LEADING.match(text)[1]]  # pyright: ignore
    if not found:
        return None
    return sum(float(part.replace(" ", "").replace("−", "-")) for part in found) / len(found)


def grid(title: str, header: Sequence[str], body: Iterable[Sequence[Any]], about="", notes=()) -> Grid:
    """A table of text, numbers and None. A column of which every cell is a number or missing is sorted as such."""
    lines = [[_shown(cell) for cell in line] for line in body]
    for line in lines:
        if len(line) != len(header):
            raise AmortjaxError(f"table {title!r}: a row has {len(line)} cells, the header {len(header)}")
    columns, cells = [], []
    for i, name in enumerate(header):
        values = [sort_value(line[i]) for line in lines]
        known = [v is not None or line[i] == MISSING for v, line in zip(values, lines, strict=True)]
        numeric = all(known) and any(v is not None for v in values)
        columns.append((_one_line(name), numeric))
        cells.append([Cell(t[i], _key(v, t[i], numeric)) for v, t in zip(values, lines, strict=True)])
    return Grid(title, about, columns, [list(line) for line in zip(*cells, strict=True)], list(notes))


def _key(value: float | None, text: str, numeric: bool) -> str:
    if numeric:
        return "" if value is None else repr(value)
    return "" if text == MISSING else text


def _shown(cell: Any) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return MISSING
    return short(cell) if isinstance(cell, int | float) else str(cell)


def _one_line(header: str) -> str:
    """ "ampli-|tude ↓" of a terminal's two lines is "amplitude ↓"; no line ends before the arrow."""
    text = str(header).replace("-|", "").replace("|", " ").strip()
    return text.replace(" ↓", "\u00a0↓").replace(" ↑", "\u00a0↑")


def write_html(
    rows: Iterable[Row],
    folder: str | Path,
    about: Mapping[str, Any],
    figures: Iterable[str | Path] = (),
    explorer: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    sections: Iterable[Section] = (),
    versions: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    name: str = "report.html",
    title: str = "The price of the encoder",
    sentences: Iterable[str] | None = None,
) -> Path:
    """The page of result rows (`report.schema`; none is allowed); returns its path. Written atomically.

    about: what was measured, {label: value}. figures: paths of which those that end in .svg are drawn. explorer:
    what `metrics.explorer.explore` returns, of one SAE or of several. flags: those given. sentences: the headlines,
    by default `page.headlines(rows)`. AmortjaxError, and no file, if anything given cannot be shown.
    """
    rows = list(rows)
    for row in rows:
        check_row(row)
    rows = [flagged(row) for row in order(rows)]
    known = _explorers(explorer)
    try:
        tables = [grid(t.title, t.header, t.body, t.about, t.notes) for t in make_tables(rows)]
        said = headlines(rows) if sentences is None else list(sentences)
    except (TypeError, ValueError, AttributeError) as error:
        raise AmortjaxError(f"a result row holds a value that is not a number ({error})") from None
    drawn = [path for path in map(Path, figures) if path.suffix == ".svg"]
    text = _rendered(
        title=title,
        about=_about(rows, about),
        sentences=said,
        figures=[(_caption(path), _picture(path, f"f{i}-")) for i, path in enumerate(drawn)],
        tables=tables,
        sections=[_section(section, i) for i, section in enumerate(sections)],
        explorers=known,
        records=_records(rows),
        flags=[(key, _flag(value)) for key, value in (flags or {}).items()],
        meanings=_meanings(rows),
        protocols=_protocols(rows),
        marks=[
            (flag, FLAGS.get(flag, flag)) for flag in dict.fromkeys(f for row in rows for f in row["flags"])
        ],
        versions=list((versions or {}).items()),
    )
    path = Path(folder) / name
    # A vocabulary may hold halves of characters, which no encoding has.
    write_atomically(path, text.encode("utf-8", "replace"))
    return path


def _rendered(**parts: Any) -> str:
    loader = jinja2.PackageLoader("amortjax.report", "templates")
    env = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # tojson writes <, >, & and ' as \u escapes, so that no text can end the script element it stands in.
    env.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    style, script = (loader.get_source(env, name)[0] for name in ("style.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assets = {"style": Markup(style), "script": Markup(script), "script_hash": f"sha256-{digest}"}
    try:
        return env.get_template("page.html.j2").render(**parts, **assets)
    except (TypeError, ValueError) as error:
        raise AmortjaxError(f"the report holds a value that can't be shown ({error})") from None


def _about(rows: list[Row], about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was measured; token and document counts come from the rows."""
    items = {str(key): str(value) for key, value in about.items() if value not in (None, "")}
    for label, key in (("tokens", "n_tokens"), ("documents", "n_documents")):
        found = {row[key] for row in rows if isinstance(row.get(key), int)}
        if found and label not in items:
            items[label] = " to ".join(grouped_digits(n) for n in sorted({min(found), max(found)}))
    return list(items.items())


def _caption(path: Path) -> str:
    return path.stem.replace("_", " ")


def _picture(path: str | Path, prefix: str, title: str = "") -> Markup:
    """Of a file, or of svg text."""
    if isinstance(path, str) and path.lstrip().startswith("<"):
        return Markup(inline(path, prefix, title))
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AmortjaxError(f"{path}: the picture can't be read ({error}): draw it again") from None
    return Markup(inline(text, prefix, title or _caption(path), str(path)))


def _section(section: Section, number: int) -> dict[str, Any]:
    pictures = [section.svg] if isinstance(section.svg, str | Path) else list(section.svg)
    made = [_picture(p, f"s{number}-{i}-", section.title) for i, p in enumerate(pictures) if str(p).strip()]
    return {
        "title": section.title,
        "paragraphs": [part.strip() for part in re.split(r"\n\s*\n", section.text) if part.strip()],
        "grid": grid(section.title, section.header, section.rows, notes=section.notes)
        if section.header
        else None,
        "notes": [] if section.header else list(section.notes),
        "pictures": made,
    }


def _explorers(explorer: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None) -> list[Mapping[str, Any]]:
    """As a list, checked; those without latents are left out."""
    given = [explorer] if isinstance(explorer, Mapping) else list(explorer or ())
    for one in given:
        try:
            _check_explorer(one)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = (
                f"lacks {error}" if isinstance(error, KeyError) else f"is not as explore returns it ({error})"
            )
            raise AmortjaxError(f"the latent explorer's data {what}: collect it again") from None
    return [one for one in given if one["latents"]]


def _check_explorer(one: Mapping[str, Any]) -> None:
    numbers = [one["lam"], one["n_tokens"], one["n_latents"], one["price"], *one["dead"].values()]
    n, texts = len(one["strings"]), [one["checkpoint"], one["probes"], *one["strings"]]
    for latent in one["latents"]:
        numbers += [latent["id"], latent["price"], *latent["parts"], *latent["fires"]]
        texts += [*latent["kinds"], *latent["notes"]]
        for example in latent["examples"]:
            texts += [example["why"], example["label"]]
            places = [example["at"], *(place for place, _, _ in example["fires"])]
            if not all(0 <= place < len(example["tokens"]) for place in places):
                raise ValueError(f"latent {latent['id']}: a place outside of its window")
            if not all(0 <= token < n for token in example["tokens"]):
                raise ValueError(f"latent {latent['id']}: a token outside of its {n} texts")
            numbers += [value for fire in example["fires"] for value in fire]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a text is not text")
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers):
        raise ValueError("a number is not finite")


def _records(rows: list[Row]) -> list[list[tuple[str, str]]]:
    """Each objective record that some row holds, without its lambda, which the tables show."""
    found = [row["record"] for row in rows if isinstance(row.get("record"), Mapping)]
    plain = [tuple((str(k), str(v)) for k, v in record.items() if k != "lam") for record in found]
    return [list(record) for record in dict.fromkeys(plain)]


def _flag(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return json.dumps(value) if isinstance(value, bool | type(None)) else str(value)


def _meanings(rows: list[Row]) -> list[tuple[str, str, str, str]]:
    """(number, which way is better, meaning, id of the definition) of each metric that some row holds."""
    better = {"lower": f"lower {ARROWS['lower']}", "higher": f"higher {ARROWS['higher']}"}
    held = [(key, m) for key, m in METRICS.items() if any(row.get(key) is not None for row in rows)]
    return [(m.label, better.get(m.direction, "neither"), m.text, m.id) for _, m in held]


def _protocols(rows: list[Row]) -> list[str]:
    """The protocols' texts, without the marks of markdown."""
    used = {row.get("protocol", "controlled") for row in rows}
    texts = [text for key, text in (("controlled", CONTROLLED), ("literal", LITERAL)) if key in used]
    return [text.replace("`", "").replace("*", "") for text in texts]
