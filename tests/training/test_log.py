"""The log of a training: every step once, whatever a kill or a full disk has left."""

import json
import struct
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from amortjax.errors import AmortjaxError
from amortjax.training import log
from amortjax.training.log import Log


def _steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_is_in_the_file_as_soon_as_it_is_written(tmp_path):
    run = Log(tmp_path / "new" / "folder")
    line = run.write(
        np.int64(5), {"fvu": np.float32(0.25), "l0": jnp.asarray(3), "name": "a", "val_gap": None}
    )
    assert line == {"step": 5, "fvu": 0.25, "l0": 3.0, "name": "a", "val_gap": None}
    assert log.read(tmp_path / "new" / "folder") == [line]
    run.close()


def test_what_is_not_finite_is_null_and_other_readers_agree(tmp_path):
    with Log(tmp_path, tensorboard=True) as run:
        run.write(1, {"a": float("nan"), "b": np.float32("inf"), "c": -jnp.inf, "d": 0.5})

    def strict(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    (text,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(text, parse_constant=strict) == {"step": 1, "a": None, "b": None, "c": None, "d": 0.5}
    assert [scalars for _, scalars in _shown(tmp_path)] == [{"d": 0.5}]


@pytest.mark.parametrize("cut", [0, 1, 9, 30])
def test_a_resumed_run_has_every_step_once_though_the_last_line_was_cut_off(cut, tmp_path):
    with Log(tmp_path) as run:
        for step in (10, 20, 30, 40):
            run.write(step, {"fvu": 1 / step, "l0": 3.0})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) - cut])
    assert [line["step"] for line in log.read(tmp_path)] == ([10, 20, 30, 40] if cut < 2 else [10, 20, 30])
    with Log(tmp_path, first_step=20) as run:
        assert _steps(tmp_path) == [10, 20]  # before anything is written: the run may be killed again
        run.write(30, {"fvu": 0.5})
    assert _steps(tmp_path) == [10, 20, 30]
    assert log.read(tmp_path)[-1] == {"step": 30, "fvu": 0.5}


def test_zeros_that_a_power_cut_left_at_the_end_are_dropped(tmp_path):
    with Log(tmp_path) as run:
        run.write(10, {"fvu": 0.5})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"\0" * 40)
    with Log(tmp_path, first_step=10) as run:
        run.write(20, {})
    assert _steps(tmp_path) == [10, 20]


@pytest.mark.parametrize("bad", ["{", "[1]", '{"loss": 1}', "\xff"])
def test_a_damaged_line_in_the_middle_is_told_and_nothing_is_touched(bad, tmp_path):
    text = f'{{"step": 1}}\n{bad}\n{{"step": 3}}\n'.encode("latin-1")
    (tmp_path / "metrics.jsonl").write_bytes(text)
    with pytest.raises(AmortjaxError, match=r"metrics\.jsonl: line 2 .*mend or delete") as caught:
        Log(tmp_path, first_step=3)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "metrics.jsonl").read_bytes() == text


def test_a_folder_without_a_log_has_no_lines(tmp_path):
    assert log.read(tmp_path / "none") == []


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    run = Log(tmp_path, tensorboard=True)
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    monkeypatch.setattr(run, "_file", full.open("w", buffering=1))
    with pytest.raises(
        AmortjaxError, match=r"metrics\.jsonl.*No space left.*goes on from the last checkpoint"
    ):
        run.write(1, {"fvu": 0.5})


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(AmortjaxError, match=r"metrics\.jsonl: can.t be"):
        Log(tmp_path / "out")


def test_tensorboard_shows_every_step_once(tmp_path):
    for first, steps in ((0, (10, 20, 30)), (10, (20, 30, 40)), (30, (40, 50))):
        with Log(tmp_path, first, tensorboard=True) as run:
            for step in steps:
                run.write(step, {"fvu": first + 1.0, "val_gap": None, "note": "text"})
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3
    expected = [(10, 1.0), (20, 11.0), (30, 11.0), (40, 31.0), (50, 31.0)]
    assert _shown(tmp_path) == [(step, {"fvu": fvu}) for step, fvu in expected]


def _shown(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, scalars) as TensorBoard takes them: file by file, a restart at step t takes back all from t on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    shown: list[tuple[int, dict[str, float]]] = []
    for file in sorted((folder / "tensorboard").iterdir()):
        first, *events = [Event.FromString(record) for record in _records(file.read_bytes())]
        assert first.file_version == "brain.Event:2"
        for event in events:
            if event.session_log.status == SessionLog.START:
                shown = [pair for pair in shown if pair[0] < event.step]
            else:
                values: Any = event.summary.value
                shown.append((event.step, {value.tag: value.simple_value for value in values}))
    return shown


def _records(data: bytes) -> list[bytes]:
    """The records of a TFRecord file: length (8 bytes), its checksum (4), the record, its checksum (4)."""
    found = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(data[12 : 12 + length])
        data = data[16 + length :]
    return found
