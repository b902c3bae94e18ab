"""SAELens' files of all versions: what cfg.json may say, training checkpoints, and what is refused."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from amortjax.errors import AmortjaxError, CheckpointError
from amortjax.saes import api
from amortjax.saes.formats import load_sae

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"
WEIGHTS = "sae_weights.safetensors"


@pytest.fixture
def edited(tmp_path):
    """edited(name, cfg, metadata, **tensors): a copy of the golden folder saelensNAME; settings and tensors are
    replaced, a setting or tensor that becomes None is left out."""

    def edit(name: str, cfg: dict | None = None, metadata: dict | None = None, **tensors) -> Path:
        folder = tmp_path / "sae"
        shutil.copytree(GOLDEN / f"saelens{name}", folder, dirs_exist_ok=True)
        settings = json.loads((folder / "cfg.json").read_text()) | (cfg or {})
        if metadata:
            settings["metadata"] |= metadata
        settings = {key: value for key, value in settings.items() if value is not None}
        (folder / "cfg.json").write_text(json.dumps(settings))
        arrays = safetensors.numpy.load_file(folder / WEIGHTS) | tensors
        arrays = {key: value for key, value in arrays.items() if value is not None}
        safetensors.numpy.save_file(arrays, folder / WEIGHTS)
        return folder

    return edit


def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / f"saelens{name}" / "golden.npz"))


def stored(folder: Path) -> dict[str, np.ndarray]:
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    return {key: np.asarray(value, np.float64) for key, value in tensors.items()}


def close(got, want) -> None:
    np.testing.assert_array_equal(np.asarray(got) != 0, want != 0)
    assert np.abs(got - want).max() <= 1e-5 * (1 + np.abs(want).max())


def pre_activations(t: dict, x: np.ndarray) -> np.ndarray:
    return (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]


def kept(pre: np.ndarray, k: int) -> np.ndarray:
    """The k largest of each row, then ReLU."""
    return np.where(pre >= np.sort(pre, axis=1)[:, [-k]], np.maximum(pre, 0), 0)


# --- Training checkpoints


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka_batchtopk"])
def test_a_training_checkpoint_under_the_batch_rule_is_what_training_computes(name):
    data = golden(f"6_{name}_training")
    sae = load_sae(GOLDEN / f"saelens6_{name}_training", batch_rule=True)
    assert sae.batch_rule and sae.k == 8
    close(api.encode(sae, data["x"]), data["z"])
    np.testing.assert_allclose(api.decode(sae, data["z"]), data["xhat"], atol=1e-4)


def test_a_training_checkpoint_by_default_is_the_sae_that_saelens_makes_of_it():
    """The golden folders are two savings of one SAE: `save_model` and `save_inference_model`."""
    data, sae = golden("6_batchtopk"), load_sae(GOLDEN / "saelens6_batchtopk_training")
    assert sae.variant == "batch_topk" and not sae.batch_rule
    close(api.encode(sae, data["x"]), data["z"])
    np.testing.assert_allclose(api.reconstruct(sae, data["x"]), data["xhat"], atol=1e-4)


def test_a_finished_batch_topk_sae_knows_its_batch_rule():
    data, folder = golden("6_batchtopk_training"), GOLDEN / "saelens6_batchtopk"
    sae = load_sae(folder, batch_rule=True)
    assert (load_sae(folder).variant, sae.variant, sae.k) == ("jumprelu", "batch_topk", 8)
    close(api.encode(sae, data["x"]), data["z"])


def test_a_finished_matryoshka_sae_keeps_its_groups(edited):
    details = {"matryoshka_widths": [12, 36]}  # SAELens adds the whole width
    told = {"training_architecture": "matryoshka_batchtopk", "training_architecture_details": details}
    sae = load_sae(edited("6_batchtopk", metadata=told))
    assert (sae.variant, sae.groups) == ("jumprelu", (12, 24, 60))
    assert any("trained as matryoshka_batchtopk" in note for note in sae.info.notes)
    assert load_sae(GOLDEN / "saelens6_matryoshka_batchtopk_training").groups == (12, 24, 60)


def test_a_threshold_that_was_never_measured_means_the_batch_rule(edited):
    folder = edited("6_batchtopk_training", topk_threshold=np.array(0.0))
    with pytest.warns(UserWarning, match="never measured"):
        assert load_sae(folder).batch_rule
    assert not load_sae(folder, batch_rule=False).batch_rule


def test_a_checkpoint_with_its_scale_beside_it_is_folded(edited):
    """Threshold and codes as SAELens' fold of the factor followed by its fold of the norms gives them."""
    folder = edited("6_batchtopk_training", {"normalize_activations": "expected_average_only_in"})
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.5}')
    sae, t, x = load_sae(folder), stored(folder), golden("6_batchtopk")["x"]
    norms = np.linalg.norm(t["W_dec"], axis=1)
    pre = pre_activations(t, 0.5 * x) * norms / 0.5
    z = np.where(pre > t["topk_threshold"] / 0.5, np.maximum(pre, 0), 0)
    close(api.encode(sae, x), z)
    y = (z * 0.5 / norms @ t["W_dec"] + t["b_dec"]) / 0.5
    np.testing.assert_allclose(api.reconstruct(sae, x), y, atol=1e-3)


# --- Normalisation of the inputs


def test_inputs_of_another_scale_need_its_factor():
    folder, data = (
        GOLDEN / "saelens6_standard_expected_average_only_in",
        golden("6_standard_expected_average_only_in"),
    )
    with pytest.warns(UserWarning, match="norm_factor=f"):
        sae = load_sae(folder)
    assert any("norm_factor=f" in note for note in sae.info.notes)
    folded = load_sae(folder, norm_factor=data["norm_scaling_factor"].item())
    close(api.encode(folded, data["x"]), data["z_folded"])
    np.testing.assert_allclose(api.reconstruct(folded, data["x"]), data["xhat_folded"], atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(api.encode(load_sae(folder, norm_factor=1), data["x"]), data["z"])


def test_matching_pursuit_of_scaled_inputs(edited):
    """Encoder and decoder are one matrix, so codes and the residual's threshold take the scale of the inputs."""
    scaled = {"normalize_activations": "expected_average_only_in"}
    x, f = golden("6_matching_pursuit")["x"], 0.5
    z = api.encode(load_sae(GOLDEN / "saelens6_matching_pursuit"), x * np.float32(f))
    sae = load_sae(edited("6_matching_pursuit", scaled), norm_factor=f)
    np.testing.assert_allclose(api.encode(sae, x), z / f, atol=1e-4)
    np.testing.assert_array_equal(sae.W_enc, load_sae(GOLDEN / "saelens6_matching_pursuit").W_enc)


def test_a_whitening_that_is_not_folded_is_told(edited):
    with pytest.warns(UserWarning, match="whitening is not folded"):
        load_sae(edited("6_topk", {"normalize_activations": "covariance_whitening"}))


def test_constant_norm_rescale(edited):
    folder = edited("6_standard_bdec_true", {"normalize_activations": "constant_norm_rescale"})
    x, t = golden("6_standard_bdec_true")["x"][1:], stored(folder)
    scale = np.sqrt(24) / np.linalg.norm(x, axis=1, keepdims=True)
    z = np.maximum(pre_activations(t, x * scale), 0)
    sae = load_sae(folder)
    close(api.encode(sae, x), z)
    np.testing.assert_allclose(api.reconstruct(sae, x), (z @ t["W_dec"] + t["b_dec"]) / scale, atol=1e-3)


# --- Decoder norms, k, thresholds


@pytest.mark.parametrize("zero_row", [False, True])
def test_topk_ranked_by_the_norms_of_decoder_rows(edited, zero_row):
    folder = edited("6_topk", {"rescale_acts_by_decoder_norm": True, "k": 8.0})
    t, x = stored(folder), golden("6_topk")["x"]
    if zero_row:
        busiest = golden("6_topk")["z"].sum(axis=0).argmax()
        t["W_dec"][busiest] = 0
        folder = edited(
            "6_topk", {"rescale_acts_by_decoder_norm": True}, W_dec=np.asarray(t["W_dec"], np.float32)
        )
    norms = np.linalg.norm(t["W_dec"], axis=1)
    z = kept(pre_activations(t, x) * norms, 8)
    sae = load_sae(folder)
    close(api.encode(sae, x), z)
    y = z / np.where(norms > 0, norms, 1) @ t["W_dec"] + t["b_dec"]
    np.testing.assert_allclose(api.reconstruct(sae, x), y, atol=1e-3)


def test_k_and_threshold_can_be_chosen():
    x, folder = golden("6_topk")["x"], GOLDEN / "saelens6_topk"
    pre = pre_activations(stored(folder), x)
    close(api.encode(load_sae(folder, k=3), x), kept(pre, 3))
    close(api.encode(load_sae(folder, threshold=2.5), x), np.where(pre > 2.5, pre, 0))
    sae = load_sae(GOLDEN / "saelens6_batchtopk", threshold=2.5)
    np.testing.assert_array_equal(sae.extra["threshold"], np.full(96, 2.5, np.float32))


def test_normalize_decoder_keeps_reconstructions():
    folder, data = GOLDEN / "saelens6_gated_bdec_true", golden("6_gated_bdec_true")
    sae = load_sae(folder, normalize_decoder=True)
    np.testing.assert_allclose(np.linalg.norm(sae.W_dec, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(api.reconstruct(sae, data["x"]), data["xhat"], atol=1e-3)


@pytest.mark.parametrize("name", ["6_jumprelu_bdec_false", "6_batchtopk", "6_gated_bdec_true"])
def test_an_exact_tie_does_not_fire(name):
    folder = GOLDEN / f"saelens{name}"
    probe = json.loads((folder / "PROVENANCE.json").read_text())["strict_probe"]
    z = api.encode(load_sae(folder), golden(name)["x"])
    assert z[probe["row"], probe["latent"]] == 0


def test_a_log_threshold_is_a_threshold(edited):
    t = safetensors.numpy.load_file(GOLDEN / "saelens6_jumprelu_bdec_false" / WEIGHTS)
    folder = edited("6_jumprelu_bdec_false", threshold=None, log_threshold=np.log(t["threshold"]))
    np.testing.assert_allclose(load_sae(folder).extra["threshold"], t["threshold"], rtol=1e-6)


# --- Older versions


def test_a_log_threshold_of_minus_infinity_is_no_threshold_of_zero(edited):
    log = np.full_like(stored(GOLDEN / "saelens6_jumprelu_bdec_false")["threshold"], -np.inf, np.float32)
    with pytest.raises(CheckpointError, match="log_threshold holds NaN or infinite"):
        load_sae(edited("6_jumprelu_bdec_false", threshold=None, log_threshold=log))


def test_the_first_versions_keys(edited):
    old = {
        "hook_point": "blocks.7.hook_resid_pre", "hook_point_layer": 7, "hook_point_head_index": None,
        "activation_fn": "relu", "dtype": "torch.float32", "normalize_activations": False, "hook_name": None,
        "hook_layer": None, "architecture": None, "activation_fn_str": None, "apply_b_dec_to_input": None,
        "prepend_bos": None, "finetuning_scaling_factor": None,
    }  # fmt: skip
    folder = edited("5_standard", old, scaling_factor=np.ones(96, np.float32))
    sae, data = load_sae(folder), golden("5_standard")
    assert (sae.info.layer_index, sae.info.hook, sae.extra) == (7, "resid_pre", {})
    close(api.encode(sae, data["x"]), data["z"])
    with pytest.warns(UserWarning, match="not stored here"):
        load_sae(edited("5_standard", old | {"normalize_activations": True}))


def test_factors_of_fine_tuning(edited):
    name, key = "5_standard_finetuned", "finetuning_scaling_factor"
    factors = safetensors.numpy.load_file(GOLDEN / f"saelens{name}" / WEIGHTS)[key]
    sae = load_sae(edited(name, **{key: None, "scaling_factor": factors}))
    np.testing.assert_array_equal(sae.extra["f_dec"], factors)
    with pytest.raises(CheckpointError, match="'scaling_factor' does not belong"):
        load_sae(edited(name, scaling_factor=factors))
    with pytest.raises(CheckpointError, match="not all ones, but finetuning_scaling_factor"):
        load_sae(edited(name, {key: False}))
    with pytest.warns(UserWarning, match="factors are not in the file"):
        assert load_sae(edited(name, **{key: None, "scaling_factor": None})).extra == {}


def test_half_precision_is_read_in_float32(edited):
    t = safetensors.numpy.load_file(GOLDEN / "saelens6_topk" / WEIGHTS)
    folder = edited("6_topk", {"dtype": "bfloat16"}, W_enc=t["W_enc"].astype(np.float16))
    sae = load_sae(folder)
    np.testing.assert_array_equal(sae.W_enc, t["W_enc"].astype(np.float16).astype(np.float32))
    assert any("bfloat16" in note for note in sae.info.notes)


# --- Origin


def test_origin(edited):
    info = load_sae(GOLDEN / "saelens6_skip_transcoder").info
    assert (info.model_name, info.layer_index, info.hook) == ("pythia-160m-deduped", 8, "ln2")
    assert (info.name, info.format) == ("saelens6_skip_transcoder", "saelens")
    assert {"context_size 128", "prepend_bos True", "hook_name_out 'blocks.8.hook_mlp_out'"} < {*info.notes}
    assert load_sae(edited("6_topk", metadata={"hook_name": "blocks.3.new.place"})).info.layer_index == 3
    with pytest.warns(UserWarning, match="center_writing_weights.*x - mean"):
        load_sae(
            edited("6_topk", metadata={"model_from_pretrained_kwargs": {"center_writing_weights": True}})
        )


def test_files_beside_the_weights_are_no_saes(edited):
    folder = edited("6_topk")
    safetensors.numpy.save_file({"sparsity": np.zeros(96, np.float32)}, folder / "sparsity.safetensors")
    assert load_sae(folder).info.source.endswith(WEIGHTS)
    with pytest.raises(CheckpointError, match="not an SAE of a known format"):
        load_sae(folder / "sparsity.safetensors")
    (folder / WEIGHTS).rename(folder / "mine.safetensors")  # known by its settings
    assert load_sae(folder).info.name == "mine"


# --- What is refused

ROW = np.zeros(96, np.float32)
REFUSED = [
    ("6_temporal", {}, {}, "temporal: .* not supported"),
    ("6_topk", {"architecture": "mystery"}, {}, "'mystery' is not one of standard, topk, "),
    ("5_standard", {"activation_fn_str": "tanh-relu"}, {}, "'tanh-relu' of a standard SAE"),
    ("5_topk_layer_norm", {"activation_fn_kwargs": {"k": 8, "postact_fn": "x"}}, {}, "with 'postact_fn'"),
    ("5_topk_layer_norm", {"activation_fn_kwargs": {}}, {}, "k=..."),
    ("6_topk", {"k": 8.5}, {}, "k = 8.5 is not a whole"),
    ("6_topk", {"k": 97}, {}, "k = 97 must be"),
    ("6_topk", {"normalize_activations": "constant_scalar_rescale"}, {}, "'constant_scalar_rescale'; wanted"),
    ("6_topk", {"reshape_activations": "sideways"}, {}, "reshape_activations is 'sideways'"),
    ("6_topk", {"d_in": 25}, {}, r"W_dec has shape \(96, 24\).*\(96, 25\)"),
    ("6_topk", {}, {"b_enc": None}, "'b_enc' is missing, which .* topk needs"),
    ("6_topk", {}, {"threshold": ROW}, "'threshold' does not belong to .* topk"),
    ("6_topk", {}, {"W_dec": ROW}, r"W_dec has shape \(96,\)"),
    ("6_gated_bdec_true", {}, {"b_enc": ROW}, "'b_enc' does not belong"),
    ("6_transcoder", {}, {"scaling_factor": ROW + 2}, "'scaling_factor' does not belong"),
    ("6_transcoder", {}, {"W_enc": np.array(0, np.float32)}, r"W_enc has shape \(\)"),
    ("6_transcoder", {"apply_b_dec_to_input": True}, {}, "transcoder's b_dec is of its output"),
    ("6_transcoder", {"normalize_activations": "layer_norm"}, {}, "transcoder with normalize_activations"),
    ("6_batchtopk_training", {}, {"topk_threshold": None}, "'topk_threshold' is missing"),
    ("6_matryoshka_batchtopk_training", {"matryoshka_widths": [36, 12]}, {}, "matryoshka_widths is"),
    ("6_matryoshka_batchtopk_training", {"matryoshka_widths": [12, 99]}, {}, "add up to 99"),
    ("6_matching_pursuit", {"max_iterations": 10**9}, {}, "max_iterations is 1000000000"),
    ("6_jumprelu_bdec_false", {}, {"threshold": ROW + np.inf}, "threshold holds 96 NaN or infinite"),
]


@pytest.mark.parametrize(("name", "cfg", "tensors", "text"), REFUSED)
def test_what_can_not_be_read_exactly_is_refused_in_one_line(edited, name, cfg, tensors, text):
    with pytest.raises(CheckpointError, match=text) as caught:
        load_sae(edited(name, cfg, **tensors))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "choices", "text"),
    [
        ("6_standard_bdec_true", {"k": 3}, "k is not for an SAE of architecture standard"),
        ("6_standard_bdec_true", {"batch_rule": True}, "batch_rule is not for"),
        ("6_standard_bdec_true", {"norm_factor": 2.0}, "nothing to fold"),
        ("6_standard_expected_average_only_in", {"norm_factor": -1}, "no number above 0"),
        ("6_standard_expected_average_only_in", {"norm_factor": 1e300}, "infinite values"),
        ("6_topk", {"threshold": True}, "holds no threshold"),
        ("6_topk", {"k": "many"}, "k='many' is no number"),
        ("6_topk", {"normalize_decoder": True}, "can't be normalised"),
        ("6_abstopk", {"threshold": 1.0}, "takes no threshold"),
        ("6_batchtopk", {"batch_rule": True, "threshold": 1.0}, "exclude each other"),
    ],
)
def test_wrong_choices_are_one_line(name, choices, text):
    with pytest.raises(AmortjaxError, match=text) as caught:
        load_sae(GOLDEN / f"saelens{name}", **choices)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "name", ["5_topk_layer_norm", "6_matryoshka_batchtopk_training", "6_matching_pursuit"]
)
def test_no_value_in_the_settings_ends_in_a_traceback(edited, name):
    folder = edited(name)
    file = folder / "cfg.json"
    settings = json.loads(file.read_text())
    odd = [
        "null",
        "true",
        "-1",
        "0",
        "1e999",
        "NaN",
        "1" + 400 * "0",
        '"x"',
        "[]",
        '[[1], "x"]',
        '{"k": "x"}',
    ]
    read = 0
    for table in (settings, settings.get("metadata", {})):
        for key, before in list(table.items()):
            for value in odd:
                table[key] = "@"
                file.write_text(json.dumps(settings).replace('"@"', value, 1))
                try:
                    read += load_sae(folder).d_in == 24
                except CheckpointError as error:
                    assert "\n" not in str(error)
            table[key] = before
    assert read > 20  # most settings do not change the SAE


@pytest.mark.parametrize("text", ["[]", "{", "", "\ufeff{}"])
def test_settings_that_are_no_object(edited, text):
    folder = edited("6_topk")
    (folder / "cfg.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"cfg\.json"):
        load_sae(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(CheckpointError, match=r"cfg\.json: missing"):
        load_sae(folder)
