"""Reads tensors out of a PyTorch file without PyTorch, and without ever running what the file says.

A `.pt` file is a zip: `NAME/data.pkl` is a pickle of the structure, `NAME/data/KEY` the raw bytes of each
storage. Older ones are a row of pickles with the storages behind (`legacy_torch`), a `.pkl.gz` is a plain pickle
in gzip. `unpickler` reads the structure; tensors are read from the file when asked for.
"""

import gzip
import io
import os
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

from amortjax.errors import CheckpointError
from amortjax.saes.formats import legacy_torch, numpy_names, torch_names
from amortjax.saes.formats.blob import MAX_STRUCTURE_BYTES, Blob, Budget, Refused
from amortjax.saes.formats.tensors import Damaged
from amortjax.saes.formats.torch_names import Storage, item_size, storage_type
from amortjax.saes.formats.unpickler import unpickle

GZIP, ZIP = b"\x1f\x8b", b"PK"
# Weights shrink little in gzip: what grows more than this is no SAE.
MOST_GROWTH, FREE_GROWTH = 50, 64 * 2**20
FOREIGN = (
    "cut off, or not a file of torch.save; copy it again, or load and save it once with a current PyTorch"
)


def read(path: str | os.PathLike) -> Any:
    """The structure of a `.pt` or `.pkl.gz` file, its tensors as `tensors.Tensor`. CheckpointError if it is damaged,
    too big for what it holds, or names anything that would run code."""
    path = Path(path)
    try:
        blob = Blob(path.open("rb"))
        if blob.stream(0, 2).read(2) == GZIP:
            blob = _unpacked(blob)
        if blob.stream(0, 2).read(2) == ZIP:
            return _Zip(blob).load()
        if blob.stream(0, 1).read(1) != b"\x80":  # a pickle of protocol 2 or later
            raise Refused(FOREIGN)
        return legacy_torch.read_pickle(blob, torch_names.names() | numpy_names.names())
    except Refused as refused:
        raise CheckpointError(f"{path}: {refused}") from None
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, EOFError):
        raise CheckpointError(f"{path}: {FOREIGN}") from None
    except Exception as error:
        # A damaged file fails in many ways (IndexError, UnpicklingError, zlib.error, ...), all harmless.
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        raise CheckpointError(f"{path}: its structure can't be read ({reason})") from None


def _unpacked(blob: Blob) -> Blob:
    """What is in a gzip file, in a temporary file, so that tensors are read when asked for. Looks at the first bytes
    before anything else: a folder may hold other things in gzip."""
    packed = gzip.GzipFile(fileobj=cast(BinaryIO, blob.stream(0, blob.size)))
    most, size = max(FREE_GROWTH, MOST_GROWTH * blob.size), 0
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the blob closes it
    unpacked = Blob(cast(BinaryIO, file))
    try:
        block = packed.read(2**20)
        if block[:1] != b"\x80" and block[:2] != ZIP:
            raise Refused("in gzip, but neither a pickle nor a file of torch.save")
        while block:
            size += len(block)
            if size > most:
                raise Refused(f"it unpacks to over {MOST_GROWTH} times its size, as no weights do; refused")
            file.write(block)
            block = packed.read(2**20)
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(f"cut off or damaged ({error}); copy it again") from None
    unpacked.size = size
    return unpacked


class _Zip:
    """A `.pt` file of torch 1.6 or later."""

    def __init__(self, blob: Blob):
        # The zip closes a file it opened itself; this one is the blob's, which it must keep alive.
        self.blob, self.zip = blob, zipfile.ZipFile(blob.file)
        pickles = [
            name for name in self.zip.namelist() if name.endswith("/data.pkl") and name.count("/") == 1
        ]
        if len(pickles) != 1:
            raise Refused("a zip, but not one of torch.save (no data.pkl)")
        self.root = pickles[0].removesuffix("data.pkl")

    def load(self) -> Any:
        if self.root + "byteorder" in self.zip.namelist() and self._record("byteorder") != b"little":
            raise Refused("written on a big-endian machine, which is not supported")
        structure = Blob(io.BytesIO(self._record("data.pkl")))
        names = torch_names.names() | numpy_names.names()
        return unpickle(structure, 0, Budget(), names, self._stored)[0]

    def _entry(self, name: str) -> zipfile.ZipInfo:
        """The zip's line on a record, if its bytes can be there: torch never compresses them."""
        try:
            entry = self.zip.getinfo(self.root + name)
        except KeyError:
            raise Refused(f"the record {name[:80]!r} is missing; the file is damaged") from None
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise Refused(f"the record {name[:80]!r} is compressed, as torch.save never writes it; refused")
        if entry.header_offset + entry.file_size > self.blob.size:
            raise Refused(f"cut off: the record {name[:80]!r} ends beyond the file; copy it again")
        return entry

    def _record(self, name: str) -> bytes:
        """A small record."""
        if self._entry(name).file_size > MAX_STRUCTURE_BYTES:
            raise Refused(f"its structure takes over {MAX_STRUCTURE_BYTES >> 20} MiB; refused")
        try:
            return self.zip.read(self.root + name)
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise Refused(f"the record {name!r} is damaged ({error}); copy it again") from None

    def _stored(self, pid: Any) -> Storage:
        """The storage of a persistent id. Its bytes are there, or the file is refused before room is made for them."""
        mark, kind, key, _, numel = pid
        if mark != "storage" or type(key) is not str:
            raise Refused("something other than a storage lies beside its structure")
        dtype, numel = storage_type(kind, numel)
        size, entry = numel * item_size(dtype), self._entry(f"data/{key}")
        if entry.file_size < size:
            raise Refused(
                f"cut off: the record {entry.filename[:80]!r} has {entry.file_size} bytes and should have {size}; "
                "copy it again"
            )
        return Storage(dtype, numel, lambda first: self._open(entry, first))

    def _open(self, entry: zipfile.ZipInfo, first: int) -> BinaryIO:
        try:
            stream = self.zip.open(entry)
            stream.seek(first)
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise Damaged(f"is damaged ({error})") from None
        return cast(BinaryIO, stream)
