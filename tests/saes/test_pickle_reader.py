"""The .pt reader: tensors of every kind come out as they went in, and no file gets to run anything."""

import collections
import io
import os
import pickle
import zipfile
from typing import Any

import numpy as np
import pytest

from amortjax.errors import CheckpointError
from amortjax.saes.formats import load_sae, pickle_reader
from amortjax.saes.formats.opened import Opened


class Named:
    """Pickles as a bare name, `module.name`: how torch's classes appear in a file."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


Pickler: Any = pickle.__dict__["_Pickler"]  # the one written in Python, whose `save` can be extended


class Writer(Pickler):
    """Writes the names of Named objects, and storages as torch does."""

    def persistent_id(self, obj):
        return obj[1:] if isinstance(obj, tuple) and obj and obj[0] == "PERSISTENT" else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.args)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


class Call:
    def __init__(self, function: Named, *args):
        self.function, self.args = function, args


def tensor(storage: str, key: str, numel: int, offset: int, shape: tuple, strides: tuple) -> Call:
    stored = ("PERSISTENT", "storage", Named("torch", storage), key, "cpu", numel)
    rebuild = Named("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, stored, offset, shape, strides, False, Call(Named("collections", "OrderedDict")))


def write_pt(path, structure, records: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    Writer(buffer, protocol=2).dump(structure)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ae/data.pkl", buffer.getvalue())
        archive.writestr("ae/byteorder", "little")
        for key, data in records.items():
            archive.writestr(f"ae/data/{key}", data)


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
    write_pt(path, {"w": tensor("FloatStorage", "0", 24, 0, (24,), (1,))}, {"0": bytes(40)})
    with pytest.raises(CheckpointError, match="'w' is cut off"):
        Opened(path, pickle_reader.read(path)).array("w")
    write_pt(path, {"w": tensor("FloatStorage", "7", 24, 0, (24,), (1,))}, {"0": bytes(96)})
    with pytest.raises(CheckpointError, match="'w' is damaged"):
        Opened(path, pickle_reader.read(path)).array("w")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "not torch")
    with pytest.raises(CheckpointError, match="not one of torch"):
        load_sae(path)
