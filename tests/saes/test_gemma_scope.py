"""Gemma Scope and Gemma Scope 2: paths of their repositories, files written here, its formula."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from amortjax.errors import CheckpointError
from amortjax.saes import api
from amortjax.saes.formats import gemma_scope, load_sae

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"
D, M, OUT = 12, 32, 20
TIE = 3  # a latent whose pre-activation of a zero token is its threshold

pytestmark = pytest.mark.filterwarnings("ignore:.*its folder says:UserWarning")


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights(out: int = D) -> dict[str, np.ndarray]:
    t = {
        "w_enc": draw(D, M), "b_enc": draw(M, seed=1), "w_dec": draw(M, out, seed=2), "b_dec": draw(out, seed=3),
        "threshold": np.abs(draw(M, seed=4)),
    }  # fmt: skip
    t["b_enc"][TIE] = t["threshold"][TIE]
    return t


def write_npz(folder: Path, tensors: dict[str, np.ndarray] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **(weights() if tensors is None else tensors))
    return folder


def write_2(folder: Path, config: dict | None = None, tensors: dict[str, np.ndarray] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights() if tensors is None else tensors, folder / "params.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def formula(t: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z and y of JumpReLU without subtraction of b_dec."""
    t = {key: value.astype(np.float64) for key, value in t.items()}
    pre = x @ t["w_enc"] + t["b_enc"]
    z = np.maximum(pre, 0) * (pre > t["threshold"])
    return z, z @ t["w_dec"] + t["b_dec"] + (x @ t["affine_skip_connection"] if len(t) > 5 else 0)


def assert_same(sae, x: np.ndarray, z: np.ndarray, y: np.ndarray) -> None:
    got = api.encode(sae, x)
    np.testing.assert_array_equal(got != 0, z != 0)
    assert np.abs(got - z).max() <= 1e-5 * (1 + np.abs(z).max())
    assert np.abs(api.reconstruct(sae, x) - y).max() <= 1e-5 * (1 + np.abs(y).max())


@pytest.mark.parametrize("capitals", [False, True])
def test_capitals_or_small_letters_and_a_tie_does_not_fire(tmp_path, tokens, capitals):
    t, x = weights(), np.vstack([np.zeros(D), tokens[1:]]).astype(np.float32)
    stored = {
        key[0].upper() + key[1:] if capitals and key[0] == "w" else key: value for key, value in t.items()
    }
    sae = load_sae(write_npz(tmp_path, stored))
    assert_same(sae, x, *formula(t, x))
    assert api.encode(sae, x)[0, TIE] == 0
    both = stored | {"W_enc": t["w_enc"], "w_enc": t["w_enc"]}
    with pytest.raises(CheckpointError, match="is there twice"):
        load_sae(write_npz(tmp_path, both))


@pytest.mark.parametrize(
    ("path", "hook", "layer", "model"),
    [
        ("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "resid_post", 20, "google/gemma-2-2b"),
        ("models--google--gemma-scope-9b-it-res/snapshots/0/layer_9/width_1m", "resid_post", 9, "google/gemma-2-9b-it"),
        ("gemma-scope-9b-pt-mlp-canonical/layer_3/width_131k/canonical", "mlp_out", 3, "google/gemma-2-9b"),
        ("gemma-scope-2b-pt-att/layer_0/width_65k/average_l0_5", "hook_z", 0, "google/gemma-2-2b"),
        ("gemma-scope-2b-pt-transcoders/layer_5/width_16k/average_l0_10", "ln2", 5, "google/gemma-2-2b"),
        ("my_transcoders/layer_5/width_16k/average_l0_10", "ln2", 5, ""),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "embed", None, "google/gemma-2-2b"),
        ("layer_20/width_16k/average_l0_71", "", 20, ""),
        ("somewhere", "", None, ""),
    ],
)  # fmt: skip
def test_the_path_tells_the_site(tmp_path, path, hook, layer, model):
    info = load_sae(write_npz(tmp_path / path)).info
    assert (info.hook, info.layer_index, info.model_name, info.format) == (hook, layer, model, "gemma_scope")
    assert (gemma_scope.EMBEDDING in info.notes) == (hook == "embed")
    assert (gemma_scope.TRANSCODER in info.notes) == (hook == "ln2")
    assert any("does not say where" in note for note in info.notes) == (hook == "")


def test_an_embedding_sae_has_its_weights_as_they_are(tmp_path, tokens):
    sae = load_sae(write_npz(tmp_path / "embedding" / "width_4k" / "average_l0_6"))
    assert_same(sae, tokens, *formula(weights(), tokens))


def test_a_width_that_the_folder_denies_is_said_aloud(tmp_path):
    with pytest.warns(UserWarning, match="its folder says 16384 latents, the file has 32"):
        info = load_sae(write_npz(tmp_path / "layer_20" / "width_16k" / "average_l0_71")).info
    assert any("16384" in note for note in info.notes)
    assert info.name == "layer_20_width_16k_average_l0_71"


@pytest.mark.filterwarnings("error")
def test_a_width_that_the_folder_confirms_is_not(tmp_path):
    t = {
        "W_enc": np.ones((1, 4096), np.float32), "b_enc": np.zeros(4096, np.float32),
        "W_dec": np.ones((4096, 1), np.float32), "b_dec": np.zeros(1, np.float32),
        "threshold": np.zeros(4096, np.float32),
    }  # fmt: skip
    assert load_sae(write_npz(tmp_path / "width_4k", t)).n_latents == 4096


def test_decoder_rows_to_norm_1_on_demand(tmp_path, tokens):
    z, y = formula(weights(), tokens)
    sae = load_sae(write_npz(tmp_path), normalize_decoder=True)
    assert_same(sae, tokens, z * np.linalg.norm(weights()["w_dec"].astype(np.float64), axis=1), y)
    with pytest.raises(CheckpointError, match="normalize_decoder is 'yes'; wanted true or false"):
        load_sae(tmp_path, normalize_decoder="yes")


# Gemma Scope 2


@pytest.mark.parametrize("affine", [False, True])
def test_gemma_scope_2_without_a_config(tmp_path, tokens, affine):
    t = weights(OUT) | ({"affine_skip_connection": draw(D, OUT, seed=5)} if affine else {})
    half = {key: value.astype(np.float16) for key, value in t.items()}
    folder = tmp_path / "gemma-scope-2-1b-it" / "transcoder_all" / "layer_13_width_16k_l0_big"
    sae = load_sae(write_2(folder, None, half))
    assert_same(sae, tokens, *formula(half, tokens))
    info = sae.info
    assert (info.hook, info.layer_index, info.model_name) == ("ln2", 13, "google/gemma-3-1b-it")
    assert {gemma_scope.TRANSCODER, gemma_scope.MATRYOSHKA} < set(info.notes)


@pytest.mark.parametrize(
    ("folder", "config", "hook", "layer", "model"),
    [
        ("resid_post/layer_7_width_16k_l0_small", None, "resid_post", 7, ""),
        ("attn_out_all/layer_11_width_65k_l0_medium", None, "hook_z", 11, ""),
        ("mlp_out/layer_11_width_262k_l0_big", None, "mlp_out", 11, ""),
        ("x", {"hf_hook_point_in": "model.layers.4.output"}, "resid_post", 4, ""),
        ("x", {"hf_hook_point_in": "model.layers.4.self_attn.o_proj.input"}, "hook_z", 4, ""),
        ("x", {"hf_hook_point_in": "model.layers.4.post_feedforward_layernorm.output"}, "mlp_out", 4, ""),
        (
            "x",
            {"model_name": "gemma-v3-4b-pt", "architecture": "jump_relu"},
            "",
            None,
            "google/gemma-3-4b-pt",
        ),
        ("x", {"model_name": "google/gemma-3-12b-it"}, "", None, "google/gemma-3-12b-it"),
    ],
)
def test_path_and_config_tell_the_site(tmp_path, folder, config, hook, layer, model):
    info = load_sae(write_2(tmp_path / folder, config)).info
    assert (info.hook, info.layer_index, info.model_name) == (hook, layer, model)


def test_the_golden_transcoder_s_config_is_read():
    info = load_sae(GOLDEN / "gemma_scope2_transcoder_affine").info
    assert (info.hook, info.layer_index, info.model_name) == ("ln2", 13, "google/gemma-3-1b-pt")


def test_a_cross_layer_transcoder_is_refused(tmp_path):
    t = weights() | {"w_dec": draw(M, 3, D), "b_dec": draw(3, D)}
    with pytest.raises(CheckpointError, match=r"w_dec has shape \(32, 3, 12\): a cross-layer transcoder"):
        load_sae(write_2(tmp_path, None, t))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"architecture": "topk"}, r"config\.json: architecture is 'topk'; only jump_relu"),
        ({"architecture": 3}, "architecture is 3; wanted a name"),
        (
            {"affine_connection": True},
            "affine_connection does not agree with params.safetensors, which has no",
        ),
        ({"hf_hook_point_in": ["model.layers.4.output"]}, "hf_hook_point_in is .* wanted a name"),
        ({"model_name": 4}, "model_name is 4; wanted a name"),
    ],
)
def test_a_config_that_can_not_be_is_one_line(tmp_path, config, text):
    with pytest.raises(CheckpointError, match=text) as caught:
        load_sae(write_2(tmp_path, config))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [write_npz, lambda folder, tensors: write_2(folder, None, tensors)])
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"threshold": None}, "tensor 'threshold' is missing"),
        ({"w_dec": None}, "tensor 'w_dec' is missing"),
        ({"scaling_factor": draw(M)}, "tensor 'scaling_factor' is not one of w_enc"),
        ({"threshold": draw(1)}, r"threshold has shape \(1,\)"),
        ({"w_enc": draw(M, D)}, r"b_enc has shape \(32,\)"),
        ({"b_dec": np.full(D, np.inf, np.float32)}, "b_dec holds 12 NaN or infinite"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, write, changes, text):
    tensors = {key: value for key, value in (weights() | changes).items() if value is not None}
    with pytest.raises(CheckpointError, match=text) as caught:
        load_sae(write(tmp_path, tensors))
    assert "params." in str(caught.value) and "\n" not in str(caught.value)


def test_other_arrays_are_not_taken_for_it(tmp_path):
    np.savez(tmp_path / "params.npz", w_enc=draw(D, M), x=draw(3))
    with pytest.raises(CheckpointError, match="no SAE of a known format"):
        load_sae(tmp_path)
    (tmp_path / "params.npz").unlink()
    np.savez(tmp_path / "mine.npz", **weights())  # nothing says that these are Gemma Scope's
    with pytest.raises(CheckpointError, match="no SAE of a known format"):
        load_sae(tmp_path)


def test_the_golden_folder_in_a_repository_s_folder_names_the_model(tmp_path):
    repository = tmp_path / "google" / "gemma-scope-2b-pt-res"
    shutil.copytree(GOLDEN / "gemma_scope" / "layer_20", repository / "layer_20")
    info = load_sae(repository).info
    assert (info.hook, info.layer_index, info.model_name) == ("resid_post", 20, "google/gemma-2-2b")


def test_unequal_widths_without_a_word_in_the_path_are_said_aloud(tmp_path):
    d, m = 5, 8
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (d + 1, m), "b_enc": (m,), "W_dec": (m, d), "b_dec": (d,), "threshold": (m,)}
    np.savez(
        tmp_path / "params.npz",
        **{key: rng.random(shape).astype(np.float32) for key, shape in shapes.items()},
    )
    with pytest.warns(UserWarning, match="takes 6 numbers and gives 5: read as a transcoder"):
        assert load_sae(tmp_path).info.transcoder
