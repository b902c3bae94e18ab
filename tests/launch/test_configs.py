"""Every flagfile and every command of the README names flags that exist."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from amortjax.launch import flagged

ROOT = Path(__file__).parents[2]
ALIASES = {"collect": {"output_dir": "out"}}
FLAGFILES = sorted((ROOT / "configs").glob("*/*.flags"))
NEEDED = {"bench_inference": [], "section5": ["--ckpts=x", "--out=x"], "collect": [], "train": []}


def parse(launcher: str, argv: list[str]):
    module = importlib.import_module(f"amortjax.launch.{launcher}")
    return flagged.parse(module.Config, argv, ALIASES.get(launcher))


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_flagfile_parses_and_says_what_it_runs(path):
    assert path.read_text().startswith("# ")
    parse(path.parent.name, [*NEEDED[path.parent.name], f"--flagfile={path}"])


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
