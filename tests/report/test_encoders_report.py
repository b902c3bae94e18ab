"""The encoders' tables, words and picture from plain rows; the launcher's own test makes them from measurements."""

import numpy as np
import pytest

from amortjax.report import encoders, figures_encoders, sheets


def row(method: str, mode: str, matched: str = "sae", condition: str = "same_l0", **more) -> dict:
    found = {
        "checkpoint": method.removesuffix("_optimal"), "method": method, "mode": mode, "matched": matched,
        "condition": condition, "protocol": "controlled", "lam": None if mode == "amortized" else 0.5, "l0": 20.0,
        "l0_target": 20.0, "nmse": 0.2, "nmse_lo": 0.19, "nmse_hi": 0.21, "nmse_literal": 0.1, "fvu": 0.22,
        "dead": 0.01, "n_tokens": 8000, "n_documents": 80, "train_flops": 3_000_000_000, "inference_flops": 528,
        "flags": (),
    }  # fmt: skip
    return found | more


def difference(value: float) -> dict[str, float]:
    key = "nmse_minus_encoder"
    return {"nmse": 0.2 + value, key: value, f"{key}_lo": value - 0.01, f"{key}_hi": value + 0.01}


ROWS = [
    row("sae", "amortized", star_suboptimality_lower=0.29, star_suboptimality_upper=0.3,
        trained_suboptimality_lower=0.1, trained_suboptimality_upper=0.1,
        macro_f1=0.63, macro_f1_lo=0.6, macro_f1_hi=0.66, judge_n_latents_asked=50, judge_chance_random=0.49),
    row("sae_optimal", "optimal", **difference(0.05), star_suboptimality_upper=1e-5, inference_flops=2_000_000),
    row("sae_optimal", "optimal_refit", **difference(-0.05), star_suboptimality_upper=0.7),
    row("lca", "optimal", **difference(0.005), macro_f1=0.5, judge_n_latents_asked=50),
    row("lca", "optimal", "own", "trained_lambda", suboptimality_upper=2e-5),
]  # fmt: skip


def test_sentences_say_what_the_intervals_say():
    said = encoders.sentences(ROWS)
    assert said[0] == (
        "At the L0 of the SAE's encoder (20.0, NMSE .200): SAE + optimal codes .250 (worse); SAE + optimal codes, "
        "refit .150 (better); LCA dictionary .205 (not told apart)."
    )
    assert (
        said[1]
        == "The SAE's encoder is at most 30 % at lambda* and at most 10 % on its own objective above the optimum."
    )
    assert said[2] == "Macro-F1 of the judge: SAE .63 ±.03 (a coin .490), LCA dictionary .500."
    none = [dict(ROWS[0]), row("lca", "optimal", nmse_minus_encoder=0.1)]
    assert "LCA dictionary .200 (no interval)" in encoders.sentences(none)[0]


def test_tables_hold_each_l0_and_each_objective(tmp_path):
    rows = [
        *ROWS,
        row("mlp", "amortized", "mlp", flags=("few_documents",)),
        row("lca", "optimal", "sae x 0.5", l0_target=10.0),
    ]
    made = encoders.report(rows, {"model": "m"}, [], "offline")
    titles = [sheet.title for sheet in made.sheets]
    assert titles == [
        "At the L0 of the SAE's encoder, 20.0", "At the L0 of the MLP encoder, 20.0",
        "At the L0 of the SAE's encoder times 0.5, 10.0", "Each at the lambda of its training",
        "What a judge makes of the latents",
    ]  # fmt: skip
    first = made.sheets[0]
    cell = lambda i, name: first.body[i][first.header.index(name)]  # noqa: E731
    assert cell(0, "gap, λ* ↓") == "[.290, .300]" and cell(0, "gap, own ↓") == ".100"
    assert cell(1, "gap, λ* ↓") == "≤1.0e-5" and cell(2, "gap, λ* ↓") == "-"  # a refit has no objective
    assert (
        cell(0, "macro-F1 ↑") == ".63 ±.03"
        and first.header[first.header.index("macro-F1 ↑") + 1] == "a coin's"
    )
    assert cell(0, "a coin's") == ".490" and cell(1, "a coin's") == "-"
    assert cell(1, "- encoder's") == ".050 ±.010" and cell(0, "- encoder's") == "-"
    assert cell(0, "FLOPs, training") == "3.00e9" and cell(0, "FLOPs, a token") == "528"
    assert "fewer than 50 documents" in made.sheets[1].text
    sheets.write(made, tmp_path, {"amortjax": "0"}, {"lam": 1e-4})
    assert "Encoders, and no encoder" in (tmp_path / "report.html").read_text()
    assert "| SAE + optimal codes, refit |" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(("n", "text"), [(None, "-"), (528, "528"), (7.2e9, "7.20e9"), (1.25e12, "1.25e12")])
def test_flops_are_short(n, text):
    assert encoders.size(n) == text


def test_the_picture_has_what_is_known(tmp_path):
    scores = {"sae": np.linspace(0.3, 1, 30).tolist(), "lca": [0.5], "mlp": []}
    paths = figures_encoders.draw(ROWS, scores, tmp_path)
    assert [p.name for p in paths] == ["encoders.png", "encoders.svg"] and all(
        p.stat().st_size > 3000 for p in paths
    )
    svg = paths[1].read_text()
    for text in ("LCA dictionary", "FLOPs a token", "macro-F1", "SAE + optimal codes, refit"):
        assert text in svg
    bare = figures_encoders.draw([row("sae", "amortized", inference_flops=None)], {}, tmp_path / "b")[
        1
    ].read_text()
    assert "FLOPs" not in bare and "macro-F1" not in bare
    assert figures_encoders.draw(ROWS[4:], {}, tmp_path / "c") == []
