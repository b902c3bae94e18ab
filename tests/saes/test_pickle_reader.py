"""The .pt reader: tensors of every kind come out as they went in, and no file gets to run anything."""

import collections
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from torch_files import Call, Named, tensor, write_pt

from amortjax.errors import CheckpointError
from amortjax.saes.formats import legacy_torch, load_sae, pickle_reader
from amortjax.saes.formats.blob import Budget
from amortjax.saes.formats.opened import Opened


@pytest.mark.parametrize(
    ("storage", "dtype"),
    [("FloatStorage", "<f4"), ("DoubleStorage", "<f8"), ("HalfStorage", "<f2"), ("LongStorage", "<i8"),
     ("IntStorage", "<i4"), ("BoolStorage", "?"), ("ByteStorage", "<u1")],
)  # fmt: skip
def test_dtypes_strides_and_scalars(storage, dtype, tmp_path):
    data = np.arange(24).astype(dtype)
    structure = {
        "rows": tensor(storage, "0", 24, 0, (4, 6), (6, 1)),
        "columns": tensor(storage, "0", 24, 0, (6, 4), (1, 6)),
        "slice": tensor(storage, "0", 24, 7, (2, 3), (6, 2)),
        "number": tensor(storage, "0", 24, 5, (), ()),
        "empty": tensor(storage, "0", 24, 0, (0, 3), (3, 1)),
    }
    write_pt(tmp_path / "x.pt", structure, {"0": data.tobytes()})
    got = {key: value.numpy() for key, value in pickle_reader.read(tmp_path / "x.pt").items()}
    np.testing.assert_array_equal(got["rows"], data.reshape(4, 6))
    np.testing.assert_array_equal(got["columns"], data.reshape(4, 6).T)
    np.testing.assert_array_equal(got["slice"], data.reshape(4, 6)[1:3, 1::2])
    assert got["number"].shape == () and got["number"] == data[5]
    assert got["empty"].shape == (0, 3)
    assert all(array.flags.c_contiguous for array in got.values())


def test_bfloat16_is_widened_exactly(tmp_path):
    values = np.array([1.0, -2.5, 3.140625, 0.0], np.float32)
    write_pt(
        tmp_path / "x.pt",
        {"w": tensor("BFloat16Storage", "0", 4, 0, (2, 2), (2, 1))},
        {"0": (values.view(np.uint32) >> 16).astype("<u2").tobytes()},
    )
    np.testing.assert_array_equal(pickle_reader.read(tmp_path / "x.pt")["w"].numpy(), values.reshape(2, 2))


def test_agrees_with_torch_on_what_torch_writes(tmp_path):
    torch = pytest.importorskip("torch")
    full = torch.randn(5, 7)
    state = collections.OrderedDict(
        plain=full, transposed=full.T, part=full[1:4, ::3], half=full.half(), bf16=full.bfloat16(),
        k=torch.tensor(8, dtype=torch.int32), parameter=torch.nn.Parameter(full),
    )  # fmt: skip
    torch.save({"ae": state, "step": 3, "lr": 0.1, "name": "x"}, tmp_path / "x.pt")
    got = pickle_reader.read(tmp_path / "x.pt")
    assert (got["step"], got["lr"], got["name"]) == (3, 0.1, "x")
    for key, value in state.items():
        np.testing.assert_array_equal(got["ae"][key].numpy(), value.detach().float().numpy(), err_msg=key)


class Hostile:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("inside", ["top", "value"])
def test_a_hostile_file_is_refused_and_never_runs(protocol, inside, tmp_path):
    proof = tmp_path / "ran"
    bomb = Hostile(os.system, f"touch {proof}")
    structure = bomb if inside == "top" else {"W_enc": bomb, "W_dec": 1}
    data = pickle.dumps(structure, protocol=protocol)
    with zipfile.ZipFile(tmp_path / "ae.pt", "w") as archive:
        archive.writestr("ae/data.pkl", data)
    for read in (pickle_reader.read, load_sae):
        with pytest.raises(CheckpointError, match=r"would execute code \(posix\.system\)") as caught:
            read(tmp_path / "ae.pt")
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="would execute code"):
        load_sae(tmp_path)  # found while searching the folder
    assert not proof.exists()
    pickle.loads(data)  # the bomb is live: without the reader's guard it does run
    assert proof.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [("builtins", "eval"), ("collections", "OrderedDict.__class__"), ("torch", "load"), ("torch.hub", "load"),
     ("collections", "namedtuple"), ("numpy", "load"), ("amortjax.files", "write_atomically")],
)  # fmt: skip
def test_only_the_listed_names_are_known(module, name, tmp_path):
    write_pt(tmp_path / "x.pt", {"w": Call(Named(module, name), "1")}, {})
    with pytest.raises(CheckpointError, match="would execute code"):
        pickle_reader.read(tmp_path / "x.pt")


def test_a_pickle_can_not_import_a_module(tmp_path, monkeypatch):
    (tmp_path / "trap_module.py").write_text("raise SystemError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    write_pt(tmp_path / "x.pt", Call(Named("trap_module", "f")), {})
    with pytest.raises(CheckpointError, match="would execute code"):
        pickle_reader.read(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((100,), (1,), 0), ((4, 6), (600, 1), 0), ((2,), (1,), 23), ((4,), (-1,), 3), ((2,), (1,), -1)],
)
def test_a_tensor_can_not_reach_beyond_its_bytes(shape, strides, offset, tmp_path):
    structure = {"w": tensor("FloatStorage", "0", 24, offset, shape, strides)}
    write_pt(tmp_path / "x.pt", structure, {"0": np.zeros(24, np.float32).tobytes()})
    with pytest.raises(CheckpointError, match=r"beyond its storage|can't be"):
        pickle_reader.read(tmp_path / "x.pt")["w"].numpy()


def test_cut_and_foreign_files_are_one_line_errors(tmp_path):
    path = tmp_path / "ae.pt"
    write_pt(path, {"w": tensor("FloatStorage", "0", 24, 0, (24,), (1,))}, {"0": bytes(96)})
    whole = path.read_bytes()
    for keep in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:keep])
        with pytest.raises(CheckpointError, match="cut off"):
            load_sae(path)
    for key, data, text in (
        ("0", bytes(40), "40 bytes and should have 96"),
        ("7", bytes(96), "'data/7' is missing"),
    ):
        write_pt(path, {"w": tensor("FloatStorage", key, 24, 0, (24,), (1,))}, {"0": data})
        with pytest.raises(CheckpointError, match=text):
            pickle_reader.read(path)
    write_pt(path, {"w": tensor("FloatStorage", "0", 24, 0, (24,), (1,))}, {"0": bytes(range(96))})
    raw = path.read_bytes()
    path.write_bytes(raw.replace(bytes(range(96)), bytes(range(95)) + b"x"))
    with pytest.raises(CheckpointError, match="'w' is damaged"):
        Opened(path, pickle_reader.read(path)).array("w")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "not torch")
    with pytest.raises(CheckpointError, match="not one of torch"):
        load_sae(path)


SETTINGS = Named("sae_lens.training.config", "Runner")


def test_settings_objects_are_kept_and_never_looked_for(tmp_path, monkeypatch):
    (tmp_path / "sae_lens.py").write_text("raise SystemError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    structure = {
        "cfg": Call(SETTINGS, "relu", 3),
        "device": Call(Named("torch", "device"), "cuda", 0),
        "dtype": Named("torch", "bfloat16"),
        "size": Call(Named("torch", "Size"), (2, 3)),
        "path": Call(Named("pathlib", "PosixPath"), "a", "b"),
    }
    write_pt(tmp_path / "x.pt", structure, {})
    got = pickle_reader.read(tmp_path / "x.pt")
    assert (got["cfg"].name, got["cfg"].args) == ("sae_lens.training.config.Runner", ("relu", 3))
    assert (got["dtype"].name, got["size"], got["path"].args) == ("bfloat16", (2, 3), ("a", "b"))
    assert got["device"].args == ("cuda", 0)


@pytest.mark.parametrize(
    "names",
    [("sae_lensx", "Runner"), ("sae", "Runner"), ("os", "sae_lens.x"), ("sae_training_x.config", "C")],
)
def test_other_packages_with_alike_names_are_refused(names, tmp_path):
    write_pt(tmp_path / "x.pt", {"cfg": Call(Named(*names))}, {})
    with pytest.raises(CheckpointError, match="would execute code"):
        pickle_reader.read(tmp_path / "x.pt")


def write_raw(path, code: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ae/data.pkl", b"\x80\x04" + code)


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


RUNNER = text("sae_lens.config") + text("Runner") + b"\x93"  # STACK_GLOBAL
REACHING = {
    "attribute of a class": (text("sae_lens.config") + text("Runner.__init__.__globals__") + b"\x93)R.", "StandIn"),
    "calls an instance": (RUNNER + b")R)R.", "calls what is no function"),
    "calls a class's state": (RUNNER + b")\x81}" + text("__setstate__") + RUNNER + b"sb}b.", "StandIn"),
    "changes the class": (RUNNER + b"}" + text("__reduce__") + RUNNER + b"sb.", "changes what can't be"),
    "changes a function": (
        text("torch._utils") + text("_rebuild_tensor_v2") + b"\x93}" + text("call") + RUNNER + b"sb.",
        "changes what can't be",
    ),
    "changes a dictionary's attributes": (
        text("collections") + text("OrderedDict") + b"\x93)R}" + text("items") + RUNNER + b"sb.", "dict",
    ),
    "calls text": (text("os.system") + text("true") + b"\x85R.", "calls what is no function"),
    "registered extension": (b"\x82\x01.", "opcode"),
    "old instance": (b"(ios\nsystem\n.", "opcode"),
    "object of a mark": (b"(" + RUNNER + b"o.", "opcode"),
    "unknown opcode": (b"\xff.", "can't be read"),
    "appends to an object": (RUNNER + b")R" + text("x") + b"a.", "no list"),
    # Hashing tuples in tuples ends in a crash at some depth, so it is never done.
    "key of nested tuples": (b"})" + b"\x85" * 3 + b"Ns.", "odd keys"),
    "keys of nested tuples": (b"}()" + b"\x85" * 3 + b"Nu.", "odd keys"),
    "set": (b"\x8f(N\x90.", "list"),
    "module name with a line break": (text("os\nx") + text("system") + b"\x93.", "would execute code"),
}  # fmt: skip


@pytest.mark.parametrize("name", REACHING)
def test_a_stand_in_reaches_nothing(name, tmp_path):
    code, outcome = REACHING[name]
    write_raw(tmp_path / "x.pt", code)
    if outcome in ("StandIn", "dict", "list"):
        assert type(pickle_reader.read(tmp_path / "x.pt")).__name__ == outcome
        return
    with pytest.raises(CheckpointError, match=outcome) as caught:
        pickle_reader.read(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


BOMBS = {
    "memo of 2^32 entries": b"Nr\xff\xff\xff\xff.",  # C's unpickler takes 64 GiB for this
    "bytes": b"\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "bytearray": b"\x96" + struct.pack("<Q", 2**40) + b"x.",
    "text": b"\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "frame": b"\x95" + struct.pack("<Q", 2**62) + b"N.",
    "number": b"\x8b" + struct.pack("<i", 2**31 - 1) + b"1.",
    "endless line": b"I" + b"1" * 70000,
    "nested deeply": b"]" * 60000 + b"a" * 59999 + b".",
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_take_little_memory(name, tmp_path):
    import tracemalloc

    write_raw(tmp_path / "x.pt", BOMBS[name])
    tracemalloc.start()
    try:
        pickle_reader.read(tmp_path / "x.pt")
    except CheckpointError as error:
        assert "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64 * 2**20


def test_storages_are_there_before_room_is_made(tmp_path):
    path, huge = tmp_path / "x.pt", 2**40
    for structure in (
        tensor("FloatStorage", "0", huge, 0, (huge,), (1,)),
        tensor("FloatStorage", "0", 24, 0, (2**20, 2**20), (0, 0)),
        tensor("FloatStorage", "0", 24, 0, (2**62, 2**62), (0, 0)),
        tensor("FloatStorage", "0", 24, 2**70, (), ()),
        tensor("FloatStorage", "0", 24, 0, (1,) * 40, (1,) * 40),
    ):
        write_pt(path, {"w": structure}, {"0": bytes(96)})
        with pytest.raises(CheckpointError, match=r"cut off|reaches beyond|a shape"):
            pickle_reader.read(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ae/data.pkl", b"\x80\x04]" * 2)
        archive.writestr("ae/data/0", bytes(2**20))
    with pytest.raises(CheckpointError, match="compressed"):
        pickle_reader.read(path)


def test_a_repeated_number_is_spread(tmp_path):
    structure = {"w": tensor("FloatStorage", "0", 1, 0, (3, 2), (0, 0))}
    write_pt(tmp_path / "x.pt", structure, {"0": np.float32(7).tobytes()})
    np.testing.assert_array_equal(pickle_reader.read(tmp_path / "x.pt")["w"].numpy(), np.full((3, 2), 7))


def test_a_structure_of_too_many_bytes_is_refused(tmp_path, monkeypatch):
    write_raw(tmp_path / "x.pt", b"N0" * (9 * 2**20) + b"N.")
    with pytest.raises(CheckpointError, match="over 16 MiB"):
        pickle_reader.read(tmp_path / "x.pt")
    # A file without a zip counts as it goes.
    monkeypatch.setattr(legacy_torch, "Budget", lambda: Budget(1000))
    (tmp_path / "y.pt").write_bytes(b"\x80\x04" + b"N0" * 400 + b"N.")
    assert pickle_reader.read(tmp_path / "y.pt") is None
    (tmp_path / "y.pt").write_bytes(b"\x80\x04" + b"N0" * 600 + b"N.")
    with pytest.raises(CheckpointError, match="over 16 MiB"):
        pickle_reader.read(tmp_path / "y.pt")
