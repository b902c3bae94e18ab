"""Files of torch before 1.6, and plain pickles in gzip: what PyTorch itself writes comes back, the rest is refused."""

import collections
import gzip
import os
import pickle
import tracemalloc

import numpy as np
import pytest

from amortjax.errors import CheckpointError
from amortjax.saes.formats import load_sae, pickle_reader
from amortjax.saes.formats.opened import Opened
from amortjax.saes.formats.tensors import Tensor

torch = pytest.importorskip("torch")


def state() -> dict:
    torch.manual_seed(0)
    full = torch.randn(5, 7)
    return collections.OrderedDict(
        plain=full, transposed=full.T, part=full[1:4, ::3], half=full.half(), bf16=full.bfloat16(),
        k=torch.tensor(8, dtype=torch.int32), parameter=torch.nn.Parameter(full.double()),
        flags=full > 0, empty=torch.zeros(0, 3), number=torch.tensor(2.5),
    )  # fmt: skip


def assert_same(got: dict, wanted: dict) -> None:
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        array = got[key].numpy()
        assert array.shape == tuple(value.shape), key
        np.testing.assert_array_equal(array, value.detach().to(torch.float64).numpy(), err_msg=key)


def legacy(path, structure, **settings):
    torch.save(structure, path, _use_new_zipfile_serialization=False, **settings)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_legacy_files_read_as_torch_reads_them(protocol, tmp_path):
    wanted = {"ae": state(), "step": 3, "device": torch.device("cpu"), "dtype": torch.bfloat16, "norm": None}
    path = legacy(tmp_path / "x.pt", wanted, pickle_protocol=protocol)
    assert path.read_bytes()[:2] != b"PK"
    got = pickle_reader.read(path)
    assert_same(got["ae"], wanted["ae"])
    assert (got["step"], got["device"].args, got["dtype"].name, got["norm"]) == (
        3,
        ("cpu",),
        "bfloat16",
        None,
    )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_in_gzip_read_as_python_reads_them(protocol, tmp_path):
    numbers = {"lr": np.float64(0.25), "rows": np.arange(12, dtype=np.float32).reshape(3, 4)}
    big = {"W": torch.randn(200, 300)}  # its bytes stay in the file
    wanted = {"state_dict": state(), "big": big, "numbers": numbers, "size": torch.Size([3])}
    with gzip.open(tmp_path / "x.pkl.gz", "wb") as file:
        pickle.dump(wanted, file, protocol=protocol)
    got = pickle_reader.read(tmp_path / "x.pkl.gz")
    assert_same(got["state_dict"], wanted["state_dict"])
    assert_same(got["big"], big)
    assert got["numbers"]["lr"] == 0.25 and got["size"] == (3,)
    np.testing.assert_array_equal(got["numbers"]["rows"].numpy(), numbers["rows"])


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<f2", "<i8", "<i4", "|u1", "|b1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_arrays_and_scalars_in_a_pickle(dtype, order, tmp_path):
    rows = np.array(np.arange(12).reshape(3, 4) % 5, dtype, order=order)
    for protocol in (2, 4, 5):
        (tmp_path / "x.pt").write_bytes(pickle.dumps({"rows": rows, "one": rows[1, 2]}, protocol=protocol))
        got = pickle_reader.read(tmp_path / "x.pt")
        assert isinstance(got["rows"], Tensor) and got["one"] == rows[1, 2].item()
        np.testing.assert_array_equal(got["rows"].numpy(), rows)


def test_numpy_arrays_of_other_types_are_refused(tmp_path):
    for array in (np.array([1, 2], ">f4"), np.array(["a"]), np.array([{}], object), np.ones(2, np.complex64)):
        (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": array}, protocol=4))
        with pytest.raises(CheckpointError, match=r"not supported|can't be read"):
            pickle_reader.read(tmp_path / "x.pt")


def test_a_zip_and_a_legacy_file_may_be_in_gzip(tmp_path):
    torch.save(state(), tmp_path / "zip.pt")
    legacy(tmp_path / "old.pt", state())
    for name in ("zip.pt", "old.pt"):
        packed = tmp_path / f"{name}.gz"
        packed.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        assert_same(pickle_reader.read(packed), state())


class Hostile:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def test_hostile_files_are_refused_and_never_run(tmp_path):
    proof = tmp_path / "ran"
    bomb = {"W_enc": Hostile(os.system, f"touch {proof}"), "W_dec": torch.ones(2)}
    legacy(tmp_path / "old.pt", bomb)
    with gzip.open(tmp_path / "x.pkl.gz", "wb") as file:
        pickle.dump(bomb, file)
    # A storage's bytes hold a pickle too.
    load = pickle.loads(b"ctorch.storage\n_load_from_bytes\n.")
    with gzip.open(tmp_path / "inner.pkl.gz", "wb") as file:
        pickle.dump({"W": Hostile(load, pickle.dumps(bomb["W_enc"]))}, file)
    (tmp_path / "eval.pt").write_bytes(pickle.dumps(Hostile(eval, "1 + 1"), protocol=2))
    for name in ("old.pt", "x.pkl.gz", "inner.pkl.gz", "eval.pt"):
        for read in (pickle_reader.read, load_sae):
            with pytest.raises(CheckpointError, match="would execute code") as caught:
                read(tmp_path / name)
            assert "\n" not in str(caught.value)
    assert not proof.exists()
    with gzip.open(tmp_path / "inner.pkl.gz") as file:
        inner = file.read()
    with pytest.raises(RuntimeError, match="magic number"):
        pickle.loads(inner)
    assert proof.exists()  # the bomb is live: torch runs it before it finds that this is no storage


def test_a_storage_in_a_storage_is_refused(tmp_path):
    load = pickle.loads(b"ctorch.storage\n_load_from_bytes\n.")
    inner = pickle.dumps({"W": Hostile(load, b"\x80\x04N.")}, protocol=4)
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"W": Hostile(load, inner)}, protocol=4))
    with pytest.raises(CheckpointError, match="_load_from_bytes"):
        pickle_reader.read(tmp_path / "x.pt")


def test_damaged_legacy_files_are_one_line_errors(tmp_path):
    path = legacy(tmp_path / "x.pt", {"w": torch.arange(24.0)})
    raw = path.read_bytes()
    for keep in (0, 1, 20, 60, len(raw) // 2, len(raw) - 50, len(raw) - 1):
        path.write_bytes(raw[:keep])
        with pytest.raises(CheckpointError, match=r"cut off|can't be read") as caught:
            load_sae(path)
        assert "\n" not in str(caught.value)
    count = (24).to_bytes(8, "little")
    for wrong in (23, 25, 2**60):
        path.write_bytes(raw.replace(count, wrong.to_bytes(8, "little")))
        with pytest.raises(CheckpointError, match="another length"):
            pickle_reader.read(path)
    path.write_bytes(raw.replace(b"little_endian", b"lattle_endian"))
    with pytest.raises(CheckpointError, match="big-endian"):
        pickle_reader.read(path)


def test_a_made_up_storage_is_refused_before_room_is_made(tmp_path):
    path = legacy(tmp_path / "x.pt", {"w": torch.arange(1000.0)})
    raw = path.read_bytes()
    declared = b"M\xe8\x03"  # BININT2 1000
    assert raw.count(declared) == 2  # the storage's length, the tensor's
    path.write_bytes(raw.replace(declared, b"\x8a\x05" + (2**36).to_bytes(5, "little")))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="cut off"):
        pickle_reader.read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_gzip_bombs_and_other_things_in_gzip_are_refused(tmp_path):
    path = tmp_path / "x.pkl.gz"
    path.write_bytes(gzip.compress(b"\x80\x04N." + bytes(80 * 2**20)))
    with pytest.raises(CheckpointError, match="50 times"):
        pickle_reader.read(path)
    path.write_bytes(gzip.compress(b'{"text": 1}'))
    with pytest.raises(CheckpointError, match="neither a pickle"):
        pickle_reader.read(path)
    path.write_bytes(gzip.compress(b"\x80\x04" + os.urandom(5000))[:3000])
    with pytest.raises(CheckpointError, match="cut off or damaged"):
        pickle_reader.read(path)


def test_tensors_outlive_the_reader_and_are_read_more_than_once(tmp_path):
    with gzip.open(tmp_path / "x.pkl.gz", "wb") as file:
        pickle.dump({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(50, 400)}, file)
    opened = Opened(tmp_path / "x.pkl.gz", pickle_reader.read(tmp_path / "x.pkl.gz"))
    (tmp_path / "x.pkl.gz").unlink()
    for _ in range(2):
        np.testing.assert_array_equal(opened.array("a", transpose=True), np.arange(6).reshape(2, 3).T)
        assert opened.array("b").sum() == 20000
