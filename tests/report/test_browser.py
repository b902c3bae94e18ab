"""report.html in a real browser: Debian's chromium, driven by playwright."""

import os
import shutil
import time

import pytest
from test_html import SVG, explored

from amortjax.report.html import Section, write_html

HOSTILE = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
WORDS = [" the", " <b>bold</b>", HOSTILE, " quokka", "\n", *(f" word{i}" for i in range(400))]


def missing(reason: str):
    """Where the tests must pass, what they need is there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (required under CI=true)")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def chromium():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        missing("there is no chromium on this machine")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


def latents(n: int) -> list[dict]:
    """200 latents as large as real ones: 17 windows of 25 tokens."""
    out = []
    for i in range(n):
        tokens = [(7 * i + 3 * t) % len(WORDS) for t in range(25)]
        tokens[12] = 3 if i == 150 else (2 if i == 0 else 5 + i)
        fires = [[12, 0.0, 1.5], [13, 0.7, 0.4], [20, 0.2, 0.0]]
        example = {"why": "missed", "at": 12, "label": HOSTILE, "tokens": tokens, "fires": fires}
        kinds = ["dead in encoder"] if i % 10 == 3 else ["price"]
        latent = {
            "id": 1000 - i,
            "kinds": kinds,
            "price": 1.0 / (i + 1),
            "parts": [0.1, 0.2, 0.3],
            "fires": [9, 8, i % 7],
        }
        out.append({**latent, "notes": [HOSTILE], "examples": [example] * 17})
    return out


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    shared = {
        "checkpoint": "a",
        "condition": "same_l0",
        "record": {"form": "half"},
        "n_tokens": 9000,
        "n_documents": 90,
    }
    values = {
        "amortized": (0.163, 32.0),
        "encoder_refit": (None, 31.0),
        "optimal": (0.0249, 9.5),
        "omp": (6.1e-5, 100.0),
    }
    rows = [
        {**shared, "mode": mode, "nmse": v, "fvu": v, "l0": l0, "lam": 0.1}
        for mode, (v, l0) in values.items()
    ]
    long = "a" * 300
    section = Section(
        HOSTILE, HOSTILE, ("claim", "n"), [(f"{long} {HOSTILE}", 3), ("b", 10), ("c", 2)], SVG, (HOSTILE,)
    )
    one = explored(0, strings=WORDS, latents=latents(200), checkpoint=HOSTILE)
    folder = tmp_path_factory.mktemp("page")
    return write_html(
        rows, folder, {"corpus": HOSTILE, "long": long}, [], one, [section], flags={"acts": long}
    )


@pytest.fixture(params=[(1360, 900, "light")])
def page(chromium, path, request):
    """The open page; whatever the browser complains of fails the test."""
    width, height, scheme = request.param
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if "file://" not in request.url else None)
    page.goto(path.as_uri())
    yield page
    assert said == []
    context.close()


def column(page, i: int) -> list[str]:
    return page.locator("#tables tbody tr").evaluate_all(f"rows => rows.map(r => r.cells[{i}].textContent)")


def test_the_page_opens_quickly_and_runs_no_text_of_the_corpus(page):
    took = []
    for _ in range(3):  # the best of three: other work on the machine is not the page's
        began = time.monotonic()
        page.reload()
        page.wait_for_selector("#latents li:nth-child(200)")
        took.append(time.monotonic() - began)
    assert min(took) < 2
    assert page.title() == "The price of the encoder"
    assert page.locator("img, script[src], iframe").count() == 0
    assert HOSTILE in page.locator("#latent .centre").first.text_content()
    assert HOSTILE in page.locator("#latent .note").first.text_content()


def test_the_policy_forbids_scripts_handlers_and_the_network(chromium, path):
    page = chromium.new_page()
    page.goto(path.as_uri())
    page.evaluate(
        """() => {
            const made = document.createElement("div");
            made.innerHTML = '<img src="https://example.invalid/x.png" onerror="document.title=1">';
            const script = document.createElement("script");
            script.textContent = "document.title = 2";
            document.body.append(made, script);
        }"""
    )
    refused = page.evaluate("fetch('https://example.invalid/').then(() => 'sent', (error) => error.message)")
    page.wait_for_timeout(100)
    assert page.title() == "The price of the encoder" and refused != "sent"
    page.close()


def test_columns_sort_by_number_with_mouse_and_keyboard(page):
    as_it_was = column(page, 0)
    names = page.locator("#tables thead th").all_text_contents()
    i = next(i for i, name in enumerate(names) if name.startswith("NMSE"))
    head = page.locator("#tables thead th").nth(i)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, i) == ["6.1e-5", ".0249", ".163", "-"]
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, i) == [".163", ".0249", "6.1e-5", "-"]
    other = page.locator("#tables thead th").nth(0)
    other.locator("button").press("Space")
    assert head.get_attribute("aria-sort") == "none" and column(page, 0) == sorted(as_it_was, key=str.lower)
    other.locator("button").click()
    other.locator("button").click()
    assert other.get_attribute("aria-sort") == "none" and column(page, 0) == as_it_was


def shown(page) -> list[str]:
    return page.locator("#latents li b").all_text_contents()


def test_search_finds_ids_kinds_and_tokens(page):
    search = page.locator("#search")
    assert len(shown(page)) == 200 and shown(page)[0] == "latent 1000"
    search.fill("850")
    assert shown(page) == ["latent 850"]
    search.fill("quokka")
    assert "latent 850" in shown(page) and len(shown(page)) < 200
    assert page.locator("#latent .hit").count() > 0
    search.fill("dead in the")
    assert len(shown(page)) == 20 and page.locator("#count").text_content() == "20 of 200 latents"
    search.fill("<script>document")  # as it stands in the corpus
    assert len(shown(page)) > 0
    search.fill("nothing of the kind")
    assert shown(page) == [] and "No latent matches" in page.locator("#latent").text_content()
    search.press("Escape")
    assert len(shown(page)) == 200
    page.locator("#kinds button", has_text="dead in the encoder").click()
    assert len(shown(page)) == 20
    page.locator("#order").select_option("id")
    assert shown(page)[0] == "latent 807"


def chosen(page) -> str:
    return page.locator("#latent h3").text_content()


def test_everything_is_reached_with_the_keyboard(page):
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("9/")
    assert page.locator("#search").input_value() == "9/"
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowDown")
    assert chosen(page) == "latent 999"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "latent"
    page.keyboard.press("ArrowRight")
    assert chosen(page) == "latent 998"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "latents"
    page.keyboard.press("End")
    assert chosen(page) == "latent 801"
    row = page.locator('#latents li[aria-selected="true"]')
    assert row.count() == 1 and page.locator("#latents").get_attribute(
        "aria-activedescendant"
    ) == row.get_attribute("id")
    box, inside = page.locator("#latents").bounding_box(), row.bounding_box()
    assert inside["y"] + inside["height"] <= box["y"] + box["height"] + 2
    page.keyboard.press("ArrowUp")
    assert chosen(page) == "latent 802"


def test_both_activations_are_shown(page):
    values = page.locator("#latent .values").first.locator("span").all_text_contents()
    assert values[:2] == ["encoder 0", "optimum 1.50"]
    title = page.locator("#latent .sample").first.locator(".token").nth(13).get_attribute("title")
    assert title == "encoder .700, optimum .400"


@pytest.mark.parametrize(
    "page", [(360, 740, "light"), (360, 740, "dark"), (768, 900, "light")], indirect=True
)
def test_narrow_pages_do_not_scroll_sideways_but_tables_do(page):
    wide = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1]
    assert page.locator("#tables .scroll").first.evaluate("box => getComputedStyle(box).overflowX") == "auto"
    drawing = page.locator("svg.drawing").first.bounding_box()
    assert drawing["width"] > 700  # its text stays readable


LIGHTNESS = (
    "e => getComputedStyle(e).%s.match(/[0-9.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) / 765"
)


@pytest.mark.parametrize("page", [(1360, 900, "light"), (1360, 900, "dark")], indirect=True)
def test_light_and_dark_have_contrast(page, tmp_path):
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    body = page.locator("body")
    back, ink = (body.evaluate(LIGHTNESS % name) for name in ("backgroundColor", "color"))
    assert (back < 0.15 and ink > 0.8) if dark else (back > 0.9 and ink < 0.2)
    fill = page.locator("svg.drawing text").first.evaluate(LIGHTNESS % "fill")
    assert fill == ink
    page.screenshot(path=str(tmp_path / "page.png"))
    assert (tmp_path / "page.png").stat().st_size > 10_000
