"""dictionary_learning: files of earlier versions, what config.json says, and what can't be. Goldens of today's are in
test_golden."""

import json
from pathlib import Path

import numpy as np
import pytest
from by_hand import (
    B_DEC,
    B_ENC,
    PLAIN,
    W_DEC,
    W_ENC,
    K,
    M,
    X,
    assert_codes,
    assert_refused,
    draw,
    pre,
    relu,
    topk,
)
from torch_files import write_state

from amortjax.saes.formats import load_sae

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"
LINEAR = {"encoder.weight": W_ENC.T, "encoder.bias": B_ENC, "decoder.weight": W_DEC.T}
TOPK = LINEAR | {"b_dec": B_DEC, "k": np.array(K, np.int32), "threshold": np.array(0.4, np.float32)}


def learned(folder: Path, state: dict, **trainer) -> Path:
    buffer = trainer.pop("buffer", {"io": "out"})
    path = write_state(folder / "ae.pt", state)
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": buffer}))
    return path


def test_dictionary_learning_files_of_mid_2024(tmp_path):
    z = relu(topk(pre(X, B_DEC)))
    bare = {"encoder.weight": W_ENC.T, "encoder.bias": B_ENC, "decoder": W_DEC, "b_dec": B_DEC}
    for state in (bare | {"k": K}, bare | {"k": np.array(K, np.int64)}, LINEAR | {"b_dec": B_DEC, "k": K}):
        sae = load_sae(write_state(tmp_path / "old.pt", state), dict_class="AutoEncoderTopK")
        assert_codes(sae, z, z @ W_DEC + B_DEC)
    # Without k or threshold only AutoEncoderTopK can be meant; k is config.json's.
    assert_codes(load_sae(learned(tmp_path, bare, dict_class="AutoEncoderTopK", k=K)), z, z @ W_DEC + B_DEC)
    assert_refused(
        write_state(tmp_path / "other" / "old.pt", LINEAR | {"b_dec": B_DEC}), "k is not in the file"
    )


@pytest.mark.parametrize(
    "said", ["BatchTopKSAE", "dictionary_learning.trainers.batch_top_k.BatchTopKSAE",
             "<class 'dictionary_learning.trainers.batch_top_k.BatchTopKSAE'>"],
)  # fmt: skip
def test_dictionary_learning_class_names_with_modules(said, tmp_path):
    a = relu(pre(X, B_DEC))
    assert_codes(load_sae(learned(tmp_path, TOPK, dict_class=said)), a * (a > np.float32(0.4)))


def test_dictionary_learning_a_negative_layer_is_none(tmp_path):
    path = learned(tmp_path, LINEAR | {"bias": B_DEC}, dict_class="AutoEncoder", layer=-1)
    assert load_sae(path).info.layer_index is None


def test_dictionary_learning_negative_thresholds_are_loud(tmp_path):
    state = TOPK | {"threshold": np.array(-1, np.float32)}
    path = learned(tmp_path, state, dict_class="BatchTopKSAE")
    with pytest.warns(UserWarning, match="threshold is negative"):
        sae = load_sae(path)
    assert sae.batch_rule and any("negative" in note for note in sae.info.notes)
    with pytest.warns(UserWarning, match="threshold is negative"):
        assert not load_sae(path, batch_rule=False).batch_rule
    path = learned(tmp_path, state, dict_class="AutoEncoderTopK")
    with pytest.warns(UserWarning, match="threshold is negative"):
        assert load_sae(path, threshold=True).variant == "batch_topk"


def test_dictionary_learning_snapshots(tmp_path):
    final = learned(tmp_path / "trainer_0", TOPK, dict_class="AutoEncoderTopK", layer=3)
    snapshot = write_state(tmp_path / "trainer_0" / "checkpoints" / "ae_500.pt", TOPK | {"b_dec": 2 * B_DEC})
    sae = load_sae(tmp_path)
    assert sae.info.source == str(final) and sae.info.layer_index == 3
    sae = load_sae(snapshot)
    np.testing.assert_array_equal(sae.b_dec, 2 * B_DEC)
    assert (sae.info.name, sae.info.layer_index) == ("ae_500", 3)


@pytest.mark.parametrize(
    ("io", "hook", "note"),
    [("out", "mlp_out", None), ("in", "mlp_in", "from the input of mlp_layer_3"),
     ("in_and_out", "mlp_in", "from the input of mlp_layer_3 to its output")],
)  # fmt: skip
def test_dictionary_learning_reads_the_side_that_buffer_io_says(io, hook, note, tmp_path):
    path = learned(
        tmp_path, TOPK, dict_class="AutoEncoderTopK", submodule_name="mlp_layer_3", buffer={"io": io}
    )
    info = load_sae(path).info
    assert (info.hook, info.layer_index) == (hook, 3) and (note is None or note in info.notes)
    assert info.transcoder == (io == "in_and_out")


def test_dictionary_learning_jumprelu_of_2024_can_not_be_told(tmp_path):
    threshold = np.abs(draw(M, seed=5))
    path = learned(tmp_path, PLAIN | {"threshold": threshold}, dict_class="JumpReluAutoEncoder")
    sae, norms = load_sae(path), np.linalg.norm(W_DEC, axis=1)
    assert any("normalize_decoder=True" in note for note in sae.info.notes)
    z = relu(pre(X)) * (pre(X) > threshold)
    assert_codes(sae, z, z @ W_DEC + B_DEC)
    assert_codes(load_sae(path, normalize_decoder=True), z * norms, z @ W_DEC + B_DEC)
    assert not load_sae(GOLDEN / "dl_topk").info.notes[1:]
    assert_refused(
        learned(tmp_path, PLAIN | {"threshold": threshold[:1]}, dict_class="JumpReluAutoEncoder"),
        "threshold has",
    )


@pytest.mark.parametrize(
    ("state", "trainer", "choices", "text"),
    [
        ({}, {"k": "8"}, {}, "k is '8'"),
        ({}, {"layer": []}, {}, "layer is"),
        ({}, {"dict_class": 3}, {}, "dict_class is 3"),
        ({}, {}, {"k": 2.5}, "k is 2.5"),
        ({}, {}, {"threshold": "x"}, "threshold is 'x'"),
        ({}, {}, {"norm_factor": -1}, "norm_factor"),
        ({}, {"buffer": {"io": 3}}, {}, "io is 3"),
        ({"more": B_DEC}, {}, {}, "known format"),
        ({"k": B_DEC}, {}, {}, "'k' "),
        ({"threshold": B_DEC}, {"dict_class": "BatchTopKSAE"}, {}, "wanted a single number"),
        ({"b_dec": B_ENC}, {}, {}, "b_dec has shape"),
        ({}, {"dict_class": "GatedAutoEncoder"}, {}, "'decoder_bias' is missing"),
        ({}, {"submodule_name": 3}, {}, "submodule_name"),
    ],
)
def test_dictionary_learning_files_that_can_not_be(state, trainer, choices, text, tmp_path):
    path = learned(tmp_path, TOPK | state, **{"dict_class": "AutoEncoderTopK"} | trainer)
    assert_refused(path, text, **choices)


def test_dictionary_learning_extra_tensors_are_named(tmp_path):
    state = LINEAR | {"bias": B_DEC, "b_dec": B_DEC}
    assert_refused(write_state(tmp_path / "ae.pt", state), "not an SAE of a known format")
    matryoshka = PLAIN | {"threshold": np.array(0.1, np.float32), "group_sizes": np.array([8, 24])}
    path = learned(tmp_path, matryoshka, dict_class="JumpReluAutoEncoder")
    assert_refused(path, "'group_sizes' is not one of")
