import json
from pathlib import Path

import numpy as np
import pytest

from amortjax.activations.store import MemoryStore, Store, open_store
from amortjax.activations.writer import Writer
from amortjax.errors import StoreError

MANIFEST = {
    "model_name": "a",
    "model_fingerprint": "f",
    "hook": "resid_post",
    "layer_index": 1,
    "d_model": 8,
    "dtype": "float32",
    "dataset": "text",
    "corpus_fingerprint": "c",
    "chunk_rows": 64,
}
SIZES = np.asarray([30, 0, 100, 7, 50, 13])
SPLITS = ["sae_train", "test", "sae_train", "test", "calibrate", "test"]


def _rows(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = int(SIZES.sum())
    x = rng.standard_normal((n, 8)).astype(np.float32)
    return x, np.arange(n, dtype=np.int32) % 5, np.repeat(np.arange(len(SIZES)), SIZES)


def _documents() -> dict[str, list]:
    stops = np.cumsum(SIZES)
    return {
        "split": SPLITS,
        "label": ["x", "", "y", "x", "y", "x"],
        "start": (stops - SIZES).tolist(),
        "stop": stops.tolist(),
    }


def _write(path: Path, step: int = 33, stop_after: int | None = None, **changes: object) -> Writer:
    writer = Writer(path, MANIFEST | changes)
    x, token_ids, doc_ids = _rows()
    for start in range(0, len(x), step):
        if stop_after is not None and start >= stop_after:
            # What is on its way to the disk may arrive, but nobody counts it any more.
            for future in writer._pending:
                future.result()
            return writer
        part = slice(start, start + step)
        writer.append(start, x[part], token_ids[part], doc_ids[part])
    writer.finish(_documents(), ["a", " b", "c", "d", "e"])
    return writer


def _files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    _write(tmp_path / "s")
    return open_store(tmp_path / "s")


def test_what_was_written_is_read(store: Store):
    x, token_ids, doc_ids = _rows()
    np.testing.assert_array_equal(store.read(slice(None)), x)
    np.testing.assert_array_equal(store.read(slice(190, 10**6)), x[190:])
    assert store.read(np.asarray([], dtype=np.int64)).shape == (0, 8)
    np.testing.assert_array_equal(store.read(np.asarray([3, 199, 64])), x[[3, 199, 64]])
    np.testing.assert_array_equal(store.token_ids, token_ids)
    np.testing.assert_array_equal(store.doc_ids, doc_ids)
    assert (store.n_rows, store.d_model, store.manifest["n_documents"]) == (200, 8, 6)
    assert store.documents["split"].tolist() == SPLITS
    assert store.token_strings(np.asarray([1, 4, 99])) == [" b", "e", ""]


def test_bfloat16_rounds_to_it(tmp_path: Path):
    import ml_dtypes

    _write(tmp_path / "s", dtype="bfloat16")
    read = open_store(tmp_path / "s").read(slice(0, 50))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, _rows()[0][:50].astype(ml_dtypes.bfloat16).astype(np.float32))


def test_norm_is_of_the_training_rows(store: Store):
    x = _rows()[0][store.rows("sae_train")]
    norm = store.manifest["norm"]
    assert norm["n_rows"] == 130
    assert norm["mean_sq_norm"] == pytest.approx(np.mean(np.sum(x**2, axis=1)), rel=1e-5)
    centred = x - x.mean(axis=0)
    assert norm["rms_centred"] == pytest.approx(np.sqrt(np.mean(centred**2)), rel=1e-5)
    np.testing.assert_allclose(norm["mean"], x.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_other_readers_can_read_it(store: Store):
    # Nothing of amortjax or TensorStore: chunks are plain little-endian rows with a checksum after them.
    raw = Path(store.path, "activations", "c", "0", "0").read_bytes()
    np.testing.assert_array_equal(np.frombuffer(raw[:-4], "<f4").reshape(64, 8), _rows()[0][:64])
    assert json.loads(Path(store.path, "activations", "zarr.json").read_text())["shape"] == [200, 8]


def test_rows_of_a_split(store: Store):
    documents = store.documents
    for split in ("sae_train", "test", "calibrate"):
        wanted = np.flatnonzero(documents["split"][store.doc_ids] == split)
        np.testing.assert_array_equal(store.rows(split), wanted)


def test_rows_within_a_budget(store: Store):
    for seed in range(5):
        whole = store.rows("test", 10, seed=seed)
        assert len(whole) in (13, 20)  # 13 alone, or 7 and then 13
        assert set(np.bincount(store.doc_ids[whole], minlength=6)[[3, 5]]) <= {0, 7, 13}
        exact = store.rows("test", 10, whole_documents=False, seed=seed)
        assert len(exact) == 10 and set(exact) <= set(whole)
    np.testing.assert_array_equal(store.rows("test", 10, seed=3), store.rows("test", 10, seed=3))
    assert len({tuple(store.rows("sae_train", 5, seed=seed)) for seed in range(20)}) == 2
    np.testing.assert_array_equal(store.rows("test", 10**6), store.rows("test"))


def test_unknown_or_empty_split(store: Store):
    with pytest.raises(StoreError, match=r"no such split\. Splits: lm_train, sae_train"):
        store.rows("train")
    with pytest.raises(
        StoreError, match=r"no document of split 'probe_train' .it has calibrate, sae_train, test"
    ):
        store.rows("probe_train")


def test_going_on_gives_the_same_store(tmp_path: Path):
    _write(tmp_path / "whole")
    _write(tmp_path / "killed", stop_after=150)
    with pytest.raises(StoreError, match="unfinished, 64 rows so far"):
        open_store(tmp_path / "killed")
    _write(tmp_path / "killed", step=50)
    assert _files(tmp_path / "killed") == _files(tmp_path / "whole")


def test_a_half_written_chunk_is_written_again(tmp_path: Path):
    _write(tmp_path / "whole")
    writer = _write(tmp_path / "killed", stop_after=150)
    # As a kill would leave it: the array has grown, the manifest does not count it yet.
    writer._resize(192)
    Path(tmp_path, "killed", "activations", "c", "1", "0").write_bytes(b"half")
    _write(tmp_path / "killed", step=200)
    assert _files(tmp_path / "killed") == _files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("key", "value"),
    [("model_name", "b"), ("model_fingerprint", "g"), ("hook", "mlp_out"), ("corpus_fingerprint", "d")],
)
def test_another_identity_is_refused(tmp_path: Path, key: str, value: str):
    _write(tmp_path / "s", stop_after=100)
    before = _files(tmp_path / "s")
    with pytest.raises(StoreError, match=f"{key}=.*not {key}={value}: choose another --out"):
        Writer(tmp_path / "s", MANIFEST | {key: value})
    assert _files(tmp_path / "s") == before


def test_not_finite_rows_are_not_written(tmp_path: Path):
    writer = Writer(tmp_path / "s", MANIFEST)
    x, token_ids, doc_ids = _rows()
    writer.append(0, x[:70], token_ids[:70], doc_ids[:70])
    x[80, 3] = np.nan
    x[90:92] = np.inf
    with pytest.raises(
        StoreError, match="3 of 130 activation rows hold NaN or infinity, the first is row 80"
    ):
        writer.append(70, x[70:], token_ids[70:], doc_ids[70:])


def test_not_finite_rows_are_reported(store: Store):
    store._x[[5, 77, 150], 2] = np.nan
    with pytest.raises(
        StoreError, match="3 of 200 activation rows hold NaN or infinity, the first is row 5:"
    ):
        store.check_finite()
    with pytest.raises(StoreError, match="2 of 3 activation rows hold NaN or infinity, the first is row 77"):
        store.read(np.asarray([6, 77, 150]))
    assert len(store.read(slice(6, 77))) == 71


def test_missing_store(tmp_path: Path):
    with pytest.raises(StoreError, match="no activation store there"):
        open_store(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", ["remove", "truncate", "flip", "manifest", "table"])
def test_damaged_store(store: Store, damage: str):
    chunk = Path(store.path, "activations", "c", "1", "0")
    if damage == "remove":
        chunk.unlink()
    elif damage == "truncate":
        chunk.write_bytes(chunk.read_bytes()[:-9])
    elif damage == "flip":
        data = bytearray(chunk.read_bytes())
        data[100] ^= 1
        chunk.write_bytes(bytes(data))
    elif damage == "manifest":
        Path(store.path, "manifest.json").write_text('{"format_version": 1, "fin')
    else:
        Path(store.path, "documents.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError) as caught:
        open_store(store.path).read(slice(64, 128))
    assert "\n" not in str(caught.value)


def test_unwritable_output(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Not a directory"):
        Writer(tmp_path / "file" / "s", MANIFEST)


def test_memory_store_reads_alike(store: Store):
    x, token_ids, doc_ids = _rows()
    memory = MemoryStore.build(
        x, doc_ids, SPLITS, _documents()["label"], token_ids, ["a", " b", "c", "d", "e"]
    )
    rows = np.asarray([0, 5, 130])
    np.testing.assert_array_equal(memory.read(rows), store.read(rows))
    np.testing.assert_array_equal(memory.rows("test", 10), store.rows("test", 10))
    for name, column in store.documents.items():
        np.testing.assert_array_equal(memory.documents[name], column)
    for name, value in store.manifest["norm"].items():
        assert memory.manifest["norm"][name] == pytest.approx(value, rel=1e-5)
    assert memory.token_strings(rows) == store.token_strings(rows)


def test_memory_store_checks_its_rows():
    x = np.zeros((4, 2), dtype=np.float32)
    x[2, 1] = np.inf
    memory = MemoryStore.build(x, np.asarray([0, 0, 1, 1]), ["sae_train", "test"])
    with pytest.raises(StoreError, match="1 of 3 activation rows hold NaN or infinity, the first is row 2"):
        memory.read(slice(1, 4))
    with pytest.raises(StoreError, match="4 ascending document numbers"):
        MemoryStore.build(x, np.asarray([0, 1, 0, 1]), ["sae_train", "test"])
