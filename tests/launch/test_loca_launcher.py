"""The LocA launcher: its controls differ in what they should and nothing else; its table says so. (The notebook's test
runs it from end to end.)"""

import dataclasses

import numpy as np
import pytest

from amortjax.errors import AmortjaxError
from amortjax.launch import flagged, loca
from amortjax.report import loca as report
from tests.problems import toy_sae

CONFIG = loca.Config(acts="x", out="y", n_latents=64, k=10, group_k="6/4/2/1", steps=20, fine_steps=10)


def test_controls_share_all_but_what_they_control():
    assert CONFIG.first().k == 10 and CONFIG.first().steps == 20
    recipes = {name: CONFIG.recipe(name) for name in CONFIG.controls}
    shared = ("n_latents", "batch_size", "steps", "lr", "seed", "auxk", "clip")
    for recipe in recipes.values():
        assert all(getattr(recipe, field) == getattr(recipes["loca"], field) for field in shared)
    budgets = {name: recipe.k or sum(recipe.group_ks()) for name, recipe in recipes.items()}
    assert budgets == {
        "loca": 13, "topk": 13, "random_groups": 13, "uniform_k": 13, "price_groups": 13, "mlp_groups": 13,
        "loca_same_k": 10, "topk_same_k": 10,
    }  # fmt: skip
    assert recipes["uniform_k"].group_ks() == (4, 3, 3, 3)
    assert recipes["mlp_groups"].hidden == 16  # a group's latents
    assert recipes["loca"].lr == CONFIG.lr / 2


def test_all_start_from_the_same_weights_in_their_own_groups():
    base, rng = toy_sae("topk", d=16, m=64, k=10), np.random.default_rng(0)
    found = {"avar": rng.random(64), "price": rng.random(64), "fires": np.arange(64)}
    found["avar"][5] = np.nan
    starts = loca.starts(CONFIG, base, found)
    assert starts["topk"] is base and starts["topk_same_k"] is base
    rows = lambda sae: {tuple(row) for row in np.asarray(sae.W_dec).tolist()}  # noqa: E731
    for name in ("loca", "random_groups", "uniform_k", "price_groups", "loca_same_k", "mlp_groups"):
        assert rows(starts[name]) == rows(base), name
        assert starts[name].groups == (16,) * 4
    origin = {name: np.asarray(starts[name].extra["origin"]).astype(int) for name in ("loca", "price_groups")}
    widest = np.argsort(-np.nan_to_num(found["avar"], nan=-1))
    np.testing.assert_array_equal(origin["loca"], widest)
    assert origin["loca"][-1] == 5  # too rare for a score: last
    # Latent 0 never fired, so it has no price either.
    assert origin["price_groups"][0] == found["price"][1:].argmax() + 1 and origin["price_groups"][-1] == 0
    np.testing.assert_array_equal(starts["uniform_k"].extra["origin"], starts["loca"].extra["origin"])


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--group_k=6/x"], "--group_k=6/x: not whole numbers"),
        (["--group_k=6/4", "--n_latents=8", "--k=2"], "6 is not from 0 to the group's 4 latents"),
        (["--k=0"], "--k=0: must be above 0"),
        (["--controls=topk"], "loca itself is what the others are compared with"),
        (["--avar_tokens=0"], "--avar_tokens=0"),
        (["--fine_steps=-3"], "--fine_steps=-3"),
        (["--controls=sorted"], "Choices: loca, topk"),
    ],
)
def test_mistakes_are_one_line(flags, text):
    with pytest.raises(AmortjaxError, match=text) as caught:
        flagged.parse(loca.Config, ["--acts=x", "--out=y", *flags]).checked()
    assert "\n" not in str(caught.value)


def _row(name: str, nmse: float, **more) -> dict:
    row = {
        "name": name, "k": 13, "parameters": 1000, "l0": 13.0,
        "nmse": nmse, "nmse_lo": nmse - 0.01, "nmse_hi": nmse + 0.01,
        "fvu": nmse, "dead": 0.1, "dense@0.1": 0.0, "suboptimality_lower": 0.3, "suboptimality_upper": 0.3,
        "n_tokens": 1000, "n_documents": 60,
    }  # fmt: skip
    return row | more


def test_the_page_says_what_is_better_only_where_the_interval_is_clear(tmp_path):
    rows = [
        _row("loca", 0.2),
        _row("topk", 0.1, nmse_minus_loca=-0.1, nmse_minus_loca_lo=-0.11, nmse_minus_loca_hi=-0.09),
        _row("random_groups", 0.21, nmse_minus_loca=0.01, nmse_minus_loca_lo=-0.01, nmse_minus_loca_hi=0.03),
    ]
    said = report.headlines(rows)
    assert "is better than LocA" in said[0] and "is not told apart than LocA" not in said[1]
    assert "is not told apart from LocA" in said[1]
    rng = np.random.default_rng(0)
    found = {"avar": rng.random(64), "price": rng.random(64), "fires": np.arange(64)}
    text = report.write(rows, found, tmp_path, flagged.to_json(dataclasses.replace(CONFIG)))
    assert "plain TopK of the same k" in text
    page = (tmp_path / "report.md").read_text()
    assert "1 of 64 latents never fired" in page and "-.100 ±.010" in page
    for name in ("loca.png", "signals.png", "loca.csv"):
        assert (tmp_path / name).stat().st_size > 300
