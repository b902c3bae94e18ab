"""OpenMOSS's three layouts: both readings of the golden Llama Scope, and the libraries' formulas on files written
here."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from saes.test_sparsify import save_bfloat16
from safetensors.numpy import load_file, save_file

from amortjax.errors import CheckpointError
from amortjax.saes import api
from amortjax.saes.formats import load_sae

GOLDEN = Path(__file__).parents[1] / "golden" / "formats" / "llama_scope"
D, M, K = 12, 32, 5
IN, OUT = "blocks.15.hook_resid_post", "blocks.15.hook_mlp_out"
F = math.sqrt(D) / 7.0
AVERAGE = "dataset_average_activation_norm"
HYPER = {
    "hook_point_in": IN, "hook_point_out": IN, "d_model": D, "d_sae": M, "act_fn": "jumprelu",
    "jump_relu_threshold": 0.6, "norm_activation": "dataset-wise", AVERAGE: {"in": 7.0, "out": 7.0},
    "sparsity_include_decoder_norm": True, "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False,
    "top_k": K,
}  # fmt: skip
CONFIG = {
    "sae_type": "sae", "hook_point_in": IN, "hook_point_out": IN, "d_model": D, "expansion_factor": M / D,
    "act_fn": "jumprelu", "norm_activation": "inference", "sparsity_include_decoder_norm": True,
    "use_glu_encoder": False, "top_k": K,
}  # fmt: skip


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def linear(unit: bool) -> dict[str, np.ndarray]:
    decoder = draw(D, M, seed=2)
    return {
        "encoder.weight": draw(M, D), "encoder.bias": draw(M, seed=1), "decoder.bias": draw(D, seed=3),
        "decoder.weight": decoder / np.linalg.norm(decoder, axis=0) if unit else decoder,
    }  # fmt: skip


def r1() -> dict[str, np.ndarray]:
    return linear(False) | {"log_jumprelu_threshold": 0.5 * draw(M, seed=4)}


def own() -> dict[str, np.ndarray]:
    t = r1()
    return {
        "W_E": np.ascontiguousarray(t["encoder.weight"].T), "b_E": t["encoder.bias"],
        "W_D": np.ascontiguousarray(t["decoder.weight"].T), "b_D": t["decoder.bias"],
        "activation_function.log_jumprelu_threshold": t["log_jumprelu_threshold"],
    }  # fmt: skip


def averages(**norms: float) -> dict[str, np.ndarray]:
    hooks = {"first": IN, "last": OUT}
    return {f"{AVERAGE}.{hooks[end]}": np.array(norm, np.float32) for end, norm in norms.items()}


def write(folder: Path, config: dict, tensors: dict[str, np.ndarray]) -> Path:
    """Llama Scope's folder for a config with jump_relu_threshold or without, else the others'."""
    scope = "jump_relu_threshold" in config or AVERAGE in config
    inner = folder / "checkpoints" if scope else folder
    inner.mkdir(parents=True, exist_ok=True)
    (folder / ("hyperparams.json" if scope else "config.json")).write_text(json.dumps(config))
    save_file(tensors, inner / ("final.safetensors" if scope else "sae_weights.safetensors"))
    return folder


def doubles(tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """W_enc (D, M), b_enc, W_dec (M, D), b_dec in float64."""
    t = {key: value.astype(np.float64) for key, value in tensors.items()}
    if "W_E" in t:
        return t["W_E"], t["b_E"], t["W_D"], t.get("b_D", np.zeros(D))
    return t["encoder.weight"].T, t["encoder.bias"], t["decoder.weight"].T, t.get("decoder.bias", np.zeros(D))


def largest(score: np.ndarray, k: int) -> np.ndarray:
    return score >= np.sort(score, axis=1)[:, -k][:, None]


def assert_same(sae, x: np.ndarray, z: np.ndarray, y: np.ndarray) -> None:
    got = api.encode(sae, x)
    np.testing.assert_array_equal(got != 0, z != 0)
    assert 0 < (z != 0).mean() < 1
    assert np.abs(got - z).max() <= 1e-5 * (1 + np.abs(z).max())
    assert np.abs(api.reconstruct(sae, x) - y).max() <= 1e-5 * (1 + np.abs(y).max())


# Llama Scope


def test_the_golden_codes_of_the_other_library_are_a_choice():
    golden, folder = np.load(GOLDEN / "golden.npz"), next(GOLDEN.glob("Llama*"))
    sae = load_sae(folder, scale="openmoss")
    z = api.encode(sae, golden["x"])
    np.testing.assert_array_equal(z != 0, golden["z_openmoss"] != 0)
    assert np.abs(z - golden["z_openmoss"]).max() <= 1e-5 * (1 + golden["z_openmoss"].max())
    assert np.abs(api.decode(sae, golden["z_openmoss"]) - golden["xhat_openmoss"]).max() <= 1e-5 * 100
    assert float(sae.extra["threshold"][0]) == np.float32(0.9)


def test_what_is_known_of_the_golden_folder():
    info = load_sae(GOLDEN).info
    assert (info.hook, info.layer_index, info.model_name) == ("resid_post", 15, "meta-llama/Llama-3.1-8B")
    assert (info.name, info.format) == ("Llama3_1-8B-Base-L15R-8x", "llama_scope")
    assert "x is multiplied by 0.35759 in its weights; codes are in the units of training" in info.notes


def openmoss(t, x, f_in, f_out, threshold, act="jumprelu", norms=True, before=False):
    """Codes in raw units and reconstructions, step by step."""
    w_enc, b_enc, w_dec, b_dec = doubles(t)
    b_enc, b_dec, w_dec = b_enc / f_in, b_dec / f_out, w_dec * (f_in / f_out)
    if norms:
        n = np.linalg.norm(w_dec, axis=1)
        w_dec, w_enc, b_enc = w_dec / n[:, None], w_enc * n, b_enc * n
    pre = (x - b_dec if before else x) @ w_enc + b_enc
    z = np.maximum(pre, 0)
    z = z * {"relu": 1, "jumprelu": pre > threshold, "topk": largest(z, K)}[act]
    return z, z @ w_dec + b_dec


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.filterwarnings("ignore:.*decoder norms are off 1:UserWarning")
def test_llama_scope_s_two_scales(tmp_path, tokens, unit, before):
    config = HYPER | {"apply_decoder_bias_to_pre_encoder": before}
    folder = write(tmp_path, config, linear(unit))
    z, y = openmoss(linear(unit), tokens, F, F, 0.6, before=before)
    assert_same(load_sae(folder, scale="openmoss"), tokens, z, y)
    assert_same(load_sae(folder), tokens, z * F, y)


@pytest.mark.filterwarnings("ignore:.*decoder norms are off 1:UserWarning")
def test_other_norms_of_the_output_and_no_decoder_bias(tmp_path, tokens):
    t = linear(False)
    del t["decoder.bias"]
    config = HYPER | {"use_decoder_bias": False, "hook_point_out": OUT, AVERAGE: {"in": 7.0, "out": 3.0}}
    folder = write(tmp_path, config, t)
    z, y = openmoss(t, tokens, F, math.sqrt(D) / 3.0, 0.6)
    assert_same(load_sae(folder, scale="openmoss"), tokens, z, y)
    assert_same(load_sae(folder), tokens, z * F, y)
    assert any(f"its output is {OUT}" in note for note in load_sae(folder).info.notes)


@pytest.mark.parametrize(("act", "threshold"), [("relu", 0.0), ("topk", 0.0), ("topk", 0.6), ("TopK", 0.6)])
def test_other_activations_of_llama_scope(tmp_path, tokens, act, threshold):
    folder = write(tmp_path, HYPER | {"act_fn": act, "jump_relu_threshold": threshold}, linear(True))
    z, y = openmoss(linear(True), tokens, F, F, threshold, "jumprelu" if threshold else act)
    assert_same(load_sae(folder), tokens, z * F, y)


def test_norms_that_are_not_1_are_said_aloud_and_rounding_is_not(tmp_path, tokens, recwarn):
    file = write(tmp_path / "a", HYPER, linear(True)) / "checkpoints" / "final.safetensors"
    t = save_bfloat16(file, linear(True))
    z, y = openmoss(t, tokens, F, F, 0.6, norms=False)  # SAELens' reading
    assert_same(load_sae(tmp_path / "a"), tokens, z * F, y)
    z, y = openmoss(t, tokens, F, F, 0.6)
    assert_same(load_sae(tmp_path / "a", scale="openmoss"), tokens, z, y)
    assert not recwarn.list
    with pytest.warns(
        UserWarning, match="decoder norms are off 1 by up to .*SAELens' reader leaves that out"
    ):
        sae = load_sae(write(tmp_path / "b", HYPER, linear(False)))
    assert any("were divided out" in note for note in sae.info.notes)
    np.testing.assert_allclose(np.linalg.norm(sae.W_dec, axis=1), 1 / F, rtol=1e-5)


def test_without_the_decoder_s_norms_rows_stay(tmp_path, tokens):
    folder = write(tmp_path, HYPER | {"sparsity_include_decoder_norm": False}, linear(False))
    z, y = openmoss(linear(False), tokens, F, F, 0.6, norms=False)
    assert_same(load_sae(folder), tokens, z * F, y)
    unit = load_sae(folder, normalize_decoder=True)
    assert_same(unit, tokens, z * np.linalg.norm(doubles(linear(False))[2], axis=1), y)


def test_a_norm_factor_stands_in_for_the_averages(tmp_path, tokens):
    folder = write(tmp_path / "a", HYPER, linear(True))
    z, y = openmoss(linear(True), tokens, 1.0, 1.0, 0.6)
    assert_same(load_sae(folder, norm_factor=1), tokens, z, y)
    bare = write(tmp_path / "b", {key: value for key, value in HYPER.items() if key != AVERAGE}, linear(True))
    with pytest.raises(CheckpointError, match=f"{AVERAGE} is missing; load it with norm_factor"):
        load_sae(bare)
    np.testing.assert_allclose(load_sae(bare, norm_factor=1 / F).W_enc, load_sae(folder).W_enc, rtol=1e-6)


def test_a_dead_row_never_fires(tmp_path, tokens):
    t = linear(False)
    t["decoder.weight"][:, 4] = 0
    t["encoder.bias"][4] = 100
    with pytest.warns(UserWarning, match="decoder norms"):
        sae = load_sae(write(tmp_path, HYPER, t))
    assert not api.encode(sae, tokens)[:, 4].any()


# R1-Distill


def gate(t: dict[str, np.ndarray], x: np.ndarray, f_in=1.0, f_out=1.0, norms=False):
    """Codes in the units of training and reconstructions of raw x, thresholds as exp in float32."""
    w_enc, b_enc, w_dec, b_dec = doubles(t)
    key = next(key for key in t if "log_jumprelu_threshold" in key)
    pre = (x * f_in) @ w_enc + b_enc
    z = np.maximum(pre, 0) * (pre * (np.linalg.norm(w_dec, axis=1) if norms else 1) > np.exp(t[key]))
    return z, (z @ w_dec + b_dec) / f_out


@pytest.mark.parametrize(
    "config", [{}, {"d_model": D, "expansion_factor": M / D, "norm_activation": "inference"}]
)
@pytest.mark.filterwarnings("ignore:.*is not in the file:UserWarning")
def test_r1_distill(tmp_path, tokens, config):
    folder = write(tmp_path / "Llama-Scope-R1-Distill" / "L15R", config, r1())
    sae = load_sae(folder)
    assert_same(sae, tokens, *gate(r1(), tokens))
    assert (sae.info.hook, sae.info.layer_index) == ("resid_post", 15)
    assert sae.info.model_name == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    (folder / "config.json").unlink()
    assert_same(load_sae(folder), tokens, *gate(r1(), tokens))


def test_an_r1_tie_with_the_threshold_does_not_fire(tmp_path):
    t = r1()
    # The exp nearest to the exact one, as PyTorch's is; NumPy's in float32 often is not.
    t["encoder.bias"] = np.exp(t["log_jumprelu_threshold"], dtype=np.float64).astype(np.float32)
    sae = load_sae(write(tmp_path, {"norm_activation": "inference"}, t))
    assert not api.encode(sae, np.zeros((40, D), np.float32)).any()


@pytest.mark.parametrize("value", [-np.inf, np.inf, np.nan, 200])
def test_log_thresholds_are_finite(tmp_path, value):
    t = r1()
    t["log_jumprelu_threshold"][3] = value
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        load_sae(write(tmp_path, {"norm_activation": "inference"}, t))


def test_r1_distill_with_its_average_norm(tmp_path, tokens):
    config = {"norm_activation": "dataset-wise", "hook_point_in": IN}
    folder = write(tmp_path / "a", config, r1() | averages(first=7.0))
    z, y = gate(r1(), tokens, F, F)
    assert_same(load_sae(folder), tokens, z, y)
    assert_same(load_sae(folder, scale="openmoss"), tokens, z / F, y)
    assert_same(load_sae(folder, norm_factor=1), tokens, *gate(r1(), tokens))
    bare = write(tmp_path / "b", config, r1())
    with pytest.warns(UserWarning, match="for raw x load it with norm_factor=average norm"):
        assert_same(load_sae(bare), tokens, *gate(r1(), tokens))
    np.testing.assert_allclose(load_sae(bare, norm_factor=1 / F).W_enc, load_sae(folder).W_enc, rtol=1e-6)


def test_r1_distill_s_gate_by_norms_is_said_aloud_and_a_choice(tmp_path, tokens):
    folder = write(tmp_path, {"norm_activation": "inference", "sparsity_include_decoder_norm": True}, r1())
    with pytest.warns(UserWarning, match="left out, as SAELens does; scale='openmoss' does it"):
        assert_same(load_sae(folder), tokens, *gate(r1(), tokens))
    assert_same(load_sae(folder, scale="openmoss"), tokens, *gate(r1(), tokens, norms=True))


# llamascopium


@pytest.mark.parametrize("norms", [False, True])
def test_llamascopium_gates_by_norm_and_keeps_the_value(tmp_path, tokens, norms):
    folder = write(tmp_path, CONFIG | {"sparsity_include_decoder_norm": norms}, own())
    assert_same(load_sae(folder), tokens, *gate(own(), tokens, norms=norms))
    assert load_sae(folder).info.layer_index == 15


def test_llamascopium_from_one_hook_to_another_with_both_averages(tmp_path, tokens):
    config = CONFIG | {"norm_activation": "dataset-wise", "hook_point_out": OUT}
    folder = write(tmp_path, config, own() | averages(first=7.0, last=3.0))
    z, y = gate(own(), tokens, F, math.sqrt(D) / 3.0, norms=True)
    assert_same(load_sae(folder), tokens, z, y)
    assert_same(load_sae(folder, scale="openmoss"), tokens, z / F, y)
    other = write(tmp_path / "other", config, own() | averages(first=7.0))
    with pytest.raises(CheckpointError, match=rf"'{AVERAGE}.{OUT}' is missing; there is {AVERAGE}.{IN}"):
        load_sae(other)


@pytest.mark.parametrize("act", ["relu", "topk", "batchtopk"])
@pytest.mark.filterwarnings("ignore:.*decoder norms are off 1:UserWarning")
def test_llamascopium_s_other_activations(tmp_path, tokens, act):
    t = {key: value for key, value in own().items() if "threshold" not in key}
    sae = load_sae(write(tmp_path, CONFIG | {"act_fn": act}, t))
    w_enc, b_enc, w_dec, b_dec = doubles(t)
    n = np.linalg.norm(w_dec, axis=1)
    z = np.maximum(tokens @ w_enc + b_enc, 0)
    if act != "relu":
        score = z * n if act == "topk" else (z * n).reshape(1, -1)
        z = z * largest(score, K if act == "topk" else K * len(tokens)).reshape(z.shape)
    # Ranking by norms needs rows of norm 1, which codes are larger by; what fires and y are the library's.
    assert_same(sae, tokens, z if act == "relu" else z * n, z @ w_dec + b_dec)
    assert sae.batch_rule == (act == "batchtopk")


def test_a_norm_of_each_token(tmp_path, tokens):
    sae = load_sae(write(tmp_path, CONFIG | {"norm_activation": "token-wise"}, own()))
    c = math.sqrt(D) / np.linalg.norm(tokens.astype(np.float64), axis=1, keepdims=True)
    assert_same(sae, tokens, *gate(own(), tokens, c, c, norms=True))


@pytest.mark.parametrize(
    ("config", "tensors", "text"),
    [
        (CONFIG | {"use_glu_encoder": True}, own(), "use_glu_encoder is True, which is not supported"),
        (CONFIG | {"sae_type": "clt"}, own(), "sae_type is 'clt', which is not supported"),
        (
            CONFIG | {"act_fn": "gelu"},
            own(),
            "act_fn is 'gelu'; known for llamascopium files: relu, jumprelu",
        ),
        (CONFIG | {"act_fn": 1}, own(), "act_fn is 1; wanted a name"),
        (CONFIG | {"act_fn": "topk"}, own(), r"'activation_function\.log_jumprelu_threshold' is not one of"),
        (CONFIG | {"norm_activation": "batch-wise"}, own(), "norm_activation 'batch-wise' is not supported"),
        (CONFIG | {"d_model": 24}, own(), "d_model is 24, but the weights have 12"),
        (CONFIG | {"expansion_factor": 1e308}, own(), "d_sae .* but the weights have 32"),
        (CONFIG | {"expansion_factor": -1e308}, own(), "d_sae .* is -1, but the weights have 32"),
        (CONFIG, own() | {"W_E_glu": draw(D, M)}, "'W_E_glu' is not one of"),
        (CONFIG, own() | {"W_E": draw(2, D, M)}, r"W_E has shape \(2, 12, 32\)"),
        (
            CONFIG | {"norm_activation": "dataset-wise"},
            own() | averages(first=0),
            "norm.* is 0.0; wanted a positive",
        ),
        (
            CONFIG | {"norm_activation": "dataset-wise"},
            own() | averages(first=[1, 2]),
            r"has shape \(2,\); wanted a",
        ),
        ({}, own(), "missing or empty; it says how"),
        ({"act_fn": "relu"}, r1(), "act_fn is 'relu'; known for r1_distill files: jumprelu"),
        ({}, linear(True), "tensor 'log_jumprelu_threshold' is missing"),
        ({}, r1() | {"log_jumprelu_threshold": 100 + draw(M)}, r"extra\.threshold holds 32 NaN or infinite"),
        (
            HYPER | {"jump_relu_threshold": "0.5"},
            linear(True),
            "jump_relu_threshold is '0.5'; wanted a number",
        ),
        (
            HYPER | {"jump_relu_threshold": None},
            linear(True),
            "jump_relu_threshold is None; wanted a number from 0",
        ),
        (
            HYPER | {"jump_relu_threshold": -1},
            linear(True),
            "jump_relu_threshold is -1; wanted a number from 0",
        ),
        (HYPER | {AVERAGE: 13.7}, linear(True), f"{AVERAGE} is 13.7; wanted an object"),
        (HYPER | {AVERAGE: {"in": "13"}}, linear(True), "in is '13'; wanted a number"),
        (HYPER | {AVERAGE: {"in": -13}}, linear(True), "in is -13; wanted a positive number"),
        (HYPER | {AVERAGE: {"in": 10**400}}, linear(True), "wanted a number"),
        (HYPER | {"use_decoder_bias": False}, linear(True), r"'decoder\.bias' is not one of"),
        (HYPER | {"d_sae": 31}, linear(True), "d_sae .* is 31, but the weights have 32"),
        (HYPER, {"encoder.weight": draw(M, D)}, r"tensor 'decoder\.bias' is missing"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is not in the file:UserWarning")
def test_what_can_not_be_read_is_one_line(tmp_path, config, tensors, text):
    with pytest.raises(CheckpointError, match=text) as caught:
        load_sae(write(tmp_path, config, tensors))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        ({"scale": "other"}, "scale 'other' is not one of saelens, openmoss"),
        ({"norm_factor": 0}, "norm_factor is 0; wanted a positive number"),
        ({"norm_factor": "2"}, "norm_factor is '2'; wanted a number"),
        ({"k": 3}, "its act_fn is jumprelu, which takes no k"),
        ({"dict_class": "x"}, "no choice 'dict_class'; it takes k, scale"),
    ],
)
def test_choices_that_can_not_be(choices, text):
    with pytest.raises(CheckpointError, match=text):
        load_sae(GOLDEN, **choices)


def test_saelens_files_of_the_same_name_are_not_taken_for_it(tmp_path):
    shutil.copytree(GOLDEN.parent / "saelens6_topk", tmp_path / "a")
    (file,) = (tmp_path / "a").rglob("sae_weights.safetensors")
    assert "W_enc" in load_file(file) and load_sae(file).info.format == "saelens"
