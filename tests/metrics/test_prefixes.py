"""NMSE of a Matryoshka SAE's prefixes, beside a plain computation."""

import numpy as np
import pytest
from problems import toy_sae

from amortjax.metrics.measure import Knobs, measure
from amortjax.metrics.plan import make_plan, pose_subject
from amortjax.price import rows_of
from amortjax.saes import encoders

PLAN = {"calibration_tokens": None, "eval_tokens": None, "probe_tokens": None, "chunk": 512}


def test_prefixes_are_what_decoding_the_first_latents_gives(toy_store):
    sae = toy_sae("matryoshka")
    subject = pose_subject(sae, toy_store, make_plan(**PLAN))
    found = measure(subject, "amortized", Knobs(None), probes=False)
    x = toy_store.read(subject.test_rows)
    z = np.asarray(encoders.encode(sae, x), np.float64)
    w, b = np.asarray(sae.W_dec, np.float64), np.asarray(sae.b_dec, np.float64)
    for width in (16, 64):
        error = np.sum(np.square(x - b - z[:, :width] @ w[:width]))
        assert found.prefixes[width] == pytest.approx(error, rel=1e-6)
    assert set(found.prefixes) == {16, 64}
    assert found.prefixes[64] == pytest.approx(found.sums.residual.sum(), rel=1e-6)


def test_the_optimum_has_them_too(toy_store):
    subject = pose_subject(toy_sae("matryoshka"), toy_store, make_plan(**PLAN))
    found = measure(subject, "optimal", Knobs(1.0), probes=False)
    assert found.prefixes[64] == pytest.approx(found.sums.residual.sum(), rel=1e-9)
    assert found.prefixes[64] < found.prefixes[16] < found.sums.base.sum()


def test_rows_have_them_for_matryoshka_alone(toy_store):
    plan = make_plan(modes=("amortized",), conditions=("same_l0",), **PLAN)
    [row] = rows_of(toy_sae("matryoshka"), toy_store, plan, None, progress=False)
    assert row["nmse@prefix:64"] == pytest.approx(row["nmse"], rel=1e-6)
    assert row["nmse@prefix:16"] != row["nmse"]
    [topk] = rows_of(toy_sae(), toy_store, plan, None, progress=False)
    assert not any("prefix" in name for name in topk)
