"""Prompts, parsers, rules and the offline judge; scores against scikit-learn; chance by enumeration."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from amortjax import interp
from amortjax.errors import AmortjaxError
from amortjax.interp import prompts, rules, scoring
from amortjax.interp.examples import Context, Examples
from amortjax.interp.offline import Offline
from amortjax.interp.prompts import Answer, Request, Shown, read_explanation, read_list
from amortjax.interp.scoring import Counts, LatentScore, chance
from tests.interp import known_latents as known


@pytest.fixture(scope="module")
def acts():
    return known.store()


@pytest.fixture(scope="module")
def text(acts):
    return interp.text_of(acts, acts.rows("test"))


@pytest.fixture(scope="module")
def codes(acts):
    return known.codes(acts)


class Seeing(Offline):
    """The offline judge, which keeps what it is asked."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "asked", [])

    def answer(self, request: Request) -> Answer:
        self.asked.append(request)  # pyright: ignore
        return super().answer(request)


def test_planted_latents_are_found_and_noise_is_not(codes, text):
    scores = interp.score_latents(
        codes, text, [known.CAT, known.AFTER_A, known.RANDOM, known.ALWAYS, known.RARE], Offline(),
        settings=interp.Settings(fuzz=True),
    )  # fmt: skip
    cat, after, noise, always, rare = scores
    assert cat.explanation == 'token " cat"' and cat.macro_f1 == 1 and cat.fuzz == 1
    assert after.explanation == 'any token after " a"' and after.macro_f1 == 1 and after.fuzz == 1
    assert noise.status == "scored" and noise.macro_f1 < 0.8 and noise.fuzz < 0.9
    assert (always.status, rare.status) == ("no_negatives", "too_few") and always.macro_f1 is None
    found = interp.summary(scores)
    assert [found[f"n_{s}"] for s in ("latents_asked", "scored", "too_few", "no_negatives", "unparsed")] == [
        5, 3, 1, 1, 0,
    ]  # fmt: skip
    assert (
        found["macro_f1"] == pytest.approx(np.mean([1, 1, noise.macro_f1])) and found["macro_f1_lo"] is None
    )


def test_several_at_a_time_score_the_same(codes, text):
    latents = [known.CAT, known.RANDOM, known.AFTER_A]
    one = interp.score_latents(codes, text, latents, Offline())
    assert one == interp.score_latents(codes, text, latents, Offline(), parallel=3)
    assert [s.latent for s in one] == latents


def test_another_latents_description_scores_no_better_than_chance(codes, text):
    scores = interp.score_latents(codes, text, [known.CAT, known.AFTER_A], Offline())
    turned = interp.shuffled(scores)
    assert turned == {known.CAT: scores[1].explanation, known.AFTER_A: scores[0].explanation}
    judge = Seeing()
    again = interp.score_latents(codes, text, [known.CAT, known.AFTER_A], judge, explanations=turned)
    assert all(s.macro_f1 < 1 for s in again)
    assert {request.kind for request in judge.asked} == {"detect"}  # no description is asked for


def test_a_scorer_is_told_nothing_but_the_tokens(codes, text):
    judge = Seeing()
    interp.score_latents(codes, text, [known.CAT], judge, settings=interp.Settings(contexts_per_call=6))
    explain, *detect = judge.asked
    assert [len(r.shown) for r in detect] == [6, 6, 6, 2]
    assert all(shown.active is None and not shown.marked for r in detect for shown in r.shown)
    assert all("<<" not in r.messages[1]["content"] for r in detect)
    assert (
        sum(bool(shown.active) for shown in explain.shown)
        == 10
        == sum(s.active is False for s in explain.shown)
    )
    shown_before = {shown.text.replace("<<", "").replace(">>", "") for shown in explain.shown}
    assert not shown_before & {shown.text for r in detect for shown in r.shown}


def test_literal_marks_the_strongest_token_and_shows_no_counterexample(codes, text):
    judge = Seeing()
    own = interp.Settings(protocol="literal", other_latents=(known.CAT, known.AFTER_A))
    [score] = interp.score_latents(codes, text, [known.CAT], judge, settings=own)
    explain, detect = judge.asked
    assert all(shown.active and len(shown.marked) == 1 for shown in explain.shown) and len(explain.shown) == 5
    assert all(len(shown.marked) == 1 for shown in detect.shown) and len(detect.shown) == 10
    assert score.macro_f1 == 1 and score.unlike > 0
    with pytest.raises(AmortjaxError, match="1 do: name others"):
        own = interp.Settings(protocol="literal", other_latents=(known.CAT, known.SILENT))
        interp.score_latents(codes, text, [known.CAT], judge, settings=own)


def test_marks_stand_apart_from_the_texts_own_signs():
    shown = Shown(("a <", "< b", " x", " y", " >", "> z"), (2, 3), True)
    assert shown.text == "a < < b<< x y>> > > z"
    request = prompts.explain_request(
        Examples(
            (Context(0, ("one\n", ' "two"'), (0.0, 2.0), 1, "top"), Context(1, ("no",), (0.0,), 0, "silent")),
            (),
            2.0,
        ),
        interp.Settings(),
        "a hint",
    )
    user = request.messages[1]["content"]
    assert json.dumps('one\n<< "two">>') in user and '1. "no"' in user and user.endswith("a hint")


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("EXPLANATION: words in Latin", "words in Latin"),
        ("I think so.\nexplanation :  two\nlines \n\nand more", "two lines"),
        ("EXPLANATION: first\nEXPLANATION: the last", "the last"),
        ("**EXPLANATION:** bold", "bold"),
        ("no marker", None), ("EXPLANATION:   ", None), ("", None),
    ],
)  # fmt: skip
def test_explanations_are_read(answer, read):
    assert read_explanation(answer) == read


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("[1, 0,1]", (1, 0, 1)), ("[0,0,0] no, [1,1,1]", (1, 1, 1)), ("so: [\n1,\n0,\n1\n].", (1, 0, 1)),
        ("[1, 0]", None), ("[1, 0, 2]", None), ("1, 0, 1", None), ("[1,,0]", None), ("", None),
        ("[[1,0,1]]", (1, 0, 1)),
        ("[true, false, true]", None), ("[1.0, 0, 1]", None), ("[10, 0, 1]", None), ("[1 0, 1]", None),
    ],
)  # fmt: skip
def test_lists_are_read(answer, read):
    assert read_list(answer, 3) == read


words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
clauses = st.one_of(
    st.tuples(st.sampled_from(["token", "after", "begins", "ends", "shape"]), st.tuples(words)),
    st.tuples(st.just("pair"), st.tuples(words, words)),
).map(lambda c: rules.Clause(*c))


@given(st.lists(clauses, min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_rules_survive_being_written_and_read_as_an_answer(rule):
    text = rules.written(tuple(rule))
    assert rules.read_rule(text) == tuple(rule)
    if len(text) <= prompts.MAX_EXPLANATION and "explanation" not in text.lower():
        assert rules.read_rule(read_explanation(f"EXPLANATION: {text}") or "") == tuple(rule)


@pytest.mark.parametrize(
    "text", ["", "any words", 'token "a" after', 'token "a"; ', 'token "a" token "b"', "token a"]
)
def test_other_texts_are_no_rules(text):
    assert rules.read_rule(text) is None
    request = Request("detect", (), (Shown(("a",), (), None),), text)
    assert request.read(Offline().answer(request).text) is None


def shown(*contexts):
    return [
        Shown(tuple(t.strip("*") for t in c), tuple(i for i, t in enumerate(c) if t[0] == "*"), None)
        for c in contexts
    ]


@pytest.mark.parametrize(
    ("contexts", "rule"),
    [
        ([["a", "*b"], ["*b", "c"], ["c", "a"]], 'token "b"'),
        ([["x", "*b"], ["x", "*c"], ["b", "c"], ["c"]], 'any token after "x"'),
        ([["x", "*b"], ["b"], ["x", "*b"], ["x", "d"], ["x", "e"]], 'token "b" after "x"'),
        ([["*running"], ["*runner"], ["*runs"], ["ran"]], 'a word beginning with "run"'),
        ([["*12"], ["*7"], ["*450"], ["a"]], 'tokens of "digits"'),
        ([["*p"], ["*q"]], 'token "p"; token "q"'),
    ],
)  # fmt: skip
def test_rules_are_the_ones_a_reader_would_give(contexts, rule):
    assert rules.written(rules.find_rule(shown(*contexts))) == rule


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_scores_are_scikit_learns(pairs):
    truth, said = map(list, zip(*pairs, strict=True))
    counts = Counts.of(truth, [int(s) for s in said])
    both = {"labels": [True, False], "zero_division": 0}
    assert counts.macro_f1 == pytest.approx(f1_score(truth, said, average="macro", **both))
    assert counts.f1 == pytest.approx(f1_score(truth, said, zero_division=0))
    if len(set(truth)) == 2:
        assert counts.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, said))


@pytest.mark.parametrize(("positives", "negatives"), [(1, 1), (3, 2), (5, 5)])
def test_chance_is_that_of_all_answers(positives, negatives):
    truth = [True] * positives + [False] * negatives
    every = itertools.product((0, 1), repeat=len(truth))
    coin = np.mean([Counts.of(truth, said).macro_f1 for said in every])
    assert chance(positives, negatives) == pytest.approx((coin, Counts.of(truth, [1] * len(truth)).macro_f1))
    if positives == negatives:
        assert chance(positives, negatives)[1] == pytest.approx(1 / 3)
    assert abs(chance(10, 10)[0] - 0.5) < 0.01


def scored(values, first=0):
    out = []
    for i, tp in enumerate(values):
        out.append(LatentScore(first + i, "scored", "x", Counts(tp, 10 - tp, 10 - tp, tp)))
    return out


def test_intervals_are_bootstraps_over_latents_and_pairs_are_narrower():
    r = np.random.default_rng(0)
    base = r.integers(2, 9, 80)
    a, b = scored(base + 1), scored(base)
    found = interp.summary(a)
    spread = 1.96 * np.std([s.macro_f1 for s in a]) / np.sqrt(80)
    assert found["macro_f1_hi"] - found["macro_f1"] == pytest.approx(spread, rel=0.15)
    assert found["macro_f1_median_lo"] <= found["macro_f1_median"] <= found["macro_f1_median_hi"]
    pairs, apart = interp.difference(a, b), interp.difference(a, b, paired=False)
    assert pairs["macro_f1_difference"] == pytest.approx(0.1) == apart["macro_f1_difference"]
    assert pairs["macro_f1_difference_hi"] - pairs["macro_f1_difference_lo"] < 1e-9
    assert apart["macro_f1_difference_hi"] - apart["macro_f1_difference_lo"] > 0.05
    assert pairs["n_pairs"] == 80 and interp.difference(a, a)["macro_f1_difference"] == 0
    # Only latents scored in both are paired; too few have no interval.
    few = interp.difference(a, scored([5] * 9, first=75))
    assert few["n_pairs"] == 5 and few["macro_f1_difference_lo"] is None
    none = interp.difference(a, [], paired=False)
    assert none["macro_f1_difference"] is None and none["macro_f1_median_difference"] is None
    assert interp.summary([])["macro_f1"] is None


def test_unparsed_latents_are_counted_and_not_averaged():
    scores = [*scored([10, 10]), LatentScore(7, scoring.UNPARSED)]
    found = interp.summary(scores)
    assert (
        found["n_unparsed"] == 1
        and found["macro_f1"] == 1
        and found["macro_f1_unparsed_0"] == pytest.approx(2 / 3)
    )
