"""Every writer with every variant: read back it is the same SAE, or it is refused; never half-written."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from amortjax.errors import AmortjaxError
from amortjax.files import write_atomically
from amortjax.saes import api
from amortjax.saes.encoders import VARIANTS
from amortjax.saes.formats import WRITERS, hooks, load_sae, save_sae, writing
from amortjax.saes.formats.opened import open_weights
from amortjax.saes.sae import Info

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"
REFUSED = {
    "saelens": {"signed_topk", "loca", "mlp"},
    "dictionary_learning": {"signed_topk", "abs_topk", "loca", "mlp", "matching_pursuit"},
    "loca": set(VARIANTS) - {"loca"},
}


@pytest.fixture
def sae_of(make_sae):
    """sae_of(variant, **replacements), with a matching pursuit that is tied."""

    def make(variant: str, **replacements):
        sae = make_sae(variant, **replacements)
        if variant != "matching_pursuit":
            return sae
        rows = sae.W_dec / jnp.linalg.norm(sae.W_dec, axis=1, keepdims=True)
        return dataclasses.replace(sae, W_dec=rows, W_enc=rows.T, pre_bias=sae.b_dec)

    return make


def assert_same(a, b, x: np.ndarray) -> None:
    z, want = api.encode(a, x), api.encode(b, x)
    np.testing.assert_array_equal(z != 0, want != 0)
    assert np.abs(z - want).max() <= 1e-5 * np.abs(want).max()
    y, want = api.reconstruct(a, x), api.reconstruct(b, x)
    assert np.abs(y - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", WRITERS)
def test_what_is_written_is_read_back_or_refused(sae_of, tokens, tmp_path, form, variant):
    sae, choices = sae_of(variant), {"bias_latent": True} if form == "loca" else {}
    if variant in REFUSED.get(form, ()):
        with pytest.raises(AmortjaxError, match=r"can't hold.*write format='native'") as caught:
            save_sae(sae, tmp_path / "sae", format=form, **choices)
        assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
        return
    save_sae(sae, tmp_path / "sae", format=form, **choices)
    back = load_sae(tmp_path if form == "native" else tmp_path / "sae")
    assert back.info.format == form
    assert_same(back, sae, tokens)


FACTORS = jnp.linspace(0.5, 2, 32)
CHANGES = {
    "b_dec is subtracted": lambda sae: {"pre_bias": sae.b_dec},
    "nothing is subtracted": lambda sae: {"pre_bias": jnp.zeros_like(sae.pre_bias)},
    "pre-activations are rescaled": lambda sae: {"rescale": True},
    "both factors": lambda sae: {"rescale": True, "extra": sae.extra | {"f_dec": FACTORS}},
    "layer norm": lambda sae: {"norm": "layer_norm"},
    "constant norm": lambda sae: {"norm": "constant_norm"},
}


@pytest.mark.parametrize("variant", ["topk", "jumprelu", "gated"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_folded_changes_nothing(sae_of, tokens, tmp_path, variant, change):
    sae = sae_of(variant)
    sae = dataclasses.replace(sae, **CHANGES[change](sae))
    for form in ("saelens", "dictionary_learning"):
        if sae.norm != "none" and form == "dictionary_learning":
            with pytest.raises(AmortjaxError, match=r"normalises its input.*format='saelens'"):
                save_sae(sae, tmp_path / form, format=form)
        else:
            save_sae(sae, tmp_path / form, format=form)
            assert_same(load_sae(tmp_path / form), sae, tokens)


def test_b_dec_is_subtracted_by_saelens_where_it_can(sae_of, tmp_path):
    sae = sae_of("standard")
    for name, pre_bias, wanted in (("b_dec", sae.b_dec, True), ("other", sae.pre_bias, False)):
        save_sae(dataclasses.replace(sae, pre_bias=pre_bias), tmp_path / name, format="saelens")
        assert json.loads((tmp_path / name / "cfg.json").read_text())["apply_b_dec_to_input"] is wanted
        tensors = safetensors.numpy.load_file(tmp_path / name / "sae_weights.safetensors")
        # Nothing is folded, and so nothing rounded, that need not be.
        assert np.array_equal(tensors["b_enc"], sae.b_enc) is wanted


@pytest.mark.parametrize("variant", ["standard", "jumprelu", "batch_topk"])
@pytest.mark.parametrize("skip", [False, True])
def test_transcoders_are_saelens_ones(sae_of, tokens, tmp_path, variant, skip):
    sae, r = sae_of(variant), np.random.default_rng(4)
    draw = lambda *shape: jnp.asarray(r.standard_normal(shape), jnp.float32)  # noqa: E731
    extra = sae.extra | ({"W_skip": draw(12, 7)} if skip else {})
    sae = dataclasses.replace(sae, W_dec=draw(32, 7), b_dec=draw(7), extra=extra)
    save_sae(sae, tmp_path / "sae", format="saelens")
    name = ("" if variant == "standard" else "jumprelu_") + ("skip_" if skip else "") + "transcoder"
    assert json.loads((tmp_path / "sae" / "cfg.json").read_text())["architecture"] == name
    assert_same(load_sae(tmp_path / "sae"), sae, tokens)
    with pytest.raises(AmortjaxError, match="is a transcoder"):
        save_sae(sae, tmp_path / "other", format="dictionary_learning")


@pytest.mark.parametrize("name", ["gemma_scope_transcoder", "mwhanna_transcoder"])
def test_a_square_transcoder_stays_one(tmp_path, name):
    sae = load_sae(GOLDEN / name)
    assert sae.d_in == sae.d_out
    with pytest.raises(AmortjaxError, match="is a transcoder"):
        save_sae(sae, tmp_path / "sae", format="dictionary_learning")
    for folder in ("once", "twice"):
        save_sae(sae, tmp_path / folder, format="saelens")
        assert "transcoder" in json.loads((tmp_path / folder / "cfg.json").read_text())["architecture"]
        sae = load_sae(tmp_path / folder)


@pytest.mark.parametrize("form", ["saelens", "dictionary_learning"])
def test_a_loca_sae_of_one_group_is_topk(sae_of, tokens, tmp_path, form):
    sae = sae_of("loca", groups=(32,), group_k=(4,))
    save_sae(sae, tmp_path / "sae", format=form)
    assert load_sae(tmp_path / "sae").variant == "topk"
    assert_same(load_sae(tmp_path / "sae"), sae, tokens)


@pytest.mark.parametrize(
    ("variant", "change", "text"),
    [
        ("batch_topk", {"batch_rule": True}, "no threshold; load it with threshold="),
        ("topk", {"b_dec": jnp.zeros(7), "W_dec": jnp.ones((32, 7))}, "no topk transcoder"),
        ("matching_pursuit", {"pre_bias": jnp.zeros(12)}, "pre_bias is another vector"),
        ("matching_pursuit", {"W_enc": jnp.ones((12, 32))}, "W_enc is another matrix"),
    ],
)
def test_saelens_refuses_what_it_would_compute_otherwise(sae_of, tmp_path, variant, change, text):
    sae = dataclasses.replace(sae_of(variant), **change)
    with pytest.raises(AmortjaxError, match=text):
        save_sae(sae, tmp_path / "sae", format="saelens")
    assert not list(tmp_path.iterdir())


def test_origin_and_groups_come_back(sae_of, tmp_path):
    info = Info(model_name="EleutherAI/pythia-160m-deduped", hook="resid_post", layer_index=8, lam_train=0.3)
    sae = sae_of("matryoshka", info=info, groups=(8, 0, 24))
    for form in ("saelens", "dictionary_learning"):
        save_sae(sae, tmp_path / form, format=form)
        back = load_sae(tmp_path / form)
        assert (back.info.model_name, back.info.hook, back.info.layer_index) == (
            "EleutherAI/pythia-160m-deduped",
            "resid_post",
            8,
        )
        assert back.groups == (8, 24)
    metadata = json.loads((tmp_path / "saelens" / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.8.hook_resid_post"
    assert metadata["training_architecture_details"]["matryoshka_widths"] == [8, 32]
    save_sae(sae, tmp_path / "bos", format="saelens", prepend_bos=False, context_size=128)
    metadata = json.loads((tmp_path / "bos" / "cfg.json").read_text())["metadata"]
    assert (metadata["prepend_bos"], metadata["context_size"]) == (False, 128)


def test_names_of_hooks_are_found_again():
    for hook in hooks._TRANSFORMER_LENS:
        assert hooks.site(hooks.transformer_lens_name(hook, 11)) == (hook, 11)
    assert hooks.site(hooks.transformer_lens_name("embed", None)) == ("embed", None)
    assert hooks.transformer_lens_name("", None) == "" and hooks.transformer_lens_name("odd", 3) == "odd"


# Folders whose tensors are written as they are read: {folder: format}.
AS_THEY_WERE = {
    "dl_standard": "dictionary_learning",
    "dl_topk": "dictionary_learning",
    "dl_batch_topk": "dictionary_learning",
    "dl_matryoshka_batch_topk": "dictionary_learning",
    "dl_jumprelu": "dictionary_learning",
    "saelens6_abstopk": "saelens",
    "saelens6_gated_bdec_true": "saelens",
    "saelens6_jumprelu_bdec_false": "saelens",
    "saelens6_jumprelu_skip_transcoder": "saelens",
    "saelens6_matching_pursuit": "saelens",
    "saelens6_standard_hook_z": "saelens",
    "saelens6_topk": "saelens",
    "saelens6_transcoder": "saelens",
}
# What amortjax reads of cfg.json, and so must have written.
SETTINGS = (
    "architecture", "d_in", "d_sae", "d_out", "dtype", "apply_b_dec_to_input", "normalize_activations",
    "reshape_activations", "k", "rescale_acts_by_decoder_norm", "max_iterations", "stop_on_duplicate_support",
)  # fmt: skip


@pytest.mark.parametrize("name", AS_THEY_WERE)
def test_the_libraries_own_files_are_written_again(tmp_path, name):
    sae = load_sae(GOLDEN / name)
    written = open_weights(save_sae(sae, tmp_path / "sae", format=AS_THEY_WERE[name]))
    original = open_weights(GOLDEN / name / written.path.name)
    assert written.keys == original.keys
    for key in original.keys:
        assert written.content[key].dtype == original.content[key].dtype
        threshold_of_topk = key == "threshold" and sae.variant == "topk"  # which per-token top-k does not use
        if not threshold_of_topk:
            np.testing.assert_array_equal(written.array(key), original.array(key))
    if AS_THEY_WERE[name] == "saelens":
        ours, theirs = (json.loads((p.path.parent / "cfg.json").read_text()) for p in (written, original))
        assert {key: ours.get(key) for key in SETTINGS} == {key: theirs.get(key) for key in SETTINGS}
        assert {"metadata"} | theirs.keys() >= ours.keys()
        for key in (
            "model_name",
            "hook_name",
            "hook_head_index",
            "prepend_bos",
            "context_size",
            "hook_name_out",
        ):
            assert ours["metadata"].get(key) == theirs["metadata"].get(key)
    else:
        ours, theirs = (
            json.loads((p.path.parent / "config.json").read_text())["trainer"] for p in (written, original)
        )
        for key in ("dict_class", "trainer_class", "activation_dim", "dict_size", "layer", "lm_name", "k"):
            assert ours.get(key) == theirs.get(key)
        assert ours["submodule_name"] == theirs["submodule_name"]


@pytest.mark.parametrize("name", ["gemma_scope", "saelens5_topk_layer_norm", "saelens5_standard_finetuned"])
def test_other_formats_come_through_saelens(tmp_path, name):
    golden = np.load(GOLDEN / name / "golden.npz")
    save_sae(load_sae(GOLDEN / name), tmp_path / "sae", format="saelens")
    got = api.reconstruct(load_sae(tmp_path / "sae"), golden["x"])
    assert np.abs(got - golden["xhat"]).max() <= 1e-5 * (1 + np.abs(golden["xhat"]).max())


@pytest.mark.parametrize(
    ("form", "config"), [("saelens", "cfg.json"), ("dictionary_learning", "config.json")]
)
def test_an_interrupted_write_is_never_another_sae(sae_of, tokens, tmp_path, monkeypatch, form, config):
    old = sae_of("standard")
    new = dataclasses.replace(old, b_enc=old.b_enc + 1)
    save_sae(old, tmp_path / "sae", format=form)

    def full(path, data):
        if Path(path).name == config:
            raise OSError(28, "No space left on device")
        write_atomically(path, data)

    monkeypatch.setattr(writing, "write_atomically", full)
    with pytest.raises(OSError):
        save_sae(new, tmp_path / "sae", format=form)
    assert not (tmp_path / "sae" / config).exists()  # which the library needs
    if form == "saelens":
        with pytest.raises(AmortjaxError, match=r"cfg\.json"):
            load_sae(tmp_path / "sae")
    else:
        assert_same(load_sae(tmp_path / "sae"), new, tokens)  # these tensors tell their class


@pytest.mark.parametrize("form", ["saelens", "dictionary_learning"])
def test_a_folder_of_something_else_is_left_alone(sae_of, tmp_path, form):
    sae = sae_of("topk")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "sparsity.safetensors").write_bytes(b"of another SAE")
    config = {"saelens": "cfg.json", "dictionary_learning": "config.json"}[form]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / config).write_text("{}")
    (tmp_path / "file.pt").write_bytes(b"")
    for name, text in (
        ("a", "holds sparsity.safetensors"),
        ("b", "of something else"),
        ("file.pt", "a folder"),
    ):
        with pytest.raises(AmortjaxError, match=text):
            save_sae(sae, tmp_path / name, format=form)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == sorted(
        ["sparsity.safetensors", config, "file.pt"]
    )


def test_folding_keeps_rows_that_never_fire(sae_of):
    sae = sae_of("topk", rescale=True)
    folded = writing.fold_decoder(dataclasses.replace(sae, W_dec=sae.W_dec.at[3].set(0)))
    assert not np.asarray(folded.W_dec)[3].any() and not np.asarray(folded.W_enc)[:, 3].any()
    assert np.isfinite(np.asarray(folded.W_dec)).all()


LIBRARY = [
    "standard",
    "topk",
    "abs_topk",
    "jumprelu",
    "gated",
    "batch_topk",
    "matryoshka",
    "matching_pursuit",
]


@pytest.mark.parametrize("variant", LIBRARY)
def test_saelens_computes_the_same(sae_of, tokens, tmp_path, variant):
    library, torch = pytest.importorskip("sae_lens"), pytest.importorskip("torch")
    for name in CHANGES:
        if variant == "matching_pursuit" and name != "b_dec is subtracted":
            continue
        sae = sae_of(variant)
        sae = dataclasses.replace(sae, **CHANGES[name](sae))
        save_sae(sae, tmp_path / name, format="saelens")
        theirs = library.SAE.load_from_disk(tmp_path / name)
        with torch.no_grad():
            z, y = (f(torch.from_numpy(tokens)).numpy() for f in (theirs.encode, theirs))
        want = api.encode(sae, tokens)
        np.testing.assert_array_equal(z != 0, want != 0)
        assert np.abs(z - want).max() <= 1e-5 * np.abs(want).max()
        want = api.reconstruct(sae, tokens)
        assert np.abs(y - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("variant", ["standard", "topk", "jumprelu", "gated", "batch_topk", "matryoshka"])
def test_dictionary_learning_computes_the_same(sae_of, tokens, tmp_path, variant):
    torch = pytest.importorskip("torch")
    utils = pytest.importorskip("dictionary_learning.utils")
    for name in ("b_dec is subtracted", "nothing is subtracted", "both factors"):
        sae = sae_of(variant)
        sae = dataclasses.replace(sae, **CHANGES[name](sae))
        save_sae(sae, tmp_path / name, format="dictionary_learning")
        theirs, config = utils.load_dictionary(str(tmp_path / name), device="cpu")
        assert type(theirs).__name__ == config["trainer"]["dict_class"]
        with torch.no_grad():
            z, y = theirs.encode(torch.from_numpy(tokens)).numpy(), theirs(torch.from_numpy(tokens)).numpy()
        np.testing.assert_array_equal(z != 0, api.encode(sae, tokens) != 0)
        want = api.reconstruct(sae, tokens)
        assert np.abs(y - want).max() <= 1e-5 * np.abs(want).max()
