"""Damaged checkpoints: every golden file, cut, flipped, and rewritten with tensors and settings that can't be.

Whatever is read must be a CheckpointError of one line that names a file, or an SAE that passes the checks; never
another exception, and never an SAE where a tensor is missing, misshapen or not finite.
"""

import json
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amortjax.errors import CheckpointError
from amortjax.saes.checks import check
from amortjax.saes.digest import digest
from amortjax.saes.formats import UNFORESEEN, load_sae
from amortjax.saes.formats.opened import CONTAINERS, open_weights
from amortjax.saes.formats.tensors import Tensor

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"
NOT_WEIGHTS = {"golden.npz", "PROVENANCE.json"}
CHOICES = {
    "overcomplete_batchtopk": {"threshold": 0.5},
    "saelens6_batchtopk_training": {"batch_rule": True},
}
REFUSED = {"saelens6_temporal"}
# Folders that hold more than one SAE.
PARTS = {
    "openai_topk": ("8.pt", "8_raw_state_dict.pt"),
    "seed_loca_sae": ("", "ae.pt", "standard_sae.pt"),
}
# What a json may hold where something else is wanted.
ODD = (None, True, -1, 0, 10**30, 1.5, float("nan"), "", "x", [], {}, [1, "a"], {"a": 1})


def _files(folder: Path) -> list[Path]:
    files = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    return sorted(file for file in files if file.name not in NOT_WEIGHTS)


CASES = [(folder.name, file) for folder in sorted(GOLDEN.iterdir()) for file in _files(folder)]


def cut(path: Path, data: st.DataObject, folder: str) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: data.draw(st.integers(0, max(0, len(raw) - 1)))])


def flip(path: Path, data: st.DataObject, folder: str) -> None:
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        # Half of them near the start, where headers are.
        end = data.draw(st.sampled_from([min(512, len(raw)), len(raw)]))
        raw[data.draw(st.integers(0, end - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)


def insert(path: Path, data: st.DataObject, folder: str) -> None:
    raw = path.read_bytes()
    at = data.draw(st.sampled_from([0, 8, len(raw) // 2, len(raw)]))
    path.write_bytes(raw[:at] + data.draw(st.binary(min_size=1, max_size=64)) + raw[at:])


def huge_header(path: Path, data: st.DataObject, folder: str) -> None:
    """A safetensors header that claims more than there is; other files get random bytes."""
    raw = path.read_bytes()
    length = data.draw(st.sampled_from([0, 1, 2**31, 2**62, 2**64 - 1, len(raw)]))
    path.write_bytes(length.to_bytes(8, "little") + raw[8:])


BYTES = {f.__name__: f for f in (cut, flip, insert, huge_header)}


def _settings_changed(path: Path, data: st.DataObject) -> None:
    """One value somewhere in a json is dropped or replaced."""
    root = json.loads(path.read_text())
    places = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node) if isinstance(node, list) else 0):
            places.append((node, key))
            walk(node[key])

    walk(root)
    node, key = data.draw(st.sampled_from(places))
    if data.draw(st.booleans()):
        del node[key]
    else:
        node[key] = data.draw(st.sampled_from(ODD))
    path.write_text(json.dumps(root))


# {name: what becomes of one tensor}; None: it is left out.
TENSOR_CHANGES = {
    "missing": lambda a: None,
    "nan": lambda a: np.where(np.arange(a.size).reshape(a.shape) == a.size // 2, np.nan, a).astype(
        np.float32
    ),
    "infinite": lambda a: np.full_like(a, np.inf, dtype=np.float32),
    "one_more_row": lambda a: np.concatenate([a, a[:1]]) if a.ndim else np.stack([a, a]),
    "one_axis_more": lambda a: a[None],
    "flat": lambda a: a.reshape(-1)[: max(1, a.size // 2)],
    "empty": lambda a: a.reshape(-1)[:0],
    # Not its plain transpose, which fits where the matrix is square.
    "turned": lambda a: a.T[:, :-1] if a.ndim == 2 else a.reshape(-1)[:0],
    "text": lambda a: np.frombuffer(b"text", np.uint8),
}
EXTRA = "a_tensor_nobody_knows"


def _tensor_changed(path: Path, data: st.DataObject) -> str | None:
    """Rewrites the file with one tensor changed, or one too many; the change's name, None if it can't be written."""
    opened = open_weights(path)
    flat = {} if opened is None else {key: opened.content[key] for key in opened.keys}
    tensors = sorted(key for key, value in flat.items() if isinstance(value, Tensor) and value.size)
    if not tensors or not all(isinstance(v, Tensor | int | float | str | type(None)) for v in flat.values()):
        return None
    flat = {key: value.numpy() if isinstance(value, Tensor) else value for key, value in flat.items()}
    key, change = data.draw(st.sampled_from(tensors)), data.draw(st.sampled_from([*TENSOR_CHANGES, "extra"]))
    if change == "extra":
        flat[EXTRA] = np.ones(3, np.float32)
    else:
        changed = TENSOR_CHANGES[change](flat[key])
        flat = {name: value for name, value in flat.items() if name != key}
        if changed is not None:
            flat[key] = np.ascontiguousarray(changed) if changed.ndim else changed
    _write(path, flat)
    return f"{change} {key}"


def _write(path: Path, flat: dict) -> None:
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(flat, path)
    elif path.suffix == ".npz":
        np.savez(path, **flat)
    else:
        torch = pytest.importorskip("torch")
        as_torch = {
            key: torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
            for key, value in flat.items()
        }
        torch.save(as_torch, path)


def _read(at: Path, name: str):
    """The SAE, or the CheckpointError; and what was said aloud."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            return check(load_sae(at, **CHOICES.get(name, {})), str(at)), len(said)
        except CheckpointError as error:
            message = str(error)
            assert UNFORESEEN not in message, message
            assert name in message and "\n" not in message, message
            return error, len(said)


def one_case(data: st.DataObject) -> None:
    name, file = data.draw(st.sampled_from(CASES))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name
        shutil.copytree(GOLDEN / name, folder, ignore=lambda _, names: NOT_WEIGHTS & set(names))
        path, at = folder / file, folder / data.draw(st.sampled_from(PARTS.get(name, ("",))))
        kinds = (
            ["bytes"]
            + ["tensor"] * (path.suffix in CONTAINERS) * 2
            + ["settings"] * (path.suffix == ".json") * 3
        )
        kind = data.draw(st.sampled_from(kinds))
        if kind == "settings":
            _settings_changed(path, data)
            _read(at, name)
        elif kind == "tensor":
            before, said = _read(at, name)
            assert at.name in REFUSED or not isinstance(before, CheckpointError), before
            change = _tensor_changed(path, data)
            found, more = _read(at, name)
            if change and not isinstance(found, CheckpointError) and more <= said:
                # What no reader asks for may be anything; what it does ask for may not, unless that is said aloud.
                assert digest(found) == digest(before), f"{name}/{file}: read in spite of {change}"
        else:
            BYTES[data.draw(st.sampled_from(sorted(BYTES)))](path, data, name)
            _read(at, name)


CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large]


@given(st.data())
@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=CHECKS, database=None)
def test_damaged_files_are_refused_in_one_line(data):
    one_case(data)


@pytest.mark.long
@given(st.data())
@settings(max_examples=5000, deadline=None, suppress_health_check=CHECKS)
def test_damaged_files_are_refused_in_one_line_at_length(data):
    one_case(data)
