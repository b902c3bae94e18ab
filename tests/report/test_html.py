import html as escaping
import json
import math
import re

import pytest

from amortjax.errors import AmortjaxError
from amortjax.report import figures, html
from amortjax.report.html import Section, sort_value, write_html
from amortjax.report.svg import inline

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\u2028"


def explored(n=3, strings=(" the", HOSTILE), **more):
    """What `metrics.explorer.explore` returns, of n latents."""
    example = {
        "why": "missed",
        "at": 1,
        "label": HOSTILE,
        "tokens": [0, 1, 0],
        "fires": [[1, 0.0, 1.5], [2, 0.2, 0.1]],
    }
    latents = [
        {"id": i, "kinds": ["price"], "price": 0.5 / (i + 1), "parts": [0.1, 0.1, 0.05], "fires": [3, 4, 2],
         "notes": [HOSTILE], "examples": [example]}
        for i in range(n)
    ]  # fmt: skip
    return {
        "checkpoint": "topk", "lam": 0.1, "n_tokens": 100, "n_documents": 4, "n_latents": 64, "price": 2.0,
        "covered": 0.4, "dead": {"encoder": 1, "optimum": 2, "both": 0}, "probes": "token properties",
        "strings": list(strings), "latents": latents, **more,
    }  # fmt: skip


SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="9in" height="60" viewBox="0 0 648 60">'
    '<g id="a"><text>A</text></g></svg>'
)


def data_of(text):
    return json.loads(re.search(r'id="explorer-data">(.*?)</script>', text, re.DOTALL)[1])


def test_text_that_is_html_is_escaped_everywhere(rows, tmp_path):
    for row in rows:
        row["checkpoint"], row["flags"], row["record"] = HOSTILE, (HOSTILE,), {"form": HOSTILE}
    section = Section(HOSTILE, HOSTILE, (HOSTILE,), [(HOSTILE,)], notes=(HOSTILE,))
    text = write_html(
        rows, tmp_path, {HOSTILE: HOSTILE}, [], explored(), [section], {HOSTILE: HOSTILE}, {HOSTILE: HOSTILE},
        title=HOSTILE, sentences=[HOSTILE],
    ).read_text()  # fmt: skip
    assert "<script>alert" not in text and "<img" not in text
    assert text.count("<script") == 2 and escaping.escape(HOSTILE, quote=False)[:30] in text
    raw = re.search(r'id="explorer-data">(.*?)</script>', text, re.DOTALL)[1]
    assert not set("<>&\u2028") & set(raw)
    assert data_of(text)[0]["strings"][1] == HOSTILE


def test_the_page_asks_for_nothing_and_its_policy_names_its_script(rows, tmp_path):
    import base64
    import hashlib

    text = write_html(rows, tmp_path, {}, explorer=explored()).read_text()
    assert not re.search(r"""(src|href)=["'](?!#)""", text) and "@import" not in text and "url(" not in text
    assert not re.search(r"<[^>]*\son\w+=", re.sub(r'(?s)id="explorer-data">.*?</script>', "", text))
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert len(script) == 1 and f"default-src 'none'; script-src 'sha256-{digest}'" in text
    assert "innerHTML" not in script[0] and "eval" not in script[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (".163 ±.004", 0.163), ("-.000 ±.006", 0), ("≤6.0e-11", 6e-11), ("[.305, .312]", 0.3085), ("8 192", 8192),
        (".186 (.404)", 0.186), ("16.3 (.31 ±.20)", 16.3), ("−2.5", -2.5), ("31 %", 31), ("1.", 1), ("≥.305", 0.305),
        ("-", None), ("ISTA-200 from zero", None), ("2-layer", None), ("1.2.3", None), ("", None), ("nan", None),
        ("[a]", None), ("3rd", None), (".002 [0, .009]", 0.002),
    ],
)  # fmt: skip
def test_cells_are_sorted_by_the_number_they_begin_with(text, value):
    assert sort_value(text) == (value if value is None else pytest.approx(value))


def test_a_column_is_numeric_only_if_all_of_it_is():
    made = html.grid(
        "t", ("name", "ampli-|tude ↓", "mixed"), [("b", 2.5, "1"), ("10", None, "x"), ("a", math.nan, 3)]
    )
    assert made.columns == [("name", False), ("amplitude\u00a0↓", True), ("mixed", False)]
    assert [line[1].sort for line in made.body] == ["2.5", "", ""]
    assert [line[1].text for line in made.body] == ["2.50", "-", "-"]
    assert [line[0].sort for line in made.body] == ["b", "10", "a"]
    assert html.grid("t", ("empty",), [(None,)]).columns == [("empty", False)]


def test_tables_carry_what_they_are_sorted_by(rows, tmp_path):
    text = write_html(
        rows, tmp_path, {"model": "tiny"}, versions={"jax": "0.10"}, flags={"seed": 0}
    ).read_text()
    assert text.count('<table class="sortable">') == 2
    assert re.search(r'<td class="number" data-sort="0.101">.101 ±.004</td>', text)
    assert text.count('aria-sort="none"') > 10 and 'class="text" data-sort="OMP (best found) [a]"' in text
    known = (
        "<dt>model</dt><dd>tiny</dd>",
        "<dt>weights</dt><dd>norm</dd>",
        "<dt>seed</dt><dd>0</dd>",
        "jax 0.10",
    )
    for said in (
        *known,
        "objective is 31 % above",
        "20 480",
        "best found, not certified",
        "nmse.v1",
    ):
        assert said in text


def test_two_hundred_latents_stay_small(rows, tmp_path):
    one = explored(200, strings=[f" word{i}" for i in range(4096)])
    example = one["latents"][0]["examples"][0] | {
        "tokens": list(range(25)),
        "fires": [[i, 0.1234, 1.234] for i in range(25)],
    }
    for latent in one["latents"]:
        latent["examples"] = [example] * 17
    path = write_html(rows, tmp_path, {}, explorer=one)
    assert path.stat().st_size < 5e6 and len(data_of(path.read_text())[0]["latents"]) == 200


def test_figures_do_not_share_ids(rows, tmp_path):
    drawn = [path for path in figures.draw(rows, tmp_path) if path.suffix == ".svg"]
    text = write_html(rows, tmp_path, {}, [drawn[0], drawn[0], drawn[1]]).read_text()
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and len(ids) > 100
    for target in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text):
        assert (target[0] or target[1]) in ids
    assert "var(--ink)" in text and "#ffffff" not in text.split("</style>")[1] and "metadata" not in text


def test_a_drawing_keeps_nothing_that_runs_or_loads():
    bad = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="10pt" height="5pt" '
        'onload="x()"><script>x()</script><foreignObject><b>no</b></foreignObject><a href="http://a"><text>t</text></a>'
        '<use xlink:href="http://a/b#c"/><use xlink:href="#d"/><rect style="fill:url(http://a)" id="d"/></svg>'
    )
    assert inline(bad, "p-", 'a "b"') == (
        '<svg role="img" aria-label="a &quot;b&quot;" class="drawing" viewBox="0 0 13.3333 6.66667" '
        'style="width:13.3333px"><use /><use href="#p-d" /><rect style="fill:none" id="p-d" /></svg>'
    )


def test_parts_that_are_not_there_leave_nothing_behind(tmp_path):
    text = write_html([], tmp_path, {}).read_text()
    for part in ("explorer", "tables", "pictures", "words"):
        assert f'id="{part}"' not in text
    assert "None" not in text and 'id="how"' in text
    assert 'id="explorer"' not in write_html([], tmp_path, {}, explorer=explored(0)).read_text()
    only = write_html([], tmp_path, {}, sections=[Section("Alone", "one\n\ntwo")], name="other.html")
    assert only.name == "other.html" and "<p>one</p>\n<p>two</p>" in only.read_text()


def test_sections_hold_tables_pictures_and_notes(tmp_path):
    (tmp_path / "a.svg").write_text(SVG)
    drawn = [tmp_path / "a.svg", SVG]
    section = Section("Steps", "", ("steps", "NMSE ↓"), [(0, 0.25), (200, None)], drawn, ("a note",))
    text = write_html([], tmp_path, {}, sections=[section, section]).read_text()
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and text.count("width:864px") == 4 and "a note" in text
    assert '<th scope="row" class="number" data-sort="200.0">200</th>' in text
    assert '<td class="number" data-sort=""' in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rows": [{"mode": "optimal"}]}, "lacks checkpoint, condition"),
        ({"rows": [{"mode": "m", "checkpoint": "c", "condition": "same_l0", "nmse": "x"}]}, "not a number"),
        ({"sections": [Section("s", header=("a", "b"), rows=[(1,)])]}, "1 cells, the header 2"),
        ({"figures": ["missing.svg"]}, "missing.svg: the picture can't be read"),
        ({"sections": [Section("s", svg="<svg")]}, "not an svg file"),
        ({"sections": [Section("s", svg="<p></p>")]}, "its root is p"),
        ({"explorer": {"latents": []}}, "lacks 'lam'"),
        ({"explorer": explored(price=math.nan)}, "not finite"),
        ({"explorer": explored(strings=(" the",))}, "outside of its 1 texts"),
        ({"explorer": explored(strings=(1, 2))}, "a text is not text"),
        ({"explorer": [3]}, "not as explore returns it"),
        ({"explorer": explored(latents=[{"id": 1}])}, "lacks 'price'"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line_and_leaves_no_file(given, said, tmp_path):
    with pytest.raises(AmortjaxError, match=re.escape(said)) as caught:
        write_html(**{"rows": [], "folder": tmp_path, "about": {}, **given})
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_half_a_character_of_a_vocabulary_is_written_as_an_escape(tmp_path):
    path = write_html([], tmp_path, {"corpus": "\ud800"}, explorer=explored(strings=("\ud800", "é")))
    assert data_of(path.read_text())[0]["strings"] == ["\ud800", "é"]
