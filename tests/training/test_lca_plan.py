"""The searched dictionary's memory plan against what XLA sets aside for a step of each search, and its refusals."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from amortjax.errors import AmortjaxError
from amortjax.inference import active_set, lca, rounds
from amortjax.training import lca_dictionary, lca_plan, loop, plan, room
from amortjax.training.batches import Batches
from amortjax.training.lca_dictionary import LcaRecipe

N, M, D = 256, 2048, 64
GIB = 2**30


def _recipe(codes: Any, **more: Any) -> LcaRecipe:
    given = {"n_latents": M, "lam": 0.1, "steps": 5, "batch_size": N, "lr": 0.01, "iterations": 20}
    return LcaRecipe(codes=codes, **(given | more)).check()


def _shape(*shape: int, dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def _taken(jitted: Any, *args: Any, **options: Any) -> int:
    """Bytes that XLA sets aside: what goes in, what comes out beside it, scratch."""
    # The machine code does not matter here, and takes half of the time.
    fast = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    found = jitted.lower(*args, **options).compile(compiler_options=fast).memory_analysis()
    beside = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + beside + found.temp_size_in_bytes


def _state(recipe: LcaRecipe, d: int) -> Any:
    return jax.eval_shape(lambda: lca_dictionary.first(recipe, np.zeros(d, np.float32)))


def _literal(n: int, m: int, d: int, iterations: int) -> tuple[int, int]:
    """(planned, taken)."""
    recipe = _recipe("literal", n_latents=m, batch_size=n, iterations=iterations)
    state = _state(recipe, d)
    taken = _taken(lca_dictionary._literal_update, state, _shape(n, d), _shape(d), recipe=recipe)
    return lca_plan.plan(recipe, d).total("device") - 4 * n * d, taken  # the raw batch is outside


@pytest.mark.parametrize(
    ("n", "m", "d", "iterations"), [(N, M, D, 20), (16, 512, 256, 60), (512, 512, 16, 3), (16, 1024, 256, 2)]
)
def test_the_plan_is_above_what_the_released_search_takes_but_not_far(n, m, d, iterations):
    planned, taken = _literal(n, m, d, iterations)
    assert 1 <= planned / taken <= 1.5


def test_an_iteration_gone_back_through_keeps_codes_and_no_atoms():
    few, many = (_literal(16, 256, 128, iterations) for iterations in (10, 40))
    for a, b in zip(few, many, strict=True):
        assert 30 * 4 * 16 * 256 <= b - a < 1.05 * 30 * 4 * 16 * 256


def _update(recipe: LcaRecipe, k: int) -> int:
    n = recipe.batch_size
    args = _shape(n, D), _shape(D), _shape(n, k, dtype=jnp.int32), _shape(n, k), _shape()
    return _taken(lca_dictionary._update, _state(recipe, D), *args, recipe=recipe)


def _rounds(recipe: LcaRecipe, k: int) -> int:
    r, block = active_set._shape(recipe.batch_size, k, recipe.n_latents)
    slots = rounds.Slots(
        _shape(r, k, dtype=jnp.int32), _shape(r, k), _shape(r, k), _shape(r, k, dtype=jnp.bool_)
    )
    places = _shape(r, dtype=jnp.int32), _shape(r, k - 16, dtype=jnp.int32)
    args = _shape(r, D), _shape(r), _shape(r), slots
    return _taken(
        rounds.run_rounds, _shape(recipe.n_latents, D), _shape(r, k, k), *places, 1, args, block=block, fresh=16,
        n_new=32, signed=False, effort=4, precision="highest",
    )  # fmt: skip


def _dynamics(recipe: LcaRecipe, k: int) -> int:
    n, m = lca_plan.CHUNK, recipe.n_latents
    if recipe.batch_size > 2 * n:
        return _taken(lca_dictionary.thresholded, _shape(m, D), _shape(recipe.batch_size, D), _shape())
    args = _shape(m, D), _shape(n, D), _shape(n), _shape(n, m), _shape(), _shape(dtype=jnp.int32)
    return _taken(lca._lca, *args, signed=False)


@pytest.mark.parametrize(
    ("codes", "more", "search"),
    [
        ("certified", {}, _rounds), ("certified", {"n_latents": 128, "batch_size": 1024}, _rounds),
        ("lca", {}, _dynamics), ("lca", {"n_latents": 128, "batch_size": 64}, _dynamics),
        ("lca", {"batch_size": 4096}, _dynamics),
    ],
)  # fmt: skip
def test_it_is_above_what_a_searched_step_takes_but_not_far(codes, more, search):
    recipe = _recipe(codes, **more)
    # Searching, the atoms are there as the state's and of norm 1.
    searching = room.nbytes(_state(recipe, D)._asdict()) + search(recipe, D)
    planned = lca_plan.plan(recipe, D, shared=jax.default_backend() == "cpu").total("device")
    assert 1 <= planned / max(searching, _update(recipe, D)) <= 1.7


def test_states_are_counted_exactly():
    made = lca_plan.plan(_recipe("certified", n_latents=40), 12)
    state = sum(term.nbytes for term in made.terms if term.name in ("atoms", "Adam's two moments, counters"))
    own = lca_dictionary.first(_recipe("certified", n_latents=40), np.zeros(12, np.float32))
    assert state == pytest.approx(room.nbytes(own._asdict()), abs=64)


@pytest.mark.parametrize(
    ("codes", "more", "text"),
    [
        ("literal", {"iterations": 300}, "iterations gone back.*--lca_iterations=300, or lower --lca_batch_size=256"),
        ("literal", {"n_latents": 1 << 20, "batch_size": 1}, "gradient through the search.*--n_latents=1048576"),
        ("lca", {}, "codes and correlations.*--n_latents=2048"),
        ("lca", {"batch_size": 4096}, "codes and correlations.*--lca_batch_size=4096"),
        ("certified", {"batch_size": 1 << 20}, "entries of codes.*--lca_batch_size=1048576"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_largest_term_and_its_flag(codes, more, text):
    made = lca_plan.plan(_recipe(codes, **more), D)
    made.check(8 * GIB, 8 * GIB, 8 * GIB)
    with pytest.raises(AmortjaxError, match=f"device memory: .*{text}") as caught:
        made.check(2**20, 8 * GIB, 8 * GIB)
    assert "\n" not in str(caught.value)


def test_it_is_announced_and_what_is_written_counts_as_free(planted, tmp_path, capsys, monkeypatch):
    recipe, source = _recipe("certified", n_latents=48), Batches(planted, 64, 0)
    made = lca_plan.announce(recipe, source, tmp_path, loop.Pace())
    assert made.text() in capsys.readouterr().err
    assert {"rows of activations", "batches read ahead", "checkpoints"} <= {term.name for term in made.terms}
    monkeypatch.setattr(plan, "disk_free", lambda folder: 0)
    (tmp_path / "sae").mkdir()  # another method's
    (tmp_path / "sae" / "old").write_bytes(b"0" * made.total("disk"))
    with pytest.raises(AmortjaxError, match=r"not enough disk.*checkpoints.*--checkpoint_every=0"):
        lca_plan.announce(recipe, source, tmp_path, loop.Pace())
    (tmp_path / "lca_state").mkdir()
    (tmp_path / "lca_state" / "old").write_bytes(b"0" * made.total("disk"))
    lca_plan.announce(recipe, source, tmp_path, loop.Pace())
    assert (
        "checkpoints" not in lca_plan.announce(recipe, source, tmp_path, loop.Pace(checkpoint_every=0)).text()
    )
