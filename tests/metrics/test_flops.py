"""FLOP counts: the published numbers to the digit, the linear convention, and XLA's count of real steps beside them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amortjax.errors import AmortjaxError
from amortjax.metrics import flops, xla_cost
from amortjax.metrics.flops import published, total

GOLDEN = Path(__file__).parents[1] / "golden" / "papers" / "sparse_inference_2411_13117.json"
SCENARIOS = {
    "known_codes": "known_Z_uniform",
    "known_dictionary": "known_D_uniform",
    "unknown": "unknown_uniform",
}
METHODS = {"SAE": "sae", "SAE_ITO": "ito", "SAE_ITO_init": "ito", "SAE_ITO_random": "ito",
           "SparseCoding": "sparse_coding"}  # fmt: skip
SIZES = {"d": 8, "m": 16}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_flop_number_of_the_released_files_to_the_digit(scenario):
    checked = 0
    for name, points in json.loads(GOLDEN.read_text())[SCENARIOS[scenario]]["points"].items():
        method, _, width = name.partition("-")
        for step, point in points.items():
            found = published(scenario, METHODS.get(method, "mlp"), int(step), hidden=int(width or 0))
            if scenario == "unknown":
                assert found == (point["train_flops"], point["test_flops"]), (name, step)
            else:
                assert sum(found) == point["flops"], (name, step)
            checked += 1
    assert checked >= 25


def test_the_published_closed_forms():
    assert flops.sae_train(8, 16, learn_dictionary=False) == 1360
    assert flops.sae_train(8, 16) == 1744
    assert flops.sae_inference(8, 16) == 528
    assert [flops.mlp_train(8, 16, h, False) for h in (32, 256, 1024)] == [5360, 38736, 153168]
    assert [flops.mlp_train(8, 16, h) for h in (32, 256, 1024)] == [5744, 39120, 153552]
    assert [flops.mlp_inference(8, 16, h) for h in (32, 256, 1024)] == [1840, 12816, 50448]
    assert flops.optimised_inference(8, 16, 10_000) == 7_040_144
    assert 1024 * flops.optimised_inference(8, 16, 10_000) == 7_209_107_456
    assert flops.sparse_coding_train(8, 16, 1024, convention="paper") == 52_477_952
    assert flops.sparse_coding_train(8, 8, 1024, convention="paper") == 34_627_584
    assert flops.sparse_coding_train(8, 16, 1024) == 886_016


def test_the_paper_counts_the_batch_twice():
    ratio = [
        flops.sparse_coding_train(8, 16, s, convention="paper") / flops.sparse_coding_train(8, 16, s)
        for s in (1, 64, 1024)
    ]
    assert ratio == [pytest.approx(1.0, abs=0.05), pytest.approx(5.9, abs=0.1), pytest.approx(59.2, abs=0.05)]


def test_totals_of_the_papers_runs():
    assert total("sae", **SIZES, steps=20_000, learn_dictionary=False).train == pytest.approx(
        2.77e10, rel=0.01
    )
    assert total("mlp", **SIZES, hidden=32, steps=20_000, learn_dictionary=False).train == pytest.approx(
        1.09e11, rel=0.01
    )
    assert total("ito", **SIZES, iterations=20_000, learn_dictionary=False) == (
        0,
        pytest.approx(1.43e10, rel=0.01),
    )
    coding = total("sparse_coding", **SIZES, steps=40_000, iterations=10_000, convention="paper")
    assert coding == (40_000 * 52_477_952, 7_209_107_456)
    assert coding.train / total("sparse_coding", **SIZES, steps=40_000).train == pytest.approx(59.2, abs=0.05)


@given(
    method=st.sampled_from(sorted(flops.FLOPS)),
    d=st.integers(1, 300), m=st.integers(1, 300), batch=st.integers(1, 64), steps=st.integers(0, 50),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_linear_counts_are_linear_in_steps_and_samples_and_grow_with_the_sizes(method, d, m, batch, steps):
    own = {"hidden": 7, "iterations": 5, "active": 3}
    one = total(method, d, m, steps=1, test_samples=1, batch=batch, **own)
    assert total(method, d, m, steps=steps, test_samples=9, batch=batch, **own) == (
        steps * one.train,
        9 * one.inference,
    )
    larger = total(method, d + 1, m + 1, steps=1, test_samples=1, batch=batch, **own)
    assert larger.inference > one.inference and larger.train >= one.train
    # Per sample a large batch is never dearer: only what is done once per batch is shared.
    twice = total(method, d, m, steps=1, batch=2 * batch, **own).train
    assert one.train <= twice <= 2 * one.train


def test_what_is_known_is_not_paid_for():
    for method in ("ito", "sparse_coding", "exact_dictionary"):
        assert total(method, **SIZES, steps=5, iterations=3, active=2, learn_dictionary=False).train == 0
    encoder = total("sae", **SIZES, steps=1, batch=1, test_samples=1, learn_dictionary=False, decode=False)
    assert encoder == (848, 272)
    cold, warm = (
        total("ito", **SIZES, test_samples=1, iterations=4, warm=w).inference for w in (False, True)
    )
    assert warm - cold == 272


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: total("gated", 8, 16), "choose one of sae, mlp"),
        (lambda: total("mlp", 8, 16, steps=1), "hidden="),
        (lambda: total("sae", 8, 16, steps=-1), "steps=-1"),
        (lambda: total("sae", -8, 16), "d=-8"),
        (lambda: total("sae", 8, 16, convention="papers"), "linear or paper"),
        (lambda: flops.sparse_coding_train(8, 16, 4, convention="quadratic"), "linear or paper"),
    ],
)
def test_mistakes_are_named(call, text):
    with pytest.raises(AmortjaxError, match=text):
        call()


# --- XLA ---


def loss(params, x):
    z = jax.nn.relu(x @ params["enc"])
    return jnp.mean((z @ params["dec"] - x) ** 2) + 0.01 * jnp.mean(z)


def sae_step(params, state, x):
    grads = jax.grad(loss)(params, x)
    updates, state = optax.adam(1e-3).update(grads, state)
    return optax.apply_updates(params, updates), state


def test_xla_counts_a_real_training_step_and_an_inference_near_the_closed_forms():
    d, m, n = 64, 128, 1024
    params = {"enc": jnp.ones((d, m)), "dec": jnp.ones((m, d))}
    x = jnp.ones((n, d))
    step = flops.xla_flops(sae_step, params, optax.adam(1e-3).init(params), x)
    code = flops.xla_flops(lambda p, x: jax.nn.relu(x @ p["enc"]) @ p["dec"], params, x)
    row = flops.beside("sae", d, m, step, code, batch=n)
    assert step.whole and code.whole
    # Two forward and three backward products of 2 D M; the convention has 13 D M and constants.
    assert step.flops == pytest.approx(10 * d * m * n, rel=0.05)
    assert row["train_xla"] == step.flops and row["train_linear"] == row["train_paper"]
    assert 0.7 < row["train_xla"] / row["train_linear"] < 0.8
    assert row["inference_xla"] == pytest.approx(row["inference_linear"], rel=0.01)


def test_xla_counts_a_loop_once_and_says_so():
    x, w = jnp.ones((64, 32)), jnp.ones((32, 32))
    once = flops.xla_flops(lambda x: jnp.tanh(x @ w), x)
    looped = flops.xla_flops(lambda x: jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, 50)[0], x)
    assert once.whole and once.flops >= 2 * 64 * 32 * 32
    assert looped.loops == 1 and not looped.whole
    assert looped.flops < 2 * once.flops


def test_a_backend_that_does_not_report_gives_none_and_not_a_wrong_number():
    read = xla_cost._flops_of
    assert [read(found) for found in (None, {}, [], {"flops": -1.0}, {"flops": float("nan")}, "none")] == [
        None
    ] * 6
    assert read({"flops": float("inf")}) is None and read([{"flops": 3.0}, {"bytes accessed": 1.0}]) is None
    assert read([{"flops": 3.0}, {"flops": 4.0}]) == 7 and read({"flops": 5.0}) == 5
    row = flops.beside("sae", 8, 16)
    assert row["train_xla"] is None and row["train_xla_whole"] is None
    sort = flops.xla_flops(lambda x: jax.lax.top_k(x, 3), jnp.ones((8, 64)))
    assert not sort.whole


def test_xla_takes_a_jitted_function_as_it_is():
    x = jnp.ones((16, 16))
    assert flops.xla_flops(jax.jit(lambda x: x @ x), x) == flops.xla_flops(lambda x: x @ x, x)
