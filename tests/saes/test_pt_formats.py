"""Readers of `.pt` files: what each library's formulas give, files written here, and what is refused."""

import gzip
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from by_hand import (
    B_DEC,
    B_ENC,
    OUT,
    PLAIN,
    W_DEC,
    W_ENC,
    D,
    K,
    M,
    X,
    assert_codes,
    assert_refused,
    draw,
    layer_norm,
    pre,
    relu,
    topk,
)
from torch_files import Call, Named, cut_to_bf16, write_state

from amortjax.saes import api
from amortjax.saes.formats import load_sae

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"
# ------------------------------------------------------------------------------------------------ OpenAI
STATE = {
    "pre_bias": B_DEC, "latent_bias": B_ENC, "encoder.weight": W_ENC.T, "decoder.weight": W_DEC.T,
    "stats_last_nonzero": np.zeros(M, np.int64), "latents_mean_square": np.ones(M, np.float32),
}  # fmt: skip


def openai(k: object = K, postact_fn: object = "ReLU") -> dict:
    return STATE | {"activation": "TopK", "activation_state_dict": {"k": k, "postact_fn": postact_fn}}


@pytest.mark.parametrize("name", ["8.pt", "8_raw_state_dict.pt"])
def test_openai_golden_files(name):
    folder = GOLDEN / "openai_topk"
    golden, sae = np.load(folder / "golden.npz"), load_sae(folder / name)
    assert_codes(sae, golden["z"], golden["xhat"], golden["x"])
    assert (sae.variant, sae.k, sae.norm) == ("topk", 8, "layer_norm")


def test_openai_relu_and_signed_topk(tmp_path):
    z = relu(pre(X, B_DEC))
    for state in (
        STATE,
        STATE | {"activation": "ReLU"},
        STATE | {"activation": "ReLU", "activation_state_dict": {}},
    ):
        assert_codes(load_sae(write_state(tmp_path / "8.pt", state)), z, z @ W_DEC + B_DEC)
    x, std, mean = layer_norm(X)
    signed = topk(pre(x, B_DEC))
    sae = load_sae(write_state(tmp_path / "8.pt", openai(postact_fn="Identity")))
    assert sae.variant == "signed_topk"
    assert_codes(sae, signed, (signed @ W_DEC + B_DEC) * std + mean)
    # All latents: negative ones keep their sign.
    assert (api.encode(load_sae(tmp_path / "8.pt", k=M), X) < 0).any()


def test_openai_tied_and_raw_files(tmp_path):
    x, std, mean = layer_norm(X)
    z = relu(topk(pre(x, B_DEC)))
    tied = {key: value for key, value in openai().items() if key != "decoder.weight"}
    sae = load_sae(write_state(tmp_path / "8.pt", tied | {"decoder.linear.weight": W_ENC.T}))
    assert_codes(sae, z, (z @ W_ENC.T + B_DEC) * std + mean)
    raw = STATE | {"activation": "TopK", "activation.k": K, "activation.postact_fn": "ReLU"}
    assert_codes(load_sae(write_state(tmp_path / "8.pt", raw)), z)
    write_state(tmp_path / "8.pt", raw | {"activation_state_dict": {"k": K + 1}})
    assert_refused(tmp_path / "8.pt", "differ")
    assert_refused(write_state(tmp_path / "8.pt", STATE | {"activation": "TopK"}), "load it with k=")
    assert load_sae(tmp_path / "8.pt", k=3).k == 3


@pytest.mark.parametrize(
    ("folder", "hook"),
    [("resid_post_mlp_v5_32k", "resid_post"), ("resid_post_attn_v5_128k", "resid_mid"), ("mlp_post_act", "mlp_post"),
     ("resid_delta_mlp_v4", "mlp_out"), ("resid_delta_attn_v5_32k", "attn_out")],
)  # fmt: skip
def test_openai_places_come_from_folder_names(folder, hook, tmp_path):
    info = load_sae(write_state(tmp_path / "gpt2-small" / folder / "autoencoders" / "8.pt", STATE)).info
    assert (info.model_name, info.hook, info.layer_index, info.name) == ("gpt2-small", hook, 8, f"{folder}_8")
    info = load_sae(write_state(tmp_path / "8.pt", STATE)).info
    assert (info.model_name, info.hook, info.layer_index) == ("", "", 8)


@pytest.mark.parametrize(
    ("change", "text"),
    [({"activation": "Identity"}, "activation 'Identity'"), ({"activation": 3}, "activation 3"),
     ({"activation": "TopK", "activation_state_dict": {"k": 2.5}}, "differ|odd"),
     ({"activation": "TopK", "activation_state_dict": {"k": 0}}, "k = 0"),
     ({"activation": "TopK", "activation_state_dict": {"k": 4, "postact_fn": "Tanh"}}, "postact_fn 'Tanh'"),
     ({"pre_bias": draw(D + 1)}, "pre_bias has shape"), ({"more": draw(2)}, "'more' is not one of"),
     ({"encoder.weight": 3}, r"encoder.weight has shape \(\)")],
)  # fmt: skip
def test_openai_files_that_can_not_be(change, text, tmp_path):
    assert_refused(write_state(tmp_path / "8.pt", STATE | change), text)


# ------------------------------------------------------------------------------------------------ bartbussmann
CONFIG = {
    "act_size": D, "dict_size": M, "sae_type": "batchtopk", "top_k": K, "input_unit_norm": False, "layer": 8,
    "hook_point": "blocks.8.hook_resid_pre", "model_name": "gpt2-small", "name": "a_run", "dtype": "torch.float32",
}  # fmt: skip


def bart(folder: Path, change: dict | None = None, **config) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return write_state(folder / "sae.pt", PLAIN | (change or {}))


def test_bartbussmann_jumprelu_subtracts_nothing(tmp_path):
    log = draw(M, seed=5) / 3
    path = bart(tmp_path, {"jumprelu.log_threshold": log}, sae_type="jumprelu", input_unit_norm=True)
    x, std, mean = layer_norm(X)
    z = relu(pre(x)) * (pre(x) > np.exp(log))
    assert_codes(load_sae(path), z, (z @ W_DEC + B_DEC) * std + mean)


@pytest.mark.filterwarnings("ignore:.*no threshold:UserWarning")
def test_bartbussmann_batched_kinds_and_their_choices(tmp_path):
    path, a = bart(tmp_path), relu(pre(X, B_DEC) - B_ENC)
    with pytest.warns(UserWarning, match="no threshold"):
        sae = load_sae(path)
    assert sae.batch_rule and any("no threshold" in note for note in sae.info.notes)
    assert_codes(sae, topk(a.reshape(1, -1), K * len(X)).reshape(a.shape))
    assert load_sae(path, k=2).k == 2
    assert_codes(load_sae(path, threshold=0.7), a * (a > 0.7))
    assert load_sae(path, threshold=0.7, batch_rule=True).batch_rule
    assert_refused(path, "threshold is missing", batch_rule=False)
    stored = {"threshold": np.array(0.7, np.float32)}
    for kind in ("batch-topk", "batchtopk", "global-matryoshka-topk"):
        path = bart(tmp_path, stored, sae_type=kind, group_sizes="[8, 24]")
        assert_codes(load_sae(path), a * (a > 0.7))
        assert load_sae(path, batch_rule=True).batch_rule
    assert load_sae(path).groups == (8, 24)
    assert_refused(bart(tmp_path, sae_type="batch-topk"), "threshold is missing")
    with pytest.warns(UserWarning, match="threshold is 0"):
        load_sae(bart(tmp_path, {"threshold": np.zeros((), np.float32)}))


@pytest.mark.filterwarnings("ignore:.*no threshold:UserWarning")
def test_whole_numbers_may_be_floats_or_numpy_s(tmp_path):
    path = bart(tmp_path, top_k=float(K), act_size=float(D))
    assert (load_sae(path).k, load_sae(path, k=np.int64(2)).k, load_sae(path, k=3.0).k) == (K, 2, 3)
    assert load_sae(path, threshold=np.float32(0.5)).extra["threshold"] == 0.5
    assert_refused(path, "k is 2.5; wanted a whole number", k=2.5)


def test_bartbussmann_origin():
    info = load_sae(GOLDEN / "bb_topk").info
    assert (info.model_name, info.hook, info.layer_index) == ("gpt2-small", "resid_pre", 8)
    assert info.name.startswith("gpt2-small_blocks.8") and info.format == "bartbussmann"


def test_a_negative_layer_is_none(tmp_path):
    path = bart(tmp_path, sae_type="vanilla", layer=-1)
    assert load_sae(path).info.layer_index == 8  # hook_point's
    path = bart(tmp_path, sae_type="vanilla", layer=-1, hook_point="somewhere")
    assert load_sae(path).info.layer_index is None


@pytest.mark.parametrize(
    ("config", "text"),
    [({"sae_type": "tanh"}, "sae_type is 'tanh'"), ({"sae_type": 1}, "sae_type is 1"), ({"top_k": "8"}, "top_k is '8'"),
     ({"top_k": 33}, "k = 33"), ({"act_size": 13}, "act_size is 13"), ({"input_unit_norm": None}, "input_unit_norm"),
     ({"input_unit_norm": "True"}, "input_unit_norm is 'True'"), ({"hook_point": []}, "hook_point"),
     ({"sae_type": "vanilla", "layer": "8"}, "layer is '8'"), ({"sae_type": "jumprelu"}, "log_threshold' is missing")],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*no threshold:UserWarning")
def test_bartbussmann_configs_that_can_not_be(config, text, tmp_path):
    assert_refused(bart(tmp_path, **config), text)


@pytest.mark.parametrize("sizes", ["[8, 25]", "[8", "8", ["a"], None, "[8.5, 23.5]"])
def test_bartbussmann_groups_that_can_not_be(sizes, tmp_path):
    path = bart(
        tmp_path, {"threshold": np.ones((), np.float32)}, sae_type="global-matryoshka-topk", group_sizes=sizes
    )
    assert_refused(path, "group")


def test_bartbussmann_without_its_config_is_not_taken_for_another(tmp_path):
    shutil.copy(GOLDEN / "bb_matryoshka" / "sae.pt", tmp_path / "sae.pt")
    assert_refused(tmp_path / "sae.pt", "pass d_model=")
    assert_refused(bart(tmp_path, {"threshold": draw(2)}), "threshold has shape")
    assert_refused(bart(tmp_path, sae_type="vanilla"), "takes no k", k=3)


# ------------------------------------------------------------------------------------------------ transcoder_circuits
CFG = {
    "hook_point": "blocks.8.ln2.hook_normalized",
    "hook_point_layer": 8,
    "model_name": "gpt2-small",
    "d_in": D,
    "d_sae": M,
}


class Runner:
    """A settings object; pickled under the name of the library's own."""


def circuits(path: Path, cfg: dict, state: dict) -> Path:
    """A .pkl.gz as the library writes it, by torch."""
    torch = pytest.importorskip("torch")
    made = Runner()
    made.__dict__.update(cfg)
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
    data = pickle.dumps({"cfg": made, "state_dict": tensors}, protocol=3)
    ours, theirs = f"{__name__}\nRunner\n".encode(), b"sae_lens.training.config\nRunner\n"
    assert data.count(ours) == 1
    path.write_bytes(gzip.compress(data.replace(ours, theirs)))
    return path


def test_circuits_pickles_in_gzip(tmp_path):
    path, z = tmp_path / "sae.pkl.gz", relu(pre(X, B_DEC))
    sae = load_sae(circuits(path, CFG | {"device": "cuda", "more": [1, {"a": 2}]}, PLAIN))
    assert_codes(sae, z, z @ W_DEC + B_DEC)
    assert (sae.info.name, sae.info.hook, sae.info.layer_index, sae.info.model_name) == (
        "sae",
        "ln2",
        8,
        "gpt2-small",
    )
    out, bias = draw(M, OUT, seed=6), draw(OUT, seed=7)
    change = {"W_dec": out, "b_dec_out": bias}
    target = {"is_transcoder": True, "d_out": OUT, "out_hook_point": "blocks.8.hook_mlp_out"}
    sae = load_sae(circuits(path, CFG | target, PLAIN | change))
    assert_codes(sae, z, z @ out + bias)
    assert "to blocks.8.hook_mlp_out" in sae.info.notes[0]
    factor = draw(M, seed=8)
    sae = load_sae(circuits(path, CFG, PLAIN | {"scaling_factor": factor}))
    assert_codes(sae, z, (z * factor) @ W_DEC + B_DEC)
    assert not load_sae(circuits(path, CFG, PLAIN | {"scaling_factor": np.ones(M, np.float32)})).extra


def test_circuits_golden_origin():
    info = load_sae(GOLDEN / "jd_transcoder").info
    assert (info.model_name, info.hook, info.layer_index) == ("gpt2-small", "ln2", 8)
    assert info.notes == ("a transcoder: from blocks.8.ln2.hook_normalized to blocks.8.hook_mlp_out",)


@pytest.mark.parametrize(
    ("cfg", "state", "text"),
    [
        ({"is_transcoder": 1}, {}, "is_transcoder is 1"),
        ({"is_transcoder": True}, {}, "'b_dec_out' is missing"),
        ({}, {"b_dec_out": draw(D)}, "'b_dec_out' is not one of"),
        ({"d_sae": 31}, {}, "cfg.d_sae is 31"),
        ({"activation_fn": "tanh-relu"}, {}, "cfg.activation_fn is 'tanh-relu'"),
        ({"activation_fn": [1]}, {}, "an object"),
        ({}, {"W_dec": draw(M, OUT)}, "20 columns"),
        ({"hook_point": 3}, {}, "hook_point is 3"),
        ({"apply_b_dec_to_input": False}, {}, "apply_b_dec_to_input is False"),
        ({}, {"b_enc": draw(M, 1)}, "b_enc has shape"),
    ],
)
def test_circuits_files_that_can_not_be(cfg, state, text, tmp_path):
    assert_refused(circuits(tmp_path / "sae.pkl.gz", CFG | cfg, PLAIN | state), text)


def test_circuits_settings_may_be_a_plain_dictionary(tmp_path):
    torch = pytest.importorskip("torch")
    state = {key: torch.from_numpy(value.copy()) for key, value in PLAIN.items()}
    torch.save({"cfg": CFG, "state_dict": state}, tmp_path / "a.pt")
    torch.save({"cfg": CFG, "state_dict": state}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    z = relu(pre(X, B_DEC))
    for name in ("a.pt", "b.pt"):
        assert_codes(load_sae(tmp_path / name), z, z @ W_DEC + B_DEC)
    torch.save({"cfg": 3, "state_dict": state}, tmp_path / "a.pt")
    assert_refused(tmp_path / "a.pt", "not an SAE of a known format")


# ------------------------------------------------------------------------------------------------ overcomplete
OVER = {
    "encoder.final_block.0.weight": W_ENC.T, "encoder.final_block.0.bias": B_ENC, "dictionary._weights": W_DEC,
    "dictionary.multiplier": np.array(0.3, np.float32),
}  # fmt: skip
ATOMS = W_DEC / (np.linalg.norm(W_DEC, axis=1, keepdims=True) + 1e-8) * np.exp(0.3)


def test_overcomplete_kinds(tmp_path):
    path, z = write_state(tmp_path / "state_dict.pt", OVER), relu(pre(X))
    with pytest.warns(UserWarning, match=r"pass k=.*threshold="):
        sae = load_sae(path)
    assert_codes(sae, z, z @ ATOMS)
    assert_codes(load_sae(path, k=K), topk(z), topk(z) @ ATOMS)
    assert_codes(load_sae(path, threshold=0.5), z * (z >= 0.5))
    assert_refused(path, "not both", k=K, threshold=0.5)
    log = draw(M, seed=5) / 3
    path = write_state(tmp_path / "state_dict.pt", OVER | {"thresholds": log})
    assert_codes(load_sae(path), z * (z >= np.exp(log)))
    assert_refused(path, "JumpSAE", k=K)


@pytest.mark.parametrize("folder", ["overcomplete_jump", "overcomplete_batchtopk"])
def test_overcomplete_fires_where_the_threshold_is_reached(folder):
    probe = json.loads((GOLDEN / folder / "PROVENANCE.json").read_text())["strict_probe"]
    sae = load_sae(GOLDEN / folder, **({"threshold": 0.5} if folder.endswith("batchtopk") else {}))
    x = np.load(GOLDEN / folder / "golden.npz")["x"]
    assert api.encode(sae, x)[probe["row"], probe["latent"]] > 0


def test_a_tie_with_the_exp_of_a_stored_threshold(tmp_path):
    """bartbussmann's thresholds are strict, overcomplete's are not, and exp is PyTorch's."""
    torch = pytest.importorskip("torch")
    log = draw(M, seed=5) / 3
    tied, zero = torch.exp(torch.from_numpy(log)).numpy(), np.zeros((1, D), np.float32)
    bart_state = {"jumprelu.log_threshold": log, "b_enc": tied}
    strict = api.encode(load_sae(bart(tmp_path / "b", bart_state, sae_type="jumprelu")), zero)
    state = OVER | {"thresholds": log, "encoder.final_block.0.bias": tied}
    reached = api.encode(load_sae(write_state(tmp_path / "o" / "state_dict.pt", state)), zero)
    # PyTorch's own exp is off the nearest number for one value of a hundred.
    assert np.count_nonzero(strict) <= 1 and np.count_nonzero(reached) >= M - 1


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 200])
def test_stored_logarithms_are_finite(value, tmp_path):
    log = np.full(M, value, np.float32)
    text = "NaN or infinite"
    assert_refused(write_state(tmp_path / "a" / "state_dict.pt", OVER | {"thresholds": log}), text)
    scale = {"dictionary.multiplier": np.array(value, np.float32)}
    assert_refused(write_state(tmp_path / "a" / "state_dict.pt", OVER | scale), text, k=K)
    assert_refused(bart(tmp_path, {"jumprelu.log_threshold": log}, sae_type="jumprelu"), text)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"encoder.mlp_blocks.0.0.weight": draw(2, 2)}, "only one that is read"),
        ({"thresholds": draw(3)}, "thresholds has"),
        ({"encoder.final_block.1.weight": draw(M)}, "only one that is read"),
        ({"dictionary.multiplier": draw(1)}, "single"),
        ({"dictionary._weights": draw(M + 1, D)}, "has shape"),
        ({"running": draw(2)}, "'running' is not one of"),
    ],
)
def test_overcomplete_files_that_can_not_be(change, text, tmp_path):
    assert_refused(write_state(tmp_path / "state_dict.pt", OVER | change), text)


# ------------------------------------------------------------------------------------------------ Goodfire, qresearch
def test_goodfire(tmp_path):
    state = {
        "encoder_linear.weight": W_ENC.T, "encoder_linear.bias": B_ENC,
        "decoder_linear.weight": W_DEC.T, "decoder_linear.bias": B_DEC,
    }  # fmt: skip
    path = write_state(tmp_path / "Llama-3.1-8B-Instruct-SAE-l19.pth", state)
    sae, z = load_sae(path), relu(pre(X))
    assert_codes(sae, z, z @ W_DEC + B_DEC)
    info = sae.info
    assert (info.model_name, info.layer_index, info.hook) == (
        "meta-llama/Llama-3.1-8B-Instruct",
        19,
        "resid_post",
    )
    info = load_sae(write_state(tmp_path / "sae.pt", state)).info
    assert (info.model_name, info.layer_index, info.hook) == ("", None, "")
    assert_refused(
        write_state(path, {key: state[key] for key in list(state)[:3]}), "'decoder_linear.bias' is missing"
    )
    assert_refused(
        write_state(path, state | {"decoder_linear.weight": W_DEC}), "decoder_linear.weight has shape"
    )
    assert_refused(write_state(path, state | {"more": draw(2)}), "'more' is not one of")


def test_qresearch_is_an_autoencoder_new_in_bf16(tmp_path):
    state = {
        "encoder.weight": W_ENC.T,
        "encoder.bias": B_ENC,
        "decoder.weight": W_DEC.T,
        "decoder.bias": B_DEC,
    }
    write_state(tmp_path / "a" / "sae.pth", state, bf16=True)
    assert load_sae(tmp_path / "a").info.format == "dictionary_learning"
    path = write_state(tmp_path / "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", state, bf16=True)
    sae = load_sae(path)
    for key, array in (("W_enc", W_ENC), ("b_enc", B_ENC), ("W_dec", W_DEC), ("b_dec", B_DEC)):
        np.testing.assert_array_equal(getattr(sae, key), cut_to_bf16(array))
    z = relu(X.astype(np.float64) @ cut_to_bf16(W_ENC) + cut_to_bf16(B_ENC))
    assert_codes(sae, z, z @ cut_to_bf16(W_DEC) + cut_to_bf16(B_DEC))
    info = sae.info
    assert (info.model_name, info.layer_index) == ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 19)
    assert (info.hook, info.notes) == ("resid_post", ("dict_class AutoEncoderNew",))


# ------------------------------------------------------------------------------------------------ Qwen Scope
QWEN = {"W_enc": W_ENC.T, "b_enc": B_ENC, "W_dec": W_DEC.T, "b_dec": B_DEC}


@pytest.mark.parametrize(
    ("folder", "model"),
    [("SAE-Res-Qwen3-1.7B-Base-W32K-L0_4", "Qwen/Qwen3-1.7B-Base"), ("mine_L0_4", ""),
     ("models--Qwen--SAE-Res-Qwen3-8B-W64K-L0_4/snapshots/abc", "Qwen/Qwen3-8B")],
)  # fmt: skip
def test_qwen_scope_is_transposed_and_takes_k_from_the_folder(folder, model, tmp_path):
    sae, z = load_sae(write_state(tmp_path / folder / "layer7.sae.pt", QWEN)), relu(topk(pre(X)))
    assert_codes(sae, z, z @ W_DEC + B_DEC)
    assert (sae.info.model_name, sae.info.layer_index, sae.info.hook, sae.k) == (model, 7, "resid_post", 4)


def test_qwen_scope_square_matrices_and_missing_k(tmp_path):
    square, back = draw(D, D), draw(D, D, seed=1)
    path = write_state(
        tmp_path / "layer0.sae.pt", {"W_enc": square, "b_enc": B_DEC, "W_dec": back, "b_dec": B_DEC}
    )
    sae = load_sae(path, k=2)
    np.testing.assert_array_equal(sae.W_enc, square.T)
    np.testing.assert_array_equal(sae.W_dec, back.T)
    assert_refused(path, "pass k=")
    assert_refused(path, "k is 'two'", k="two")
    assert_refused(write_state(path, QWEN | {"W_dec": W_DEC}), "W_dec has shape", k=2)
    assert_refused(write_state(path, QWEN | {"threshold": B_ENC}), "'threshold' is not one of", k=2)


# ------------------------------------------------------------------------------------------------ Kissane
def test_kissane_heads_and_origin():
    folder = GOLDEN / "kissane_hook_z"
    golden, sae = np.load(folder / "golden.npz"), load_sae(folder)
    assert api.reconstruct(sae, golden["x"]).shape == golden["x"].shape == (64, 4, 6)
    assert (sae.info.model_name, sae.info.hook, sae.info.layer_index) == ("gpt2-small", "hook_z", 5)


@pytest.mark.parametrize(
    ("config", "text"),
    [({"act_size": D + 1}, "act_size is 13"), ({"act_size": D, "dict_size": "32"}, "dict_size is '32'"),
     ({"act_size": D, "act_name": 5}, "act_name is 5"), ({"layer": 1}, "pass d_model="), ("[1", "not readable")],
)  # fmt: skip
def test_kissane_configs_that_can_not_be(config, text, tmp_path):
    path = write_state(tmp_path / "X.pt", PLAIN)
    (tmp_path / "X_cfg.json").write_text(config if isinstance(config, str) else json.dumps(config))
    assert_refused(path, text)


# ------------------------------------------------------------------------------------------------ nothing beside
@pytest.mark.filterwarnings("ignore:.*read as ReLU:UserWarning")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_plain_weights_are_what_the_choices_say(suffix, tmp_path):
    import safetensors.numpy

    path = tmp_path / f"weights{suffix}"
    write = {".pt": write_state, ".safetensors": lambda file, t: safetensors.numpy.save_file(t, file)}[suffix]
    z, centred = relu(pre(X)), relu(pre(X, B_DEC))
    for w_enc in (W_ENC, np.ascontiguousarray(W_ENC.T)):
        for w_dec in (W_DEC, np.ascontiguousarray(W_DEC.T)):
            write(path, PLAIN | {"W_enc": w_enc, "W_dec": w_dec})
            assert_codes(load_sae(path, d_model=D, pre_bias=False), z, z @ W_DEC + B_DEC)
            assert_codes(load_sae(path, d_model=D, pre_bias=True), centred, centred @ W_DEC + B_DEC)
    with pytest.warns(UserWarning, match="read as ReLU"):
        load_sae(path, d_model=D, pre_bias=True)
    assert_codes(load_sae(path, d_model=D, pre_bias=False, k=K), relu(topk(pre(X))))
    assert_refused(path, r"pass d_model=.*width of the activations")
    assert_refused(path, r"pass pre_bias=True .* or pre_bias=False", d_model=D)
    assert_refused(path, r"none of its axes is d_model=5", d_model=5)
    assert_refused(path, "d_model is '12'", d_model="12")
    write(path, {"W_enc": W_ENC, "W_dec": W_DEC, "b_dec": np.zeros(D, np.float32)})
    assert load_sae(path, d_model=D).variant == "standard"
    write(path, {"W_enc": W_ENC[:, :D].copy(), "W_dec": W_DEC[:D].copy()})
    assert_refused(path, "does not tell its axes apart", d_model=D)


def test_plain_thresholds_and_other_files(tmp_path):
    threshold = np.abs(draw(M, seed=5))
    np.savez(tmp_path / "a.npz", W_enc=W_ENC, W_dec=W_DEC, threshold=threshold)
    sae, without = load_sae(tmp_path / "a.npz", d_model=D), pre(X) - B_ENC
    assert_codes(sae, relu(without) * (without > threshold))
    assert_refused(tmp_path / "a.npz", "takes no k", d_model=D, k=3)
    np.savez(tmp_path / "b.npz", W_enc=W_ENC, W_dec=W_DEC, w=W_DEC)
    assert_refused(tmp_path / "b.npz", "not an SAE of a known format")
    np.savez(tmp_path / "b.npz", W_enc=W_ENC, W_dec=W_DEC[:, :, None])
    assert_refused(tmp_path / "b.npz", "two axes", d_model=D)


def test_a_settings_object_alone_is_no_sae(tmp_path):
    write_state(tmp_path / "x.pt", {"cfg": Call(Named("sae_training.config", "C"))})
    assert_refused(tmp_path / "x.pt", "not an SAE of a known format")
