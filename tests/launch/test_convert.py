"""The convert launcher: every format to every format it can be, checked, all or nothing."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from amortjax.errors import AmortjaxError, CheckpointError
from amortjax.launch import convert, flagged
from amortjax.saes import api
from amortjax.saes.formats import load_sae, saelens_writer, save_sae

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"


def _config(name: str | Path, output: Path, **changes: object) -> convert.Config:
    return convert.Config(input=str(GOLDEN / name), output=str(output), **changes)  # pyright: ignore[reportArgumentType]


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("name", "format", "variant"),
    [
        ("dl_topk", "native", "topk"),
        ("dl_topk", "saelens", "topk"),
        ("saelens6_topk", "dictionary_learning", "topk"),
        ("dl_matryoshka_batch_topk", "saelens", "jumprelu"),
        ("seed_loca_sae", "loca", "loca"),
        ("saelens6_jumprelu_skip_transcoder", "saelens", "jumprelu"),
    ],
)
def test_what_was_converted_computes_the_same(tmp_path, capsys, name, format, variant):
    check = convert.run(_config(name, tmp_path / "new" / "sae", format=format))
    said = capsys.readouterr().out
    assert (
        check.difference <= 1e-6 and check.same_latents + check.near_ties == convert.PROBES and check.l0 > 1
    )
    assert "read " in said and "written" in said and "checked" in said
    place = tmp_path / "new" if format == "native" else tmp_path / "new" / "sae"
    back, golden = load_sae(place), np.load(GOLDEN / name / "golden.npz")
    assert back.variant == variant and back.info.format == format
    assert np.abs(api.encode(back, golden["x"]) - golden["z"]).max() <= 1e-5 * (1 + np.abs(golden["z"]).max())
    assert not list(tmp_path.glob(".convert*"))


def test_choices_settle_what_the_file_leaves_open(tmp_path, capsys):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "ae.pt").write_bytes((GOLDEN / "dl_batch_topk" / "ae.pt").read_bytes())
    flags = [f"--input={tmp_path}/bare", f"--output={tmp_path}/sae", "--format=saelens"]
    with pytest.raises(CheckpointError, match="dict_class"):
        convert.run(flagged.parse(convert.Config, flags))
    assert not (tmp_path / "sae").exists()
    convert.run(flagged.parse(convert.Config, [*flags, "--dict_class=BatchTopKSAE", "--threshold=0.5"]))
    assert float(load_sae(tmp_path / "sae").extra["threshold"][0]) == 0.5
    assert "batch_topk  D 24  M 96  k 8" in capsys.readouterr().out


def test_an_existing_output_is_kept_unless_told(tmp_path):
    for format in ("native", "saelens"):
        convert.run(_config("dl_topk", tmp_path / format, format=format))
    before = _files(tmp_path)
    for format in ("native", "saelens"):
        with pytest.raises(AmortjaxError, match=r"is there already.*--overwrite"):
            convert.run(_config("dl_standard", tmp_path / format, format=format))
    assert _files(tmp_path) == before
    for format in ("native", "saelens"):
        convert.run(_config("dl_standard", tmp_path / format, format=format, overwrite=True))
    assert _files(tmp_path).keys() == before.keys()
    assert load_sae(tmp_path / "saelens").variant == load_sae(tmp_path / "native").variant == "standard"


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    for overwrite, text in ((False, "is there already"), (True, "holds thesis.tex")):
        with pytest.raises(AmortjaxError, match=text):
            convert.run(_config("dl_topk", tmp_path / "mine", format="saelens", overwrite=overwrite))
    (tmp_path / "file").write_text("a file")
    with pytest.raises(AmortjaxError, match="is a file"):
        convert.run(_config("dl_topk", tmp_path / "file", format="saelens", overwrite=True))
    assert _files(tmp_path) == {"mine/thesis.tex": b"years of work", "file": b"a file"}


def test_output_inside_the_input_is_refused(tmp_path):
    save_sae(load_sae(GOLDEN / "dl_topk"), tmp_path / "in" / "sae")
    for output in (tmp_path / "in", tmp_path / "in" / "new"):
        with pytest.raises(AmortjaxError, match="is in --input"):
            convert.run(convert.Config(input=str(tmp_path / "in"), output=str(output)))


def test_a_mismatch_leaves_nothing_behind(tmp_path, monkeypatch):
    right = saelens_writer._tensors
    wrong = lambda *args: (found := right(*args)) | {"b_enc": found["b_enc"] + np.float32(1e-3)}  # noqa: E731
    monkeypatch.setattr(saelens_writer, "_tensors", wrong)
    with pytest.raises(AmortjaxError, match=r"it is another SAE.*nothing is left of it"):
        convert.run(_config("dl_standard", tmp_path / "sae", format="saelens"))
    assert not list(tmp_path.iterdir())


def test_a_format_that_can_not_hold_it_leaves_nothing_behind(tmp_path):
    with pytest.raises(AmortjaxError, match="limits how many latents of a group fire"):
        convert.run(_config("seed_loca_sae", tmp_path / "sae", format="saelens"))
    with pytest.raises(CheckpointError, match="no choice 'bias_latent'"):
        convert.run(_config("dl_topk", tmp_path / "sae", format="saelens", bias_latent=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["dl_standard", "saelens6_jumprelu_bdec_false", "saelens6_gated_bdec_true"])
def test_probes_make_an_sae_fire_and_tell_wrong_ones(name):
    import dataclasses

    sae = load_sae(GOLDEN / name)
    fires = api.encode(sae, convert.probes(sae)) != 0
    assert fires.any(axis=1).mean() > 0.5 and fires.any(axis=0).mean() > 0.6
    assert convert.compare(sae, sae) == convert.Check(0.0, 256, 0, fires.sum(1).mean())
    changes = {
        "a scale": {"W_dec": sae.W_dec * 1.001},
        "a bias": {"b_dec": sae.b_dec + 1e-3},
        "a layer of ReLU": {"variant": "standard", "b_enc": sae.b_enc + 1e-2},
    }
    for change in changes.values():
        check = convert.compare(sae, dataclasses.replace(sae, **change))
        assert check.difference > convert.TOLERANCE


def test_inputs_near_a_tie_are_not_counted():
    import dataclasses

    sae = load_sae(GOLDEN / "dl_standard")
    # All latents of a row tie with their threshold, give or take rounding.
    x = convert.probes(sae)
    pre = np.asarray(x[0] - sae.pre_bias) @ np.asarray(sae.W_enc)
    tie = dataclasses.replace(sae, b_enc=jnp.asarray(-pre))
    moved = dataclasses.replace(tie, b_enc=tie.b_enc + 1e-6)
    z = api.encode(tie, x)
    assert ((z != 0) != (api.encode(moved, x) != 0))[0].any()
    assert convert._near_a_tie(tie, x, z)[0]


def test_the_launcher_says_a_mistake_in_one_line(tmp_path):
    (tmp_path / "sae.json").write_text(json.dumps({}))
    command = [
        sys.executable,
        "-m",
        "amortjax.launch.convert",
        f"--input={tmp_path}",
        f"--output={tmp_path}/out/x",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
