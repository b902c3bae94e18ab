"""Files as torch.save wrote them before version 1.6, and as it still writes a storage inside a plain pickle.

One pickle after the other: a magic number, a version, the writer's byte order, the structure, the keys of its
storages; then for each key a count of 8 bytes and the storage's bytes.
"""

from typing import Any, BinaryIO, cast

from amortjax.saes.formats.blob import Blob, Budget, Bytes, Refused
from amortjax.saes.formats.torch_names import Storage, item_size, storage_type
from amortjax.saes.formats.unpickler import Function, content, unpickle

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


def read_pickle(blob: Blob, names: dict[tuple[str, str], Any]) -> Any:
    """The structure of a plain pickle, or of a legacy file. `names` are torch's and NumPy's stand-ins. Raises Refused,
    and what a damaged pickle raises."""
    budget = Budget()

    def nested(data: Any) -> Any:
        # Names without this function: a storage holds no further files.
        return _structure(content(data), budget, names)

    inside = names | {("torch.storage", "_load_from_bytes"): Function(nested)}
    return _structure(Bytes(blob, 0, blob.size), budget, inside)


def _structure(data: Bytes, budget: Budget, names: dict) -> Any:
    if data.start or data.size != data.blob.size:
        data = Bytes(Blob(cast(BinaryIO, data.blob.stream(data.start, data.size))), 0, data.size)
    root, at = unpickle(data.blob, 0, budget, names)
    return _legacy(data.blob, at, budget, names) if type(root) is int and root == MAGIC else root


def _legacy(blob: Blob, at: int, budget: Budget, names: dict) -> Any:
    """What follows the magic number."""
    version, at = unpickle(blob, at, budget, {})
    if type(version) is not int or version != VERSION:
        raise Refused("a legacy PyTorch file of an unknown version; load and save it once with PyTorch")
    system, at = unpickle(blob, at, budget, {})
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("written on a big-endian machine, which is not supported")
    storages: dict[str, Storage] = {}
    starts: dict[str, int] = {}

    def stored(pid: Any) -> Storage:
        mark, kind, key, _, numel, *view = pid
        if mark != "storage" or type(key) is not str or view not in ([], [None]):
            raise Refused("a storage that is a view of another; load and save it once with a current PyTorch")
        dtype, numel = storage_type(kind, numel)
        size = numel * item_size(dtype)
        if size > blob.size:
            raise Refused(f"cut off: a storage of {size} bytes in a file of {blob.size}; copy it again")
        made = Storage(dtype, numel, lambda first: _open(blob, starts[key], first, size))
        if storages.setdefault(key, made).dtype != dtype or storages[key].numel != numel:
            raise Refused("two storages have one key")
        return storages[key]

    root, at = unpickle(blob, at, budget, names, stored)
    keys, at = unpickle(blob, at, budget, {})
    _locate(blob, at, keys, storages, starts)
    return root


def _open(blob: Blob, start: int, first: int, size: int) -> BinaryIO:
    return cast(BinaryIO, blob.stream(start + first, size - first))


def _locate(blob: Blob, at: int, keys: Any, storages: dict[str, Storage], starts: dict[str, int]) -> None:
    """Fills `starts`: where each key's bytes lie."""
    if not isinstance(keys, list) or not all(type(key) is str for key in keys) or set(keys) != set(storages):
        raise Refused("the list of its storages is damaged; copy it again")
    for key in keys:
        size = storages[key].numel * storages[key].item
        with blob.stream(at, 8) as stream:
            count = int.from_bytes(stream.read(8) or b"", "little")
        starts[key], at = at + 8, at + 8 + size
        if count != storages[key].numel or at > blob.size:
            raise Refused("cut off, or a storage has another length than its tensors say; copy it again")
