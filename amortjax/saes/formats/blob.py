"""Stretches of a file that are looked at again later: lazy tensors and bounded reading for the unpickler."""

import dataclasses
import io
import weakref
from typing import BinaryIO

# A structure is small, its tensors lie beside it. One byte of a made-up structure can take 64 of memory.
MAX_STRUCTURE_BYTES = 16 * 2**20
MAX_LINE = 2**16


class Refused(Exception):
    """What is wrong with a file; whoever knows its path makes a CheckpointError of it."""


class Blob:
    """A seekable file, open as long as something of it may be asked for."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.size = file.seek(0, io.SEEK_END)
        weakref.finalize(self, file.close)

    def stream(self, start: int, size: int) -> "Stretch":
        return Stretch(self, start, size)


class Stretch(io.RawIOBase):
    """`size` bytes of a blob from `start` on, as a file of their own. Closing it leaves the blob open."""

    def __init__(self, blob: Blob, start: int, size: int):
        self.blob, self.start, self.size, self.at = blob, start, max(0, min(size, blob.size - start)), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def readinto(self, buffer) -> int:
        self.blob.file.seek(self.start + self.at)
        wanted = memoryview(buffer)[: max(0, self.size - self.at)]
        count = self.blob.file.readinto(wanted)  # pyright: ignore[reportAttributeAccessIssue]
        self.at += count
        return count


class Budget:
    """How many bytes of structure one file may have, whatever is nested in it."""

    def __init__(self, left: int = MAX_STRUCTURE_BYTES):
        self.left = left

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise Refused(f"its structure takes over {MAX_STRUCTURE_BYTES >> 20} MiB; refused")


@dataclasses.dataclass(frozen=True, eq=False)
class Bytes:
    """A long byte string of a pickle, left where it is."""

    blob: Blob
    start: int
    size: int


class Reading:
    """A pickle as the unpickler reads it: makes no room for bytes that are not there, and counts them."""

    def __init__(self, blob: Blob, at: int, budget: Budget):
        self.blob, self.at, self.budget = blob, at, budget
        self._buffer, self._first = b"", at

    def read(self, count: int) -> bytes:
        self._need(count)
        self.budget.spend(count)
        inside = self.at - self._first
        if not 0 <= inside <= len(self._buffer) - count:
            self.blob.file.seek(self.at)
            self._buffer, self._first, inside = self.blob.file.read(max(count, 2**14)), self.at, 0
        self.at += count
        data = self._buffer[inside : inside + count]
        if len(data) < count:
            raise EOFError("it is cut off")
        return data

    def readline(self) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n"):
            if len(line) > MAX_LINE:
                raise Refused("a line of its structure has no end")
            line += self.read(1)
        return bytes(line)

    def skip(self, count: int) -> Bytes:
        """The next bytes, left where they are."""
        self._need(count)
        found = Bytes(self.blob, self.at, count)
        self.at += count
        return found

    def _need(self, count: int) -> None:
        if not 0 <= count <= self.blob.size - self.at:
            raise EOFError("it is cut off")
