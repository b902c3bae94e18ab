"""Reads a pickle's structure without ever running what it says.

A pickle may name any function of any installed package and have it called. Here no name is ever looked up in a
module: a few names that rebuild tensors are functions of this reader's own, classes of SAE libraries' settings
become inert `StandIn`s, and for any other name the file is refused. Objects on the unpickler's stack are plain
values, tensors and stand-ins, so there is nothing for a pickle to reach, call or change.
"""

import dataclasses
import io
import pickle
import struct
from collections.abc import Callable
from typing import Any

from amortjax.saes.formats.blob import Blob, Budget, Bytes, Reading, Refused

# Packages whose objects are settings beside weights: their state is kept, their code never looked for.
LIBRARIES = (
    "sae_training", "sae_lens", "mats_sae_training", "transcoders_slim", "transcoder_circuits", "dictionary_learning"
)  # fmt: skip
# Values that settings hold, kept by name and arguments.
VALUES = {
    ("torch", "device"), ("torch.serialization", "_get_layout"), ("pathlib", "Path"), ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"), ("pathlib", "WindowsPath"), ("pathlib._local", "PosixPath"), ("datetime", "datetime"),
    ("datetime", "date"), ("datetime", "timedelta"), ("uuid", "UUID"), ("argparse", "Namespace"),
    ("types", "SimpleNamespace"), ("builtins", "set"), ("builtins", "frozenset"), ("__builtin__", "set"),
    ("builtins", "range"), ("builtins", "slice"), ("builtins", "complex"),
}  # fmt: skip
# Byte strings from this length on stay in the file.
LONG = 2**14


@dataclasses.dataclass(frozen=True, eq=False)
class Name:
    """Stands for a class or value that is named but never used as such."""

    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    """A function of this reader that a pickle may call."""

    call: Callable[..., Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """A class that a pickle names; calling it makes a StandIn."""

    name: str


class StandIn:
    """An object of a class that was not looked for: its arguments and state, as the file has them."""

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple):
        self.name, self.args, self.state = name, args, {}

    def build(self, state: Any) -> None:
        """Takes the attributes: a dictionary, or with __slots__ a pair of which the second is one."""
        for part in state[:2] if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.state = part


def _new(kind: Any, args: Any) -> Any:
    if not isinstance(args, tuple):
        raise pickle.UnpicklingError("arguments that are none")
    if isinstance(kind, Function):
        return kind.call(*args)
    if isinstance(kind, Kind):
        return StandIn(kind.name, args)
    raise pickle.UnpicklingError("it calls what is no function")


def _is_key(key: Any) -> bool:
    """Whether a dictionary may have it as a key: hashing nested tuples would end in a crash at some depth."""
    parts = key if type(key) is tuple else (key,)
    return all(isinstance(part, str | bytes | int | float | type(None)) for part in parts)


def _put(target: Any, items: list[Any]) -> None:
    if len(items) % 2 or not all(_is_key(key) for key in items[::2]):
        raise pickle.UnpicklingError("a dictionary with odd keys")
    if isinstance(target, dict):
        target.update(zip(items[::2], items[1::2], strict=True))
    elif not isinstance(target, StandIn):  # a subclass of dict; what it holds is not needed
        raise pickle.UnpicklingError("it puts items into what is no dictionary")


# The unpickler written in Python: its memo is a dictionary (C's takes memory by the largest index that a file
# names), and what its opcodes do can be replaced.
_Python: Any = pickle.__dict__["_Unpickler"]


class Unpickler(_Python):
    """Gives the structure of the pickle at `reading`. `names` are {(module, name): Name, Function or Kind}; `stored`
    takes torch's persistent id of a storage."""

    def __init__(
        self, reading: Reading, names: dict[tuple[str, str], Any], stored: Callable[[Any], Any] | None = None
    ):
        super().__init__(reading, encoding="utf-8")
        self.reading, self.names, self.stored = reading, names, stored

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.names:
            return self.names[module, name]
        inside = any(module == library or module.startswith(library + ".") for library in LIBRARIES)
        if inside or (module, name) in VALUES:
            return Kind(f"{module}.{name}")
        raise Refused(
            f"refused: reading it would execute code ({_printable(module)}.{_printable(name)}), which no SAE's weights "
            "need. Nothing of it was run; ask its author for a .safetensors file"
        )

    def persistent_load(self, pid: Any) -> Any:
        if self.stored is None:
            raise pickle.UnpicklingError("it has no storages beside it")
        return self.stored(pid)

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _new(self.stack[-1], args)

    def _newobj_ex(self) -> None:
        self.stack.pop()  # keyword arguments, which no settings class needs
        self._reduce()

    def _build(self) -> None:
        state = self.stack.pop()
        build = getattr(self.stack[-1], "build", None)
        if build is not None:
            build(state)
        elif not isinstance(
            self.stack[-1], dict
        ):  # an OrderedDict's attributes are torch's notes on versions
            raise pickle.UnpicklingError("it changes what can't be changed")

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _put(self.stack[-1], [key, value])

    def _setitems(self) -> None:
        items = self.pop_mark()
        _put(self.stack[-1], items)

    def _dict(self) -> None:
        items, made = self.pop_mark(), {}
        _put(made, items)
        self.append(made)

    def _extend(self) -> None:
        items = self.pop_mark()
        if not isinstance(self.stack[-1], list):
            raise pickle.UnpicklingError("it appends to what is no list")
        self.stack[-1].extend(items)

    def _append(self) -> None:
        value = self.stack.pop()
        if not isinstance(self.stack[-1], list):
            raise pickle.UnpicklingError("it appends to what is no list")
        self.stack[-1].append(value)

    def _frame(self) -> None:
        self.reading.read(8)  # frames are only hints for reading ahead

    def _bytes(self, layout: str) -> None:
        (count,) = struct.unpack(layout, self.reading.read(struct.calcsize(layout)))
        self.append(self.reading.skip(count) if count >= LONG else self.reading.read(count))

    def _never(self) -> None:
        raise pickle.UnpicklingError("an opcode that no saved weights have")

    dispatch: dict[int, Any] = dict(_Python.dispatch) | {
        opcode[0]: function
        for opcode, function in {
            pickle.REDUCE: _reduce,
            pickle.NEWOBJ: _reduce,
            pickle.NEWOBJ_EX: _newobj_ex,
            pickle.BUILD: _build,
            pickle.SETITEM: _setitem,
            pickle.SETITEMS: _setitems,
            pickle.DICT: _dict,
            pickle.APPEND: _append,
            pickle.APPENDS: _extend,
            # Sets are read as lists, so that nothing in them is hashed.
            pickle.EMPTY_SET: _Python.dispatch[pickle.EMPTY_LIST[0]],
            pickle.FROZENSET: _Python.dispatch[pickle.LIST[0]],
            pickle.ADDITEMS: _extend,
            pickle.FRAME: _frame,
            pickle.BINBYTES: lambda self: self._bytes("<I"),
            pickle.BINBYTES8: lambda self: self._bytes("<Q"),
            pickle.BYTEARRAY8: lambda self: self._bytes("<Q"),
            **dict.fromkeys(
                (pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER), _never
            ),
            pickle.READONLY_BUFFER: lambda self: None,
        }.items()
    }


def _printable(text: str) -> str:
    """One line of a name that a file gives."""
    return "".join(char if char.isprintable() else "?" for char in text[:80])


def unpickle(blob: Blob, at: int, budget: Budget, names: dict, stored: Any = None) -> tuple[Any, int]:
    """The structure of the pickle that starts at byte `at`, and where it ends."""
    reading = Reading(blob, at, budget)
    return Unpickler(reading, names, stored).load(), reading.at


def content(data: Any) -> Bytes:
    """Bytes of a pickle, whether read or left where they are."""
    if isinstance(data, Bytes):
        return data
    if not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("it has something else for bytes")
    return Bytes(Blob(io.BytesIO(data)), 0, len(data))
