"""Flags from a dataclass: one frozen `Config` per launcher gives the defaults, the flags and the `--help`.

A field is `name: Annotated[type, "help"] = default`; types are str, int, float, bool, `Literal[...]`, an
optional of these (`int | None`), and `tuple[str, ...]` or `tuple[Literal[...], ...]` (comma-separated).
A field `out` is a folder; where a file is written to, call it something else.
Flags are read with absl, so `--flagfile=...` nests and the last one wins.
"""

import contextlib
import dataclasses
import difflib
import inspect
import json
import os
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from absl import flags

from amortjax.errors import AmortjaxError
from amortjax.launch import huge_pages


class FlagError(AmortjaxError):
    """A flag that does not exist or has a value it can't take."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Out:
    """The flag of a launcher that writes a folder."""

    out: Annotated[str, "Folder of the results (a .json path stands for the folder without that ending)."]

    @property
    def folder(self) -> Path:
        return folder_of(self.out)


def folder_of(out: str) -> Path:
    """What --out means."""
    return Path(out.removesuffix(".json"))


def check_out(out: str | None) -> None:
    """AmortjaxError if --out is a file or below one; None and addresses (gs://...) pass."""
    if out is None or "://" in out:
        return
    folder = folder_of(out)
    # os.path: a Path raises where a parent may not be read.
    files = [at for at in (folder, *folder.parents) if os.path.exists(at) and not os.path.isdir(at)]
    if files:
        raise AmortjaxError(f"--out={out}: {files[0]} is a file: name a folder")


def _hints(config_class: type) -> dict[str, tuple[Any, str]]:
    """{field: (type, help)} of a Config."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    return {name: (get_args(hint)[0], get_args(hint)[1]) for name, hint in hints.items()}


def _split_optional(kind: Any) -> tuple[Any, bool]:
    if get_origin(kind) in (types.UnionType, typing.Union):
        return next(arg for arg in get_args(kind) if arg is not type(None)), True
    return kind, False


def _choices(kind: Any) -> tuple[str, ...]:
    kind, _ = _split_optional(kind)
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    return get_args(kind) if get_origin(kind) is Literal else ()


def _is_list(kind: Any) -> bool:
    return get_origin(_split_optional(kind)[0]) is tuple


def _parse_value(name: str, kind: Any, text: str) -> Any:
    kind, optional = _split_optional(kind)
    if optional and text.lower() in ("", "none"):
        return None
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return tuple(_parse_value(name, item, part.strip()) for part in text.split(",") if part.strip())
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise FlagError(f"--{name}={text}: not a choice. Choices: {', '.join(get_args(kind))}.")
        return text
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise FlagError(f"--{name}={text}: say true or false.")
        return text.lower() in ("true", "1", "yes")
    try:
        return kind(text)
    except ValueError as error:
        raise FlagError(
            f"--{name}={text}: not {'a number' if kind is float else 'an ' + kind.__name__}."
        ) from error


def parse_field(config_class: type, name: str, text: str) -> Any:
    """The value of one field from its text. Raises FlagError if there is no such field or value."""
    hints = _hints(config_class)
    if name not in hints:
        close = difflib.get_close_matches(name, hints, n=1)
        raise FlagError(f"--{name}: no such flag." + (f" Did you mean --{close[0]}?" if close else ""))
    return _parse_value(name, hints[name][0], text)


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


# A file name or a list among the defaults stays whole, so that it can be copied.
_HELP = textwrap.TextWrapper(
    width=100,
    initial_indent=" " * 6,
    subsequent_indent=" " * 6,
    break_long_words=False,
    break_on_hyphens=False,
)


def help_text(config_class: type, module: str) -> str:
    """The `--help` page of a launcher: its docstring, then each flag with default and choices."""
    doc = textwrap.dedent(sys.modules[config_class.__module__].__doc__ or "").strip()
    lines = [doc, "", f"usage: python -m {module} [--flagfile=FILE] [--flag=value ...]", "", "flags:"]
    for field in _as_shown(config_class):
        kind, text = _hints(config_class)[field.name]
        if _choices(kind):
            text += f" Choices: {', '.join(_choices(kind))}."
        if _is_list(kind):
            text += " Comma-separated."
        if field.default is dataclasses.MISSING:
            text += " Required."
        elif _show(field.default):
            text += f" Default: {_show(field.default)}."
        lines.append(f"  --{field.name}")
        lines += _HELP.wrap(text)
    return "\n".join(lines)


def _as_shown(config_class: type) -> list[dataclasses.Field]:
    """Required flags first, then the launcher's own, then those it shares with others."""
    own = inspect.get_annotations(config_class)
    return sorted(
        dataclasses.fields(config_class),
        key=lambda field: (field.default is not dataclasses.MISSING, field.name not in own),
    )


def parse(config_class: type, argv: Sequence[str], aliases: dict[str, str] | None = None) -> Any:
    """A Config from command-line arguments (without the program's name).

    `aliases` maps another spelling of a flag to the field it sets. Raises FlagError with the choices, and
    AmortjaxError if --out is a file, which would be found only when results are written.
    """
    given = given_flags(config_class, argv, aliases)
    missing = [
        f.name
        for f in dataclasses.fields(config_class)
        if f.default is dataclasses.MISSING and f.name not in given
    ]
    if missing:
        raise FlagError(f"needed: {', '.join('--' + name for name in missing)}. --help explains each.")
    config = config_class(**given)
    check_out(getattr(config, "out", None))
    return config


def given_flags(
    config_class: type, argv: Sequence[str], aliases: dict[str, str] | None = None
) -> dict[str, Any]:
    """{field: value} of the flags that are given, in the arguments or their flagfiles."""
    aliases = aliases or {}
    hints = _hints(config_class)
    values = flags.FlagValues()
    # A FlagValues of its own knows only our flags; --flagfile is one of absl's and works on any FlagValues.
    for name in [*hints, *aliases]:
        kind = hints[aliases.get(name, name)][0]
        if kind is bool:
            flags.DEFINE_boolean(name, None, "", flag_values=values)
        else:
            flags.DEFINE_string(name, None, "", flag_values=values)
    flags.DEFINE_string("flagfile", "", "", flag_values=values)
    try:
        rest = values(["launcher", *argv])[1:]
    except flags.UnrecognizedFlagError as error:
        close = difflib.get_close_matches(error.flagname, [*hints, *aliases], n=1)
        hint = f" Did you mean --{close[0]}?" if close else ""
        raise FlagError(f"--{error.flagname}: no such flag.{hint} --help lists the flags.") from error
    except flags.Error as error:
        raise FlagError(str(error).splitlines()[0]) from error
    if rest:
        lists = [name for name, (kind, _) in hints.items() if _is_list(kind)]
        example = f", as in --{lists[-1]}=a,b,c" if lists else ""
        raise FlagError(f"{' '.join(rest)}: not a flag. Lists are comma-separated without spaces{example}.")
    given: dict[str, Any] = {}
    for name in [*aliases, *hints]:
        field = aliases.get(name, name)
        if values[name].present:
            value = values[name].value
            given[field] = (
                value if isinstance(value, bool) else _parse_value(name, hints[field][0], str(value))
            )
    return given


def to_json(config: Any) -> str:
    return json.dumps(dataclasses.asdict(config), indent=1, default=str)


def launch(
    config_class: type, run: Callable[[Any], Any], module: str, aliases: dict[str, str] | None = None
) -> None:
    """A launcher's main: `--help`, flags, then `run(config)`; a user's mistake is one line and exit code 2."""
    argv = sys.argv[1:]
    if any(arg in ("-h", "-help", "--help", "--helpfull", "--helpshort") for arg in argv):
        with contextlib.suppress(BrokenPipeError):  # `--help | head`
            print(help_text(config_class, module), flush=True)
            raise SystemExit(0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it ends
        raise SystemExit(0)
    huge_pages.ensure()
    try:
        run(parse(config_class, argv, aliases))
    except AmortjaxError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        # A full disk or a folder without permission is the user's to mend as well.
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror or error}{where}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
