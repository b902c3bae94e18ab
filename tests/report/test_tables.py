import json

import numpy as np
import pandas as pd
import pytest

from amortjax.errors import AmortjaxError
from amortjax.report import schema, tables
from amortjax.report.schema import FLAGS, flagged, grouped, mode_label, order


def row(mode="amortized", condition="same_l0", **more):
    return {"checkpoint": "a", "mode": mode, "condition": condition, **more}


def test_files_hold_the_rows_and_come_back(rows, tmp_path):
    rows[0]["nmse"] = np.float32(0.25)
    rows[1]["fvu"] = float("nan")
    paths = tables.write_results(rows, tmp_path)
    assert [path.name for path in paths] == ["results.parquet", "results.csv", "results.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(path.name for path in paths)
    back = tables.read_results(tmp_path)
    assert [(r["condition"], r["mode"]) for r in back] == [(r["condition"], r["mode"]) for r in order(rows)]
    first = next(r for r in back if r["mode"] == "amortized" and r["condition"] == "same_l0")
    assert (
        first["nmse"] == 0.25 and first["record"]["form"] == "half" and "shrinkage_mismatch" in first["flags"]
    )
    assert "NaN" not in paths[2].read_text()
    frame, csv = pd.read_parquet(paths[0]), pd.read_csv(paths[1])
    assert len(frame) == len(csv) == len(rows) and frame["record_weights"].unique().tolist() == ["norm"]
    assert frame["flags"].str.contains("best_found").sum() == 2
    np.testing.assert_allclose(csv["nmse"], [r["nmse"] for r in back])
    again = tables.write_results(back, tmp_path, "again")
    assert json.loads(again[2].read_text()) == json.loads(
        paths[2].read_text()
    )  # reading and writing is stable


def test_results_that_do_not_exist_or_are_damaged(tmp_path):
    assert tables.read_results(tmp_path) == []
    (tmp_path / "results.json").write_text('[{"checkpoint": "a", "mo')
    with pytest.raises(AmortjaxError, match="move it away"):
        tables.read_results(tmp_path)
    with pytest.raises(AmortjaxError, match="lacks mode"):
        tables.write_results([{"checkpoint": "a", "condition": "same_l0", "mode": ""}], tmp_path, "other")
    assert not (tmp_path / "other.parquet").exists()


def test_a_table_says_what_was_held_equal_and_fits_a_terminal(rows):
    text = tables.print_table(rows)
    assert "same lambda: lambda = .123 for every mode, chosen so that the optimum has L0 = 32.0" in text
    assert "same L0: every mode recalibrated to L0 = 32.0 by its own lambda" in text
    assert "N = 20 480 tokens of 423 documents" in text and "4 classes from document labels" in text
    assert max(map(len, text.splitlines())) <= 140
    lines = text.splitlines()
    encoder = next(line for line in lines if line.startswith("encoder ") and ".225 (.180)" in line)
    assert ".163 ±.004" in encoder and " 32.0 " in encoder and "31.8 (-.20 ±.10)" in text
    assert any(line.startswith("optimum") and "≤6.0e-11" in line for line in lines)
    assert text.index("same lambda") < text.index("same L0")


def test_the_price_is_shown_in_two_parts_at_one_lambda(rows):
    by_title = {table.title.split(":")[1].strip(): table for table in tables.make_tables(rows)}
    table = by_title["same lambda"]
    first = table.header.index("ampli-|tude ↓")
    cells = {line[0].partition(" [")[0]: line[first : first + 2] for line in table.body}
    assert cells["encoder"] == [".186", ".124"] and cells["optimum"] == ["≤6.0e-11", "≤6.0e-11"]
    assert cells["OMP (best found)"] == ["-", "-"]
    assert not any("ampli" in cell for cell in by_title["same L0"].header)


def test_modes_are_shown_in_a_fixed_order(rows):
    block = grouped(reversed(rows))["topk_32", "same_l0"]
    assert [r["mode"] for r in block] == list(schema.MODES)


def test_footnotes_tell_shared_flags_from_those_of_a_row(rows):
    text = tables.print_table(rows)
    assert "All rows: its training had no L1 term" in text and "encoder [" not in text
    assert "OMP (best found) [b]" in text and "[b] best found, not certified." in text


def test_every_flag_has_a_footnote_and_columns_without_values_disappear():
    given = [row("amortized", flags=tuple(FLAGS), nmse=0.1), row("omp", flags=("odd thing",), nmse=0.2)]
    text = tables.print_table(given)
    for said in (*FLAGS.values(), "odd thing"):
        assert said in text
    assert "absorption" not in text and "NMSE" in text
    nothing = tables.print_table([row(), row("optimal", "same_lambda"), row("semi_amortized", "literal")])
    assert "N = - tokens of - documents" in nothing


def test_flags_that_follow_from_the_numbers():
    assert flagged(row(l0=33.0, l0_target=32.0))["flags"] == ("l0_off",)
    assert flagged(row(l0=32.5, l0_target=32.0))["flags"] == ()
    # Denser tokens than those of the calibration move the encoder and what is matched to it alike.
    assert flagged(row(l0=34.0, l0_target=32.0, l0_calibration=32.0))["flags"] == ()
    assert flagged(row("optimal", l0=34.0, l0_target=32.0, l0_minus_amortized=0.2))["flags"] == ()
    assert flagged(row("optimal", l0=34.0, l0_target=32.0, l0_minus_amortized=1.0))["flags"] == ("l0_off",)
    assert flagged(row(l0=50.0, l0_target=32.0, flags=("unmatchable",)))["flags"] == ("unmatchable",)
    assert flagged(row("optimal", "same_lambda", certified=0.99))["flags"] == ("uncertified",)
    assert flagged(row("optimal", "same_lambda", certified=1.0))["flags"] == ()
    assert flagged(row(n_documents=49))["flags"] == ("few_documents",)
    assert flagged(flagged(row("omp")))["flags"] == ("best_found",)


def test_labels_name_the_steps():
    assert mode_label(row("non_amortized", steps=200.0)) == "ISTA-200 from zero"
    assert mode_label(row("semi_amortized", steps=30)) == "semi, 30 steps"
    assert mode_label(row("non_amortized")) == "ISTA from zero" and mode_label(row("new")) == "new"
    assert mode_label(row("semi_amortized")) == "semi-amortized"


def test_markdown_has_the_same_cells(rows):
    text = tables.markdown_tables(rows)
    assert "| NMSE ↓ |" in text and "| .163 ±.004 |" in text and text.startswith("### topk_32: same lambda")
    widths = [line.count("|") for line in text.split("\n\n")[2].splitlines()]
    assert len(set(widths)) == 1
