"""What a checkpoint's file leaves open is settled by the same flags in every launcher that evaluates one."""

from pathlib import Path

import pytest

from amortjax.launch import (
    consistency,
    core_lite,
    dead_audit,
    decompose,
    flagged,
    nulls,
    section5,
    section43,
    step_sweep,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"
LAUNCHERS = (section5, section43, step_sweep, core_lite, dead_audit, nulls, consistency, decompose)


def parse(launcher, path, **flags):
    one = "ckpt" if launcher is decompose else "ckpts"
    given = {one: path, "acts": "acts", "out": "out"} | flags
    if launcher is core_lite:
        given = {name: value for name, value in given.items() if name != "acts"}
    return flagged.parse(launcher.Config, [f"--{name}={value}" for name, value in given.items()])


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda launcher: launcher.__name__.split(".")[-1])
def test_every_launcher_takes_them(launcher):
    config = parse(launcher, "sae", k=4, norm_factor=0.5)
    assert config.given() == {"k": 4, "norm_factor": 0.5}
    for passed_on in ("section5", "shared"):
        if hasattr(config, passed_on):
            assert getattr(config, passed_on)().given() == config.given()


@pytest.mark.parametrize(
    ("flags", "variant"), [({}, "standard"), ({"k": 3}, "topk"), ({"threshold": 0.5}, "batch_topk")]
)
def test_they_settle_what_is_loaded(flags, variant):
    [path] = [p for p in (GOLDEN / "overcomplete_batchtopk").iterdir() if p.suffix in (".pt", ".safetensors")]
    with pytest.warns() if not flags else pytest.MonkeyPatch.context():
        [sae] = section5.load_all(parse(section5, path, **flags))
    assert sae.variant == variant
