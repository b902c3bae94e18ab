"""Finished measurements on disk, so that a run that was killed goes on where it was.

One file per measurement: the values, the draws their paired intervals are made of, and each test token's
objective and dual value with the record they belong to. The name is a hash of everything the numbers depend on.
"""

import dataclasses
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amortjax.files import write_atomically
from amortjax.inference.gaps import Proof
from amortjax.inference.objective import Objective
from amortjax.metrics.uncertainty import Estimate


class Kept(NamedTuple):
    """What a finished measurement leaves: plain values, estimates with their draws, and the tokens' proofs."""

    values: dict[str, Any]
    estimates: dict[str, Estimate]
    proof: Proof


def key_of(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def save(path: Path, kept: Kept) -> None:
    arrays: dict[str, Any] = {"objective": kept.proof.objective, "dual": kept.proof.dual}
    about = {}
    for name, estimate in kept.estimates.items():
        about[name] = [estimate.value, estimate.kind]
        if estimate.draws is not None:
            arrays[f"draws {name}"] = np.asarray(estimate.draws, np.float32)
    record = dataclasses.asdict(kept.proof.record)
    text = json.dumps({"values": kept.values, "estimates": about, "record": record})
    buffer = io.BytesIO()
    np.savez(buffer, text=np.frombuffer(text.encode(), np.uint8), **arrays)
    write_atomically(path, buffer.getvalue())


def load(path: Path) -> Kept | None:
    """None if there is no such file, or it can't be read (it is then measured again)."""
    try:
        with np.load(path) as file:
            found = json.loads(file["text"].tobytes())
            draws = {name[6:]: file[name] for name in file.files if name.startswith("draws ")}
            proof = Proof(file["objective"], file["dual"], Objective(**found["record"]))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
    estimates = {
        name: Estimate(value, draws.get(name), kind) for name, (value, kind) in found["estimates"].items()
    }
    return Kept(found["values"], estimates, proof)
