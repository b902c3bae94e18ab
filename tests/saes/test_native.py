"""The native pair: what is written is read, and nothing damaged is read as something else."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from amortjax.errors import AmortjaxError, CheckpointError
from amortjax.saes import api
from amortjax.saes.checks import tensors
from amortjax.saes.encoders import VARIANTS
from amortjax.saes.formats import load_sae, native, save_sae


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_is_exact(variant, make_sae, tokens, tmp_path):
    sae = make_sae(variant, norm="layer_norm")
    path = save_sae(sae, tmp_path / "sae")
    back = load_sae(path)
    for name, array in tensors(sae).items():
        np.testing.assert_array_equal(tensors(back)[name], array)
        assert tensors(back)[name].shape == array.shape
    settings = ("variant", "k", "groups", "group_k", "norm", "rescale", "batch_rule")
    assert all(getattr(back, name) == getattr(sae, name) for name in settings)
    assert (back.info.name, back.info.lam_train, back.info.format) == ("random", 0.1, "native")
    np.testing.assert_array_equal(api.encode(back, tokens), api.encode(sae, tokens))


def test_readable_without_amortjax(make_sae, tokens, tmp_path):
    path = save_sae(make_sae("jumprelu"), tmp_path / "sae")
    w, settings = safetensors.numpy.load_file(path), json.loads((tmp_path / "sae.json").read_text())
    pre = (tokens - w["pre_bias"]) @ w["W_enc"] + w["b_enc"]
    z = np.where(pre > w["extra.threshold"], np.maximum(pre, 0), 0)
    assert settings["variant"] == "jumprelu" and settings["shapes"]["W_enc"] == [12, 32]
    np.testing.assert_allclose(
        z @ w["W_dec"] + w["b_dec"], api.reconstruct(load_sae(path), tokens), atol=1e-4
    )


def test_records_are_kept_by_name(make_sae, tmp_path):
    records = {
        "norm_factor": jnp.asarray(7.5),
        "origin": jnp.arange(32.0)[::-1],
        "avar": jnp.linspace(0, 1, 32),
    }
    path = save_sae(make_sae("loca", extra=records), tmp_path / "sae")
    stored = safetensors.numpy.load_file(path)
    assert stored["extra.norm_factor"].shape == () and stored["extra.norm_factor"] == 7.5
    back = load_sae(path)
    for name, array in records.items():
        np.testing.assert_array_equal(back.extra[name], array)


def test_files_from_before_group_k_load(make_sae, tmp_path):
    sae = make_sae("matryoshka")
    save_sae(sae, tmp_path / "sae")
    back = load_sae(_rewrite(tmp_path, lambda arrays, settings: settings.pop("group_k")))
    assert back.group_k == () and back.groups == sae.groups


LAYERS = {"W_hidden": jnp.zeros((2, 12, 5)), "b_hidden": jnp.zeros((2, 5)), "W_up": jnp.zeros((5, 32))}


@pytest.mark.parametrize(
    ("variant", "change", "text"),
    [
        ("loca", {"group_k": ()}, "a loca SAE needs group_k"),
        ("loca", {"groups": ()}, "group_k has 2 numbers for 0 groups"),
        ("loca", {"group_k": (1, 2, 3)}, "group_k has 3 numbers for 2 groups"),
        ("loca", {"group_k": (9, 3)}, "group_k of group 0 is 9; it must be from 0 to its 8"),
        ("loca", {"group_k": (1, -1)}, "group_k of group 1 is -1"),
        ("loca", {"group_k": (0, 0)}, "nothing could fire"),
        ("loca", {"groups": (8, 23)}, "add up to 31, not to 32"),
        ("loca", {"groups": (-8, 40)}, "must not be negative"),
        ("topk", {"groups": (8, 24), "group_k": (1, 3)}, "group_k is for loca, mlp, not topk"),
        ("mlp", {"extra": {}}, "needs 'W_hidden'"),
        ("mlp", {"extra": LAYERS | {"W_hidden": jnp.zeros((3, 12, 5))}}, r"W_hidden has shape \(3, 12, 5\)"),
        ("mlp", {"extra": LAYERS | {"W_hidden": jnp.zeros((12, 5))}}, r"W_hidden has shape \(12, 5\)"),
        ("mlp", {"extra": LAYERS, "groups": ()}, r"W_hidden has shape \(2, 12, 5\); wanted \(1, 12, 5\)"),
        ("mlp", {"extra": LAYERS | {"b_hidden": jnp.zeros((1, 5))}}, r"b_hidden has shape \(1, 5\)"),
        ("mlp", {"extra": LAYERS | {"W_up": jnp.zeros((5, 31))}}, r"W_up has shape \(5, 31\)"),
        ("mlp", {"extra": LAYERS | {"W_up": jnp.zeros(())}}, r"W_up has shape \(\)"),
        ("topk", {"extra": {"norm_factor": jnp.ones(3)}}, r"norm_factor has shape \(3,\); wanted a single"),
        ("topk", {"extra": {"norm_factor": jnp.zeros(())}}, "divided by a positive one"),
        ("topk", {"extra": {"avar": jnp.zeros(31)}}, r"avar has shape \(31,\); wanted \(32,\)"),
        ("topk", {"extra": {"origin": jnp.zeros(32)}}, "different whole numbers"),
        ("topk", {"extra": {"origin": jnp.arange(32) + 0.5}}, "different whole numbers"),
        ("loca", {"extra": {"avar": jnp.full(32, jnp.nan)}}, "avar holds 32 NaN"),
    ],
)
def test_what_does_not_fit_is_refused_before_writing(variant, change, text, make_sae, tmp_path):
    with pytest.raises(CheckpointError, match=text) as caught:
        save_sae(make_sae(variant, **change), tmp_path / "sae")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["sae", "sae.safetensors", "sae.json", "."])
def test_any_name_of_the_pair_finds_it(how, make_sae, tmp_path):
    save_sae(make_sae("topk"), tmp_path)
    assert load_sae(tmp_path / how).k == 4


def test_a_dot_in_a_name_is_no_suffix(make_sae, tmp_path):
    path = save_sae(make_sae(), tmp_path / "lam0.1")
    assert path.name == "lam0.1.safetensors"
    assert load_sae(tmp_path / "lam0.1").variant == "standard"


def test_every_cut_of_either_file_is_refused(make_sae, tmp_path):
    path = save_sae(make_sae("topk"), tmp_path / "sae")
    for file in (path, tmp_path / "sae.json"):
        whole = file.read_bytes()
        for keep in (0, 1, len(whole) // 2, len(whole) - 2):
            file.write_bytes(whole[:keep])
            with pytest.raises(CheckpointError, match=file.name) as caught:
                load_sae(path)
            assert "\n" not in str(caught.value)
        file.write_bytes(whole)
    assert load_sae(path).k == 4


def test_a_kill_between_the_two_files_never_loads_wrongly(make_sae, tmp_path, monkeypatch):
    path = save_sae(make_sae("topk"), tmp_path / "sae")
    write = native.write_atomically

    def killed(file, data):
        if file.suffix == ".json":
            raise KeyboardInterrupt
        write(file, data)

    monkeypatch.setattr(native, "write_atomically", killed)
    other = make_sae("topk", b_enc=jnp.ones((32,)), k=7)
    with pytest.raises(KeyboardInterrupt):
        save_sae(other, path)
    with pytest.raises(CheckpointError, match="different saves"):
        load_sae(path)
    monkeypatch.undo()
    save_sae(other, path)
    assert load_sae(path).k == 7


def test_missing_halves_are_named(make_sae, tmp_path):
    path = save_sae(make_sae(), tmp_path / "sae")
    path.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match=r"sae\.safetensors"):
        load_sae(path)
    with pytest.raises(CheckpointError, match=r"elsewhere"):
        load_sae(tmp_path / "elsewhere.safetensors")


@pytest.mark.parametrize("name", ["W_enc", "b_dec"])
def test_nan_is_refused_by_name(name, make_sae, tmp_path):
    array = np.array(getattr(make_sae(), name))
    array.flat[3] = np.nan
    with pytest.raises(CheckpointError, match=f"{name} holds 1 NaN"):
        save_sae(make_sae(**{name: jnp.asarray(array)}), tmp_path / "sae")
    assert not list(tmp_path.iterdir())


def test_wrong_shapes_and_missing_arrays_are_refused(make_sae, tmp_path):
    with pytest.raises(CheckpointError, match=r"b_enc has shape \(7,\)"):
        save_sae(make_sae(b_enc=jnp.zeros((7,))), tmp_path / "sae")
    with pytest.raises(CheckpointError, match="needs 'threshold'"):
        save_sae(make_sae("jumprelu", extra={}), tmp_path / "sae")
    with pytest.raises(AmortjaxError, match="can't be written; choices: native"):
        save_sae(make_sae(), tmp_path / "sae", format="nonsense")
    with pytest.raises(AmortjaxError, match="native format has no choice 'standard'"):
        save_sae(make_sae(), tmp_path / "sae", standard=make_sae())


def _rewrite(tmp_path, change):
    """Edits the pair's tensors and keeps its hash right."""
    import hashlib

    path, file = tmp_path / "sae.safetensors", tmp_path / "sae.json"
    arrays, settings = safetensors.numpy.load_file(path), json.loads(file.read_text())
    change(arrays, settings)
    path.write_bytes(safetensors.numpy.save(arrays))
    settings["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    file.write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda arrays, settings: arrays.pop("b_dec"), "'b_dec' is missing"),
        (lambda arrays, settings: settings.pop("variant"), "'variant'"),
        (lambda arrays, settings: settings.update(variant="mystery"), "'mystery' is not one of"),
        (lambda arrays, settings: settings.update(amortjax_sae=99), "version 99"),
        (lambda arrays, settings: settings.update(k=None), "k=..."),
    ],
)
def test_a_file_that_lacks_something_names_it(change, text, make_sae, tmp_path):
    save_sae(make_sae("topk"), tmp_path / "sae")
    with pytest.raises(CheckpointError, match=text):
        load_sae(_rewrite(tmp_path, change))
