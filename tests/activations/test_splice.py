"""What stands at a hook instead of the activations reaches the rest of the model, there and nowhere else."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amortjax.activations import export, models, splice
from amortjax.activations.corpus import open_corpus
from amortjax.errors import CorpusError, ModelError
from tests.activations import tiny

TEXTS = [*tiny.texts(9), "a<bos>b", "x"]
D = tiny.WIDTH
ZERO = splice.Splice(np.zeros(D), everywhere=True)


@functools.cache
def causal(architecture: str) -> splice.Causal:
    """A random language model with its head; the body is that of `tiny`."""
    import transformers

    body = tiny.module(architecture)
    torch.manual_seed(1)
    module = transformers.AutoModelForCausalLM.from_config(body.config, attn_implementation="eager")
    module.base_model.load_state_dict(body.state_dict())
    with torch.no_grad():  # a head that tells tokens apart
        module.get_output_embeddings().weight.add_(0.3 * torch.randn(tiny.VOCABULARY, D))
    return splice.wrap_causal(architecture, module, tiny.tokenizer())


CAUSAL = [name for name in tiny.ARCHITECTURES if name != "bert"]


def documents(architecture: str, texts: list[str] = TEXTS) -> list[export.Tokens]:
    return export.tokenise(causal(architecture).model, texts, 64)


def rows(
    architecture: str, place: splice.Place, texts: list[str] = TEXTS, batch_tokens: int = 128
) -> np.ndarray:
    own = documents(architecture, texts)
    return export.run_window(causal(architecture).model, own, *place, batch_tokens).x


def score(architecture: str, place: splice.Place, batch_tokens: int = 128, **splices: splice.Splice) -> Any:
    return splice.score(causal(architecture), documents(architecture), place, splices, batch_tokens)


def by_hand(
    architecture: str, text: str, hook: Any = None, place: int = 0
) -> tuple[float, int, torch.Tensor]:
    """CE of one text, with SAEBench's rule for what counts, its count, and log-probabilities (tokens, V)."""
    own = causal(architecture)
    (document,) = export.tokenise(own.model, [text], 64)
    handle = hook and own.model.blocks[place].register_forward_hook(hook)
    with torch.no_grad():
        log_p = own.module(input_ids=torch.tensor([document.ids])).logits[0].log_softmax(-1)
    if handle:
        handle.remove()
    special = own.model.special_ids
    counted = [i for i in range(len(document.ids) - 1) if document.ids[i] not in special]
    return -sum(float(log_p[i, document.ids[i + 1]]) for i in counted), len(counted), log_p


@pytest.mark.parametrize("architecture", CAUSAL)
@pytest.mark.parametrize("hook", export.HOOKS)
def test_the_activations_themselves_change_nothing(architecture: str, hook: str):
    for layer in range(tiny.BLOCKS):
        found = score(architecture, (layer, hook), own=splice.Splice(rows(architecture, (layer, hook))))
        np.testing.assert_allclose(found["own"].ce, found["clean"].ce, rtol=1e-6)
        np.testing.assert_allclose(found["own"].kl, 0, atol=1e-5)
        assert (found["clean"].kl == 0).all()


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_clean_loss_is_that_of_each_text_alone(architecture: str):
    found = score(architecture, (1, "resid_post"))["clean"]
    for i, text in enumerate(TEXTS):
        ce, count, _ = by_hand(architecture, text)
        assert found.scored[i] == count
        assert found.ce[i] == pytest.approx(ce, rel=1e-5)
    # One letter after the BOS: it has no next token, and the BOS does not count.
    assert found.scored[-1] == 0 and found.ce[-1] == 0


@pytest.mark.parametrize("architecture", CAUSAL)
@pytest.mark.parametrize("layer", [0, tiny.BLOCKS - 1])
def test_zero_ablation_is_that_of_a_plain_hook(architecture: str, layer: int):
    def zeros(module, args, output):
        return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0

    found = score(architecture, (layer, "resid_post"), zero=ZERO)
    for i, text in enumerate(TEXTS):
        ce, _, log_q = by_hand(architecture, text, zeros, layer)
        _, _, log_p = by_hand(architecture, text)
        keep = torch.from_numpy(documents(architecture)[i].keep)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)[keep].sum()
        assert found["zero"].ce[i] == pytest.approx(ce, rel=1e-4)
        assert found["zero"].kl[i] == pytest.approx(float(kl), rel=1e-4, abs=1e-6)
    assert found["zero"].kl.min() > 0.01


@pytest.mark.parametrize("architecture", CAUSAL)
@pytest.mark.parametrize("hook", export.HOOKS)
def test_what_is_put_in_is_what_the_next_module_reads(architecture: str, hook: str):
    """Special tokens keep their activations, everything else is replaced, and the hook is gone afterwards."""
    own, texts = causal(architecture).model, ["abc", "a<bos>b"]
    new = np.random.default_rng(0).standard_normal((5, D)).astype(np.float32)
    batch = export.inputs(own, documents(architecture, texts))
    seen, clean = [], []

    def spy(into: list) -> Any:
        """Registered after the splice, so it sees what the splice gives."""
        first = lambda value: value[0] if isinstance(value, tuple) else value  # noqa: E731
        if hook == "resid_pre":
            return own.blocks[1].register_forward_pre_hook(
                lambda module, args, kwargs: into.append((*args, *kwargs.values())[0].clone()),
                with_kwargs=True,
            )
        site = own.blocks[1] if hook == "resid_post" else export.site(own.blocks[1], hook)
        return site.register_forward_hook(lambda module, args, out: into.append(first(out).clone()))

    handle = spy(clean)
    with torch.inference_mode():
        splice._logits(causal(architecture), batch)
        handle.remove()
        value, where = splice._tensors(
            splice.Splice(new), documents(architecture, texts), np.array([0, 3]), batch["input_ids"].shape[1]
        )
        with splice._spliced(own, (1, hook), value, where):
            handle = spy(seen)
            splice._logits(causal(architecture), batch)
            handle.remove()
    keep = np.array([[False, True, True, True], [False, True, False, True]])
    np.testing.assert_array_equal(seen[0][torch.from_numpy(keep)].numpy(), new)
    np.testing.assert_allclose(seen[0][torch.from_numpy(~keep)], clean[0][torch.from_numpy(~keep)], atol=1e-6)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in own.blocks)


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_special_tokens_matter_only_where_zeros_are_everywhere(architecture: str):
    kept = splice.Splice(np.zeros(D))
    found = score(architecture, (1, "resid_post"), zero=ZERO, kept=kept)
    assert np.abs(found["zero"].ce - found["kept"].ce)[:-1].min() > 1e-6
    rows_of_zeros = splice.Splice(np.zeros((sum(int(d.keep.sum()) for d in documents(architecture)), D)))
    again = score(architecture, (1, "resid_post"), kept=rows_of_zeros)
    np.testing.assert_array_equal(again["kept"].ce, found["kept"].ce)


@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt2", "gemma2"])
def test_batches_change_nothing(architecture: str):
    place = (1, "resid_post")
    x = rows(architecture, place) + np.random.default_rng(0).standard_normal((1, D)).astype(np.float32)
    one, many = (score(architecture, place, n, some=splice.Splice(x), zero=ZERO) for n in (1, 10**6))
    for name in one:
        np.testing.assert_array_equal(one[name].scored, many[name].scored)
        np.testing.assert_allclose(one[name].ce, many[name].ce, rtol=1e-5)
        np.testing.assert_allclose(one[name].kl, many[name].kl, rtol=1e-4, atol=1e-5)


def test_impossible_tokens_give_no_nan():
    own = causal("gpt2")

    class Masked(torch.nn.Module):
        """Gives the last ten tokens no chance, as models with a padded vocabulary do."""

        def forward(self, **inputs):
            out = own.module(**inputs)
            out.logits[..., -10:] = -torch.inf
            return out

    masked = splice.Causal(own.model, Masked())
    found = splice.score(masked, documents("gpt2"), (1, "resid_post"), {"zero": ZERO}, 128)
    assert np.isfinite(found["zero"].kl).all() and np.isfinite(found["zero"].ce).all()


def test_a_model_that_looks_ahead_or_has_no_head_is_refused(tmp_path: Path):
    import transformers

    for name, module in (("body", tiny.module("bert")), ("head", None)):
        folder = tmp_path / name
        if module is None:
            config = tiny.module("bert").config
            module = transformers.AutoModelForCausalLM.from_config(config)
            assert module.config.is_decoder is False
        module.save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
        text = "not in its weights" if name == "body" else "see later ones"
        with pytest.raises(ModelError, match=text) as caught:
            splice.with_head(models.load_model(str(folder)))
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_an_encoder_of_the_test_data_is_refused(test_data: Path):
    model = models.load_model(str(test_data / "models" / "all-minilm-l6-v2-fp16-hf"))
    with pytest.raises(ModelError, match="BertModel predicts no next token"):
        splice.with_head(model)


def test_embedded_model_has_its_head():
    model = models.load_model("embedded")
    own = splice.with_head(model)
    assert own.model.fingerprint == model.fingerprint
    tokens = export.tokenise(
        own.model, ["Return the number of elements in the array along a given axis."], 64
    )
    clean = splice.score(own, tokens, (3, "resid_post"), {}, 512)["clean"]
    assert clean.ce[0] / clean.scored[0] < 4  # it has learned something: chance is log 4096 = 8.3


def test_gathered_text_is_whole_documents_of_each_split(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(tiny.texts(400)))
    corpus, own = open_corpus(str(path)), causal("gpt_neox")
    budgets = {"calibrate": 200, "test": 500}
    held = splice.gather(own, corpus, (1, "resid_post"), budgets, 64, None, 256)
    assert set(held.store.documents["split"].tolist()) == {"calibrate", "test"}
    sizes = [int(document.keep.sum()) for document in held.documents]
    assert 500 <= sum(sizes) < 500 + max(sizes) and sum(sizes) == len(held.store.rows("test"))
    assert held.store.manifest["layer_index"] == 1 and held.store.manifest["lm_train_known"]
    ids = np.concatenate([np.asarray(document.ids)[document.keep] for document in held.documents])
    np.testing.assert_array_equal(ids, held.store.token_ids[held.store.rows("test")])
    again = export.run_window(own.model, held.documents, 1, "resid_post", 256)
    np.testing.assert_allclose(again.x, held.store.read(held.store.rows("test")), atol=2e-5)
    with pytest.raises(CorpusError, match="no document fell into calibrate"):
        splice.gather(own, corpus, (1, "resid_post"), budgets, 64, 1, 256)
