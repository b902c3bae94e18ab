import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from amortjax.activations.store import open_store
from amortjax.errors import AmortjaxError
from amortjax.launch import collect
from tests.activations import tiny


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny.module("gpt_neox").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def _text(folder: Path, count: int) -> str:
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": t, "kind": len(t) % 3}) + "\n" for t in tiny.texts(count)))
    return str(path)


def _config(model: str, dataset: str, out: Path, **changes: object) -> collect.Config:
    values = {"layer_index": 1, "max_seq_len": 64, "label_column": "kind", "batch_tokens": 512} | changes
    return collect.Config(model_name=model, dataset=dataset, out=str(out), **values)  # pyright: ignore[reportArgumentType]


def _files(path: Path) -> dict[str, bytes]:
    files = {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
    # Speed and versions of a run are its own.
    files.pop("manifest.json")
    return files


def test_store_says_what_it_holds(model_folder: str, tmp_path: Path):
    collect.run(_config(model_folder, _text(tmp_path, 400), tmp_path / "s", num_sequences=350))
    store = open_store(tmp_path / "s")
    manifest = store.manifest
    assert (manifest["hook"], manifest["layer_index"], manifest["n_documents"]) == ("resid_post", 1, 350)
    assert manifest["token_policy"]["special"] == "excluded"
    texts = tiny.texts(400)
    assert store.n_rows == store.documents["stop"][-1] == sum(len(text) for text in texts[:350])
    for number in (0, 100, 349):
        rows = slice(store.documents["start"][number], store.documents["stop"][number])
        assert "".join(store.token_strings(store.token_ids[rows])) == texts[number]
        assert store.documents["label"][number] == str(len(texts[number]) % 3)
    assert {"sae_train", "test"} <= set(store.documents["split"].tolist())


def test_complete_store_is_left_alone(model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    config = _config(model_folder, _text(tmp_path, 50), tmp_path / "s")
    first = collect.run(config)
    before = _files(tmp_path / "s")
    assert collect.run(config) == first
    assert "complete already" in capsys.readouterr().out
    assert _files(tmp_path / "s") == before


@pytest.fixture(scope="module")
def whole(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Some text, and the store of it from one run."""
    folder = tmp_path_factory.mktemp("whole")
    dataset = _text(folder, 2500)
    collect.run(_config(model_folder, dataset, folder / "store"))
    return dataset, folder / "store"


def test_killed_run_goes_on(model_folder: str, whole: tuple[str, Path], tmp_path: Path):
    dataset, complete = whole
    flags = {"layer_index": 1, "max_seq_len": 64, "label_column": "kind", "batch_tokens": 512}
    command = [sys.executable, "-m", "amortjax.launch.collect", f"--model_name={model_folder}"]
    command += [f"--dataset={dataset}", f"--output_dir={tmp_path / 'killed'}"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    manifest = tmp_path / "killed" / "manifest.json"
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if manifest.exists() and json.loads(manifest.read_text())["n_rows"] > 20_000:
            break
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    record = json.loads(manifest.read_text())
    assert record["n_rows"] > 20_000
    assert not record["finished"]
    collect.run(_config(model_folder, dataset, tmp_path / "killed"))
    ours, theirs = _files(tmp_path / "killed"), _files(complete)
    assert ours.keys() == theirs.keys()
    # Two processes need not agree on a matmul's last bits; all that is not an activation is equal to the byte.
    assert {n for n in ours if ours[n] != theirs[n]} <= {n for n in ours if n.startswith("activations/")}
    a, b = (open_store(path).read(slice(None)) for path in (tmp_path / "killed", complete))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_speed_is_reported(whole: tuple[str, Path]):
    speed = open_store(whole[1]).manifest["speed"]
    assert speed["of_bare"] == pytest.approx(speed["tokens_per_second"] / speed["bare_tokens_per_second"])
    assert speed["tokens_per_second"] > 100


def test_bfloat16_on_disk(model_folder: str, tmp_path: Path):
    dataset = _text(tmp_path, 40)
    collect.run(_config(model_folder, dataset, tmp_path / "a"))
    collect.run(_config(model_folder, dataset, tmp_path / "b", dtype="bfloat16"))
    full, half = (open_store(tmp_path / name).read(slice(None)) for name in "ab")
    np.testing.assert_allclose(half, full, rtol=2**-8)
    assert not np.array_equal(half, full)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer_index": 3}, "has blocks 0 to 2"),
        ({"max_seq_len": 65}, "takes 2 to 64 tokens"),
        ({"text_column": "body"}, "no column 'body'; the columns: text, kind"),
        ({"model_name": "/nowhere"}, "no such folder"),
        ({"dataset": "/nowhere.jsonl"}, "no such file"),
        ({"num_sequences": 0}, "at least 1"),
        ({"split_fractions": "train=1"}, "no such split"),
    ],
)
def test_mistakes_leave_nothing_behind(model_folder: str, tmp_path: Path, changes: dict, said: str):
    config = _config(model_folder, _text(tmp_path, 5), tmp_path / "s")
    config = collect.Config(**{**vars(config), **changes})
    with pytest.raises(AmortjaxError, match=said) as caught:
        collect.run(config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_store_of_another_layer_is_refused(model_folder: str, tmp_path: Path):
    dataset = _text(tmp_path, 40)
    collect.run(_config(model_folder, dataset, tmp_path / "s"))
    with pytest.raises(AmortjaxError, match="layer_index=1, not layer_index=2: choose another --out"):
        collect.run(_config(model_folder, dataset, tmp_path / "s", layer_index=2))


def test_unwritable_output(model_folder: str, tmp_path: Path):
    dataset = _text(tmp_path, 5)
    with pytest.raises(AmortjaxError, match="Not a directory"):
        collect.run(_config(model_folder, dataset, Path(dataset) / "s"))


def test_fixed_splits_of_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from amortjax.activations import pydoc

    monkeypatch.setattr(pydoc, "load", lambda cache_dir: [(text, "a") for text in tiny.texts(30)])
    config = collect.Config(model_name="embedded", layer_index=1, out=str(tmp_path / "s"), seed=1)
    with pytest.raises(AmortjaxError, match="splits fixed"):
        collect.run(config)
