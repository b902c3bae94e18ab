"""How much memory and disk is free, and how sizes are written. None where a system does not say."""

import shutil
from pathlib import Path

import jax
import numpy as np

from amortjax.errors import AmortjaxError


def nbytes(tree: object) -> int:
    """Bytes of all arrays of a pytree, or of their shapes (`jax.eval_shape`)."""
    leaves = jax.tree.leaves(tree)
    return sum(int(np.prod(np.shape(leaf))) * np.dtype(_dtype(leaf)).itemsize for leaf in leaves)


def _dtype(leaf: object) -> np.dtype:
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype  # pyright: ignore[reportAttributeAccessIssue]


def size(n: int) -> str:
    """Three digits: 12.3 GiB, 512 MiB, 0.25 MiB."""
    value, unit = (n / 2**30, "GiB") if n >= 2**30 else (n / 2**20, "MiB")
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {unit}"


def device_free() -> int | None:
    """Bytes that the fullest of this process's accelerators can still give; None on a CPU."""
    found = [device.memory_stats() for device in jax.local_devices()]
    free = [
        stats["bytes_limit"] - stats["bytes_in_use"] for stats in found if stats and "bytes_limit" in stats
    ]
    return min(free, default=None)


def host_free(proc: str = "/proc", cgroups: str = "/sys/fs/cgroup") -> int | None:
    """Bytes of memory that programs can still take, within the limits of the control groups (containers, batch
    systems) this process is in; None outside Linux."""
    known = [_available(Path(proc)), *_group_free(Path(proc), Path(cgroups))]
    return min((n for n in known if n is not None), default=None)


def disk_free(folder: str | Path) -> int:
    """Bytes free where `folder` is or will be."""
    folder = Path(folder).absolute()
    return shutil.disk_usage(next(part for part in (folder, *folder.parents) if part.exists())).free


def room_for_checkpoint(folder: str | Path, needed: int) -> None:
    """Raises AmortjaxError if `needed` bytes do not fit on the disk of `folder`: before they are written."""
    free = disk_free(folder)
    if free < needed:
        raise AmortjaxError(
            f"{folder}: {size(needed)} ({needed} bytes) are to be written and {size(free)} ({free} bytes) are free. "
            "Nothing was written, what was saved before is whole: free some disk and run the same command again"
        )


def _available(proc: Path) -> int | None:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _group_free(proc: Path, root: Path) -> list[int]:
    """What each control group around this process has left, of both versions of the interface."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    free = []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        names = ("limit_in_bytes", "usage_in_bytes", "total_") if controllers else ("max", "current", "")
        own = base / path.strip("/")
        # Within a container the path may be that of the host, and the group itself lies at the top.
        for group in (own, *own.parents) if own.is_relative_to(base) else (base,):
            if group.is_relative_to(base):
                free.append(_left(group, *names))
    return [n for n in free if n is not None]


def _left(group: Path, limit: str, used: str, total: str) -> int | None:
    try:
        most = (group / f"memory.{limit}").read_text().strip()
        if most == "max":
            return None
        taken = int((group / f"memory.{used}").read_text())
        # Files read once are counted as used, and are given up first.
        stat = dict(line.split()[:2] for line in (group / "memory.stat").read_text().splitlines())
        return max(int(most) - taken + int(stat.get(f"{total}inactive_file", 0)), 0)
    except (OSError, ValueError):
        return None
