"""The LocA-SAE authors' folder: read as their code computes it, written as their code reads it, never half."""

import json
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from amortjax.errors import AmortjaxError, CheckpointError
from amortjax.saes import api
from amortjax.saes.formats import load_sae, loca, loca_writer, pickle_reader, save_sae
from amortjax.saes.literal import literal_sae

FOLDER = Path(__file__).parents[1] / "golden" / "formats" / "seed_loca_sae"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the golden folder, to be damaged."""
    return Path(shutil.copytree(FOLDER, tmp_path / "run"))


@pytest.fixture
def standard(make_sae):
    """A TopK SAE of the authors' kind: no decoder bias."""
    return make_sae("topk", b_dec=jnp.zeros(12))


@pytest.fixture
def trained(make_sae):
    """A LocA-SAE that can be written as it is. Its 32 latents are of one with 40."""
    r = np.random.default_rng(6)
    origin = jnp.asarray(r.permutation(40)[:32], jnp.float32)
    avar = jnp.asarray(r.random(32), jnp.float32)
    return make_sae("loca", b_dec=jnp.zeros(12), extra={"origin": origin, "avar": avar})


def same_codes(a, b, x: np.ndarray) -> None:
    z, want = api.encode(a, x), api.encode(b, x)
    np.testing.assert_array_equal(z != 0, want != 0)
    np.testing.assert_allclose(z, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(api.reconstruct(a, x), api.reconstruct(b, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "choices", "key"),
    [
        (".", {}, ""),
        ("multi_encoder_sae.pt", {}, ""),
        ("standard_sae.pt", {}, "_standard"),
        ("ae.pt", {}, "_ae_pt"),
        ("ae.pt", {"k": 10}, "_ae_pt_topk"),
    ],
)
def test_each_file_is_what_the_authors_code_computes(name, choices, key):
    golden, sae = np.load(FOLDER / "golden.npz"), load_sae(FOLDER / name, **choices)
    if choices:  # their evaluation keeps the k largest with their sign
        sae = literal_sae(sae, ("topk_without_relu",))
    z, want = api.encode(sae, golden["x"]), golden["z" + key]
    np.testing.assert_array_equal(z != 0, want != 0)
    assert np.abs(z - want).max() <= 1e-5 * (1 + np.abs(want).max())
    y, want = api.decode(sae, want), golden["xhat" + key]
    assert np.abs(y - want).max() <= 1e-5 * (1 + np.abs(want).max())


def test_what_a_folder_says_beside_its_weights():
    sae = load_sae(FOLDER)
    assert (sae.variant, sae.k, sae.groups, sae.group_k) == ("loca", None, (24,) * 4, (4, 3, 2, 1))
    # target_layer 8 is hidden_states[8], the output of block 7.
    about = (sae.info.name, sae.info.model_name, sae.info.layer_index, sae.info.hook, sae.info.format)
    assert about == ("seed_loca_sae", "EleutherAI/pythia-160m-deduped", 7, "resid_post", "loca")
    assert any("hidden_states[8]: resid_post of block 7" in note for note in sae.info.notes)
    assert loca.NORMALISED in sae.info.notes and loca.LOST not in sae.info.notes
    assert loca.LOST in load_sae(FOLDER / "ae.pt").info.notes


def test_origin_and_angular_variance_follow_the_latents():
    sae, meta = load_sae(FOLDER), pickle_reader.read(FOLDER / "loc_angular_meta.pt")
    origin = np.concatenate([group.numpy() for group in meta["groups_indices"]])
    np.testing.assert_array_equal(sae.extra["origin"], origin)
    np.testing.assert_array_equal(sae.extra["avar"], meta["angular_variance"].numpy()[origin])


def test_a_folder_is_one_sae_also_among_others(folder, make_sae):
    assert load_sae(folder.parent).variant == "loca"  # found on the way down
    save_sae(make_sae(), folder.parent / "other" / "sae")
    with pytest.raises(CheckpointError, match=r"holds 2 SAEs.*run/multi_encoder_sae\.pt"):
        load_sae(folder.parent)
    (folder / "multi_encoder_sae.pt").unlink()
    with pytest.raises(CheckpointError, match=r"holds 2 SAEs.*ae\.pt, standard_sae\.pt"):
        load_sae(folder)


def test_a_damaged_main_file_is_not_passed_over_for_another(folder):
    path = folder / "multi_encoder_sae.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"multi_encoder_sae\.pt: cut off"):
        load_sae(folder)


def test_without_its_meta_file_only_the_records_are_gone(folder):
    (folder / "loc_angular_meta.pt").unlink()
    sae = load_sae(folder)
    assert sae.extra == {}
    x = np.load(FOLDER / "golden.npz")["x"]
    np.testing.assert_array_equal(api.encode(sae, x), api.encode(load_sae(FOLDER), x))


def test_a_file_without_a_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: group_ks is missing.*interrupted"):
        load_sae(folder)
    with pytest.raises(CheckpointError, match=r"load it with k="):
        load_sae(folder / "standard_sae.pt")
    assert load_sae(folder / "standard_sae.pt", k=8).k == 8
    assert load_sae(folder / "ae.pt").variant == "standard"


def test_the_file_names_of_another_library_are_not_taken_for_ae_pt(folder):
    (folder / "ae.pt").rename(folder / "weights.pt")
    with pytest.raises(CheckpointError, match="d_model"):
        load_sae(folder / "weights.pt")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"group_ks": [4, 3]}, r"group_ks is \[4, 3\], and the 4 encoders"),
        ({"group_ks": "4321"}, "group_ks is 4321"),
        ({"group_ks": [4, 3, 2, 1.5]}, r"group_ks holds 1\.5; wanted a whole number"),
        ({"group_ks": [4, 3, 2, 2]}, r"is \[4, 3, 2, 1\], but config\.json says .*different runs"),
        ({"d_model": 768}, "d_model is 768, but multi_encoder_sae.pt has 24"),
        ({"dict_size": 100000}, "dict_size is 100000"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes, text, folder):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=text) as caught:
        load_sae(folder)
    assert "\n" not in str(caught.value)


def test_a_dictionary_that_its_groups_do_not_divide_is_read(folder):
    config = json.loads((folder / "config.json").read_text()) | {"dict_size": 99}  # 99 // 4 * 4 = 96
    (folder / "config.json").write_text(json.dumps(config))
    assert load_sae(folder).n_latents == 96


def test_wrong_choices_are_one_line_errors():
    with pytest.raises(CheckpointError, match="takes no k"):
        load_sae(FOLDER, k=4)
    with pytest.raises(CheckpointError, match="no choice 'dict_class'; it takes k"):
        load_sae(FOLDER, dict_class="AutoEncoder")
    with pytest.raises(CheckpointError, match="k = 97 must be from 1"):
        load_sae(FOLDER / "standard_sae.pt", k=97)


def _torch_file(path: Path, change) -> None:
    torch = pytest.importorskip("torch")
    tensors = torch.load(path, weights_only=True)
    change(tensors, torch)
    torch.save(tensors, path)


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("multi_encoder_sae.pt", lambda t, torch: t.pop("encoders.2.bias"), "'encoders.2.bias' is missing"),
        (
            "multi_encoder_sae.pt",
            lambda t, torch: t.pop("encoders.1.weight"),
            "not of a LocA-SAE of 3 groups",
        ),
        (
            "multi_encoder_sae.pt",
            lambda t, torch: t.update(b_dec=torch.zeros(24)),
            "'b_dec' is not of a LocA",
        ),
        (
            "multi_encoder_sae.pt",
            lambda t, torch: t.update({"decoders.1.weight": torch.zeros(24, 23)}),
            r"decoders\.1\.weight has shape \(24, 23\); the other tensors ask for \(24, 24\)",
        ),
        (
            "multi_encoder_sae.pt",
            lambda t, torch: t.update({"encoders.0.weight": torch.zeros(24)}),
            "wanted two axes",
        ),
        (
            "multi_encoder_sae.pt",
            lambda t, torch: t["encoders.3.bias"].fill_(float("nan")),
            "b_enc holds 24 NaN",
        ),
        (
            "loc_angular_meta.pt",
            lambda t, torch: t.pop("groups_indices"),
            "groups_indices must be a list of 4",
        ),
        ("loc_angular_meta.pt", lambda t, torch: t["groups_indices"].pop(), "must be a list of 4 tensors"),
        ("loc_angular_meta.pt", lambda t, torch: t["groups_indices"][1].fill_(96), "not all from 0 to 95"),
        ("loc_angular_meta.pt", lambda t, torch: t["groups_indices"][1].fill_(1), "different whole numbers"),
    ],
)
def test_a_torch_file_that_does_not_fit_is_refused(name, change, text, folder):
    _torch_file(folder / name, change)
    with pytest.raises(CheckpointError, match=text) as caught:
        load_sae(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key"), [("standard_sae.pt", "decoder.weight"), ("ae.pt", "W_dec"), ("ae.pt", "W_enc")]
)
def test_a_single_file_whose_halves_do_not_fit_is_refused(name, key, folder):
    for shape in ((23, 96), (96,)):
        _torch_file(folder / name, lambda t, torch, shape=shape: t.update({key: torch.zeros(shape)}))
        with pytest.raises(CheckpointError, match=r"has shape"):
            load_sae(folder / name)


def test_the_golden_folder_is_written_back_as_it_was(tmp_path):
    torch = pytest.importorskip("torch")
    sae, standard = load_sae(FOLDER), load_sae(FOLDER / "standard_sae.pt")
    path = save_sae(sae, tmp_path / "again", format="loca", standard=standard)
    assert path == tmp_path / "again" / "multi_encoder_sae.pt"
    assert {file.name for file in path.parent.iterdir()} == {
        "config.json", "multi_encoder_sae.pt", "loc_angular_meta.pt", "standard_sae.pt"
    }  # fmt: skip
    for name in ("multi_encoder_sae.pt", "standard_sae.pt"):
        want, got = (torch.load(f / name, weights_only=True) for f in (FOLDER, path.parent))
        assert list(got) == list(want)
        assert all(torch.equal(got[key], want[key]) and got[key].dtype == want[key].dtype for key in want)
    want, got = (torch.load(f / "loc_angular_meta.pt", weights_only=True) for f in (FOLDER, path.parent))
    assert set(got) == set(want) and got["group_ks"] == want["group_ks"]
    assert torch.equal(got["angular_variance"], want["angular_variance"])
    for one, other in zip(got["groups_indices"], want["groups_indices"], strict=True):
        assert torch.equal(one, other) and one.dtype == torch.int64
    config = json.loads((path.parent / "config.json").read_text())
    original = json.loads((FOLDER / "config.json").read_text())
    assert config == {key: original[key] for key in config}  # no key that their SAEConfig would refuse


def test_a_trained_sae_comes_back_with_unequal_groups(trained, tokens, tmp_path):
    pytest.importorskip("torch")
    back = load_sae(save_sae(trained, tmp_path / "run", format="loca"))
    assert (back.groups, back.group_k, back.k) == (trained.groups, trained.group_k, None)
    assert np.asarray(trained.pre_bias).any() and not np.asarray(back.pre_bias).any()  # folded into b_enc
    same_codes(back, trained, tokens)
    for name in ("origin", "avar"):
        np.testing.assert_array_equal(back.extra[name], trained.extra[name])


def test_latents_without_an_origin_are_their_own(make_sae, tokens, tmp_path):
    pytest.importorskip("torch")
    sae = make_sae("loca", b_dec=jnp.zeros(12))
    back = load_sae(save_sae(sae, tmp_path, format="loca"))
    same_codes(back, sae, tokens)
    np.testing.assert_array_equal(back.extra["origin"], np.arange(32))
    assert "avar" not in back.extra


def test_a_decoder_bias_becomes_a_latent_only_if_asked_for(make_sae, trained, tokens, tmp_path):
    torch = pytest.importorskip("torch")
    sae = make_sae("loca", extra=trained.extra)
    with pytest.raises(AmortjaxError, match=r"b_dec is not zero: write format='native', or pass bias_latent"):
        save_sae(sae, tmp_path / "run", format="loca")
    assert not list(tmp_path.iterdir())
    path = save_sae(sae, tmp_path / "run", format="loca", bias_latent=True)
    back = load_sae(path)
    same_codes(back, sae, tokens)
    np.testing.assert_array_equal(back.b_dec, sae.b_dec)
    np.testing.assert_array_equal(back.extra["avar"], sae.extra["avar"])
    # To the authors' maths it is one more group of one latent.
    w, x = torch.load(path, weights_only=True), torch.from_numpy(tokens)
    y = torch.zeros(x.shape)
    for g, k in enumerate(json.loads((tmp_path / "run" / "config.json").read_text())["group_ks"]):
        pre = x @ w[f"encoders.{g}.weight"].T + w[f"encoders.{g}.bias"]
        mask = torch.zeros_like(pre).scatter_(-1, pre.topk(k, dim=-1).indices, 1.0)
        y += (pre.relu() * mask) @ w[f"decoders.{g}.weight"].T
    assert g == 2
    np.testing.assert_allclose(y, api.reconstruct(sae, tokens), rtol=1e-4, atol=1e-4)
    # Where there is no bias there is nothing to store.
    save_sae(trained, tmp_path / "none", format="loca", bias_latent=True)
    assert json.loads((tmp_path / "none" / "config.json").read_text())["n_sub_encoders"] == 2


def test_the_standard_sae_is_written_beside_it(make_sae, trained, standard, tokens, tmp_path):
    pytest.importorskip("torch")
    sae = make_sae("loca", b_dec=jnp.zeros(12), extra={"origin": jnp.arange(32.0)[::-1]})
    save_sae(sae, tmp_path / "run", format="loca", standard=standard)
    same_codes(load_sae(tmp_path / "run" / "standard_sae.pt"), standard, tokens)
    same_codes(load_sae(tmp_path / "run"), sae, tokens)
    with pytest.raises(AmortjaxError, match=r"not what this SAE .*was started from"):
        save_sae(trained, tmp_path / "run", format="loca", standard=standard)  # it has an origin above 31
    with pytest.raises(AmortjaxError, match=r"needs sae\.extra\['origin'\]"):
        save_sae(make_sae("loca", b_dec=jnp.zeros(12)), tmp_path / "run", format="loca", standard=standard)
    with pytest.raises(AmortjaxError, match=r"standard\.b_dec is not zero"):
        save_sae(sae, tmp_path / "run", format="loca", standard=make_sae("topk"))
    with pytest.raises(AmortjaxError, match="is a standard SAE, where a topk SAE goes"):
        save_sae(sae, tmp_path / "run", format="loca", standard=make_sae("standard"))


@pytest.mark.parametrize(
    ("variant", "change", "text"),
    [
        ("topk", {}, "is a topk SAE, where a loca SAE goes; write format='native'"),
        ("mlp", {}, "is a mlp SAE"),
        ("loca", {"norm": "layer_norm"}, "normalises its input"),
        ("loca", {"rescale": True}, "rescale"),
        ("loca", {"extra": {"W_skip": jnp.zeros((12, 12))}}, "transcoder"),
        ("loca", {"extra": {"f_dec": jnp.ones(32)}}, "f_dec"),
        ("loca", {"group_k": (9, 1)}, "must be from 0 to its 8 latents"),
    ],
)
def test_what_the_format_has_no_place_for_is_refused(variant, change, text, make_sae, tmp_path):
    with pytest.raises(AmortjaxError, match=text) as caught:
        save_sae(make_sae(variant, **{"b_dec": jnp.zeros(12)} | change), tmp_path / "run", format="loca")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_without_torch_the_remedy_is_named(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(AmortjaxError, match=r"needs torch: pip install 'amortjax\[export\]'"):
        save_sae(trained, tmp_path / "run", format="loca")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("done", range(3))
def test_a_killed_write_leaves_a_folder_that_is_refused(done, make_sae, trained, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    save_sae(trained, tmp_path / "run", format="loca")
    write, calls = loca_writer.write_atomically, []

    def killed(file, data):
        calls.append(file)
        if len(calls) > done:
            raise KeyboardInterrupt
        write(file, data)

    monkeypatch.setattr(loca_writer, "write_atomically", killed)
    other = make_sae("loca", b_dec=jnp.zeros(12), b_enc=jnp.ones(32))
    with pytest.raises(KeyboardInterrupt):
        save_sae(other, tmp_path / "run", format="loca")
    with pytest.raises(CheckpointError, match="write it again if that was interrupted"):
        load_sae(tmp_path / "run")
    monkeypatch.undo()
    save_sae(other, tmp_path / "run", format="loca")
    np.testing.assert_allclose(
        load_sae(tmp_path / "run").b_enc, other.b_enc - other.pre_bias @ other.W_enc, rtol=1e-4, atol=1e-4
    )


def test_files_of_something_else_are_not_mixed_in(trained, folder, tmp_path):
    pytest.importorskip("torch")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(AmortjaxError, match=r"holds (ae|standard_sae)\.pt of another SAE"):
        save_sae(trained, folder, format="loca")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    with pytest.raises(AmortjaxError, match=r"a config\.json of something else"):
        save_sae(trained, tmp_path / "mine", format="loca")
    with pytest.raises(AmortjaxError, match="give a folder's path"):
        save_sae(trained, tmp_path / "sae.pt", format="loca")


@pytest.mark.parametrize(
    ("hook", "layer", "wanted"), [("resid_post", 7, 8), ("resid_pre", 7, 7), ("mlp_out", 7, None)]
)
def test_the_layer_is_counted_as_they_count(hook, layer, wanted, make_sae, tmp_path):
    pytest.importorskip("torch")
    from amortjax.saes.sae import Info

    sae = make_sae("loca", b_dec=jnp.zeros(12), info=Info(hook=hook, layer_index=layer, model_name="m/n"))
    back = load_sae(save_sae(sae, tmp_path, format="loca"))
    assert json.loads((tmp_path / "config.json").read_text())["target_layer"] == wanted
    assert back.info.layer_index == (None if wanted is None else wanted - 1) and back.info.model_name == "m/n"
    assert loca.NORMALISED not in back.info.notes
