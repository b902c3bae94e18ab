"""The report of automated interpretability: what is said follows from the rows, and what is not there is not said."""

from pathlib import Path

import pytest

from amortjax.report import figures_interp, interp

ROW = {
    "checkpoint": "sae", "mode": "amortized", "condition": "autointerp", "protocol": "controlled", "flags": (),
    "macro_f1": 0.7, "macro_f1_lo": 0.65, "macro_f1_hi": 0.75, "macro_f1_median": 0.72, "macro_f1_median_lo": 0.7,
    "macro_f1_median_hi": 0.74, "chance_random": 0.494, "chance_all_ones": 1 / 3, "n_scored": 120, "n_too_few": 2,
    "n_no_negatives": 3, "n_unparsed": 1, "n_negatives_active": 0, "l0": 16.0, "precision": 0.9, "recall": 0.5,
}  # fmt: skip
OPTIMUM = ROW | {
    "mode": "optimal", "macro_f1": 0.6, "macro_f1_lo": 0.5, "macro_f1_hi": 0.7, "against_mode": "amortized",
    "macro_f1_difference_mode": -0.1, "macro_f1_difference_lo_mode": -0.2, "macro_f1_difference_hi_mode": -0.05,
    "macro_f1_median_difference_mode": -0.1, "paired_mode": True, "n_pairs_mode": 118, "n_unparsed": 0,
}  # fmt: skip
LEFT_OUT = {"checkpoint": "sae", "mode": "omp", "condition": "autointerp", "flags": ("unmatchable",)}


def example(**more):
    return {
        "use": "scored", "source": "silent", "positive": False, "said": 1, "tokens": ["a", "\n", " <b>", " c"],
        "values": [0, 0, 1.5, 2], "at": 2,
    } | more  # fmt: skip


def latent(j, score, mode="amortized", **more):
    row = {"checkpoint": "sae", "mode": mode, "latent": j, "status": "scored", "explanation": f"<i>{j}</i>"}
    row |= {"macro_f1": score, "precision": score, "recall": score, "examples": [example()]}
    return row | more


LATENTS = [latent(3, 0.5), latent(1, 0.9), latent(2, None, status="unparsed", explanation=None, examples=[])]


def test_words_follow_from_the_rows():
    first, second, third = interp.sentences([ROW, OPTIMUM, LEFT_OUT])
    assert first.startswith(
        "sae, encoder: macro-F1 .70 ±.05 (median .720) over 120 latents; a coin has .494, "
    )
    assert "an answer could not be read: 1." in first and "could not" not in second
    assert third.startswith(
        "sae, optimum: -.100 [-.20, -.050] in macro-F1 against encoder, on the same latents "
    )
    assert third.endswith("(the interval excludes 0).")
    assert "no interval" in interp.sentences([OPTIMUM | {"macro_f1_difference_lo_mode": None}])[1]
    assert interp.sentences([LEFT_OUT]) == []


def test_tables_have_what_there_is():
    sheet = interp.scores_sheet([ROW, OPTIMUM, LEFT_OUT])
    lines = [dict(zip(sheet.header, line, strict=True)) for line in sheet.body]
    assert lines[0]["skipped"] == "5" and lines[0]["unread"] == "1" and lines[0]["always yes"] == ".333"
    assert "fuzzing ↑" not in sheet.header and "negatives that fire" not in sheet.header
    assert lines[2]["macro-F1 ↑"] == "-" == lines[2]["scored"] and "no lambda reaches" in lines[2]["note"]
    [modes] = interp.differences_sheets([ROW, OPTIMUM])
    assert modes.body[0][1:3] == ["optimum", "encoder"] and modes.body[0][-1] == "paired"
    literal = interp.scores_sheet(
        [ROW | {"protocol": "literal", "n_negatives_active": 27, "shuffled_macro_f1": 0.4}]
    )
    assert "27" in literal.body[0] and "another's description" in literal.header


def test_a_context_is_one_line_with_firing_tokens_between_marks():
    assert interp.context(example()) == "a⏎« <b> c»"
    assert interp.context(example(values=[1, 0, 0, 0])) == "«a»⏎ <b> c"


def test_latents_are_best_first_and_say_why_they_have_no_score():
    table, contexts = interp.latent_sections(LATENTS)
    assert [line[0] for line in table.rows] == [1, 3, 2]
    assert table.rows[2][1:] == [None, None, None, "-", "-", "an answer could not be read"]
    assert contexts.rows[0] == [1, "a⏎« <b> c»", "score", "silent", "yes", "yes (wrong)"]


def test_page_and_picture(tmp_path):
    pictures = figures_interp.draw([ROW, OPTIMUM], LATENTS, tmp_path / "figures")
    assert [path.name for path in pictures] == ["macro_f1.png", "macro_f1.svg"]
    found = interp.report([ROW, OPTIMUM], {"model": "m"}, pictures)
    interp.write(found, LATENTS, tmp_path, {"jax": "1"}, {"ckpts": ("a",)})
    page = (tmp_path / "report.html").read_text()
    assert "&lt;i&gt;1&lt;/i&gt;" in page and "<i>1</i>" not in page and "<b>" not in page
    text = (tmp_path / "report.md").read_text()
    assert "figures/macro_f1.png" in text and "<i>" not in text and "a coin has .494" in text


@pytest.mark.parametrize("latents", [[], [latent(1, None)]])
def test_nothing_scored_draws_nothing(latents, tmp_path):
    assert figures_interp.draw([], latents, tmp_path) == [] and not list(Path(tmp_path).iterdir())
