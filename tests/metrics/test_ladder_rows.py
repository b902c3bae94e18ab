"""Steps between rungs, in numbers that can be checked by hand, and what foretells a latent's price."""

import numpy as np
import pytest

from amortjax.inference.gaps import Proof
from amortjax.inference.objective import Objective
from amortjax.metrics import ladder, latent_price

RECORD = Objective(lam=0.1)


def proofs(**prices):
    return {
        name: Proof(np.asarray(p, float), 0.99 * np.asarray(p, float), RECORD) for name, p in prices.items()
    }


def test_steps_are_shares_of_the_whole_price_and_are_not_clipped():
    found = proofs(encoder=[3, 5], scaled=[2, 4], affine=[2.5, 4.5], optimum=[1, 3], relearned=[0.5, 2.5])
    rows = ladder.steps(found, "optimum", np.array([0, 1]), 2, seed=0)
    assert rows["encoder"]["objective"] == 4 and "step" not in rows["encoder"]
    shares = {name: row.get("share") for name, row in rows.items()}
    assert shares == {"encoder": None, "scaled": 0.5, "affine": -0.25, "optimum": 0.75, "relearned": 0.25}
    assert [row["left"] for row in rows.values()] == [1, 0.5, 0.75, 0, -0.25]
    assert rows["scaled"]["excess_lower"] == pytest.approx(3 / 2 - 1)
    assert rows["scaled"]["excess_upper"] == pytest.approx(3 / 1.98 - 1)
    assert rows["relearned"]["excess_lower"] < rows["relearned"]["excess_upper"] < 0
    assert rows["affine"]["step"] == -0.5
    # Two documents say nothing about others.
    assert all(row["objective_lo"] is None for row in rows.values())


def test_the_steps_to_the_optimum_sum_to_the_whole_price_and_intervals_are_paired():
    r = np.random.default_rng(0)
    block = np.repeat(np.arange(100), 20)
    base = r.exponential(size=len(block)) * (1 + block % 7)  # documents differ far more than rungs do
    found = proofs(encoder=base + 1, scaled=base + 0.4 + 0.01 * r.random(len(block)), optimum=base)
    rows = ladder.steps(found, "optimum", block, 100, seed=3)
    assert rows["scaled"]["share"] + rows["optimum"]["share"] == pytest.approx(1)
    step = rows["scaled"]
    assert step["step_lo"] < step["step"] < step["step_hi"]
    assert step["step_hi"] - step["step_lo"] < 0.01 < 0.5 * (step["objective_hi"] - step["objective_lo"])
    assert rows == ladder.steps(found, "optimum", block, 100, seed=3)


def test_an_encoder_without_a_price_has_no_shares():
    found = proofs(encoder=[1, 3], scaled=[1, 3], optimum=[1, 3])
    rows = ladder.steps(found, "optimum", np.array([0, 1]), 2, seed=0)
    assert rows["scaled"]["share"] is None and rows["scaled"]["left"] is None and rows["scaled"]["step"] == 0


def test_what_foretells_a_price_is_found():
    r = np.random.default_rng(1)
    cause, noise = r.random(300), r.random(300)
    price = np.exp(3 * cause) + 0.5 * r.random(300)
    price[7] = np.nan
    rows = latent_price.predict({"price": price}, {"cause": cause, "noise": noise}, seed=2)
    assert [(row["predictor"], row["latents"]) for row in rows] == [("cause", 299), ("noise", 299)]
    strong, weak = rows
    from scipy.stats import spearmanr

    known = np.isfinite(price)
    assert strong["correlation"] == pytest.approx(spearmanr(price[known], cause[known])[0], abs=1e-12)
    assert 0.9 < strong["correlation_lo"] < strong["correlation"] < strong["correlation_hi"] <= 1
    assert weak["correlation_lo"] < 0 < weak["correlation_hi"]
    assert strong["coefficient"] > 0.9 and abs(weak["coefficient"]) < 0.1
    assert strong["r2"] == weak["r2"] > 0.9
    shuffled = latent_price.predict({"price": r.permutation(price)}, {"cause": cause, "noise": noise}, seed=2)
    assert shuffled[0]["r2"] < 0.05 and shuffled[0]["correlation_lo"] < 0 < shuffled[0]["correlation_hi"]


@pytest.mark.parametrize("column", [np.full(40, 2.0), np.full(40, np.nan), np.arange(40.0)[:10]])
def test_nothing_is_fitted_to_constants_or_few_latents(column):
    rows = latent_price.predict({"price": np.arange(float(len(column)))}, {"a": column})
    assert rows[0]["correlation"] is None and rows[0]["r2"] is None


def test_damaged_arrays_are_made_again(tmp_path):
    path = tmp_path / "a.npz"
    assert ladder.load_arrays(path) is None
    ladder.save_arrays(path, {"a": np.arange(3)})
    found = ladder.load_arrays(path, ["a"])
    assert found is not None and found["a"].tolist() == [0, 1, 2]
    assert ladder.load_arrays(path, ["b"]) is None
    path.write_bytes(path.read_bytes()[:40])
    assert ladder.load_arrays(path) is None
