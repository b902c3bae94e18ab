"""Tables, words and pictures of the synthetic scenarios, from rows made by hand."""

import pytest

from amortjax.report import figures_pareto, figures_synthetic, sheets, synthetic


def row(method: str, run: int, step: int, mcc: float, **more) -> dict:
    base = {
        "checkpoint": "unknown", "mode": method, "condition": "uniform", "scenario": "unknown",
        "distribution": "uniform", "protocol": "literal", "method": method, "codes": "own", "run": run, "step": step,
        "n": 16, "m": 8, "k": 3, "lam_c": 0.01, "lam": 0.0025, "mcc": mcc, "mcc_chance": 0.06,
        "mcc_corrected": (mcc - 0.06) / 0.94, "loss_test": 0.01 / (step + 1), "l0@0.001": 4.0, "updates": step + 1,
        "iterations": 0, "train_flops": 1000 * (step + 1), "inference_flops": 500, "cpu_seconds": 2.0,
    }  # fmt: skip
    return base | more


@pytest.fixture
def rows() -> list[dict]:
    found = []
    for run, end in enumerate((0.5, 0.7)):
        found += [row("sae", run, step, mcc) for step, mcc in ((0, 0.3), (50, 0.8), (99, end))]
        found += [row("mlp32", run, step, mcc, dict_mcc=0.7) for step, mcc in ((0, 0.2), (99, 0.9))]
        found.append(row("sae", run, 99, 0.95, codes="optimal"))
        found += [row("sae", run, 99, 0.9 + n / 1e5, codes="ito_warm", iterations=n) for n in (100, 1000)]
    return found


def test_the_end_of_each_method_with_mean_and_deviation(rows):
    end, beside, _ = synthetic.sheets_of(rows)
    assert [line[0] for line in end.body] == ["SAE", "MLP-32"]
    assert end.body[0][end.header.index("latent MCC ↑")] == ".600 ±.10"
    assert end.body[0][end.header.index("dictionary MCC ↑")] == "-"
    assert end.body[1][end.header.index("dictionary MCC ↑")] == ".700 ±0"
    assert [line[0] for line in beside.body] == [
        "SAE, certified optimum",
        "SAE, ITO from the SAE's codes, 100 iterations",
        "SAE, ITO from the SAE's codes, 1000 iterations",
    ]


def test_words_name_the_order_and_curves_that_fell(rows):
    first, second = synthetic.sentences(rows)
    assert "MLP-32 .900, SAE .600" in first
    assert "SAE was at .800 at step 50 and fell to .600" in second


def test_what_the_deviation_is_over_is_said(rows):
    page = synthetic.report(rows, [])
    assert "differ in their first weights only" in page.explained
    assert page.about["runs"] == "2"
    assert page.about["CPU time"] == "4 s"  # a part's time once, not once a row


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        ("own", "MLP-8"), ("optimal", "MLP-8, certified optimum"), ("fista100", "MLP-8, FISTA-100"),
        ("ista200", "MLP-8, ISTA-200"),
    ],
)  # fmt: skip
def test_labels(codes, text):
    assert synthetic.label_of(row("mlp8", 0, 0, 0.1, codes=codes)) == text


def test_pictures_and_page(rows, tmp_path):
    pictures = figures_synthetic.draw(rows, tmp_path)
    pictures += figures_pareto.pareto(synthetic.for_pareto(rows), tmp_path)
    assert [p.name for p in pictures[:2]] == ["synthetic_curves.png", "synthetic_curves.svg"]
    assert len(pictures) == 4
    sheets.write(synthetic.report(rows, pictures), tmp_path, {}, {})
    assert "synthetic_curves" in (tmp_path / "report.md").read_text()
    assert figures_synthetic.draw([], tmp_path) == []


def test_pareto_lines_of_iterations_move_along_them(rows):
    found = [r for r in synthetic.for_pareto(rows) if r["method"] == "SAE, ITO from the SAE's codes"]
    assert {r["step"] for r in found} == {100, 1000}
    assert all(r["loss"] == r["loss_test"] for r in found)
