"""Flags from a dataclass: types, lists, flagfiles, and what is said of mistakes."""

import dataclasses
import subprocess
import sys
from typing import Annotated, Literal

import pytest

from amortjax.errors import AmortjaxError, StoreError
from amortjax.launch import flagged


@dataclasses.dataclass(frozen=True)
class Config:
    acts: Annotated[str, "A store."]
    modes: Annotated[tuple[Literal["a", "b"], ...], "Modes."] = ("a",)
    steps: Annotated[int, "Steps."] = 3
    lam: Annotated[float | None, "Lambda."] = None
    stream: Annotated[bool, "Stream."] = False


def test_values_have_their_types():
    config = flagged.parse(Config, ["--acts=x", "--modes=b,a", "--steps=7", "--lam=0.5", "--stream"])
    assert config == Config("x", ("b", "a"), 7, 0.5, True)
    assert flagged.parse(Config, ["--acts=x", "--nostream", "--lam=none"]) == Config("x")


def test_flagfiles_nest_and_later_flags_win(tmp_path):
    (tmp_path / "common.flags").write_text("# a comment\n--acts=common\n--steps=5\n")
    (tmp_path / "run.flags").write_text(f"--flagfile={tmp_path}/common.flags\n--steps=6\n")
    assert flagged.parse(Config, [f"--flagfile={tmp_path}/run.flags", "--lam=2"]) == Config(
        "common", ("a",), 6, 2.0
    )


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "needed: --acts"),
        (["--acts=x", "--modes=a,c"], "--modes=c: not a choice. Choices: a, b"),
        (["--acts=x", "--modes", "a", "b"], "comma-separated without spaces"),
        (["--acts=x", "--step=1"], "--step: no such flag. Did you mean --steps"),
        (["--acts=x", "--steps=many"], "--steps=many: not an int"),
        (["--acts=x", "--lam=x"], "not a number"),
        (["--flagfile=nowhere.flags"], "nowhere.flags"),
    ],
)
def test_mistakes_are_one_line_with_the_remedy(argv, said):
    with pytest.raises(flagged.FlagError) as error:
        flagged.parse(Config, argv)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_aliases_set_the_field():
    assert flagged.parse(Config, ["--output=x"], aliases={"output": "acts"}).acts == "x"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writes(flagged.Out):
    steps: Annotated[int, "Steps."] = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Elsewhere:
    out: Annotated[str | None, "A folder or an address."] = None


@pytest.mark.parametrize("config_class", [Writes, Elsewhere])
@pytest.mark.parametrize("out", ["file", "file.json", "file/below/it"])
def test_out_that_is_a_file_is_refused_at_once(config_class, out, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AmortjaxError) as error:
        flagged.parse(config_class, [f"--out={tmp_path}/{out}"])
    assert str(error.value) == f"--out={tmp_path}/{out}: {tmp_path}/file is a file: name a folder"


def test_out_may_be_there_stand_for_its_folder_or_be_an_address(tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text("")
    for out in ("results.json", "", "new/folder"):
        assert flagged.parse(Writes, [f"--out={tmp_path}/{out}"]).out == f"{tmp_path}/{out}"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gs:").write_text("")
    assert flagged.parse(Elsewhere, ["--out=gs://bucket/store"]).out == "gs://bucket/store"
    assert flagged.parse(Elsewhere, []).out is None


def run_failing(config):
    raise StoreError("no store there: collect one")


def run_full_disk(config):
    raise OSError(28, "No space left on device", "outputs/x")


@pytest.mark.parametrize(("run", "said"), [(run_failing, "no store there"), (run_full_disk, "No space left")])
def test_a_users_mistake_is_one_line_and_exit_code_2(run, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["launcher", "--acts=x"])
    with pytest.raises(SystemExit) as stop:
        flagged.launch(Config, run, "amortjax.launch.test")
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1


def test_help_names_every_flag_default_and_choice():
    text = flagged.help_text(Config, "amortjax.launch.test")
    for name in (
        "--acts",
        "Required.",
        "Choices: a, b.",
        "Default: 3.",
        "usage: python -m amortjax.launch.test",
    ):
        assert name in text


def test_help_keeps_long_file_names_whole():
    name = "https://host/" + "model-layer_8-width_" * 6 + "2411_13117.json"

    @dataclasses.dataclass(frozen=True)
    class Long:
        table: Annotated[str, "Published figures."] = name

    assert name in flagged.help_text(Long, "amortjax.launch.test")


def test_help_shows_required_flags_first_and_shared_ones_last():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(Config):
        ours: Annotated[str, "Ours."] = ""
        needed: Annotated[str, "Needed."]

    text = flagged.help_text(Own, "amortjax.launch.test")
    shared = [field.name for field in dataclasses.fields(Config) if field.default is not dataclasses.MISSING]
    assert text.index("--needed") < text.index("--ours") < text.index(f"--{shared[0]}")


def test_help_into_a_closed_pipe_is_no_traceback():
    command = f"{sys.executable} -m amortjax.launch.convert --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
