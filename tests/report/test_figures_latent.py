import pytest

from amortjax.errors import AmortjaxError
from amortjax.report import figures_latent


def example(why, at, fires, tokens=(0, 1, 2, 3)):
    return {"why": why, "at": at, "label": "a$b$c", "tokens": list(tokens), "fires": fires}


@pytest.fixture
def found():
    """Data of an explorer with one latent that has examples and one that has none."""
    examples = [
        example("missed", 1, [[1, 0.0, 2.0]]),
        example("missed", 2, [[2, 0.0, 1.0]]),
        example("agree", 0, [[0, 1.0, 1.1], [3, -0.5, 0.0]]),
    ]
    latents = [
        {"id": 7, "price": 0.25, "fires": [3, 4, 2], "examples": examples},
        {"id": 9, "price": 0.0, "fires": [0, 0, 0], "examples": []},
    ]
    return {"latents": latents, "strings": [" a", "$x^$", "\n", "a very long token indeed"]}


def test_a_picture_with_a_panel_for_each_example(found, tmp_path):
    path = figures_latent.draw_latent(found, 7, tmp_path / "latent.png")
    small = figures_latent.draw_latent(found, 7, tmp_path / "one.png", most=1)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > small.stat().st_size > 2000


def test_kinds_take_turns(found):
    taken = figures_latent.in_turn(found["latents"][0]["examples"], 2)
    assert [one["why"] for one in taken] == ["missed", "agree"]
    assert [one["at"] for one in figures_latent.in_turn(found["latents"][0]["examples"], 9)] == [1, 0, 2]


@pytest.mark.parametrize(("latent", "says"), [(3, "not among the 2 explored: 7, 9"), (9, "has no example")])
def test_a_latent_that_cannot_be_drawn_is_one_line(found, latent, says, tmp_path):
    with pytest.raises(AmortjaxError, match=says):
        figures_latent.draw_latent(found, latent, tmp_path / "latent.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("token", "text"),
    [(" the", "the"), ("\n", "↵"), (" ", "·"), ("\x00", "□"), ("a" * 20, "a" * 13 + "…"), ("$x$", "$x$")],
)
def test_tick_labels(token, text):
    assert figures_latent.shown(token) == text
