import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from amortjax.report import figures, page
from amortjax.report.schema import CONDITIONS, FLAGS, MODES

PNG = b"\x89PNG\r\n\x1a\n"


def test_one_picture_per_condition_equal_for_equal_rows(rows, tmp_path):
    paths = figures.draw(rows, tmp_path)
    assert [p.name for p in paths] == ["same_lambda.png", "same_lambda.svg", "same_l0.png", "same_l0.svg"]
    for path in paths:
        data = path.read_bytes()
        assert data.startswith(PNG) if path.suffix == ".png" else ET.fromstring(data).tag.endswith("svg")
    text = (tmp_path / "same_l0.svg").read_text()
    for said in (
        "every mode recalibrated to L0 = 32.0",
        "NMSE ↓",
        "tick: chance",
        "ISTA-200 from zero",
        ".163",
    ):
        assert said in text
    again = figures.draw(rows, tmp_path / "again")
    assert again[3].read_text() == text


def test_every_mode_has_its_own_colour():
    assert list(figures.COLOURS) == list(MODES) and len(set(figures.COLOURS.values())) == len(MODES)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_rows_full_of_flags_or_without_values_are_drawn(condition, tmp_path):
    base = {
        "checkpoint": "a",
        "condition": condition,
        "flags": tuple(FLAGS),
        "n_tokens": 10,
        "n_documents": 3,
    }
    given = [{**base, "mode": mode} for mode in MODES]
    given[0] |= {"nmse": 0.2, "df1": -0.05, "df1_lo": -0.1, "df1_hi": 0.0, "l0": 0.0, "density": 0.1}
    given += [{**given[0], "checkpoint": "b"}]
    text = figures.draw(given, tmp_path)[1].read_text()
    assert "not defined" in text and "hatched" in text


def test_reading_the_report_package_does_not_load_matplotlib():
    code = "import sys; from amortjax.report import figures, page, tables; print('matplotlib' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_headlines_say_what_the_rows_hold(rows):
    text = "\n".join(page.headlines(rows))
    assert "at the same lambda (.123) the encoder's objective is 31 % above the optimum's" in text
    assert (
        "ISTA-200 from zero, 0.96 %" in text
        and "one global scale on the encoder's codes removes 60 %" in text
    )
    assert "amplitude, 19 % of the optimum's objective" in text and "support, 12 % (what the" in text
    assert "NMSE is .163; least squares on its own latents leaves .149, on the optimum's .128." in text
    assert "fires 45.2 latents a token, 42 % more than the optimum's 31.8" in text
    assert "at equal L0 (32.0) the encoder's NMSE is .163; best first, OMP (best found) .101; " in text
    assert "encoder support, refit .149" not in text  # its L0 is off the target
    assert "absorption is .225 for the encoder" in text and "would show .180" in text
    assert page.headlines([{"checkpoint": "a", "mode": "amortized", "condition": "same_l0"}]) == []


def test_a_paired_difference_is_said_to_exclude_zero_or_not(rows):
    best = next(r for r in rows if r["mode"] == "optimal" and r["condition"] == "same_l0")
    best |= {"df1_minus_amortized": -0.026, "df1_minus_amortized_lo": -0.04, "df1_minus_amortized_hi": -0.012}
    assert "-.026 ±.014: the interval excludes 0" in "\n".join(page.headlines(rows))
    best["df1_minus_amortized_hi"] = 0.01
    assert "the interval includes 0" in "\n".join(page.headlines(rows))


def test_the_page_holds_all_parts_and_links_pictures(rows, tmp_path):
    pictures = figures.draw(rows, tmp_path / "figures")
    path = page.write_page(rows, tmp_path, {"model": "tiny|lm", "layer": 3}, pictures, {"jax": "0.10"})
    text = path.read_text()
    assert "| model | tiny\\|lm |" in text and "| tokens | 20 480 |" in text
    assert "(figures/same_l0.png)" in text and ".svg" not in text
    for heading in ("In words", "Tables", "What the numbers mean", "Protocol", "Flags", "Versions"):
        assert f"## {heading}" in text
    assert "| NMSE | lower is better ↓ |" in text and "dense@0.2" not in text  # no row holds it
    assert "`literal`" not in text
    literal = [
        {**rows[0], "condition": "literal", "protocol": "literal", "nmse_literal": 0.4, "density": 0.1}
    ]
    said = page.write_page(literal, tmp_path, {}, name="literal.md").read_text()
    assert "pseudo-labels" in said and "`controlled`" not in said and "encoder .400 at density .100" in said
