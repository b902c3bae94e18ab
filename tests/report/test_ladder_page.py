"""The page of the price rung by rung: negative steps are shown, and nothing is said that no row holds."""

import numpy as np

from amortjax.report import figures_ladder, ladder, ladder_page

PRICES = {
    "encoder": 1.3,
    "scaled": 1.1,
    "scaled_each": 1.05,
    "affine": 1.1,
    "mlp": 1.04,
    "lista": 1.01,
    "optimum": 1.0,
}


def rows_of(documents=60):
    rows, before = [], None
    for name, p in (PRICES | {"relearned": 0.9}).items():
        row = {
            "checkpoint": "toy", "mode": name, "condition": "ladder", "lam": 0.5, "flags": (), "objective": p,
            "excess_lower": p - 1, "excess_upper": p - 1 + 1e-6, "left": (p - 1) / 0.3, "l0": 10.0, "nmse": 0.2,
            "dead": 0.0, "n_tokens": 1000, "n_documents": documents, "fit_hidden": 8, "fit_layers": 2,
        }  # fmt: skip
        if name not in ("optimum", "relearned"):
            row |= {"price_amplitude": p - 1 - 0.001, "price_support": 0.001}
        if before is not None:
            share = (before - p) / 0.3
            row |= {"step": before - p, "share": share, "share_lo": share - 0.01, "share_hi": share + 0.01}
        rows.append(row)
        before = p
    for mode, nmse in (("amortized", 0.2), ("omp", 0.1)):
        rows.append(
            {"checkpoint": "toy", "mode": mode, "condition": "same_l0", "nmse": nmse, "l0": 10.0, "flags": ()}
        )
    return rows


TABLE = [
    {"target": target, "predictor": name, "latents": 40, "correlation": 0.1 * i, "correlation_lo": 0.0,
     "correlation_hi": 0.2 * i, "coefficient": 0.1, "coefficient_lo": 0.0, "coefficient_hi": 0.2, "r2": 0.5}
    for target in ladder.TARGETS for i, name in enumerate(ladder.PREDICTORS)
]  # fmt: skip


def test_a_step_back_is_shown_as_one():
    rows = rows_of()
    said = "\n".join(ladder.headlines(rows, TABLE))
    assert "worse than the rung before: refitted affine." in said
    assert "refitted affine -17 % [-18 %, -16 %]" in said
    assert "a further 33 % [32 %, 34 %]" in said and "another dictionary" in said
    table = ladder.markdown(ladder.ladder_of(rows), ladder.LADDER)
    line = next(line for line in table.splitlines() if line.startswith("| refitted affine"))
    assert "-17 % [-18 %, -16 %]" in line and "-.0500" in line
    assert "| MLP, 8 hidden |" in table and "| LISTA, 2 layers |" in table
    last = table.splitlines()[-1]
    assert last.startswith("| optimum, relearned dictionary") and "-.100" in last
    assert "own gap" not in table  # no row holds it


def test_pictures_and_page_of_rows_without_intervals(tmp_path):
    rows = rows_of(documents=10)
    for row in rows:
        row |= {key: None for key in list(row) if key.endswith(("_lo", "_hi"))}
    pictures = figures_ladder.draw_ladder(rows, tmp_path / "ladder")
    r = np.random.default_rng(0)
    columns = {name: r.random(40) for name in ("price", *ladder.PREDICTORS)}
    columns["price"][3], columns["avar"][4] = -0.1, np.nan
    pictures += figures_ladder.draw_latents(columns, [], tmp_path / "latents")
    page = ladder_page.write_page(
        rows, [], tmp_path, {"model": "<b>toy</b>"}, {"lam": None}, pictures
    ).read_text()
    assert "no intervals" in page and "refitted affine -17 %," in page
    assert "angular variance" not in "\n".join(ladder.headlines(rows, []))
    html = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;toy" in html and "<b>toy" not in html and "The ladder" in html
