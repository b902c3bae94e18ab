"""A training's state on disk: one Orbax checkpoint for all SAEs trained together, and snapshots of SAEs."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from amortjax.activations.store import IDENTITY
from amortjax.errors import AmortjaxError
from amortjax.saes.digest import digest
from amortjax.saes.formats import save_sae
from amortjax.saes.sae import SAE
from amortjax.training import devices, room, step
from amortjax.training.recipe import Recipe

# Of a manifest, what decides which rows are trained on.
ROWS = (
    *(name for name in IDENTITY if name != "format_version"), "model_dtype", "batch_tokens", "n_rows",
    "split_fractions", "seed", "split_seed", "buffer_tokens",
)  # fmt: skip


class Units(NamedTuple):
    """Of the training rows, raw: s, by which inputs are divided; where b_dec starts (D,); the mean (D,)."""

    scale: float
    centre: np.ndarray
    mean: np.ndarray


class Header(NamedTuple):
    """What a checkpoint says beside the arrays."""

    step: int
    units: list[Units]
    feed: Any


class Checkpoints:
    """The checkpoints of one folder; a context manager."""

    def __init__(self, folder: Path, jobs: Sequence[Any], manifest: Mapping[str, Any]):
        """`jobs`: each with a `recipe`, and the SAE it goes on from as `init`; `manifest` of their rows."""
        self.folder = folder
        rows = {f"store's {name}": value for name, value in source_identity(manifest).items()}
        self.wanted = [_identity(job.recipe, job.init) | rows for job in jobs]
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        self.manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.manager.close()

    def header(self) -> Header | None:
        """Of the last checkpoint, or None. AmortjaxError naming the fields if it is of another training."""
        last = self.manager.latest_step()
        if last is None:
            return None
        args = ocp.args.Composite(header=ocp.args.JsonRestore())  # pyright: ignore[reportCallIssue]
        header = self.manager.restore(last, args=args)["header"]
        self._check(header["jobs"])
        units = [
            Units(u["scale"], np.asarray(u["centre"], np.float32), np.asarray(u["mean"], np.float32))
            for u in header["units"]
        ]
        return Header(last, units, header["feed"])

    def states(self, like: list[step.State]) -> list[step.State]:
        """Of the last checkpoint; `like` gives structure, dtypes and devices."""
        tree = {str(i): state._asdict() for i, state in enumerate(like)}
        args = ocp.args.Composite(state=ocp.args.StandardRestore(tree))  # pyright: ignore[reportCallIssue]
        found = self.manager.restore(self.manager.latest_step(), args=args)["state"]
        return [devices.everywhere(step.State(**found[str(i)])) for i in range(len(like))]

    def save(self, done: int, states: list[step.State], units: list[Units], feed: Any) -> None:
        """Writes a checkpoint, then drops the one before. AmortjaxError if the disk has no room for it."""
        tree = {str(i): state._asdict() for i, state in enumerate(states)}
        if not all(_finite(state.weights) for state in states):
            raise AmortjaxError(
                f"{self.folder}: training diverged, weights are not finite after step {done}; the last checkpoint is "
                "kept. Lower --lr or --clip, with another --out"
            )
        room.room_for_checkpoint(self.folder, room.nbytes(tree))
        header = {
            "jobs": self.wanted,
            "units": [
                {"scale": u.scale, "centre": u.centre.tolist(), "mean": u.mean.tolist()} for u in units
            ],
            "feed": feed,
        }
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(tree),  # pyright: ignore[reportCallIssue]
            header=ocp.args.JsonSave(header),  # pyright: ignore[reportCallIssue]
        )
        self.manager.save(done, args=args)
        self.manager.wait_until_finished()

    def _check(self, saved: list[dict[str, Any]]) -> None:
        if len(saved) != len(self.wanted):
            raise AmortjaxError(
                f"{self.folder} is of a training of {len(saved)} SAEs, not {len(self.wanted)}: use another "
                "--out, or delete that folder to start again"
            )
        other = {
            f"{name}={old.get(name)}, not {value}"
            for old, new in zip(saved, self.wanted, strict=True)
            for name, value in new.items()
            if old.get(name) != value
        }
        if other:
            raise AmortjaxError(
                f"{self.folder} is of a training with {'; '.join(sorted(other))}: use another --out, or delete "
                "that folder to start again"
            )


def _finite(weights: Any) -> bool:
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(weights))


def source_identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What tells one source of training rows from another."""
    found = {name: manifest.get(name) for name in ROWS}
    return json.loads(json.dumps(found))  # as a file has it: tuples become lists


def _steps(folder: Path) -> list[Path]:
    parts = folder.iterdir() if folder.is_dir() else ()
    return [part for part in parts if part.name.isdigit() and part.is_dir()]


def has_steps(folder: Path) -> bool:
    """Whether a folder holds checkpoints of steps."""
    return bool(_steps(folder))


def clear_steps(folder: Path) -> None:
    """Removes the checkpoints of steps in a folder, and the folder if nothing else is in it."""
    for part in _steps(folder):
        shutil.rmtree(part)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _identity(recipe: Recipe, init: SAE | None) -> dict[str, Any]:
    own = dataclasses.asdict(recipe) | {"init": None if init is None else digest(init)}
    return {f"--{name}": value for name, value in own.items()}


def snapshot(sae: SAE, folder: Path, done: int) -> Path:
    """Writes the SAE after `done` steps to FOLDER/checkpoints/DONE/sae.safetensors."""
    path = folder / "checkpoints" / str(done) / "sae.safetensors"
    room.room_for_checkpoint(folder, room.nbytes({"sae": sae}))
    return save_sae(sae, path)
