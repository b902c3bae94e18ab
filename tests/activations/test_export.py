from pathlib import Path

import numpy as np
import pytest
import torch

from amortjax.activations import export, models
from amortjax.errors import ModelError
from tests.activations import tiny

TEXTS = tiny.texts(12)


def _hidden_states(architecture: str, text: str) -> list[np.ndarray]:
    """hidden_states[0] to [n_layers] of one unpadded text, without the BOS: (tokens, D) each."""
    ids = torch.tensor([tiny.model(architecture).tokenizer(text)["input_ids"]])
    with torch.no_grad():
        output = tiny.module(architecture)(input_ids=ids, output_hidden_states=True)
    return [state[0, 1:].numpy() for state in output.hidden_states]


def _rows(
    architecture: str, texts: list[str], layer: int, hook: str, batch_tokens: int = 128
) -> export.Window:
    model = tiny.model(architecture)
    return export.run_window(model, export.tokenise(model, texts, 64), layer, hook, batch_tokens)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_hooks_are_where_they_say(architecture: str):
    # Padded batches on the left of the equation, one text at a time on the right.
    states = [_hidden_states(architecture, text) for text in TEXTS]
    for layer in range(tiny.BLOCKS):
        wanted = np.concatenate([own[layer] for own in states])
        np.testing.assert_allclose(_rows(architecture, TEXTS, layer, "resid_pre").x, wanted, atol=2e-5)
        after = np.concatenate([own[layer + 1] for own in states])
        found = _rows(architecture, TEXTS, layer, "resid_post").x
        if layer < tiny.BLOCKS - 1 or architecture == "bert":
            np.testing.assert_allclose(found, after, atol=2e-5)
        else:
            # The last hidden state is normed; the residual stream is not.
            assert np.abs(found - after).max() > 0.1
            norm = [
                m for n, m in tiny.module(architecture).named_modules() if n.split(".")[-1] in FINAL_NORMS
            ]
            with torch.no_grad():
                np.testing.assert_allclose(norm[-1](torch.tensor(found)).numpy(), after, atol=2e-5)


FINAL_NORMS = ("final_layer_norm", "ln_f", "norm")


@pytest.mark.parametrize("architecture", [name for name in tiny.ARCHITECTURES if name != "bert"])
def test_what_blocks_add_is_their_sum(architecture: str):
    x = {hook: _rows(architecture, TEXTS, 1, hook).x for hook in export.HOOKS}
    total = x["resid_pre"] + x["attn_out"] + x["mlp_out"]
    np.testing.assert_allclose(total, x["resid_post"], atol=2e-5)
    assert min(np.abs(x[hook]).max() for hook in x) > 0.01


def test_encoder_adds_before_its_norms():
    x = {hook: _rows("bert", TEXTS, 1, hook).x for hook in export.HOOKS}
    block = tiny.model("bert").blocks[1]
    with torch.no_grad():
        middle = block.attention.output.LayerNorm(torch.tensor(x["resid_pre"] + x["attn_out"]))
        after = block.output.LayerNorm(middle + torch.tensor(x["mlp_out"]))
    np.testing.assert_allclose(x["resid_post"], after.numpy(), atol=2e-5)


@pytest.mark.parametrize("architecture", ["gpt_neox", "bert"])
def test_padding_changes_nothing(architecture: str):
    together = _rows(architecture, TEXTS, 1, "resid_post", batch_tokens=10**6)
    alone = _rows(architecture, TEXTS, 1, "resid_post", batch_tokens=1)
    np.testing.assert_allclose(together.x, alone.x, atol=2e-5)
    np.testing.assert_array_equal(together.token_ids, alone.token_ids)
    # Special tokens gave no row: a byte each, no BOS.
    assert together.sizes.tolist() == [len(text) for text in TEXTS]
    assert 0 not in together.token_ids


def test_forward_stops_after_the_block():
    model = tiny.model("llama")
    hooks = [len(block._forward_hooks) for block in model.blocks]
    calls = []
    handle = model.blocks[2].register_forward_hook(lambda *_: calls.append(1))
    _rows("llama", TEXTS, 1, "resid_post")
    assert not calls
    _rows("llama", TEXTS, 2, "resid_post")
    handle.remove()
    assert calls
    # Nothing of the reader stays behind in the model.
    assert [len(block._forward_hooks) for block in model.blocks] == hooks


def test_long_texts_are_cut():
    model = tiny.model("gpt_neox")
    (tokens,) = export.tokenise(model, ["x" * 100], 10)
    assert (len(tokens.ids), int(tokens.keep.sum())) == (10, 9)


@pytest.mark.parametrize(
    "text", ["a few words of " * 50, "x" * 900, "internationalisation " * 60, " " * 700 + "end"]
)
def test_cutting_texts_changes_no_token(text: str):
    model = models.load_model("embedded")
    for length in (8, 16, 64):
        whole = model.tokenizer(text, truncation=True, max_length=length)["input_ids"]
        assert export.tokenise(model, [text, "short"], length)[0].ids == whole


def test_unknown_words_are_text():
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"unk_token": "<unk>", "pad_token": "<pad>"})
    special = models.wrap_model("a", tiny.module("gpt_neox"), tokenizer).special_ids
    assert special == {0, int(tokenizer.vocab["<pad>"])}
    # Where one token has both uses, as GPT-2's has, it is special.
    tokenizer.unk_token = "<bos>"
    assert 0 in models.wrap_model("a", tiny.module("gpt_neox"), tokenizer).special_ids


def test_bos_is_prepended_where_the_tokenizer_adds_none():
    adds, plain = tiny.tokenizer(), tiny.tokenizer()
    plain.backend_tokenizer.post_processor = None
    texts = ["some words", "", "x" * 100]
    module = tiny.module("gpt_neox")
    own, led, bare = (
        models.wrap_model("a", module, tokenizer, prepend_bos=lead)
        for tokenizer, lead in ((adds, True), (plain, True), (plain, False))
    )
    for one, other in zip(export.tokenise(own, texts, 10), export.tokenise(led, texts, 10), strict=True):
        assert one.ids == other.ids and one.ids[0] == 0 and len(one.ids) <= 10
        assert one.keep.tolist() == other.keep.tolist() == [False] + [True] * (len(one.ids) - 1)
    assert [len(tokens.ids) for tokens in export.tokenise(bare, texts, 10)] == [10, 0, 10]
    # The first token of a document sees another one before it.
    after, first = (
        export.run_window(model, export.tokenise(model, texts[:1], n), 1, "resid_post", 64).x
        for model, n in ((led, 11), (bare, 10))
    )
    assert after.shape == first.shape and np.abs(after - first).max() > 1e-3
    plain.bos_token = None
    with pytest.raises(ModelError, match=r"a: its tokenizer has no BOS token: leave out --prepend_bos"):
        models.wrap_model("a", module, plain, prepend_bos=True)


def test_batches_hold_all_and_little_padding():
    lengths = [5, 60, 0, 7, 6, 59, 200]
    groups = export.batches(lengths, 128)
    assert sorted(i for group in groups for i in group) == [0, 1, 3, 4, 5, 6]
    assert groups == [[0, 4, 3], [5, 1], [6]]


def test_fingerprint_follows_the_weights():
    model = tiny.module("gpt_neox")
    before = models._fingerprint(model)
    assert models._fingerprint(model) == before
    with torch.no_grad():
        model.layers[1].mlp.dense_4h_to_h.weight[0, 0] += 1
        assert models._fingerprint(model) != before
        model.layers[1].mlp.dense_4h_to_h.weight[0, 0] -= 1


def test_bad_layers_and_lengths():
    model = tiny.model("llama")
    with pytest.raises(ModelError, match="layer_index=3: llama has blocks 0 to 2"):
        models.check_layer(model, 3, 64)
    with pytest.raises(ModelError, match="layer_index=-1"):
        models.check_layer(model, -1, 64)
    with pytest.raises(ModelError, match="max_seq_len=65: llama takes 2 to 64"):
        models.check_layer(model, 0, 65)
    with pytest.raises(ModelError, match=r"not a hook\. Hooks: resid_post"):
        _rows("llama", TEXTS, 0, "resid_mid")


def test_missing_and_broken_models(tmp_path: Path):
    with pytest.raises(ModelError, match="no such folder"):
        models.load_model(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="can't be loaded") as caught:
        models.load_model(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_hub_without_a_network(monkeypatch: pytest.MonkeyPatch):
    import transformers

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("We couldn't connect\nsecond line")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ModelError, match=r"some/model: can't be loaded .We couldn't connect.: check the id"):
        models.load_model("some/model")


def test_embedded_model_reads_its_own_language():
    model = models.load_model("embedded")
    text = "Return the number of elements in the array along a given axis."
    vocabulary = model.vocabulary()
    (tokens,) = export.tokenise(model, [text], 128)
    assert "".join(vocabulary[i] for i in np.asarray(tokens.ids)[tokens.keep]) == text
    window = export.run_window(model, [tokens], len(model.blocks) - 1, "resid_post", 4096)
    assert window.x.shape == (int(tokens.keep.sum()), model.d_model)
    assert np.isfinite(window.x).all()


@pytest.mark.parametrize("architecture", ["gpt_neox", "gemma2", "bert"])
def test_several_hooks_in_one_pass_are_those_of_a_pass_each(architecture: str):
    places = [(2, "resid_post"), (0, "resid_pre"), (1, "mlp_out"), (1, "attn_out"), (1, "resid_post")]
    model = tiny.model(architecture)
    tokens = export.tokenise(model, TEXTS, 64)
    hooks = lambda: [(len(b._forward_hooks), len(b._forward_pre_hooks)) for b in model.blocks]  # noqa: E731
    before = hooks()
    together = export.run_places(model, tokens, places, 128)
    assert hooks() == before
    for (layer, hook), window in zip(places, together, strict=True):
        alone = export.run_window(model, tokens, layer, hook, 128)
        np.testing.assert_array_equal(window.x, alone.x)
        np.testing.assert_array_equal(window.token_ids, alone.token_ids)
