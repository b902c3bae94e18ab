"""Large arrays in huge pages, on Linux CPUs.

XLA allocates its scratch anew in every call; in pages of 4 KiB, touching it for the first time costs more than the
arithmetic (a training step of a TopK SAE, D = 384, M = 6 144, took 60 ms with huge pages and 136 without). glibc asks
for them if it is told so before the process starts, so a launcher starts itself again, once.
"""

import os
import platform
import sys
from pathlib import Path

NAME = "GLIBC_TUNABLES"
TUNABLE = "glibc.malloc.hugetlb"
KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def wanted(environ: dict[str, str], libc: tuple[str, str], kernel: str) -> str | None:
    """What GLIBC_TUNABLES should be, or None if it should stay as it is."""
    own = environ.get(NAME, "")
    name, version = libc
    new_enough = name == "glibc" and tuple(int(part) for part in version.split(".")[:2]) >= (2, 35)
    if TUNABLE in own or not new_enough or not kernel or "[never]" in kernel:
        return None
    return ":".join(part for part in (own, f"{TUNABLE}=1") if part)


def ensure() -> None:
    """Replaces this process by itself with huge pages on, if it is a launcher's and they are there to be had."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if sys.platform != "linux" or spec is None or not spec.name.startswith("amortjax.launch."):
        return
    try:
        kernel = KERNEL.read_text()
    except OSError:
        return
    value = wanted(dict(os.environ), platform.libc_ver(), kernel)
    if value is not None:
        os.environ[NAME] = value
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
