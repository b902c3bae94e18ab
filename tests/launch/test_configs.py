"""Every flagfile and every command of the README names flags that exist."""

import importlib
import math
import re
import shlex
from pathlib import Path

import pytest

from amortjax.launch import flagged
from amortjax.launch.sweep import expand
from amortjax.training.recipe import Recipe

ROOT = Path(__file__).parents[2]
ALIASES = {"collect": {"output_dir": "out"}}
FLAGFILES = sorted((ROOT / "configs").rglob("*.flags"))


def launcher_of(path: Path) -> str:
    return path.relative_to(ROOT / "configs").parts[0]


def parse(launcher: str, argv: list[str]):
    module = importlib.import_module(f"amortjax.launch.{launcher}")
    return flagged.parse(module.Config, argv, ALIASES.get(launcher))


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_flagfile_parses_and_says_what_it_runs(path, monkeypatch):
    assert path.read_text().startswith("# ")
    monkeypatch.chdir(ROOT)  # a flagfile in a flagfile is named from here
    module = importlib.import_module(f"amortjax.launch.{launcher_of(path)}")
    assert flagged.given_flags(module.Config, [f"--flagfile={path}"], ALIASES.get(launcher_of(path)))


@pytest.mark.parametrize(
    "path",
    [p for p in FLAGFILES if launcher_of(p) == "train" and "--out=" in p.read_text()],
    ids=lambda p: p.stem,
)
def test_trainings_are_complete(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = parse("train", [f"--flagfile={path}"]).checked()
    recipes = {name: recipe.check() for name, recipe in expand(config, Recipe).items()}
    swept = math.prod(axis.count("/") + 1 for axis in config.sweep)
    assert len(recipes) == max(len(config.configs), 1) * swept
    assert swept == 6 or "saebench" not in str(path)
    if "saebench" in str(path):
        recipe = next(iter(recipes.values()))
        assert recipe.steps * recipe.batch_size == pytest.approx(5e8, rel=1e-5)
        assert [round(share * recipe.steps) for share in config.save_at] == [
            0,
            244,
            771,
            2441,
            7715,
            24414,
            77148,
        ]


def readme_commands() -> list[tuple[str, list[str]]]:
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    found = re.findall(r"^python -m amortjax\.launch\.(\w+) (.*)$", text, re.MULTILINE)
    return [(launcher, shlex.split(rest)) for launcher, rest in found]


@pytest.mark.parametrize(("launcher", "argv"), readme_commands())
def test_readme_command_parses(launcher, argv, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse(launcher, argv)


def test_readme_has_commands():
    assert len(readme_commands()) >= 4
