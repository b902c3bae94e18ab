"""Verdicts follow from rows by the rules: each claim is made to hold, to fail and to stay open by rows built for it."""

import json
import re
import shlex
from pathlib import Path

import pytest
from claim_rows import EFFECTS, WITHIN, excess, interval, results, rises, row, swept, trained

from amortjax.errors import AmortjaxError
from amortjax.launch import claims as launcher
from amortjax.launch import flagged
from amortjax.report import (
    claims_coding,
    claims_inference,
    claims_marks,
    claims_rows,
    claims_training,
    evidence,
)
from amortjax.report.claims_registry import CLAIMS
from amortjax.report.evidence import FAILS, HOLDS, IN_PART, UNTESTABLE

ROOT = Path(__file__).parents[2]
ALL = {claim.id: claim for own in CLAIMS.values() for claim in own}


def read(files, folder):
    for name, held in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(held))
    return claims_rows.read([folder]).rows


def judged(name, files, folder):
    return ALL[name].judge(read(files, folder))


def test_every_claim_has_rows_that_decide_it():
    assert set(EFFECTS) | set(WITHIN) == set(ALL)
    assert len(ALL) == sum(map(len, CLAIMS.values()))  # ids are distinct


@pytest.mark.parametrize(
    ("name", "value", "half", "verdict"),
    [
        case
        for name in EFFECTS
        for case in (
            (name, 0.1, 0.02, HOLDS),
            (name, -0.1, 0.02, FAILS),
            (name, 0.0, 0.5, UNTESTABLE),
            (name, 0.1, None, UNTESTABLE),  # a value without an interval decides nothing
        )
    ]
    + [
        case
        for name in WITHIN
        for case in (
            (name, 0.001, 0.002, HOLDS),
            (name, 0.3, 0.02, FAILS),
            (name, 0.0, 0.5, UNTESTABLE),
            (name, 0.001, None, UNTESTABLE),
        )
    ],
)  # fmt: skip
def test_verdicts(name, value, half, verdict, tmp_path):
    found = judged(name, EFFECTS.get(name, WITHIN.get(name))(value, half), tmp_path)
    assert found.verdict == verdict, found.reason
    assert found.reason
    if half is None:
        assert found.controlled and all(e.side == "no interval" for e in found.controlled)
        assert "no interval" in found.reason


@pytest.mark.parametrize("name", ALL)
def test_without_rows_nothing_is_testable(name):
    found = ALL[name].judge([])
    assert found.verdict == UNTESTABLE and found.reason and not found.controlled


@pytest.mark.parametrize("name", ALL)
def test_strange_values_are_passed_over(name, tmp_path):
    make = EFFECTS.get(name) or WITHIN[name]
    for strange in ("text", None, [1], {"a": 1}, True, float("inf"), float("nan")):
        files = make(0.1, 0.02)
        spoilt = []
        for file, held in files:
            rows = held["rows"] if isinstance(held, dict) else held
            keep = (
                "name",
                "mode",
                "condition",
                "checkpoint",
                "scenario",
                "model",
                "mcc",
                "start",
                "sparsity",
                "step",
            )
            spoilt.append((file, [{k: v if k in keep else strange for k, v in own.items()} for own in rows]))
        assert judged(name, spoilt, tmp_path).verdict == UNTESTABLE


def test_an_effect_too_small_to_matter_is_none(tmp_path):
    found = judged("splitting", excess("df1")(0.001, 0.0005), tmp_path)
    assert found.verdict == FAILS and found.controlled[0].side == "small"


def test_where_the_encoder_has_none_there_is_nothing_to_explain(tmp_path):
    files = excess("dead_half")(0.0, 1e-5)
    files[0][1][0] |= interval("dead_half", 1e-5, 1e-5)
    found = judged("dead", files, tmp_path)
    assert found.verdict == UNTESTABLE and found.controlled[0].side == "absent"
    files = excess("dead_half")(-0.1, 0.01)  # but the opposite is told all the same
    files[0][1][0] |= interval("dead_half", 1e-5, 1e-5)
    assert judged("dead", files, tmp_path).verdict == FAILS


@pytest.mark.parametrize(
    ("first_step", "open_", "verdict"), [(10, 0.0, HOLDS), (10, 0.3, UNTESTABLE), (0, 0.0, UNTESTABLE)]
)
def test_changes_through_training_are_paired_where_that_is_known(first_step, open_, verdict, tmp_path):
    """Alone each end is known too badly; together they are not, if the certificates leave nothing open and the change
    is since the first step that could be matched."""
    rows = trained({"same_lambda": ends(0.7, open_)}, {"same_lambda": ends(0.5, open_)})
    rows[-1] |= {"first_step": first_step} | interval("suboptimality_upper_minus_first", -0.2, 0.02)
    found = judged("gap falls", results(*rows), tmp_path)
    assert found.verdict == verdict, found.reason
    if verdict == HOLDS:
        assert found.controlled[0].found == pytest.approx((0.2, 0.18, 0.22))
    grown = trained({"same_l0": interval("df1", 0.3, 1.0)}, {"same_l0": interval("df1", 0.4, 1.0)})
    grown[-1] |= {"first_step": first_step} | interval("df1_minus_first", 0.1, 0.02)
    paired = judged("pathologies grow", results(*grown), tmp_path)
    assert paired.verdict == (HOLDS if first_step == 10 else UNTESTABLE)


def ends(level, open_):
    upper = {"suboptimality_upper": level, "suboptimality_lower": level - open_}
    return upper | {"suboptimality_lower_lo": level - 1, "suboptimality_upper_hi": level + 1}


def test_explanations_at_unequal_l0_are_no_controlled_comparison(tmp_path):
    files = EFFECTS["interpretability"](0.1, 0.01)
    files[0][1][1] |= {"l0": 10.0}
    found = judged("interpretability", files, tmp_path)
    assert found.verdict == UNTESTABLE and not found.controlled
    assert found.literal[0].side == "for" and "L0 10 and 20" in found.literal[0].text


def test_in_part_for_some_saes_and_under_literal_only(tmp_path):
    make = excess("df1")
    other = [own | {"checkpoint": "b"} for own in make(-0.1, 0.01)[0][1]]
    found = judged("splitting", results(*make(0.1, 0.01)[0][1], *other), tmp_path / "some")
    assert (
        found.verdict == IN_PART and "as claimed in sae" in found.reason and "opposite in b" in found.reason
    )
    released = [
        row("amortized", "literal", protocol="literal"),
        row("non_amortized", "literal", protocol="literal", **interval("df1_minus_amortized", -0.2, 0.01)),
    ]
    files = [*make(-0.1, 0.01), ("literal/results.json", released)]
    found = judged("splitting", files, tmp_path / "literal")
    assert found.verdict == IN_PART and found.reason.startswith("under the literal protocol only")
    assert found.literal[0].found == pytest.approx((0.2, 0.19, 0.21))
    found = judged("splitting", [("results.json", released)], tmp_path / "only")
    assert found.verdict == UNTESTABLE and "--flagfile=configs/section5/embedded.flags" in found.reason


def test_the_literal_reading_of_topk(tmp_path):
    """NMSE above 1 under the released choices, below under the controlled ones."""
    files = [(name, own) for name, own in EFFECTS["NMSE above 1"](0.4, 0.01) if "literal" in name]
    files.append(("results.json", [row("amortized", "same_l0", **interval("nmse", 0.2, 0.01))]))
    assert judged("NMSE above 1", files, tmp_path).verdict == IN_PART


@pytest.mark.parametrize("flag", ["l0_off", "unmatchable", "calibration_off"])
def test_what_is_not_at_the_encoders_l0_is_left_out(flag, tmp_path):
    files = excess("df1")(0.1, 0.01)
    files[0][1][1]["flags"] = [flag]
    found = judged("splitting", files, tmp_path)
    assert found.verdict == UNTESTABLE and "left out: sae, optimum" in found.reason
    matched = [own | {"checkpoint": "b"} for own in excess("df1")(0.1, 0.01)[0][1]]
    found = judged("splitting", results(*files[0][1], *matched), tmp_path)
    assert found.verdict == IN_PART  # it does not hold of all that was measured


def test_one_decided_among_many_open_is_no_verdict(tmp_path):
    rows = results(*trained(*rises(0.0, 0.5)))[0][1]
    for own in rows:
        if own["step"] == 100:
            own.update(interval("df1", 0.1, 0.01))  # fell by .2, told apart
    found = judged("pathologies grow", results(*rows), tmp_path)
    assert found.verdict == UNTESTABLE and [e.side for e in found.controlled].count("undecided") == 3
    assert "opposite in topk k=20, ΔF1" in found.reason and "--eval_tokens" in found.reason


def test_what_has_no_interval_counts_for_neither(tmp_path):
    other = [own | {"checkpoint": "b"} for own in excess("df1")(-0.3, None)[0][1]]
    found = judged("splitting", results(*excess("df1")(0.1, 0.01)[0][1], *other), tmp_path)
    assert found.verdict == HOLDS and "no interval, so no verdict, in b" in found.reason


def test_steps_that_beat_the_optimum_are_enough(tmp_path):
    assert judged("steps suffice", WITHIN["steps suffice"](-0.2, 0.01), tmp_path).verdict == HOLDS


def test_too_dense_checkpoints_do_not_begin_a_training(tmp_path):
    found = judged("TopK in training", results(*trained(*rises(0.1, 0.01))), tmp_path)
    assert {e.what for e in found.controlled} == {"ΔF1", "absorption"}
    assert all(e.found.value == pytest.approx(0.1) for e in found.controlled)  # not from the 5.0 of step 0


def test_pathologies_where_the_gap_does_not_fall_do_not_count(tmp_path):
    found = judged("divergence", results(*trained(*rises(0.1, 0.01))), tmp_path)
    assert found.verdict == UNTESTABLE and "in none of 1 trainings" in found.reason


def test_a_rise_between_steps_speaks_against_more_of_them(tmp_path):
    levels = {5: 0.4, 15: 0.2, 50: 0.3}
    files = results(*swept({n: interval("nmse", level, 0.01) for n, level in levels.items()}))
    assert judged("more steps", files, tmp_path).verdict == FAILS


def test_differences_use_the_narrowest_common_reference():
    a = row(
        "semi_amortized", "same_l0", **interval("nmse", 0.5, 0.1), **interval("nmse_minus_optimal", 0.3, 0.01)
    )
    b = row(
        "semi_amortized", "same_l0", **interval("nmse", 0.4, 0.1), **interval("nmse_minus_optimal", 0.2, 0.01)
    )
    assert evidence.change(a, b, "nmse") == pytest.approx((-0.1, -0.12, -0.08))
    best = row("optimal", "same_l0", nmse=0.2)
    assert evidence.change(best, b, "nmse") == pytest.approx((0.2, 0.19, 0.21))


def test_two_sided_numbers_take_the_outer_ends():
    own = {"u": 0.2, "l_lo": 0.1, "l_hi": 0.15, "u_lo": 0.19, "u_hi": 0.3}
    assert evidence.triple(own, "u", "l", "u") == (0.2, 0.1, 0.3)


def test_names_in_several_folders_are_told_apart(tmp_path):
    rows = read([(f"{name}/results.json", excess("df1")(0.1, 0.01)[0][1]) for name in "ab"], tmp_path)
    assert {own["subject"] for own in rows} == {"sae (a)", "sae (b)"}


def test_ledger_files_and_page(tmp_path, capsys):
    run = tmp_path / "run"
    read([*excess("df1")(0.1, 0.01), ("bench/results.json", [row("fista", "bench_inference")])], run)
    entries = launcher.run(launcher.Config(results=(str(run),), out=str(tmp_path / "out.json")))
    out, seen = tmp_path / "out", capsys.readouterr()
    assert [e["id"] for e in entries] == list(ALL)
    assert "bench/results.json: left out, no claim reads its rows (conditions: bench_inference)" in seen.err
    assert seen.err.count("\n") == 1 and "holds 1" in seen.out
    held = json.loads((out / "claims.json").read_text())
    one = next(e for e in held["claims"] if e["id"] == "splitting")
    assert one["verdict"] == HOLDS and one["evidence"]["controlled"][0]["lo"] == pytest.approx(0.09)
    assert len((out / "claims.csv").read_text().splitlines()) == len(ALL) + 1
    page, text = (out / "claims.html").read_text(), (out / "claims.md").read_text()
    for entry in entries:
        assert entry["claim"] in text and entry["verdict"] in text
    assert "Encoders split concepts" in page and "sae, ΔF1: .10" in page
    before = (out / "claims.json").read_text()
    launcher.run(launcher.Config(results=(str(run),), out=str(out)))
    assert (out / "claims.json").read_text() == before  # the same rows, the same ledger


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "can't be read"),
        ("3", "not a list of result rows"),
        ('{"rows": [1]}', "not a list"),
        ("[1]", "not a list"),
    ],
)
def test_a_broken_file_is_one_line(text, says, tmp_path):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(AmortjaxError, match=says) as caught:
        launcher.run(launcher.Config(results=(str(tmp_path),), out=str(tmp_path / "out")))
    assert "\n" not in str(caught.value) and str(tmp_path / "results.json") in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("results", [(), ("nowhere",), (".",)])
def test_nothing_to_read_is_one_line(results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AmortjaxError, match="--results") as caught:
        launcher.run(launcher.Config(results=results, out="out"))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def commands():
    texts = [
        value
        for module in (claims_marks, claims_coding, claims_inference, claims_training)
        for value in vars(module).values()
        if isinstance(value, str)
    ]
    found = [re.findall(r"python -m amortjax\.launch\.(\w+) ([^;]*)", text) for text in texts]
    return sorted({pair for pairs in found for pair in pairs})


@pytest.mark.parametrize(("name", "flags"), commands())
def test_the_commands_that_reasons_name_parse(name, flags, monkeypatch):
    monkeypatch.chdir(ROOT)
    module = pytest.importorskip(f"amortjax.launch.{name}")
    flagged.parse(module.Config, shlex.split(flags))


def test_commands_are_found():
    assert len(commands()) >= 7 and (ROOT / claims_marks.SECTION43.split()[1]).exists()
