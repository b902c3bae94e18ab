"""The picture of a training."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from amortjax.report import canvas, training

PNG = b"\x89PNG\r\n\x1a\n"


def _lines(fvu: float = 0.2, count: int = 8) -> list[dict]:
    lines = []
    for i in range(1, count + 1):
        line = {
            "step": 50 * i,
            "loss": 0.3,
            "fvu": fvu + 1 / i**2,
            "l0": 32.0,
            "dead": 3.0,
            "tokens_per_second": 9e3,
        }
        if i % 2 == 0:
            line |= {"val_fvu": 1.1 * fvu + 1 / i**2, "val_l0": 31.5, "val_dead": 0.01}
        if i % 4 == 0:
            line |= {"val_gap": 0.3, "val_gap_width": 1e-4, "val_lam": 0.05} if i % 8 else {"val_gap": None}
        lines.append(line)
    return lines


def _said(path) -> set[str]:
    """What an svg says: its texts are kept as such."""
    return {"".join(node.itertext()).strip() for node in ET.parse(path).iter() if node.tag.endswith("text")}


def test_one_picture_of_several_saes_equal_for_equal_lines(tmp_path):
    runs = {"k_20": _lines(0.3), "k_40": _lines(0.2)}
    png, svg = training.draw(runs, tmp_path / "sweep" / "training.png")
    assert (png.name, svg.name) == ("training.png", "training.svg") and png.read_bytes().startswith(PNG)
    said = _said(svg)
    assert {"k_20", "k_40", *(panel.title for panel in training.PANELS)} <= said
    assert "Thin: training batches. Thick: held-out rows." in said
    again = training.draw(runs, tmp_path / "again.png")
    assert again[1].read_bytes() == svg.read_bytes()


def test_every_number_of_a_line_that_a_panel_shows_reaches_the_picture(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(training, "_draw_line", lambda axis, points, *_: drawn.append(points))
    training.draw({"a": _lines()}, tmp_path / "training.png")
    for key in ("fvu", "val_fvu", "l0", "val_l0", "dead", "val_dead", "val_gap", "tokens_per_second"):
        wanted = [(line["step"], line[key]) for line in _lines() if line.get(key) is not None]
        assert wanted in drawn
    assert (
        len(next(points for points in drawn if points and points[0][1] == 0.3)) == 1
    )  # the gap that is null


def test_what_was_not_measured_has_no_panel(tmp_path):
    lines = [{"step": 5, "fvu": 0.2, "l0": None, "val_gap": float("nan"), "val_dead": None}]
    said = _said(training.draw({"short": lines}, tmp_path / "one.png")[1])
    assert {"FVU ↓", "short", "Thin: training batches."} <= said
    assert not said & {panel.title for panel in training.PANELS[1:]}
    assert training.draw({"none": [], "nothing": [{"step": 1}]}, tmp_path / "none.png") == []
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.08, 1.2, ["0.1", "0.2", "0.5", "1"]),
        (18, 700, ["20", "50", "100", "200", "500"]),
        (0.009, 11, ["0.01", "0.1", "1", "10"]),
        (310, 570, ["400", "500"]),
    ],
)
def test_a_logarithmic_axis_has_a_few_round_ticks(low, high, ticks):
    figure = canvas.blank(3, 3)
    axis = figure.subplots()
    axis.set_yscale("log")
    axis.set_ylim(low, high)
    canvas.log_ticks(axis.yaxis)
    assert [label.get_text() for label in axis.get_yticklabels()] == ticks
    assert not len(axis.get_yticks(minor=True))
    assert canvas.rendered(figure, "png")[:4] == b"\x89PNG"


def test_more_saes_than_colours_can_still_be_told_apart(tmp_path):
    styles = {json.dumps(training._style(i)) for i in range(24)}
    assert len(styles) == 24
    assert len(training.draw({f"sae_{i}": _lines(count=2) for i in range(24)}, tmp_path / "many.png")) == 2


def test_reading_the_module_does_not_load_matplotlib():
    code = "import sys; from amortjax.report import training; print('matplotlib' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
