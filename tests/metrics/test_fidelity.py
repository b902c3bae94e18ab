"""What the language model makes of reconstructions: sums of documents, ratios of totals, paired intervals."""

import dataclasses

import numpy as np
import pytest

from amortjax.errors import AmortjaxError
from amortjax.inference.api import encode_codes
from amortjax.inference.modes import Options
from amortjax.metrics import fidelity, streaming, uncertainty
from amortjax.metrics.bench import Bench
from amortjax.metrics.definitions import METRICS
from amortjax.metrics.measure import Knobs, measure
from amortjax.metrics.plan import make_plan
from amortjax.metrics.streaming import block_of
from amortjax.saes.api import reconstruct
from tests.problems import toy_sae


def columns_of(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Sums of n documents: the clean loss 2, zeros 10, the mean 6, and a tenth of the way to zeros lost."""
    r = np.random.default_rng(seed)
    tokens = r.integers(5, 40, n)
    scored = tokens - r.integers(0, 2, n)
    noise = lambda: r.normal(0, 0.05, n) * scored  # noqa: E731
    clean = 2.0 * scored + noise()
    return {
        "tokens": tokens, "scored": scored, "ce_clean": clean, "ce_zero": clean + 8 * scored + noise(),
        "kl_zero": 5.0 * tokens, "ce_mean": clean + 4 * scored + noise(), "kl_mean": 2.5 * tokens,
        "ce": clean + 0.8 * scored + noise(), "kl": 0.5 * tokens, "residual": 0.2 * tokens, "base": 1.0 * tokens,
        "l0": 7 * tokens,
    }  # fmt: skip


def test_ratios_are_of_totals():
    columns = columns_of(300)
    found = fidelity.estimates(columns, block_of(np.arange(300)))
    total = {name: float(values.sum()) for name, values in columns.items()}
    wanted = {
        "ce_clean": total["ce_clean"] / total["scored"],
        "ce_added": (total["ce"] - total["ce_clean"]) / total["scored"],
        "ce_recovered": (total["ce_zero"] - total["ce"]) / (total["ce_zero"] - total["ce_clean"]),
        "ce_recovered_mean": (total["ce_mean"] - total["ce"]) / (total["ce_mean"] - total["ce_clean"]),
        "kl": 0.5, "kl_recovered": 0.9, "kl_recovered_mean": 0.8, "nmse": 0.2, "l0": 7.0,
    }  # fmt: skip
    for name, value in wanted.items():
        assert found[name].value == pytest.approx(value, rel=1e-12), name
    lo, hi = uncertainty.interval(found["ce_recovered"]) or (0, 0)
    assert lo < 0.9 < hi and hi - lo < 0.02
    assert set(found) <= set(METRICS)


def test_clean_model_recovers_all_and_zeros_nothing():
    columns, block = columns_of(60), block_of(np.arange(60))
    clean = fidelity.estimates(columns | {"ce": columns["ce_clean"], "kl": 0 * columns["kl"]}, block)
    assert clean["ce_recovered"].value == clean["kl_recovered"].value == 1 and clean["ce_added"].value == 0
    zero = fidelity.estimates(columns | {"ce": columns["ce_zero"], "kl": columns["kl_zero"]}, block)
    assert zero["ce_recovered"].value == zero["kl_recovered"].value == 0


def test_differences_are_paired():
    columns, block = columns_of(120), block_of(np.arange(120))
    worse = columns | {"ce": columns["ce"] + 0.1 * columns["scored"]}
    a, b = (fidelity.estimates(own, block) for own in (columns, worse))
    d = uncertainty.difference(b["ce_added"], a["ce_added"])
    assert d is not None and d.clear and d.lo is not None and d.hi is not None
    assert d.value == pytest.approx(0.1) and d.hi - d.lo < 1e-9


def test_few_documents_have_no_interval_and_undefined_numbers_are_none():
    columns = columns_of(49)
    del columns["residual"]
    harmless = columns | {"ce_zero": columns["ce_clean"]}
    found = fidelity.estimates(harmless, block_of(np.arange(49)))
    assert all(estimate.draws is None for estimate in found.values())
    assert found["ce_recovered"].value is None  # zeros do no harm: there is nothing to recover
    assert found["nmse"].value is None and found["kl_recovered"].value == pytest.approx(0.9)


def test_losses_that_are_not_finite_are_refused():
    columns = columns_of(60)
    columns["ce"][7] = np.nan
    with pytest.raises(
        AmortjaxError, match="ce is NaN or infinite in 1 of 60 documents, the first is number 7"
    ):
        fidelity.estimates(columns, block_of(np.arange(60)))
    nothing = {name: 0 * values for name, values in columns_of(60).items()}
    with pytest.raises(AmortjaxError, match="no token has a next one"):
        fidelity.estimates(nothing, block_of(np.arange(60)))


def subject_of(sae, store, chunk=256):
    rows = [store.rows(split, 512) for split in ("calibrate", "test")]
    return fidelity.pose(sae, store, *rows, Options(chunk=chunk))


@pytest.mark.parametrize("norm", ["none", "layer_norm"])
def test_reconstructions_are_the_saes_own(toy_store, norm):
    sae = dataclasses.replace(toy_sae(), norm=norm)
    subject = subject_of(sae, toy_store)
    x = toy_store.read(subject.test_rows)
    found = fidelity.rebuild(subject, "amortized", Knobs(None), subject.test_rows, encode_codes(sae, x, 256))
    np.testing.assert_allclose(found.x_hat, reconstruct(sae, x), atol=1e-4)
    np.testing.assert_allclose(
        found.residual, ((x - reconstruct(sae, x)) ** 2).sum(axis=1), rtol=1e-3, atol=1e-3
    )
    assert found.l0.max() <= 4 and len(found.base) == len(x)
    sizes = np.array([100, len(x) - 100])
    sums = fidelity.by_document(found.residual, sizes)
    np.testing.assert_allclose(sums, [found.residual[:100].sum(), found.residual[100:].sum()])


def test_modes_meet_the_encoders_l0_and_reconstruct_as_the_price_says(toy_store):
    sae = toy_sae()
    plan = make_plan(modes=("optimal", "amortized", "omp"), chunk=256, eval_tokens=None)
    subject = subject_of(sae, toy_store)
    bench = Bench(subject, plan, None, False)
    settings = fidelity.settings(bench)
    assert list(settings) == ["amortized", "optimal", "omp"]
    target = float(subject.calibration[1].l0.mean())
    assert settings["optimal"].columns["l0_calibration"] == pytest.approx(target, rel=0.01)
    encoder = encode_codes(sae, toy_store.read(subject.test_rows), 256)
    for mode, setting in settings.items():
        found = fidelity.rebuild(subject, mode, setting.knobs, subject.test_rows, encoder)
        nmse = found.residual.sum() / found.base.sum()
        wanted = streaming.finalise(measure(subject, mode, setting.knobs, probes=False).sums)
        assert nmse == pytest.approx(wanted["nmse"], rel=1e-4), mode
        assert found.l0.mean() == pytest.approx(wanted["l0"], rel=1e-4), mode


def test_transcoders_other_widths_and_silent_encoders_are_refused(toy_store):
    sae = toy_sae()
    skip = dataclasses.replace(sae, extra={"W_skip": np.eye(16, dtype=np.float32)})
    with pytest.raises(AmortjaxError, match="toy topk is a transcoder"):
        subject_of(skip, toy_store)
    with pytest.raises(AmortjaxError, match="width 8, the model's have 16"):
        subject_of(toy_sae(d=8), toy_store)
    silent = dataclasses.replace(toy_sae("standard"), b_enc=np.full(64, -1e6, np.float32))
    plan = make_plan(modes=("amortized",), eval_tokens=None)
    with pytest.raises(AmortjaxError, match="its encoder fires on no calibration token"):
        fidelity.settings(Bench(subject_of(silent, toy_store), plan, None, False))
