"""Several trainings from one command: a grid of values (--sweep) and a list of flagfiles (--configs)."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from amortjax.errors import AmortjaxError
from amortjax.launch import flagged


def expand(config: Any, recipe_class: type) -> dict[str, Any]:
    """{name: recipe} of the trainings a Config asks for; "" if it is one, of its own flags.

    Every flagfile of `config.configs` changes the given flags, every point of `config.sweep`
    (`k:20/40,lr:1e-3/3e-4`) those. Only fields of the recipe may differ.
    """
    fields = {field.name for field in dataclasses.fields(recipe_class)}
    base = {name: getattr(config, name) for name in fields}
    bases = {"": base}
    if config.configs:
        bases = {Path(file).stem: base | _overrides(config, file, fields) for file in config.configs}
        if len(bases) != len(config.configs):
            raise AmortjaxError("--configs: two flagfiles have the same name, which names their folders")
    points = _points(config, config.sweep, fields)
    return {
        "_".join(part for part in (name, label) if part): recipe_class(**(values | point))
        for name, values in bases.items()
        for label, point in points.items()
    }


def _overrides(config: Any, file: str, fields: set[str]) -> dict[str, Any]:
    if not Path(file).is_file():
        raise AmortjaxError(f"--configs: {file} is not a file")
    given = flagged.given_flags(type(config), [f"--flagfile={file}"])
    for name in sorted(set(given) - fields - {"out"}):
        if given[name] != getattr(config, name):
            raise AmortjaxError(
                f"--configs: {file} sets --{name}={given[name]}, but SAEs trained in one pass share it: "
                f"{getattr(config, name)}"
            )
    return {name: value for name, value in given.items() if name in fields}


def _points(config: Any, sweep: tuple[str, ...], fields: set[str]) -> dict[str, dict[str, Any]]:
    """{label: {field: value}}, the product of the axes."""
    axes = []
    for axis in sweep:
        name, colon, values = axis.partition(":")
        if not colon or not values:
            raise AmortjaxError(f"--sweep={axis}: write it as FLAG:VALUE/VALUE, as in k:20/40/80")
        if name not in fields:
            raise AmortjaxError(f"--sweep={axis}: --{name} is not a flag of the recipe")
        if name in ("groups", "group_k"):
            raise AmortjaxError(
                f"--sweep={axis}: --{name} itself has '/'; list flagfiles in --configs instead"
            )
        if any(name == axis[0][0] for axis in axes) or len(set(values.split("/"))) < len(values.split("/")):
            raise AmortjaxError(f"--sweep={','.join(sweep)}: {name} or one of its values is there twice")
        axes.append([(name, text) for text in values.split("/")])
    points = {}
    for point in itertools.product(*axes):
        label = "_".join(f"{name}_{text}" for name, text in point)
        points[label] = {name: flagged.parse_field(type(config), name, text) for name, text in point}
    return points
