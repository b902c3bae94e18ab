"""Writing files so that nothing is ever half-written."""

import os
from pathlib import Path


def write_atomically(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes beside `path` and renames, so a kill or a full disk leaves the old file or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
