"""The preflight launcher, from end to end on the embedded model: planted faults are named, a correct SAE is not."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from amortjax.errors import AmortjaxError
from amortjax.launch import collect, flagged, inspect
from amortjax.launch import train as trainer
from amortjax.launch.choices import Choices
from amortjax.saes.formats import load_sae, save_sae
from amortjax.saes.sae import SAE, unscale_input

GOLDEN = Path(__file__).parents[1] / "golden/formats"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> dict[str, str]:
    """Text, a store of resid_post of block 2 of the embedded model, and an SAE trained on it, of everything little."""
    folder = tmp_path_factory.mktemp("inspect")
    words = [
        "latent",
        "token",
        "sparse",
        "code",
        "norm",
        "layer",
        "model",
        "guess",
        "price",
        "shard",
        "seed",
        "block",
    ]
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(rng.choice(words, 40))}) for _ in range(160)]
    (folder / "words.jsonl").write_text("\n".join(lines))
    text = str(folder / "words.jsonl")
    acts, sae = str(folder / "acts"), str(folder / "sae")
    shared = {"model_name": "embedded", "layer_index": 2, "dataset": text, "max_seq_len": 64}
    collect.run(collect.Config(**shared, out=acts))
    recipe = {"n_latents": 256, "k": 8, "steps": 120, "batch_size": 256, "lr": 3e-3}
    trainer.train(trainer.Config(acts=acts, out=sae, **recipe))
    return {"text": text, "acts": acts, "sae": sae}


def looked_at(sae: SAE, folder: Path, **flags) -> inspect.Preflight:
    path = save_sae(sae, folder / "sae")
    return inspect.run(inspect.Config(ckpt=str(path), tokens=1024, **flags))


def names(found: inspect.Preflight) -> list[str]:
    return [finding.name for finding in found.findings]


def test_a_correct_sae_on_its_model(place, tmp_path, capsys):
    out = tmp_path / "out"
    config = inspect.Config(
        ckpt=place["sae"],
        model_name="embedded",
        dataset=place["text"],
        tokens=1024,
        max_seq_len=64,
        out=str(out),
    )
    found = inspect.run(config)
    said = capsys.readouterr().out
    assert names(found) == [] and said.rstrip().endswith("no fault found") and found.page in said
    for words in ("variant       topk, k 8", "W_enc 128x256", "resid_post of block 2, model embedded",
                  "b_dec subtracted before encoding", "8.00 measured, 8 declared"):  # fmt: skip
        assert words in said
    record = json.loads((out / "preflight.json").read_text())
    assert (out / "preflight.png").stat().st_size > 5000 and record["faults"] == []
    by_hook = {(site["hook"], site["layer"]): site["fvu"] for site in record["hooks"]}
    assert set(by_hook) == {
        ("resid_pre", 1), ("resid_post", 1), ("resid_post", 2), ("resid_post", 3), ("mlp_out", 2), ("attn_out", 2)
    }  # fmt: skip
    assert min(by_hook, key=by_hook.__getitem__) == ("resid_post", 2)
    assert by_hook["resid_post", 2] == pytest.approx(record["seen"]["fvu"], rel=1e-5)
    # The same rows as a store of them has.
    assert 1024 <= record["seen"]["n_tokens"] < 1024 + 64 and record["seen"]["l0"] == pytest.approx(8)


def test_another_layer_is_named_by_the_model_and_by_the_store(place, tmp_path):
    sae = load_sae(place["sae"])
    model = {"model_name": "embedded", "dataset": place["text"], "max_seq_len": 64}
    wrong = looked_at(sae, tmp_path / "a", layer_index=3, **model)
    assert names(wrong) == ["hook"] and "--layer_index=2 --hook=resid_post" in wrong.findings[0].remedy
    # resid_pre of block 3 is the same place as resid_post of block 2.
    assert names(looked_at(sae, tmp_path / "b", layer_index=3, hook="resid_pre", **model)) == []
    lying = dataclasses.replace(sae, info=dataclasses.replace(sae.info, layer_index=3))
    measured = looked_at(lying, tmp_path / "c", **model)
    assert names(measured) == ["hook"] and "fits resid_post of block 2 better" in measured.findings[0].fault
    stored = looked_at(lying, tmp_path / "d", acts=place["acts"])
    assert names(stored) == ["hook"] and "of resid_post of block 3 by its file" in stored.findings[0].fault
    assert names(looked_at(sae, tmp_path / "e", acts=place["acts"])) == []


def test_scale_rule_and_bias_are_named_from_the_file(place, tmp_path):
    sae = load_sae(place["sae"])
    scaled = looked_at(unscale_input(sae, 1 / 7), tmp_path / "a", acts=place["acts"])
    assert names(scaled) == ["scale"]
    assert scaled.known.what_if and 1 / scaled.known.what_if.scale == pytest.approx(7, rel=0.15)
    relu = looked_at(dataclasses.replace(sae, variant="standard", k=None), tmp_path / "b", acts=place["acts"])
    assert names(relu) == ["rule"] and "as TopK with k about 8 " in relu.findings[0].fault
    bias = looked_at(dataclasses.replace(sae, pre_bias=0 * sae.pre_bias), tmp_path / "c", acts=place["acts"])
    assert names(bias) == ["bias"] and "pre_bias=sae.b_dec" in bias.findings[0].remedy


@pytest.mark.parametrize(
    ("name", "divides"),
    [("dl_batch_topk_backup", True), ("saelens6_standard_expected_average_only_in", False)],
)
def test_the_scale_is_given_as_the_format_takes_it(name, divides):
    """dictionary_learning's norm_factor divides the inputs, SAELens' multiplies them: loaded with 1, the remedy says
    which number to give, and with it the FVU is as said."""
    from amortjax.metrics import preflight, verdict, whatif
    from amortjax.saes.formats.hooks import Site

    x = np.load(GOLDEN / name / "golden.npz")["x"][4:] * (3 if divides else 1)
    config = inspect.Config(ckpt=str(GOLDEN / name), norm_factor=1.0)
    sae = inspect.load(config)
    asked = whatif.ask(sae, x)
    known = verdict.Known(
        sae, preflight.dictionary(sae), Site(), preflight.on_rows(sae, x), asked, None, x.astype(np.float32)
    )
    [finding] = [finding for finding in inspect.judged(config, known)[0] if finding.name == "scale"]
    value = float(finding.remedy.split("--norm_factor=")[1].split()[0])
    assert (value > 1) == divides
    again = inspect.load(dataclasses.replace(config, norm_factor=value))
    fvu = preflight.fvu(x, preflight.reconstruction(again, x))
    assert fvu <= inspect.HOLDS * asked.scales[asked.scale] * 1.001 and fvu < 0.6 * asked.now
    assert f"FVU {fvu:.3g}, measured" in finding.remedy


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "needed: --ckpt"),
        (["--ckpt=absent"], "absent: no such file"),
        (["--ckpt=x", "--tokens=0"], "--tokens=0: must be above 0"),
        (["--ckpt=x", "--threshold=high"], "--threshold=high: not a number"),
        (["--ckpt=x", "--batch_rule=perhaps"], "--batch_rule=perhaps: say true or false"),
        (["--ckpt=x", "--hook=resid_mid"], "Choices: resid_post"),
        (["--ckpt=SAE", "--acts=absent"], "absent: no activation store"),
        (["--ckpt=SAE", "--dict_class=AutoEncoder"], "the native format has no choice 'dict_class'"),
        (["--ckpt=GOLDEN/dl_topk", "--acts=ACTS"], "takes activations of width 24, but these have width 128"),
        (["--ckpt=GOLDEN/overcomplete_relu", "--model_name=embedded"], "give --layer_index"),
        (["--ckpt=GOLDEN/kissane_hook_z", "--model_name=embedded"], "give --"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(flags, text, place, monkeypatch, capsys):
    known = {"SAE": place["sae"], "ACTS": place["acts"], "GOLDEN": str(GOLDEN)}
    for short, long in known.items():
        flags = [flag.replace(short, long) for flag in flags]
    monkeypatch.setattr(sys, "argv", ["inspect", *flags])
    with pytest.raises(SystemExit) as caught:
        flagged.launch(inspect.Config, inspect.main, "amortjax.launch.inspect")
    said = capsys.readouterr()
    assert caught.value.code == 2 and text in said.err and said.err.count("\n") == 1 and not said.out


def test_exit_code_1_and_the_standard_librarys_inspect(place, tmp_path):
    sae = load_sae(place["sae"])
    path = save_sae(dataclasses.replace(sae, pre_bias=0 * sae.pre_bias), tmp_path / "sae")
    command = [sys.executable, "-m", "amortjax.launch.inspect", f"--ckpt={path}", f"--acts={place['acts']}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("fault: ") == 1 and "remedy: " in done.stdout
    # Of the file alone nothing is known against it.
    alone = inspect.run(inspect.Config(ckpt=str(path)))
    assert not alone.findings and "no fault found in the file alone" in alone.page


def test_choices_are_what_load_sae_takes():
    flags = [
        "--k=3",
        "--threshold=TRUE",
        "--normalize_decoder=false",
        "--norm_factor=0.5",
        "--batch_rule=true",
    ]
    found = flagged.parse(Choices, flags).given()
    assert found == {
        "k": 3, "threshold": True, "normalize_decoder": False, "norm_factor": 0.5, "batch_rule": True
    }  # fmt: skip
    assert flagged.parse(Choices, ["--threshold=0.25"]).given() == {"threshold": 0.25}
    assert Choices().given() == {}
    for bad in ("nan", "inf", "high", ""):
        with pytest.raises(AmortjaxError, match="not a number"):
            Choices(threshold=bad).given()
    assert inspect.load(inspect.Config(ckpt=str(GOLDEN / "dl_topk"), k=3)).k == 3
