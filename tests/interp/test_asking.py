"""Transcripts, resuming, what can't be read, estimates and budgets."""

import dataclasses
import json

import pytest

from amortjax import interp
from amortjax.errors import AmortjaxError
from amortjax.interp.asking import Asker, Estimator
from amortjax.interp.cost import Budget, Estimate, Prices
from amortjax.interp.offline import Offline
from amortjax.interp.pipeline import Run
from amortjax.interp.prompts import Answer, Request, Shown
from amortjax.interp.transcripts import Transcript, key_of
from tests.interp import known_latents as known

LATENTS = [known.CAT, known.AFTER_A, known.RANDOM]


@dataclasses.dataclass
class Counting:
    """The offline judge, of which every `bad`-th answer can't be read; dies after `until` answers."""

    bad: int = 0
    until: int = 10**9
    made: int = 0
    name: str = "counting"

    @property
    def identity(self):
        return {"judge": self.name}

    def prepare(self) -> None: ...

    def answer(self, request: Request) -> Answer:
        if self.made == self.until:
            raise KeyboardInterrupt
        self.made += 1
        if self.bad and self.made % self.bad == 0:
            return Answer("mumble")
        return Offline().answer(request)


@pytest.fixture(scope="module")
def acts():
    return known.store()


@pytest.fixture(scope="module")
def text(acts):
    return interp.text_of(acts, acts.rows("test"))


@pytest.fixture(scope="module")
def codes(acts):
    return known.codes(acts)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_answer_is_a_line_with_all_that_was_asked(codes, text, tmp_path):
    path = tmp_path / "deep" / "transcripts.jsonl"
    subject = {"checkpoint": "c", "mode": "optimal"}
    interp.score_latents(codes, text, LATENTS, Counting(), transcript=Transcript(path), subject=subject)
    found = lines(path)
    assert [line["kind"] for line in found] == ["explain", "detect"] * 3
    for line in found:
        assert (
            line["checkpoint"] == "c" and line["mode"] == "optimal" and line["judge"] == {"judge": "counting"}
        )
        assert line["latent"] in LATENTS and line["attempt"] == 1 and line["time"].endswith("+00:00")
        assert [m["role"] for m in line["messages"]] == ["system", "user"] and line["seconds"] >= 0
    assert found[0]["answer"] == 'EXPLANATION: token " cat"' and found[0]["parsed"] == 'token " cat"'
    assert set(found[1]["parsed"]) == {0, 1}


def test_a_killed_run_asks_the_rest_only_and_ends_the_same(codes, text, tmp_path):
    path, whole = tmp_path / "t.jsonl", Counting()
    expected = interp.score_latents(codes, text, LATENTS, whole)
    with pytest.raises(KeyboardInterrupt):
        interp.score_latents(codes, text, LATENTS, Counting(until=3), transcript=Transcript(path))
    assert len(lines(path)) == 3
    path.write_bytes(path.read_bytes() + b'{"key": "half a li')  # killed while writing
    rest = Counting()
    assert interp.score_latents(codes, text, LATENTS, rest, transcript=Transcript(path)) == expected
    assert rest.made == whole.made - 3 and len(lines(path)) == whole.made
    again = Counting()
    assert interp.score_latents(codes, text, LATENTS, again, transcript=Transcript(path)) == expected
    assert again.made == 0 and len(lines(path)) == whole.made
    # Another judge or seed has answers of its own.
    other = Counting(name="another")
    interp.score_latents(codes, text, LATENTS, other, transcript=Transcript(path))
    assert other.made == whole.made


def test_a_file_that_is_no_transcript_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "t.jsonl"
    for content in (
        b"hello\n",
        b"[1]\n",
        b'{"key": 3, "answer": "x"}\n',
        b'{"key": "x"}\n',
        b"\xff\xfe\n",
        b"\n\n",
    ):
        path.write_bytes(content)
        with pytest.raises(AmortjaxError, match="line 1: is no transcript"):
            Transcript(path)
        assert path.read_bytes() == content
    path.write_bytes(b"")
    assert Transcript(path).answers == {}


def test_what_can_not_be_read_is_asked_once_more_and_then_counted(codes, text):
    once = interp.score_latents(
        codes, text, LATENTS, Counting(bad=2)
    )  # every second: each is read at the second try
    assert [s.status for s in once] == ["scored"] * 3
    never = Counting(bad=1)
    scores = interp.score_latents(codes, text, LATENTS, never)
    assert [s.status for s in scores] == ["unparsed"] * 3 and never.made == 6
    assert interp.summary(scores)["n_unparsed"] == 3 and interp.summary(scores)["macro_f1"] is None


def test_the_second_try_shows_the_first_answer(codes, text, tmp_path):
    transcript = Transcript(tmp_path / "t.jsonl")
    interp.score_latents(codes, text, [known.CAT], Counting(bad=1), transcript=transcript)
    first, second = lines(tmp_path / "t.jsonl")
    assert second["messages"][:2] == first["messages"] and second["attempt"] == 2
    assert second["messages"][2] == {"role": "assistant", "content": "mumble"}
    assert "could not be read" in second["messages"][3]["content"]
    assert first["parsed"] is None and second["parsed"] is None


def test_keys_depend_on_judge_words_and_tokens():
    request = Request("detect", ({"role": "user", "content": "a"},), (Shown(("ab",), (), None),))
    others = [
        request._replace(kind="fuzz"), request._replace(shown=(Shown(("a", "b"), (), None),)),
        request._replace(messages=({"role": "user", "content": "b"},)), request.again("x"),
    ]  # fmt: skip
    keys = {key_of({"judge": "x"}, r) for r in (request, *others)} | {key_of({"judge": "y"}, request)}
    assert len(keys) == 6


def estimated(codes, text, transcript, **given):
    estimate, own = Estimate(300), interp.Settings(**given)
    ask = Estimator(Counting(), transcript, estimate)
    Run(codes, text, own, ask, ask).all([*LATENTS, known.RARE])
    return estimate


@pytest.mark.parametrize(
    "given", [{}, {"fuzz": True}, {"contexts_per_call": 7}, {"protocol": "literal", "other_latents": (0, 1)}]
)
def test_the_estimate_counts_the_calls_that_are_made(codes, text, given):
    estimate, judge = estimated(codes, text, Transcript(), **given), Counting()
    interp.score_latents(codes, text, [*LATENTS, known.RARE], judge, settings=interp.Settings(**given))
    assert estimate.calls == judge.made and estimate.known == 0
    assert estimate.worst_completion == 300 * judge.made > estimate.completion


def test_what_is_there_is_not_counted(codes, text):
    transcript = Transcript()
    interp.score_latents(codes, text, [known.CAT], Counting(), transcript=transcript)
    estimate = estimated(codes, text, transcript)
    assert (estimate.calls, estimate.known) == (4, 2)


def test_prices_and_refusals():
    prices, estimate = Prices(2.0, 10.0), Estimate(100)
    request = Request("explain", ({"role": "user", "content": "x" * 4000},), ())
    for _ in range(10):
        estimate.add(request)
    assert (estimate.calls, estimate.prompt, estimate.completion, estimate.worst_completion) == (
        10,
        10060,
        600,
        1000,
    )
    assert prices.of(estimate.prompt, estimate.completion) == pytest.approx(0.02612)
    assert "about 0.03 at these prices, 0.03 if every answer" in estimate.lines(prices)[1]
    assert len(estimate.lines(Prices())) == 1 and Prices(1.0).of(1, 1) is None
    estimate.refuse(prices, 10, 0.0302)
    with pytest.raises(AmortjaxError, match="10 calls are needed, --max_calls=9"):
        estimate.refuse(prices, 9, None)
    with pytest.raises(AmortjaxError, match=r"may cost 0.03, --max_cost=0.03"):
        estimate.refuse(prices, None, 0.03)


def test_a_budget_stops_before_it_is_passed(codes, text, tmp_path):
    transcript, judge = Transcript(tmp_path / "t.jsonl"), Counting()
    with pytest.raises(AmortjaxError, match="stopped after --max_calls=3"):
        interp.score_latents(codes, text, LATENTS, judge, transcript=transcript, budget=Budget(max_calls=3))
    assert judge.made == 3 == len(lines(tmp_path / "t.jsonl"))
    # Retries count.
    with pytest.raises(AmortjaxError, match="stopped after"):
        interp.score_latents(codes, text, LATENTS, Counting(bad=1), budget=Budget(max_calls=3), parallel=2)
    budget = Budget(max_cost=1.0, prices=Prices(100.0, 100.0))
    request = Request("explain", ({"role": "user", "content": "x" * 400},), ())
    budget.before(request)
    budget.after(request, Answer("x", 9000, 800))
    assert budget.spent == pytest.approx(0.98)
    budget.before(request)
    budget.after(request, Answer("x" * 400))
    assert (budget.prompt, budget.completion) == (9106, 900)
    with pytest.raises(AmortjaxError, match="--max_cost=1 is passed"):
        budget.before(request)


def test_an_asker_takes_what_is_known(tmp_path):
    request = Request("explain", ({"role": "user", "content": "a"},), ())
    transcript, judge = Transcript(), Counting()
    transcript.answers[key_of(judge.identity, request)] = "EXPLANATION: known"
    assert Asker(judge, transcript, Budget(max_calls=0)).ask(request, {}) == "known" and judge.made == 0
