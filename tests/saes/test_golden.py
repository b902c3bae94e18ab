"""Every golden checkpoint: codes and reconstructions as the library that wrote it computed them.

Folders of tests/golden/formats are picked up as they come; PROVENANCE.json in each says what its arrays are.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from amortjax.errors import CheckpointError
from amortjax.saes import api
from amortjax.saes.formats import load_sae

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"
FOLDERS = sorted(folder for folder in GOLDEN.iterdir() if folder.is_dir())
# {folder: [(choices, z, xhat)]} where arrays need a choice; without an entry: no choice, `z` and `xhat`.
CHOICES = {
    "dl_batch_topk": [({}, "z", "xhat"), ({"batch_rule": True}, "z_batchtopk", "xhat_batchtopk")],
    "dl_batch_topk_backup": [({}, "z_scaled", "xhat_scaled"), ({"norm_factor": 1}, "z", "xhat")],
    "dl_matryoshka_batch_topk": [({}, "z", "xhat"), ({"batch_rule": True}, "z_batchtopk", None)],
    "dl_standard_april": [
        ({}, "z", "xhat"),
        ({"normalize_decoder": True}, "z_load_dictionary", "xhat_load_dictionary"),
    ],
    "dl_topk": [({}, "z", "xhat"), ({"threshold": True}, "z_threshold", "xhat_threshold")],
    "llama_scope": [({}, "z", "xhat"), ({"scale": "openmoss"}, "z_openmoss", "xhat_openmoss")],
    "overcomplete_batchtopk": [({"threshold": 0.5}, "z", "xhat")],
    "saelens6_batchtopk_training": [({"batch_rule": True}, "z", "xhat")],
    "saelens6_matryoshka_batchtopk_training": [({"batch_rule": True}, "z", "xhat")],
    "saelens6_standard_expected_average_only_in": [
        ({}, "z", "xhat"),
        ({"norm_factor": 0.37}, "z_folded", "xhat_folded"),
    ],
}
# One file of a folder with several.
FILES = {"openai_topk": ("8.pt", "8_raw_state_dict.pt"), "seed_loca_sae": ("",)}
REFUSED = {"saelens6_temporal": "temporal"}
CASES = [
    pytest.param(
        folder / file, *case, id=f"{folder.name}-{file}-{case[1]}" if file else f"{folder.name}-{case[1]}"
    )
    for folder in FOLDERS
    if folder.name not in REFUSED
    for file in FILES.get(folder.name, ("",))
    for case in CHOICES.get(folder.name, [({}, "z", "xhat")])
]


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    assert np.abs(got - want).max() <= 1e-5 * (1 + np.abs(want).max())


def test_there_are_golden_files():
    assert len(FOLDERS) >= 51


@pytest.mark.filterwarnings("ignore::UserWarning")  # what a file leaves open is said aloud
@pytest.mark.parametrize(("path", "choices", "z_key", "xhat_key"), CASES)
def test_golden_codes_and_reconstructions(path, choices, z_key, xhat_key):
    folder = next(parent for parent in (path, *path.parents) if parent.parent == GOLDEN)
    golden, sae = np.load(folder / "golden.npz"), load_sae(path, **choices)
    z = api.encode(sae, golden["x"])
    np.testing.assert_array_equal(z != 0, golden[z_key] != 0)
    assert_close(z, golden[z_key])
    if xhat_key:
        # The golden codes are decoded, so that this tests the decoder alone.
        xhat, whole = golden[xhat_key], golden["y"] if "y" in golden else golden[xhat_key]
        assert_close(api.decode(sae, golden[z_key], golden["x"]), xhat.reshape(len(xhat), -1))
        assert_close(api.reconstruct(sae, golden["x"]), whole)


@pytest.mark.parametrize(("folder", "text"), REFUSED.items())
def test_what_no_token_alone_can_encode_is_refused(folder, text):
    with pytest.raises(CheckpointError, match=text) as caught:
        load_sae(GOLDEN / folder)
    assert "\n" not in str(caught.value)


def test_an_exact_tie_with_the_threshold_does_not_fire():
    folder = GOLDEN / "dl_jumprelu"
    probe = json.loads((folder / "PROVENANCE.json").read_text())["strict_probe"]
    sae, x = load_sae(folder), np.load(folder / "golden.npz")["x"]
    row, latent = probe["row"], probe["latent"]
    assert float(sae.b_enc[latent]) == float(sae.extra["threshold"][latent])  # x is 0 in that row
    assert api.encode(sae, x)[row, latent] == 0


def test_origin_comes_from_config_json():
    info = load_sae(GOLDEN / "dl_topk").info
    assert (info.model_name, info.layer_index, info.hook) == (
        "EleutherAI/pythia-160m-deduped",
        8,
        "resid_post",
    )
    assert info.format == "dictionary_learning" and info.source.endswith("ae.pt")


def test_the_trained_penalty_is_given_in_raw_units_or_not_at_all():
    unknown = load_sae(GOLDEN / "dl_standard").info
    assert unknown.lam_train is None and any("norm_factor" in note for note in unknown.notes)
    assert load_sae(GOLDEN / "dl_standard", norm_factor=3.0).info.lam_train == pytest.approx(0.3)
    assert load_sae(GOLDEN / "dl_topk").info.lam_train is None


def _without_config(folder: Path, to: Path) -> Path:
    (to / "ae.pt").write_bytes((folder / "ae.pt").read_bytes())
    return to


def test_two_classes_with_the_same_tensors_are_not_guessed(tmp_path):
    _without_config(GOLDEN / "dl_batch_topk", tmp_path)
    with pytest.raises(CheckpointError, match=r"dict_class=.*AutoEncoderTopK, BatchTopKSAE"):
        load_sae(tmp_path)
    assert load_sae(tmp_path, dict_class="BatchTopKSAE").variant == "batch_topk"
    assert load_sae(tmp_path, dict_class="AutoEncoderTopK", k=5).k == 5


def test_a_class_told_by_its_tensors_needs_no_config(tmp_path):
    _without_config(GOLDEN / "dl_matryoshka_batch_topk", tmp_path)
    sae = load_sae(tmp_path / "ae.pt")
    assert sae.variant == "matryoshka" and sae.groups == (12, 24, 60)


def test_a_threshold_that_was_never_measured_means_the_batch_rule():
    folder = GOLDEN / "dl_batch_topk"
    # The file's own threshold is positive; -1 is what training starts from.
    from amortjax.saes.formats import dictionary_learning as reader

    sae = load_sae(folder)
    unmeasured = np.float32(-1.0)
    from dataclasses import replace

    sae = replace(sae, extra={"threshold": unmeasured})
    chosen = reader._choose_rule(folder / "ae.pt", sae, unmeasured, {}, None)
    assert chosen.batch_rule
    assert not reader._choose_rule(folder / "ae.pt", sae, unmeasured, {"batch_rule": False}, None).batch_rule


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        ({"color": 1}, "no choice 'color'.*dict_class"),
        ({"dict_class": "Nonsense"}, "not one of AutoEncoder"),
        ({"dict_class": "GatedAutoEncoder"}, "'decoder_bias' is missing"),
        ({"k": 1000}, "k = 1000 must be from 1"),
        ({"batch_rule": True}, "batch_rule is for"),
        ({"normalize_decoder": True}, "can't be normalised"),
    ],
)
def test_wrong_choices_are_one_line_errors(choices, text):
    from amortjax.errors import AmortjaxError

    with pytest.raises(AmortjaxError, match=text) as caught:
        load_sae(GOLDEN / "dl_topk", **choices)
    assert "\n" not in str(caught.value)


def test_a_folder_with_several_saes_is_refused_with_the_list():
    with pytest.raises(CheckpointError, match=r"holds \d+ SAEs.*dl_batch_topk/ae.pt"):
        load_sae(GOLDEN)


def test_a_folder_without_an_sae_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(CheckpointError, match="no SAE of a known format"):
        load_sae(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        load_sae(tmp_path / "absent")


def test_a_hub_id_without_a_connection_is_one_line(monkeypatch, tmp_path):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no\nconnection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="the hub can't be read") as caught:
        load_sae("org/repo:resid_post_layer_8/trainer_6")
    assert "\n" not in str(caught.value)
