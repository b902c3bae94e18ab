"""Any inference mode as a SAELens-style SAE: the codes of `aj.infer`, in torch, of whatever shape and dtype."""

import dataclasses

import numpy as np
import pytest
from saes.conftest import make_sae, tokens  # noqa: F401

import amortjax as aj
from amortjax.errors import AmortjaxError
from amortjax.inference import active_set
from amortjax.inference.modes import MODES
from amortjax.saes import api
from amortjax.saes.sae import Info

torch = pytest.importorskip("torch")
LAM = 0.5


@pytest.fixture
def sae(make_sae):  # noqa: F811
    return make_sae("topk", info=Info(model_name="tiny", hook="resid_post", layer_index=1))


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_codes_of_infer(sae, tokens, mode):  # noqa: F811
    adapter = aj.as_saelens(sae, mode, lam=LAM, tokens=tokens)
    z = adapter.encode(torch.from_numpy(tokens))
    assert z.shape == (40, 32) and z.dtype == torch.float32 and not z.requires_grad
    # As many rows as the adapter makes of them. The one scale is fitted to the tokens alone.
    x = tokens if mode == "encoder_scaled" else np.pad(tokens, ((0, 24), (0, 0)), mode="edge")
    lam = LAM if MODES[mode].knob == "lam" else 0.0
    want = aj.infer(sae, x, lam, mode).codes.dense()[:40]
    np.testing.assert_allclose(z, want, rtol=1e-4, atol=1e-4)
    y = adapter.decode(z)
    np.testing.assert_allclose(y, api.decode(sae, z.numpy()), rtol=1e-5, atol=1e-5)


def test_shapes_and_the_weights(sae, tokens):  # noqa: F811
    adapter = aj.as_saelens(sae, "optimal", lam=LAM).eval()
    x = torch.from_numpy(tokens)
    flat = adapter.encode(x)
    assert torch.equal(adapter.encode(x.reshape(5, 8, 12)), flat.reshape(5, 8, 32))
    assert torch.equal(adapter.encode(x.reshape(40, 3, 4)), flat)  # heads
    assert adapter.encode(x[:0]).shape == (0, 32)
    # Alone a token takes another path to its optimum; both are within the tolerance.
    assert torch.allclose(adapter.encode(x[7]), flat[7], atol=1e-2)
    assert adapter(x.reshape(40, 3, 4)).shape == (40, 3, 4)
    assert torch.allclose(adapter(x), flat @ adapter.W_dec + adapter.b_dec)
    assert adapter.W_enc.shape == (12, 32) and adapter.W_dec.shape == (32, 12)
    assert not any(weight.requires_grad for weight in adapter.parameters())
    np.testing.assert_array_equal(adapter.b_enc, sae.b_enc)


def test_dtype_and_gradient(sae, tokens):  # noqa: F811
    x = torch.from_numpy(tokens)
    adapter = aj.as_saelens(sae, "amortized")
    full = adapter.encode(x.clone().requires_grad_())
    assert not full.requires_grad and np.array_equal(full, api.encode(sae, tokens))
    half = adapter.to(dtype=torch.bfloat16)
    assert half is adapter and adapter.cfg.dtype == "bfloat16" and adapter.W_dec.dtype == torch.bfloat16
    z = adapter.encode(x.to(torch.bfloat16))
    assert z.dtype == torch.bfloat16 and adapter.decode(z).dtype == torch.bfloat16
    # The code of the rounded input, rounded.
    want = torch.tensor(api.encode(sae, x.to(torch.bfloat16).float().numpy()))
    assert torch.equal(z, want.to(torch.bfloat16))
    z = z.float().requires_grad_()
    adapter.to(torch.float32).decode(z).sum().backward()
    assert torch.allclose(z.grad[0], adapter.W_dec.sum(1))


def test_batches_of_any_size_compile_nothing_new(sae, tokens):  # noqa: F811
    adapter = aj.as_saelens(sae, "optimal", lam=LAM)
    x = torch.from_numpy(np.tile(tokens, (2, 1)))
    adapter.encode(x[:64])
    jitted = [value for value in vars(active_set).values() if hasattr(value, "_cache_size")]
    before = [value._cache_size() for value in jitted]
    assert sum(before) > 0
    for size in (1, 3, 17, 63):
        adapter.encode(x[:size])
    assert [value._cache_size() for value in jitted] == before


def test_what_was_certified_is_counted(sae, tokens):  # noqa: F811
    adapter = aj.as_saelens(sae, "optimal", lam=LAM)
    adapter.encode(torch.from_numpy(tokens))
    assert (adapter.n_tokens, adapter.n_certified) == (40, 40)
    few = aj.as_saelens(sae, "non_amortized", lam=LAM, ista_steps=2)
    few.encode(torch.from_numpy(tokens))
    assert few.n_tokens == 40 > few.n_certified
    encoder = aj.as_saelens(sae, "amortized")
    encoder.encode(torch.from_numpy(tokens))
    assert encoder.n_tokens == 0


def test_lambda_is_calibrated_on_tokens(sae, tokens):  # noqa: F811
    adapter = aj.as_saelens(sae, "optimal", tokens=tokens)
    want = aj.calibrate(sae, tokens)
    z = adapter.encode(torch.from_numpy(tokens))
    assert float((z != 0).sum(1).float().mean()) == pytest.approx(want.l0, rel=1e-3)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm"])
def test_normalised_inputs_are_undone_once(make_sae, tokens, norm):  # noqa: F811
    sae = make_sae("standard", norm=norm)
    adapter, x = aj.as_saelens(sae, "amortized"), torch.from_numpy(tokens)
    np.testing.assert_allclose(
        adapter(x.reshape(5, 8, 12)).reshape(40, 12), api.reconstruct(sae, tokens), atol=2e-5
    )
    z = adapter.encode(x)
    with pytest.raises(AmortjaxError, match="encode these tokens first"):
        adapter.decode(z[:3])
    adapter.decode(z)
    with pytest.raises(AmortjaxError, match="encode these tokens first"):
        adapter.decode(z)


def test_cfg_is_what_saelens_and_saebench_ask_for(sae):
    cfg = aj.as_saelens(sae, "omp", context_size=128).cfg
    for place in (cfg, cfg.metadata):
        assert (place.hook_name, place.hook_layer, place.model_name) == (
            "blocks.1.hook_resid_post",
            1,
            "tiny",
        )
        assert place.hook_head_index is None and place.prepend_bos and place.context_size == 128
    assert (cfg.d_in, cfg.d_sae, cfg.metadata.whatever) == (12, 32, None)
    assert dataclasses.asdict(cfg) == cfg.to_dict() and cfg.architecture == "topk (omp)"


@pytest.mark.parametrize(
    ("variant", "change", "arguments", "text"),
    [
        ("topk", {}, {}, r"needs a lambda: pass lam=aj\.calibrate"),
        ("topk", {}, {"mode": "semi"}, "needs a lambda"),
        ("topk", {}, {"mode": "encoder_scaled"}, "needs tokens"),
        ("topk", {}, {"mode": "best"}, "not one of"),
        ("batch_topk", {"batch_rule": True}, {"mode": "amortized"}, "load it with threshold="),
        ("topk", {"W_dec": np.ones((32, 7)), "b_dec": np.ones(7)}, {"lam": 1.0}, "is a transcoder"),
        (
            "topk",
            {"info": Info(transcoder=True)},
            {"lam": 1.0},
            "is a transcoder",
        ),
    ],
)
def test_mistakes_say_the_remedy(make_sae, variant, change, arguments, text):  # noqa: F811
    sae = make_sae(variant, **change)
    with pytest.raises(AmortjaxError, match=text):
        aj.as_saelens(sae, **arguments)


def test_activations_that_do_not_fit_are_refused(sae, tokens):  # noqa: F811
    adapter = aj.as_saelens(sae, "amortized")
    with pytest.raises(AmortjaxError, match=r"shape \(40, 11\) do not fit"):
        adapter.encode(torch.from_numpy(tokens[:, :11]))
    with pytest.raises(AmortjaxError, match="NaN"):
        adapter.encode(torch.full((2, 12), torch.nan))


@pytest.mark.parametrize("mode", ["amortized", "optimal", "omp"])
def test_saelens_own_evaluation_runs_on_it(sae, mode):
    pytest.importorskip("sae_lens")
    from datasets import Dataset
    from sae_lens import evals
    from sae_lens.training.activation_scaler import ActivationScaler
    from sae_lens.training.activations_store import ActivationsStore
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    r = np.random.default_rng(0)
    rows = [{"tokens": r.integers(0, 50, 17).tolist()} for _ in range(64)]
    model = HookedTransformer(
        HookedTransformerConfig(
            n_layers=2, d_model=12, n_ctx=17, d_head=6, n_heads=2, d_vocab=50, act_fn="relu", seed=0
        )
    )
    adapter = aj.as_saelens(sae, mode, lam=LAM)
    store = ActivationsStore.from_sae(
        model, adapter, dataset=Dataset.from_list(rows), context_size=16, streaming=False
    )
    config = evals.EvalConfig(
        batch_size_prompts=2, n_eval_reconstruction_batches=1, n_eval_sparsity_variance_batches=1,
        compute_kl=True, compute_ce_loss=True, compute_l2_norms=True, compute_sparsity_metrics=True,
        compute_variance_metrics=True, compute_featurewise_weight_based_metrics=True,
    )  # fmt: skip
    found, weights = evals.run_evals(
        adapter, store, model, ActivationScaler(), config, exclude_special_tokens=False
    )
    assert 0 < found["sparsity"]["l0"] <= 12 and np.isfinite(found["reconstruction_quality"]["mse"])
    assert len(weights["encoder_norm"]) == 32
    assert adapter.n_tokens == (64 if mode == "optimal" else 0)
