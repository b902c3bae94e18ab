"""Automated interpretability from flags to report: planted latents, cost first, keys nowhere, resuming, mistakes."""

import dataclasses
import json
import re

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from mistakes import refuses

import amortjax as aj
from amortjax.activations.store import MemoryStore
from amortjax.errors import AmortjaxError
from amortjax.interp.offline import Offline
from amortjax.launch import audits, autointerp, flagged, section5
from amortjax.report.tables import read_results
from amortjax.saes.sae import SAE, Info
from tests.interp.known_latents import WORDS
from tests.interp.server import KEY, Fake, serving

D = 16
ENV = "AMORTJAX_TEST_KEY"


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    """180 documents of 24 words in three splits; a word is a direction. Half of the words are in few documents."""
    r = np.random.default_rng(3)
    doc_ids = np.repeat(np.arange(180), 24)
    ids = r.integers(0, 6, len(doc_ids))
    rare = 6 + doc_ids % 9
    here = r.random(len(ids)) < 0.1
    ids[here] = rare[here]
    x = 3.0 * np.eye(D)[ids] + 0.02 * r.standard_normal((len(ids), D))
    splits = [("calibrate", "probe_train", "test")[d // 60] for d in range(180)]
    return MemoryStore.build(x.astype(np.float32), doc_ids, splits, token_ids=ids, vocab=WORDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An SAE whose latent j is word j, and one whose latents 6 to 9 are in another order."""
    path = tmp_path_factory.mktemp("saes")
    eye, none = jnp.eye(D), jnp.zeros(D)
    sae = SAE(eye, jnp.full(D, -1.0), eye, none, none, {}, "standard", info=Info(name="words"))
    turned = np.eye(D, dtype=np.float32)[[*range(6), 9, 6, 7, 8, *range(10, 16)]]
    other = dataclasses.replace(sae, W_enc=jnp.asarray(turned.T), W_dec=jnp.asarray(turned))
    for name, one in (("words", sae), ("turned", other)):
        aj.save_sae(one, path / name, "native")
    return path


@pytest.fixture(autouse=True)
def activations(store, monkeypatch):
    monkeypatch.setattr(section5, "activations", lambda config: store)
    monkeypatch.setenv(ENV, KEY)


def config(folder, out, names=("words",), **flags) -> autointerp.Config:
    given = {"ckpts": ",".join(str(folder / name) for name in names), "acts": "unused", "out": out}
    given |= {"chunk": 512, "latents": 5, "left": 3, "right": 2, "kept": folder / "kept"} | flags
    return flagged.parse(autointerp.Config, [f"--{k}={v}" for k, v in given.items()], autointerp.ALIASES)


@pytest.fixture(scope="module")
def whole(store, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(section5, "activations", lambda config: store)
        rows = autointerp.run(config(folder, out, shuffled=True, fuzz=True))
    return out, rows


def test_words_are_described_under_both_codes_and_compared_on_the_same_latents(whole):
    out, rows = whole
    assert [row["mode"] for row in rows] == ["amortized", "optimal"]
    for row in rows:
        assert row["n_eligible"] == 15 and row["n_latents_asked"] == 5
        assert row["macro_f1"] == 1 == row["fuzz"] and row["n_scored"] + row["n_no_negatives"] == 5
        assert row["shuffled_macro_f1"] < 0.8 and row["chance_all_ones"] == pytest.approx(1 / 3)
        assert row["l0"] == pytest.approx(1, abs=0.02) and row["judge"] == {"judge": "offline", "rules": 1}
    assert rows[1]["against_mode"] == "amortized" and rows[1]["macro_f1_difference_mode"] == 0
    table = pd.read_csv(out / "latents.csv")
    first, second = (table[table["mode"] == mode]["latent"].tolist() for mode in ("amortized", "optimal"))
    assert first == second and len(first) == 5
    done = table[table.status == "scored"]
    assert (done.explanation == [f"token {json.dumps(WORDS[j])}" for j in done.latent]).all()


def test_what_is_written(whole):
    out, rows = whole
    assert len(read_results(out)) == len(rows)
    for name in (
        "results.csv",
        "results.parquet",
        "latents.csv",
        "config.json",
        "figures/macro_f1.png",
        "report.md",
    ):
        assert (out / name).stat().st_size > 100
    latents = json.loads((out / "latents.json").read_text())
    uses = {(e["use"], e["positive"]) for row in latents for e in row["examples"]}
    assert ("explained", True) in uses and ("scored", False) in uses
    assert not list(out.rglob("*.part"))
    lines = [json.loads(line) for line in (out / "transcripts.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"explain", "detect", "fuzz"}


def test_text_of_the_corpus_is_only_text_on_the_page(store, folder, tmp_path):
    markup = list(WORDS)
    markup[6:9] = ["<script>alert(1)</script>", " <img src=x onerror=alert(2)>", " | <b>&amp;"]
    other = MemoryStore.build(
        store.read(slice(None)),
        store.doc_ids,
        list(store.documents["split"]),
        token_ids=store.token_ids,
        vocab=markup,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(section5, "activations", lambda config: other)
        autointerp.run(config(folder, tmp_path, latent_list="6,7,8", encode_modes="amortized"))
    page = (tmp_path / "report.html").read_text()
    assert (
        "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        and "&lt;img src=x" in page
        and "&lt;b&gt;&amp;amp;" in page
    )
    for raw in ("<script>alert(1)", "<img src=x", "<b>"):
        assert raw not in page and raw not in (tmp_path / "report.md").read_text()


def test_a_second_run_asks_nothing_and_says_the_same(whole, folder, monkeypatch):
    out, rows = whole
    before = (out / "transcripts.jsonl").read_bytes()
    monkeypatch.setattr(Offline, "answer", lambda *_: pytest.fail("asked again"))
    assert autointerp.run(config(folder, out, shuffled=True, fuzz=True)) == rows
    assert (out / "transcripts.jsonl").read_bytes() == before


def test_a_killed_run_goes_on(whole, folder, tmp_path, monkeypatch):
    inner, made = Offline.answer, []

    def killed(self, request):
        if len(made) == 7:
            raise KeyboardInterrupt
        made.append(request)
        return inner(self, request)

    monkeypatch.setattr(Offline, "answer", killed)
    with pytest.raises(KeyboardInterrupt):
        autointerp.run(config(folder, tmp_path))
    assert not read_results(tmp_path) and len((tmp_path / "transcripts.jsonl").read_text().splitlines()) == 7
    again = []
    monkeypatch.setattr(Offline, "answer", lambda self, r: again.append(r) or inner(self, r))
    rows = autointerp.run(config(folder, tmp_path))
    assert not {json.dumps(r) for r in made} & {json.dumps(r) for r in again}
    for ours, theirs in zip(rows, whole[1], strict=True):
        assert ours["macro_f1"] == theirs["macro_f1"] and ours["n_scored"] == theirs["n_scored"]


def test_two_saes_are_compared_on_their_own_latents_or_paired(folder, tmp_path):
    common = {
        "encode_modes": "amortized",
        "latent_list": "6,7,8,9,10,11,12,13,14,2,3",
        "names": ("words", "turned"),
    }
    apart = autointerp.run(config(folder, tmp_path, **common))
    paired = autointerp.run(config(folder, tmp_path, **common, same_latents=True))
    assert apart[1]["against_sae"] == "words" and not apart[1]["paired_sae"] and paired[1]["paired_sae"]
    assert paired[1]["macro_f1_difference_sae"] == 0 == paired[1]["macro_f1_difference_lo_sae"]
    table = pd.read_csv(tmp_path / "latents.csv")
    told = table[(table.checkpoint == "turned") & (table.latent == 6)].explanation.item()
    assert told == f"token {json.dumps(WORDS[9])}"


def test_literal_says_how_many_negatives_fire(folder, tmp_path):
    flags = {
        "protocol": "literal",
        "latent_list": "6,7,2",
        "other_latents": "0,1",
        "encode_modes": "amortized",
    }
    [row] = autointerp.run(config(folder, tmp_path, **flags))
    assert row["protocol"] == "literal" and row["n_negatives_active"] > 0
    assert "negatives that fire" in (tmp_path / "report.md").read_text()


# --- endpoint ---


def files_of(folder) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_an_endpoint_is_asked_and_its_key_is_nowhere(folder, tmp_path, capsys):
    with serving(Fake()) as fake:
        fake.script = [429, 500, b"<html>", 503]
        fake.answer = lambda messages: f"I was given {KEY}. {fake.offline(messages)}"
        given = {"judge": "endpoint", "judge_model": "m", "base_url": fake.url, "api_key_env": ENV}
        given |= {
            "parallel_calls": 3,
            "latent_list": "8,9,10,12",
            "price_per_million_input": 2,
            "max_cost": 1,
        }
        made = config(folder, tmp_path, **given, price_per_million_output=8)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("amortjax.interp.endpoint.time.sleep", lambda seconds: None)
            rows = autointerp.run(made)
        answered = len(fake.asked) - 4
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv(ENV)  # what is answered needs no key
            again = autointerp.run(made)
        assert again == rows and len(fake.asked) == answered + 4
        assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in fake.headers)
    assert rows[0]["macro_f1"] > 0.9 and rows[0]["judge"]["model"] == "m"
    printed = capsys.readouterr()
    # Both codes are the same here, and so are half of the questions.
    assert answered == 8 and "8 calls (8 answers are there already)" in printed.err
    assert "0 calls (16 answers are there already)" in printed.err and "at these prices" in printed.err
    text = files_of(tmp_path) + printed.out.encode() + printed.err.encode()
    assert KEY.encode() not in text and ENV.encode() in text and b"[key]" in text


def test_a_wrong_key_ends_the_run_in_one_line(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(ENV, "sk-wrong-secret-77")
    with serving(Fake()) as fake:
        given = {"judge": "endpoint", "judge_model": "m", "base_url": fake.url, "api_key_env": ENV}
        with pytest.raises(AmortjaxError, match=rf"the key is not accepted \(401\): check the key in {ENV}"):
            autointerp.run(config(folder, tmp_path, **given))
    printed = capsys.readouterr()
    assert b"secret-77" not in files_of(tmp_path) + printed.out.encode() + printed.err.encode()
    assert not read_results(tmp_path)


def test_a_dry_run_says_what_it_costs_and_needs_neither_key_nor_server(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(ENV)
    given = {
        "judge": "endpoint",
        "judge_model": "m",
        "base_url": "https://nowhere.invalid/v1",
        "api_key_env": ENV,
    }
    given |= {"latent_list": "6,7,8", "price_per_million_input": 1e6, "price_per_million_output": 0}
    assert autointerp.run(config(folder, tmp_path, **given, dry_run=True)) == []
    said = capsys.readouterr().out
    assert "6 calls (6 answers are there already), about " in said
    tokens = int(said.split("about ")[1].split(" prompt")[0])
    assert f"about {tokens:.2f} at these prices" in said and not list(tmp_path.iterdir())
    with pytest.raises(
        AmortjaxError, match="--api_key_env: the environment variable that it names is not set"
    ):
        autointerp.run(config(folder, tmp_path, **given))


def test_too_many_or_too_dear_calls_are_refused_before_the_first(folder, tmp_path):
    with serving(Fake()) as fake:
        given = {"judge": "endpoint", "judge_model": "m", "base_url": fake.url, "api_key_env": ENV}
        given |= {"latent_list": "6,7,8"}
        with pytest.raises(AmortjaxError, match="6 calls are needed, --max_calls=5 are allowed"):
            autointerp.run(config(folder, tmp_path, **given, max_calls=5))
        prices = {"price_per_million_input": 1e6, "price_per_million_output": 1, "max_cost": 1000}
        with pytest.raises(AmortjaxError, match="--max_cost=1000 is allowed"):
            autointerp.run(config(folder, tmp_path, **given, **prices))
        assert not fake.asked and not list(tmp_path.iterdir())


def test_the_offline_judge_may_describe_for_another_scorer(folder, tmp_path):
    with serving(Fake(key=None)) as fake:
        fake.answer = lambda messages: fake.offline(messages).replace("0", "1")
        given = {"scorer": "endpoint", "scorer_model": "m", "base_url": fake.url, "encode_modes": "amortized"}
        [row] = autointerp.run(config(folder, tmp_path, **given, latent_list="6,7,8"))
    assert row["macro_f1"] == pytest.approx(1 / 3) == row["chance_all_ones"]
    assert (row["judge"]["judge"], row["scorer"]["judge"]) == ("offline", "endpoint")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--latents=0"], "--latents=0: must be at least 1"),
        (["--latent_list=-3"], "--latent_list=-3: latents are numbered from 0"),
        (["--encode_modes="], "--encode_modes is empty"),
        (["--max_cost=3"], "--max_cost needs --price_per_million_input"),
        (["--max_calls=-1"], "--max_calls=-1"), (["--price_per_million_input=nan"], "--price_per_million_input=nan"),
        (["--judge=endpoint", "--scorer=offline"], "reads only the offline judge's own descriptions"),
        (["--same_latents"], "give at least two --ckpts"),
        (["--judge=endpoint"], "needs --judge_model"), (["--judge=local"], "needs --judge_model"),
        (["--judge=endpoint", "--judge_model=m"], "needs --base_url"),
        (["--min_examples=40"], "every latent would be skipped"), (["--left=-1"], "left=-1"),
        (["--judge=human"], "--judge=human: not a choice"), (["--eval_tokens=0"], "--eval_tokens=0"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(flags, said, tmp_path, monkeypatch):
    refuses(autointerp, ["--ckpts=a", "--acts=b", "--out=c", *flags], said, tmp_path, monkeypatch)


@pytest.mark.parametrize("judge", ["offline", "local", "endpoint"])
@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--api_key_env=sk-secret123", "never the key itself"),
        ("--api_key_env=AKIASECRET1234567890", "never the key itself"),
        ("--base_url=https://user:secret123@host/v1", "--base_url holds a name, a password or a query"),
        ("--base_url=https://host/v1?key=secret123", "--base_url holds a name, a password or a query"),
        ("--base_url=user:secret123@host/v1", "--base_url is not an http address"),
    ],
)
def test_secrets_among_the_flags_are_refused_whoever_judges(judge, flag, said):
    flags = ["--ckpts=a", "--acts=b", "--out=c", f"--judge={judge}", "--judge_model=m", flag]
    with pytest.raises(AmortjaxError, match=re.escape(said)) as caught:
        flagged.parse(autointerp.Config, flags).checked()
    assert "secret" not in str(caught.value).lower() and "\n" not in str(caught.value)


def test_a_latent_that_is_not_there_is_named_before_calibration(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(audits, "pose", lambda *_: pytest.fail("calibrated"))
    with pytest.raises(AmortjaxError, match="--latent_list: there is no latent 16, they go up to 15"):
        autointerp.run(config(folder, tmp_path, latent_list="3,16"))


def test_help_of_flags_that_depend_on_others_names_them():
    text = flagged.help_text(autointerp.Config, "amortjax.launch.autointerp")
    helps = {part.split("\n")[0]: " ".join(part.split()) for part in text.split("\n  --")[1:]}
    assert "--max_answer_tokens" in helps["answer_tokens_field"]
    assert "--latents" in helps["latent_list"] and "--protocol=literal" in helps["other_latents"]
