"""sparsify's and mwhanna's folders, written here and read as the libraries' formulas have it; golden folders of the
libraries are in test_golden."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from amortjax.errors import CheckpointError
from amortjax.saes import api
from amortjax.saes.formats import load_sae

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"
D, M, K = 12, 32, 4
# A file of mid-2024 has no more than these.
OLD = {"expansion_factor": 32, "normalize_decoder": True, "num_latents": M, "k": K, "d_in": D}


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights() -> dict[str, np.ndarray]:
    return {
        "encoder.weight": draw(M, D), "encoder.bias": draw(M, seed=1), "W_dec": draw(M, D, seed=2),
        "b_dec": draw(D, seed=3),
    }  # fmt: skip


def write(folder: Path, config: dict, tensors: dict[str, np.ndarray] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights() if tensors is None else tensors, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def largest(score: np.ndarray, k: int) -> np.ndarray:
    """Whether an entry of score (N, M) is one of the k largest of its row."""
    return score >= np.sort(score, axis=1)[:, -k][:, None]


def assert_same(sae, x: np.ndarray, z: np.ndarray, y: np.ndarray) -> None:
    got = api.encode(sae, x)
    np.testing.assert_array_equal(got != 0, z != 0)
    assert np.abs(got - z).max() <= 1e-5 * (1 + np.abs(z).max())
    assert np.abs(api.reconstruct(sae, x) - y).max() <= 1e-5 * (1 + np.abs(y).max())


@pytest.mark.parametrize("signed", [False, True])
def test_files_of_2024(tmp_path, tokens, signed):
    t = {key: value.astype(np.float64) for key, value in weights().items()}
    sae = load_sae(write(tmp_path / "layers.8", OLD | {"signed": signed}))
    pre = (tokens - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]
    z = pre * largest(np.abs(pre), K) if signed else np.maximum(pre, 0) * largest(np.maximum(pre, 0), K)
    assert (z < 0).any() == signed
    assert_same(sae, tokens, z, z @ t["W_dec"] + t["b_dec"])
    assert sae.variant == ("abs_topk" if signed else "topk")


def save_bfloat16(path: Path, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Writes the file byte by byte, values cut off to bfloat16; the values."""
    header, data = {}, b""
    for key, value in tensors.items():
        part = (value.view(np.uint32) >> 16).astype("<u2").tobytes()
        ends = [len(data), len(data) + len(part)]
        header[key], data = {"dtype": "BF16", "shape": value.shape, "data_offsets": ends}, data + part
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)
    return {key: (value.view(np.uint32) & 0xFFFF0000).view(np.float32) for key, value in tensors.items()}


def test_bfloat16_weights_are_widened(tmp_path, tokens):
    folder = write(tmp_path / "layers.8", OLD)
    other = write(tmp_path / "other", OLD, save_bfloat16(folder / "sae.safetensors", weights()))
    np.testing.assert_array_equal(load_sae(folder).W_enc, load_sae(other).W_enc)
    np.testing.assert_array_equal(api.encode(load_sae(folder), tokens), api.encode(load_sae(other), tokens))


def test_a_transcoder_with_a_skip_connection_and_another_k(tmp_path, tokens):
    tensors = weights() | {"W_skip": draw(D, D, seed=4)}
    t = {key: value.astype(np.float64) for key, value in tensors.items()}
    config = OLD | {"activation": "topk", "transcode": True, "skip_connection": True}
    sae = load_sae(write(tmp_path / "layers.3.mlp", config, tensors), k=7)
    pre = np.maximum(tokens @ t["encoder.weight"].T + t["encoder.bias"], 0)
    z = pre * largest(pre, 7)
    assert_same(sae, tokens, z, z @ t["W_dec"] + t["b_dec"] + tokens @ t["W_skip"].T)
    assert (sae.info.hook, sae.info.layer_index) == ("mlp_in", 3)
    assert "from the input of layers.3.mlp to its output" in sae.info.notes[0]


def test_groupmax_keeps_the_first_of_equals_in_each_group(tmp_path):
    tensors = weights()
    tensors["encoder.weight"][1] = tensors["encoder.weight"][0]
    tensors["encoder.bias"][:2] = 50  # latents 0 and 1 are equal and the largest of group 0
    sae = load_sae(write(tmp_path / "layers.0", OLD | {"activation": "groupmax"}, tensors))
    assert (sae.groups, sae.group_k) == ((M // K,) * K, (1,) * K)
    z = api.encode(sae, np.zeros((40, D), np.float32))
    assert (z[:, 0] > 0).all() and not z[:, 1].any()


@pytest.mark.parametrize(
    ("folder", "hook", "layer"),
    [
        ("layers.8", "resid_post", 8),
        ("layers.8.mlp", "mlp_out", 8),
        ("embed_tokens", "embed", None),
        ("x", "", None),
    ],
)
def test_the_folder_is_the_hook_and_the_run_names_the_model(tmp_path, folder, hook, layer):
    write(tmp_path / folder, OLD)
    info = load_sae(tmp_path).info
    assert (info.name, info.hook, info.layer_index, info.model_name) == (folder, hook, layer, "")
    (tmp_path / "config.json").write_text('{"model": "EleutherAI/pythia-160m"}')
    assert load_sae(tmp_path).info.model_name == "EleutherAI/pythia-160m"


def test_num_latents_0_means_the_expansion_factor(tmp_path):
    assert load_sae(write(tmp_path, OLD | {"num_latents": 0, "expansion_factor": 0})).n_latents == M
    with pytest.raises(CheckpointError, match=r"num_latents \(or expansion_factor times d_in\) is 384"):
        load_sae(write(tmp_path, OLD | {"num_latents": 0}))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"k": "four"}, r"cfg\.json: k is 'four'; wanted a whole number"),
        ({"k": True}, r"cfg\.json: k is True; wanted a whole number"),
        ({"k": 0}, "k is 0; wanted from 1 to 32.*k="),
        ({"k": None}, "k is None"),
        ({"k": 10**30}, r"k is 1000.*; wanted a whole number"),
        ({"k": 2**40}, "wanted from 1 to 32"),
        ({"k": 5, "activation": "groupmax"}, "k is 5; groupmax needs one that divides the 32 latents"),
        ({"activation": "gelu"}, "activation 'gelu' is not supported; known: topk, groupmax"),
        ({"activation": ["topk"]}, "activation is .*wanted a name"),
        ({"activation": "groupmax", "signed": True}, "'groupmax' with signed codes"),
        ({"transcode": "yes"}, "transcode is 'yes'; wanted true or false"),
        ({"skip_connection": True}, "tensor 'W_skip' is missing"),
        ({"d_in": 768}, "d_in is 768, but the weights have 12"),
        ({"num_latents": 2.5}, "num_latents is 2.5; wanted a whole number"),
    ],
)
def test_a_config_that_can_not_be_is_one_line(tmp_path, changes, text):
    with pytest.raises(CheckpointError, match=text) as caught:
        load_sae(write(tmp_path, OLD | changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"W_dec": None}, "tensor 'W_dec' is missing"),
        ({"b_dec": None}, "tensor 'b_dec' is missing"),
        ({"W_skip": draw(D, D)}, "tensor 'W_skip' is not one of encoder.weight"),
        ({"W_dec": draw(D, M)}, r"W_dec has shape \(12, 32\); the other tensors ask for \(32, 12\)"),
        ({"encoder.bias": draw(M, 1)}, r"encoder\.bias has shape \(32, 1\)"),
        ({"encoder.weight": draw(0, D)}, r"encoder\.weight has shape \(0, 12\)"),
        ({"b_dec": np.full(D, np.nan, np.float32)}, "b_dec holds 12 NaN"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, changes, text):
    tensors = {key: value for key, value in (weights() | changes).items() if value is not None}
    with pytest.raises(CheckpointError, match=text) as caught:
        load_sae(write(tmp_path, OLD, tensors))
    assert "sae.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_without_its_config_it_is_not_guessed(tmp_path):
    write(tmp_path, OLD)
    (tmp_path / "cfg.json").unlink()
    with pytest.raises(CheckpointError, match=r"cfg\.json: missing or empty"):
        load_sae(tmp_path)
    with pytest.raises(CheckpointError, match="no choice 'norm_factor'; it takes k"):
        load_sae(GOLDEN / "sparsify_topk", norm_factor=2.0)
    with pytest.raises(CheckpointError, match="k is 'x'; wanted a whole number"):
        load_sae(GOLDEN / "sparsify_topk", k="x")


# mwhanna's transcoders


@pytest.fixture
def transcoder(tmp_path) -> Path:
    return Path(shutil.copytree(GOLDEN / "mwhanna_transcoder", tmp_path / "run"))


def test_what_is_known_of_a_mwhanna_transcoder(transcoder):
    info = load_sae(transcoder).info
    assert (info.hook, info.layer_index, info.model_name) == ("mlp_in", 7, "Qwen/Qwen3-0.6B")
    assert info.format == "mwhanna" and "from mlp.hook_in to hook_mlp_out of block 7" in info.notes[0]
    (transcoder / "config.yaml").unlink()
    assert load_sae(transcoder).info.model_name == ""


def test_only_the_encoder_of_a_mwhanna_transcoder_is_transposed(transcoder, tokens):
    t = {
        "W_enc": draw(M, D),
        "b_enc": draw(M, seed=1),
        "W_dec": draw(M, 20, seed=2),
        "b_dec": draw(20, seed=3),
    }
    save_file({key: value.astype(np.float16) for key, value in t.items()}, transcoder / "layer_7.safetensors")
    t = {key: value.astype(np.float16).astype(np.float64) for key, value in t.items()}
    z = np.maximum(tokens @ t["W_enc"].T + t["b_enc"], 0)
    assert_same(load_sae(transcoder), tokens, z, z @ t["W_dec"] + t["b_dec"])
    norm = np.linalg.norm(t["W_dec"], axis=1)
    unit = load_sae(transcoder, normalize_decoder=True)
    assert_same(unit, tokens, z * norm, z @ t["W_dec"] + t["b_dec"])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"b_enc": None}, "tensor 'b_enc' is missing"),
        ({"W_skip": draw(24, 24)}, "tensor 'W_skip' is not one of"),
        ({"W_enc": draw(24, 96)}, r"b_enc has shape \(96,\)"),
    ],
)
def test_mwhanna_tensors_that_do_not_fit_are_named(transcoder, changes, text):
    file = transcoder / "layer_7.safetensors"
    tensors = {key: value for key, value in (load_file(file) | changes).items() if value is not None}
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=text):
        load_sae(transcoder)


def test_two_layers_are_refused_with_the_list(transcoder):
    shutil.copy(transcoder / "layer_7.safetensors", transcoder / "layer_8.safetensors")
    with pytest.raises(CheckpointError, match=re.escape("layer_7.safetensors, layer_8.safetensors")):
        load_sae(transcoder)
    assert load_sae(transcoder / "layer_8.safetensors").info.layer_index == 8
