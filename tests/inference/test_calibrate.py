"""Root finding for lambda, and the public functions `infer` and `calibrate`."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from problems import toy_sae

import amortjax as aj
from amortjax.errors import AmortjaxError
from amortjax.inference import calibrate, objective
from amortjax.inference.modes import MODES


@pytest.mark.parametrize("target", [0.3, 5.0, 40.0])
@pytest.mark.parametrize("start", [1e-3, 0.1, 5.0])
def test_match_finds_a_power_law_from_anywhere(target, start):
    l0 = lambda lam: 4.0 * lam**-0.8  # noqa: E731
    found = calibrate.match(l0, target, start=start, bounds=(1e-6, 1e3))
    assert found.reached
    assert abs(l0(found.lam) / target - 1) <= 0.01
    low, high = found.interval
    assert low <= found.lam <= high


def test_match_bisects_through_steps_and_noise():
    r = np.random.default_rng(0)
    noise = r.standard_normal(200) * 0.002
    calls = []

    def l0(lam):
        calls.append(lam)
        return np.floor(300 * np.exp(-lam)) / 10 * (1 + noise[len(calls)])

    found = calibrate.match(l0, 12.0, start=0.01, bounds=(1e-4, 10), max_evaluations=30)
    assert found.reached
    assert len(calls) < 20


def test_an_unreachable_target_is_said():
    found = calibrate.match(lambda lam: 1 / (1 + lam), 5.0, start=0.1, bounds=(1e-3, 10))
    assert not found.reached


def test_rising_statistics_are_matched_too():
    found = calibrate.match(
        lambda lam: lam**1.5, 0.2, start=3.0, bounds=(1e-4, 1e2), rising=True, name="nmse"
    )
    assert found.reached
    assert found.statistic == "nmse"


def test_calibrate_matches_the_encoders_l0(toy_store):
    sae = toy_sae()
    x = toy_store.read(toy_store.rows("calibrate"))
    found = aj.calibrate(sae, x)
    solution = aj.infer(sae, x, found.lam)
    assert abs(solution.codes.l0.mean() / 4 - 1) <= 0.011
    assert solution.certified.all()
    assert solution.record.lam == found.lam


def test_calibration_costs_at_most_three_solves_of_its_tokens(monkeypatch):
    from amortjax.inference import modes

    sae, r, solved = toy_sae(), np.random.default_rng(0), []
    z = (r.random((8192, 64)) < 0.06) * r.exponential(size=(8192, 64))
    x = (z @ np.asarray(sae.W_dec)).astype(np.float32)
    plain = modes.solve
    monkeypatch.setattr(modes, "solve", lambda *a, **k: (solved.append(len(a[2])), plain(*a, **k))[1])
    found = aj.calibrate(sae, x, l0=4.0)
    assert found.reached
    assert abs(found.l0 / 4.0 - 1) <= 0.01
    assert found.interval[0] <= found.lam <= found.interval[1]
    assert sum(solved) <= 3 * len(x)


def test_calibrate_refuses_more_than_an_optimum_can_have(toy_store):
    with pytest.raises(AmortjaxError, match="at most rank"):
        aj.calibrate(toy_sae(), toy_store.read(toy_store.rows("calibrate"))[:64], l0=40)


@pytest.mark.parametrize("mode", MODES)
def test_infer_says_how_good_every_modes_codes_are(mode):
    sae = toy_sae()
    x = np.random.default_rng(0).standard_normal((20, sae.d_in)).astype(np.float32)
    solution = aj.infer(sae, x, 0.3, mode=mode)
    assert solution.objective.shape == solution.gap.shape == solution.certified.shape == (20,)
    assert (solution.gap >= 0).all()
    assert solution.certified.all() == (mode == "optimal")


def test_infer_takes_a_lambda_for_each_token_and_heads():
    sae = toy_sae()
    x = np.random.default_rng(0).standard_normal((6, 4, 4)).astype(np.float32)
    lam = np.linspace(0.1, 0.6, 6)
    solution = aj.infer(sae, x, lam)
    one = aj.infer(sae, x.reshape(6, 16)[3:4], float(lam[3]))
    np.testing.assert_allclose(solution.codes.dense()[3], one.codes.dense()[0], atol=1e-3)
    assert solution.record.lam is None


def test_gated_codes_are_posed_with_the_decoder_alone():
    """exp(r_mag) belongs to the encoder: the optimum does not know of it."""
    gated, standard = toy_sae("gated"), toy_sae("standard")
    x = np.random.default_rng(0).standard_normal((8, gated.d_in)).astype(np.float32)
    a, b = (aj.infer(sae, x, 0.3, tol=1e-6) for sae in (gated, standard))
    np.testing.assert_allclose(a.codes.dense(), b.codes.dense(), atol=2e-3)


@pytest.mark.parametrize(
    ("lam", "x", "said"),
    [
        (None, np.ones((2, 16)), "lam is needed"),
        (-1.0, np.ones((2, 16)), "not negative"),
        ([0.1, 0.2, 0.3], np.ones((2, 16)), "each of the 2 tokens"),
        (0.1, np.ones((2, 17)), r"\(2, 17\) do not fit an SAE of d_model 16"),
        (0.1, np.full((2, 16), np.nan), "2 of 2 tokens hold NaN"),
    ],
)
def test_infer_says_what_is_wrong(lam, x, said):
    with pytest.raises(AmortjaxError, match=said):
        aj.infer(toy_sae(), x, lam)


def test_unknown_mode_lists_the_modes():
    with pytest.raises(AmortjaxError, match="amortized, encoder_scaled"):
        aj.infer(toy_sae(), np.ones((1, 16)), 0.1, mode="best")
    assert aj.infer(toy_sae(), np.ones((1, 16)), 0.1, mode="semi").codes.n_latents == 64


def test_lambda_bounds_need_a_correlation():
    with pytest.raises(AmortjaxError, match="no atom correlates"):
        calibrate.lam_bounds(np.zeros(3))


def test_target_of_a_transcoder_is_required():
    sae = toy_sae()
    transcoder = dataclasses.replace(sae, W_dec=jnp.ones((64, 20)), b_dec=jnp.zeros(20))
    with pytest.raises(AmortjaxError, match="transcoder"):
        objective.targets(transcoder, np.ones((2, 16), np.float32))
