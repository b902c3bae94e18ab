"""The endpoint judge against a server on this machine: retries, errors in one line, and a key that stays put."""

import dataclasses
import json
import time

import pytest

from amortjax import interp
from amortjax.errors import AmortjaxError
from amortjax.interp import endpoint
from tests.interp.server import KEY, Fake, question, serving

ENV = "AMORTJAX_TEST_KEY"


@pytest.fixture
def fake():
    with serving(Fake()) as server:
        yield server


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv(ENV, KEY)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def judge(fake, **given):
    options = interp.JudgeOptions(model="m", base_url=fake.url, api_key_env=ENV, backoff=0.001, retries=3)
    return interp.make_judge("endpoint", dataclasses.replace(options, **given))


def completion(content, **more) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}} | more]}).encode()


def test_asks_as_the_protocol_has_it(fake):
    answer = judge(
        fake, temperature=None, answer_tokens=17, answer_tokens_field="max_completion_tokens"
    ).answer(question())
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("[1]", 100, 7)
    [asked], [headers] = fake.asked, fake.headers
    assert asked == {
        "model": "m",
        "messages": list(question().messages),
        "max_completion_tokens": 17,
        "seed": 0,
    }
    assert headers["path"] == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert judge(fake).answer(question()).text == "[1]" and fake.asked[1]["temperature"] == 0


def test_without_a_key_none_is_sent():
    with serving(Fake(key=None)) as fake:
        judge(fake, api_key_env=None).answer(question())
        assert "Authorization" not in fake.headers[0]


@pytest.mark.parametrize(
    "script", [[429], [500, 503], [429, b"<html>oops</html>", 502], [b"{}", b'{"choices": []}'], [b"\xff"]]
)
def test_what_may_pass_is_tried_again(fake, script):
    fake.script = list(script)
    assert judge(fake).answer(question()).text == "[1]"
    assert len(fake.asked) == len(script) + 1


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (429, "answers 429 (4 tries): try again later"), (500, "answers 500 (4 tries)"),
        (b"not json", "the reply is no chat completion (4 tries)"), (b"[]", "no chat completion"),
        (b"null", "no chat completion"), (b'{"choices": [{"message": {"content": 7}}]}', "no chat completion"),
        (b'{"choices": "abc"}', "no chat completion"), (b'{"choices": [null]}', "no chat completion"),
        (b"[" * 100_000, "no chat completion"),
    ],
)  # fmt: skip
def test_what_does_not_pass_is_told_in_one_line(fake, reply, said):
    fake.script = [reply] * 9
    with pytest.raises(AmortjaxError) as caught:
        judge(fake).answer(question())
    assert said in str(caught.value) and "\n" not in str(caught.value) and len(fake.asked) == 4


def test_the_server_says_how_long_to_wait(fake, monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    fake.script, fake.retry_after = [429, 503, 429], 3
    judge(fake).answer(question())
    fake.script, fake.retry_after = [429, 429], "Wed, 21 Oct 2015 07:28:00 GMT"  # gone by
    judge(fake).answer(question())
    fake.script, fake.retry_after = [429, 429], "soon"
    judge(fake, backoff=2).answer(question())
    fake.script, fake.retry_after = [429], 1e9
    judge(fake).answer(question())
    assert waited == [3, 3, 3, 0, 0, 2, 4, endpoint.LONGEST_WAIT]


def test_a_wrong_key_is_refused_at_once_and_not_repeated(fake, monkeypatch):
    monkeypatch.setenv(ENV, "sk-another-secret")
    with pytest.raises(AmortjaxError) as caught:
        judge(fake).answer(question())
    assert f"the key is not accepted (401): check the key in {ENV}" in str(caught.value)
    assert "another-secret" not in str(caught.value) and len(fake.asked) == 1
    with pytest.raises(AmortjaxError, match="give the key's variable by --api_key_env"):
        judge(fake, api_key_env=None).answer(question())


@pytest.mark.parametrize("status", [400, 404, 422])
def test_other_refusals_say_what_the_server_says(fake, status):
    fake.script = [status]
    with pytest.raises(AmortjaxError, match=rf"answers {status} \(it is so\): check --base_url"):
        judge(fake).answer(question())
    assert len(fake.asked) == 1


def test_a_key_that_the_server_repeats_is_cut_out(fake):
    fake.answer = lambda messages: f"EXPLANATION: {KEY}"
    assert judge(fake).answer(question()).text == "EXPLANATION: [key]"
    fake.script = [completion(f"x {KEY} y")]
    assert KEY not in judge(fake).answer(question()).text
    it = judge(fake)
    it.prepare()
    assert it._clean(f"a\n {KEY} b") == "a [key] b"
    assert KEY not in repr(it) + repr(it.identity) + repr(it.options) + str(vars(it.options))


def test_redirects_are_not_followed(fake):
    for status in (301, 302, 307):
        fake.script = [status]
        with pytest.raises(AmortjaxError, match=rf"redirects elsewhere \({status}\)"):
            judge(fake).answer(question())
    assert all(headers["path"] == "/v1/chat/completions" for headers in fake.headers)


def test_answers_may_be_empty_cut_and_without_usage(fake):
    fake.script = [completion(None), completion("[1", finish_reason="length")]
    assert judge(fake).answer(question()).text == ""
    cut = judge(fake).answer(question())
    assert (cut.text, cut.note, cut.prompt_tokens) == ("[1", "cut at the answer's length", None)
    for usage in (
        "many",
        {"prompt_tokens": "7"},
        {"prompt_tokens": -1, "completion_tokens": True},
        None,
        [1],
    ):
        fake.usage = usage
        found = judge(fake).answer(question())
        assert found.prompt_tokens is None and found.completion_tokens is None


def test_a_slow_server_and_one_that_is_not_there(fake):
    fake.waits = 5
    start = time.perf_counter()
    with pytest.raises(AmortjaxError, match=r"\(2 tries\)"):
        judge(fake, timeout=0.1, retries=1).answer(question())
    assert time.perf_counter() - start < 4
    gone = fake.url.rsplit(":", 1)[0] + ":1/v1"
    with pytest.raises(AmortjaxError, match="can't be reached"):
        judge(fake, base_url=gone, retries=0).answer(question())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"base_url": None}, "needs --base_url"), ({"model": None}, "needs --judge_model"),
        ({"base_url": "ftp://host/v1"}, "not an http address"), ({"base_url": "host/v1"}, "not an http address"),
        ({"base_url": "http://[::1"}, "not an address"), ({"base_url": "http://h:x/"}, "not an address"),
        ({"base_url": "https://me:secretword@host/v1"}, "holds a name, a password or a query"),
        ({"base_url": "https://host/v1?key=secretword"}, "holds a name, a password or a query"),
        ({"base_url": "http://far.example/v1"}, "unencrypted"),
        ({"api_key_env": KEY}, "never the key itself"),
        ({"api_key_env": "abcdef0123secretword"}, "never the key itself"),
        ({"api_key_env": "A B"}, "never the key itself"),
        ({"api_key_env": "AKIA0SECRETWORD0EXAMPLE"}, "never the key itself"),
        ({"base_url": "http://far.example/secretword"}, "--base_url: the key would leave this machine"),
        ({"answer_tokens_field": "tokens"}, "max_completion_tokens"), ({"temperature": 3.0}, "from 0 to 2"),
        ({"timeout": 0.0}, "above 0"), ({"timeout": float("nan")}, "above 0"), ({"retries": -1}, "not be negative"),
    ],
)  # fmt: skip
def test_options_that_can_not_be_are_refused_before_a_call(fake, given, said):
    with pytest.raises(AmortjaxError) as caught:
        judge(fake, **given)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert "secretword" not in str(caught.value).lower() and KEY not in str(caught.value)
    assert not fake.asked


@pytest.mark.parametrize(
    ("value", "said"), [(None, "is not set"), ("  ", "is not set"), ("a\nb", "no header"), ("ä", "no header")]
)
def test_a_key_that_is_not_there_is_missed_when_preparing(fake, monkeypatch, value, said):
    if value is None:
        monkeypatch.delenv(ENV)
    else:
        monkeypatch.setenv(ENV, value)
    it = judge(fake)
    with pytest.raises(AmortjaxError, match=said):
        it.prepare()
    assert not fake.asked


def test_a_key_in_capitals_is_not_repeated_as_an_unset_name(fake):
    with pytest.raises(
        AmortjaxError, match="--api_key_env: the environment variable that it names"
    ) as caught:
        judge(fake, api_key_env="SK_5UP3RSECRET").prepare()
    assert "5UP3RSECRET" not in str(caught.value)


def test_a_key_for_this_machine_goes_through_no_proxy(fake, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(Fake()) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        assert judge(fake).answer(question()).text == "[1]"
        assert len(fake.asked) == 1 and not proxy.asked
        proxy.key = None
        far = judge(fake, base_url="http://far.invalid/v1", api_key_env=None, retries=0)
        assert far.answer(question()).text == "[1]"  # to others, as the environment says
        assert proxy.headers[0]["path"] == "http://far.invalid/v1/chat/completions"


def test_local_addresses_over_http_may_have_a_key():
    for url in (
        "http://localhost:8/v1/",
        "http://127.0.0.1/v1",
        "http://[::1]:9/v1",
        "https://far.example/v1",
    ):
        assert endpoint.checked_url(url, True) == url.rstrip("/")
    assert endpoint.checked_url("http://far.example/v1", False)
