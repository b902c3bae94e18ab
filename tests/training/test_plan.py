"""The memory plan against what XLA and the arrays themselves say, and the refusals that follow from it."""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from amortjax.activations.store import MemoryStore
from amortjax.errors import AmortjaxError
from amortjax.training import loop, modules, plan, room, scratch, sparse, step, watch
from amortjax.training.batches import Batches
from amortjax.training.losses import LOSSES
from amortjax.training.recipe import NEEDS, Recipe

N, D, M = 512, 128, 2048
GIVEN: dict[str, Any] = {"k": 32, "lam": 0.1, "target_l0": 20.0, "group_k": "6/5/4/3/3/2/2/1"}
GIB = 2**30


def _recipe(variant: Any, **more: Any) -> Recipe:
    given: dict[str, Any] = {"n_latents": M, "batch_size": N, NEEDS[variant][0]: GIVEN[NEEDS[variant][0]]}
    return Recipe(variant=variant, **(given | ({"hidden": 64} if variant == "mlp" else {}) | more)).check()


def _begin(recipe: Recipe, d: int = D) -> tuple[Any, step.State]:
    graph, weights = modules.split(modules.start(recipe, np.zeros(d, np.float32)))
    return graph, step.init(weights, recipe)


def _compiled(recipe: Recipe) -> int:
    """Bytes that XLA sets aside for a step: what goes in, what comes out beside it, scratch."""
    graph, state = _begin(recipe)
    x, mean = (
        jax.ShapeDtypeStruct((recipe.batch_size, D), jnp.float32),
        jax.ShapeDtypeStruct((D,), jnp.float32),
    )
    lowered = step.train_step.lower(state, x, mean, graph=graph, recipe=recipe)
    # The machine code does not matter here, and takes half of the time.
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    if "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", ""):  # conftest's; users have them
        options["xla_cpu_use_fusion_emitters"] = True
    found = lowered.compile(compiler_options=options).memory_analysis()
    beside = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + beside + found.temp_size_in_bytes


@pytest.mark.parametrize("variant", LOSSES)
def test_the_plan_is_above_what_a_step_takes_but_not_far(variant):
    # The auxiliary loss is the same for all, and compiles as long as the rest.
    recipe = _recipe(variant, auxk=1 / 32 if variant in ("topk", "mlp") else 0.0)
    planned = plan.plan([recipe], D).total("device") - 4 * N * D  # the raw batch is outside of the step
    assert 1 <= planned / _compiled(recipe) <= 1.5


def test_an_accelerator_takes_all_active_latents_at_once(monkeypatch):
    # Another shape than above, which is compiled with chunks.
    recipe = _recipe("topk", batch_size=N // 2)
    chunked = plan.plan([recipe], D).total("device")
    monkeypatch.setattr(sparse, "chunk", lambda width: 10**9)
    planned = plan.plan([recipe], D).total("device") - 4 * N // 2 * D
    assert planned > 1.5 * chunked
    assert 1 <= planned / _compiled(recipe) <= 1.5


@pytest.mark.parametrize("variant", LOSSES)
def test_states_and_weights_are_counted_exactly(variant):
    recipe = _recipe(variant, n_latents=64, **({"hidden": 3} if variant == "mlp" else {}))
    _, state = _begin(recipe, 12)
    assert scratch.weights(recipe, 12) == room.nbytes(state.weights)
    assert scratch.state(recipe, 12) == pytest.approx(room.nbytes(state._asdict()), abs=64)


def test_states_of_several_saes_add_up_and_scratch_is_the_largest():
    small, large = _recipe("topk"), _recipe("standard", n_latents=2 * M)
    one, other, both = (plan.plan(recipes, D) for recipes in ([small], [large], [small, large]))
    states = [scratch.state(recipe, D) for recipe in (small, large)]
    assert both.total("disk") == one.total("disk") + other.total("disk")
    rest = other.total("device") - states[1]
    assert both.total("device") == sum(states) + rest
    assert "2 SAEs, topk, standard, M = 2048/4096, D = 128" in both.text()


def test_more_devices_share_the_batch_and_each_has_the_weights():
    recipe = _recipe("standard", batch_size=16 * N)
    one, four = plan.plan([recipe], D), plan.plan([recipe], D, devices=4)
    names = [{term.name: term.nbytes for term in made.terms} for made in (one, four)]
    for name, factor in (("pre-activations (N x M)", 4), ("batch, raw and scaled", 4), ("weights", 1)):
        assert names[1][name] * factor == names[0][name]
    assert plan.plan([recipe], D, devices=4, processes=2, shared=True).copies == 2


def test_the_table_has_a_line_per_term_and_its_columns_align():
    made = plan.plan(
        [_recipe("topk")], D, rows=plan.Held(3 * GIB, "x"), held_out=100, sample=100, shared=True
    )
    title, *lines = made.text().splitlines()
    assert title == "memory plan: topk, M = 2048, D = 128, 512 tokens a step"
    assert len(lines) == len(made.terms) + 4 and len({len(line) for line in lines}) == 1
    assert any(
        line.startswith("  host    rows of activations") and line.endswith("3.00 GiB") for line in lines
    )


def _terms(*terms: plan.Term, **more: Any) -> plan.Plan:
    return plan.Plan("x", terms, **more)


def test_what_does_not_fit_is_refused_with_the_largest_term_and_its_flag():
    made = plan.plan([_recipe("standard")], D, rows=plan.Held(5 * GIB, "lower --buffer_tokens=9"))
    made.check(GIB, 6 * GIB, GIB)
    made.check(None, None, None)
    for free, text in (
        (
            (GIB // 100, 6 * GIB, GIB),
            r"device memory: .* 10\.2 MiB are free.* is dense codes.*--batch_size=512",
        ),
        ((GIB, 5 * GIB, GIB), r"host memory: .* 5\.00 GiB are free.*rows of activations.*--buffer_tokens=9"),
        ((GIB, 6 * GIB, 2**20), r"disk: .* 1\.00 MiB are free.*checkpoints.*--checkpoint_every=0"),
    ):
        with pytest.raises(AmortjaxError, match=text) as caught:
            made.check(*free)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (_recipe("topk", n_latents=1 << 20, batch_size=8), "gradients and update.*--n_latents=1048576"),
        (_recipe("standard", batch_size=1 << 20), "dense codes, gradients.*--batch_size=1048576"),
        (_recipe("topk", batch_size=1 << 20), "auxiliary loss.*--batch_size=1048576.*--auxk=0"),
        (_recipe("topk", batch_size=1 << 20, auxk=0.0, k=1), "pre-activations.*--batch_size=1048576"),
    ],
    ids=["latents", "dense", "auxk", "pre"],
)
def test_the_flag_to_turn_is_that_of_the_largest_term(recipe, text):
    with pytest.raises(AmortjaxError, match=text):
        plan.plan([recipe], D).check(2**30, None, None)


def test_many_saes_are_told_to_be_fewer():
    with pytest.raises(
        AmortjaxError, match=r"Adam's two moments.*train fewer SAEs in one pass, or lower --n_latents"
    ):
        plan.plan([_recipe("topk", auxk=0.0)] * 40, D).check(50 * 2**20, None, None)


def test_on_a_cpu_device_and_host_come_out_of_one_memory():
    term = plan.Term("a", GIB, "device", "lower a"), plan.Term("b", GIB, "host", "lower b")
    _terms(*term).check(None, GIB, None)
    _terms(*term, shared=True).check(None, 2 * GIB, None)
    with pytest.raises(AmortjaxError, match=r"memory: .*needs 2\.00 GiB"):
        _terms(*term, shared=True).check(None, 2 * GIB - 1, None)
    with pytest.raises(AmortjaxError, match=r"needs 5\.00 GiB .* is a, 4\.00 GiB: lower a"):
        _terms(*term, shared=True, copies=4).check(None, 4 * GIB, None)


def test_what_is_held_already_is_not_asked_for_again():
    _terms(plan.Term("rows", 4 * GIB, "host", "", held=4 * GIB)).check(None, 1, None)


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    x = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
    yield MemoryStore.build(x, np.repeat(np.arange(6), 100), ["sae_train"] * 5 + ["test"])


def test_a_training_is_announced_before_it_starts(store, tmp_path, capsys, monkeypatch):
    recipe = Recipe(n_latents=16, k=2, batch_size=50)
    batches = Batches(store, 50, 0)
    made = plan.announce([recipe], batches, tmp_path, loop.Pace())
    assert made.text() in capsys.readouterr().err
    rows = next(term for term in made.terms if term.name == "rows of activations")
    assert (rows.nbytes, rows.held) == (500 * 8 * 4, 0)  # announced before they are read
    _ = batches[0]
    assert plan.rows_of(batches).held == rows.nbytes
    monkeypatch.setattr(plan, "host_free", lambda: 100)
    with pytest.raises(AmortjaxError, match="not enough memory"):
        plan.announce([recipe], batches, tmp_path, loop.Pace())
    monkeypatch.undo()
    monkeypatch.setattr(plan, "disk_free", lambda folder: 0)
    with pytest.raises(AmortjaxError, match=r"not enough disk.*checkpoints"):
        plan.announce([recipe], batches, tmp_path, loop.Pace())
    # A run that goes on has its checkpoint there already.
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "old").write_bytes(b"0" * made.total("disk"))
    plan.announce([recipe], batches, tmp_path, loop.Pace())


def test_room_is_looked_for_where_the_folder_will_be(tmp_path, monkeypatch):
    asked = []

    def usage(path: Any) -> Any:
        asked.append(path)
        return shutil._ntuple_diskusage(10 * GIB, 9 * GIB, GIB)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    target = tmp_path / "not" / "yet"
    room.room_for_checkpoint(target, GIB)
    with pytest.raises(
        AmortjaxError, match=rf"not/yet.*1\.00 GiB \({GIB + 1} bytes\).*1\.00 GiB \({GIB} bytes\)"
    ):
        room.room_for_checkpoint(target, GIB + 1)
    assert asked == [tmp_path, tmp_path]
    assert not target.exists()


MEMINFO = "MemTotal:  8000 kB\nMemAvailable:  4096 kB\n"


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("", {}, 4096 * 1024),
        ("0::/\n", {"memory.max": "max", "memory.current": "5"}, 4096 * 1024),
        (
            "0::/\n",
            {"memory.max": "3000", "memory.current": "1000", "memory.stat": "inactive_file 200"},
            2200,
        ),
        # The limit of a group above counts too.
        ("0::/a/b\n", {"a/memory.max": "900", "a/memory.current": "1000", "a/memory.stat": "anon 1"}, 0),
        # A container that sees the host's path but its own files.
        ("0::/host/a\n", {"memory.max": "70", "memory.current": "10", "memory.stat": "anon 1"}, 60),
        (
            "5:cpu:/x\n4:memory:/x\n",
            {
                "memory/x/memory.limit_in_bytes": "500",
                "memory/x/memory.usage_in_bytes": "400",
                "memory/x/memory.stat": "inactive_file 1\ntotal_inactive_file 50",
            },
            150,
        ),
    ],
    ids=["none", "unlimited", "v2", "above", "container", "v1"],
)
def test_free_memory_is_within_the_limits_of_control_groups(groups, files, free, tmp_path):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(MEMINFO)
    (tmp_path / "proc" / "self" / "cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert room.host_free(str(tmp_path / "proc"), str(tmp_path / "cgroup")) == free


def test_a_system_that_does_not_say_is_not_held_to_anything(tmp_path):
    assert room.host_free(str(tmp_path / "proc"), str(tmp_path / "cgroup")) is None


def test_the_fullest_accelerator_counts_and_a_cpu_says_nothing(monkeypatch):
    assert jax.default_backend() != "cpu" or room.device_free() is None

    @dataclasses.dataclass
    class Device:
        used: int

        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 100, "bytes_in_use": self.used}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(10), Device(70)])
    assert room.device_free() == 30


def test_sizes_of_arrays_of_shapes_and_of_numbers():
    tree = {
        "a": np.zeros((3, 4), np.float32),
        "b": jax.ShapeDtypeStruct((2,), jnp.int32),
        "c": (jnp.ones(()),),
    }
    assert room.nbytes(tree) == 48 + 8 + 4


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0.00 MiB"), (2**18, "0.25 MiB"), (3 * 2**20, "3.00 MiB"), (512 * 2**20, "512 MiB"), (GIB, "1.00 GiB"),
        (int(12.34 * GIB), "12.3 GiB"), (123 * GIB, "123 GiB"), (4000 * GIB, "4000 GiB"),
    ],
)  # fmt: skip
def test_sizes_have_three_digits(n, text):
    assert room.size(n) == text


@pytest.mark.parametrize("variant", ["standard", "batch_topk"])
def test_held_out_metrics_are_planned_for(variant):
    recipe = _recipe(variant)
    sae = modules.as_sae(*modules.split(modules.start(recipe, np.zeros(D, np.float32))))
    x, mean = jax.ShapeDtypeStruct((N, D), jnp.float32), jax.ShapeDtypeStruct((D,), jnp.float32)
    number, rows = watch.blocks(N, M)
    taken = watch._sums.lower(sae, x, mean, number=number, rows=rows).compile().memory_analysis()
    (term,) = scratch._evaluation(recipe, D, N)
    # The SAE is an argument there, and a copy of the weights.
    assert 1 <= term.nbytes / (taken.temp_size_in_bytes + scratch.weights(recipe, D)) <= 1.7
