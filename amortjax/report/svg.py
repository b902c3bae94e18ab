"""An svg picture as part of an HTML page: ids of its own, colours that follow the page's, nothing that can run.

inline(Path("same_l0.svg").read_text(), prefix="f0-", title="same L0")      # "<svg ...>...</svg>"
"""

import re
import xml.etree.ElementTree as ET

from amortjax.errors import AmortjaxError

# What drawings are made of; anything else (scripts, foreign HTML, animations, metadata, style sheets) is left out.
SHAPES = frozenset(
    (
        *(
            "svg",
            "g",
            "defs",
            "use",
            "clipPath",
            "pattern",
            "marker",
            "linearGradient",
            "radialGradient",
            "stop",
        ),
        *(
            "path",
            "rect",
            "circle",
            "ellipse",
            "line",
            "polyline",
            "polygon",
            "text",
            "tspan",
            "title",
            "desc",
        ),
    )
)
# Greys that matplotlib draws with, as the page's colours: they are other ones in the dark.
COLOURS = {
    "#ffffff": "var(--surface)",
    "#000000": "var(--ink)",
    "#222222": "var(--ink)",
    "#444444": "var(--ink)",
    "#555555": "var(--quiet)",
    "#999999": "var(--quiet)",
    "#eeeeee": "var(--line)",
    "#dddddd": "var(--line)",
    "#cccccc": "var(--line)",
}
_ADDRESS = re.compile(r"url\(\s*['\"]?([^)'\"]*)['\"]?\s*\)")
_LENGTH = re.compile(r"\s*([0-9.]+)\s*(px|pt|in|)\s*")
_PIXELS = {"px": 1.0, "": 1.0, "pt": 96 / 72, "in": 96.0}


def inline(text: str, prefix: str, title: str, source: str = "a picture") -> str:
    """The drawing as an svg element for an HTML page, ids beginning with `prefix`; `source` is named in errors.

    Its natural size is its style's width: pages may let it shrink. AmortjaxError if the text is not an svg file.
    """
    try:
        root = ET.fromstring(text)
    except (ET.ParseError, ValueError) as error:
        raise AmortjaxError(f"{source}: not an svg file ({error}): draw it again") from None
    if _local(root.tag) != "svg":
        raise AmortjaxError(f"{source}: its root is {_local(root.tag)}, not svg: draw it again")
    width, height = (_pixels(root.get(side)) for side in ("width", "height"))
    box = root.get("viewBox") or (f"0 0 {width:g} {height:g}" if width and height else None)
    _clean(root, prefix)
    for name in ("width", "height", "x", "y", "version", "style", "id"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": title, "class": "drawing"}
    root.attrib |= {"viewBox": box} if box else {}
    root.attrib |= {"style": f"width:{width:g}px"} if width else {}
    root.tail = None
    return ET.tostring(root, encoding="unicode")


def _local(tag: object) -> str:
    """A tag without its namespace; "" of comments and the like."""
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def _pixels(length: str | None) -> float | None:
    found = _LENGTH.fullmatch(length or "")
    try:
        return float(found[1]) * _PIXELS[found[2]] if found else None
    except ValueError:
        return None


def _clean(element: ET.Element, prefix: str) -> None:
    """Names without namespaces, ids with the prefix, colours by name; what is not drawn is removed."""
    element.tag = _local(element.tag)
    kept = {}
    for name, value in element.attrib.items():
        name = _local(name)
        if name.lower().startswith("on") or (name == "href" and not value.startswith("#")):
            continue
        value = f"{prefix}{value}" if name == "id" else _pointed(name, value, prefix)
        kept[name] = _coloured(value) if name in ("style", "fill", "stroke") else value
    element.attrib.clear()
    element.attrib.update(kept)
    for child in list(element):
        if _local(child.tag) in SHAPES:
            _clean(child, prefix)
        else:
            element.remove(child)


def _pointed(name: str, value: str, prefix: str) -> str:
    """References to ids of the drawing; those to anywhere else become "none"."""
    if name == "href":
        return f"#{prefix}{value[1:]}"
    return _ADDRESS.sub(lambda m: f"url(#{prefix}{m[1][1:]})" if m[1].startswith("#") else "none", value)


def _coloured(value: str) -> str:
    return re.sub(r"#[0-9a-fA-F]{6}\b", lambda m: COLOURS.get(m[0].lower(), m[0]), value)
