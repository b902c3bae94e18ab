"""What a training run says of itself while it runs: a line of JSON per report, and the same for TensorBoard.

    with Log(folder, first_step=done, tensorboard=True) as log:
        log.write(step, {"loss": .31, "fvu": .2})     # folder/metrics.jsonl, folder/tensorboard/

A killed run leaves lines of steps that its successor will do again, and perhaps a half-written one: opening the
log at the step that the run goes on from takes them out, so that each step is there once.
"""

import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from amortjax.errors import AmortjaxError
from amortjax.files import write_atomically

FILE = "metrics.jsonl"


class Log:
    """Appends to `folder/metrics.jsonl`. `first_step`: steps done already; lines of later steps are dropped.

    Raises AmortjaxError where the folder can't be written, or its log can't be read.
    """

    def __init__(self, folder: str | os.PathLike, first_step: int = 0, tensorboard: bool = False):
        self.path = Path(folder) / FILE
        with _told(self.path):
            lines = _lines(self.path)
            kept = [line for line in lines if line["step"] <= first_step]
            # Rewritten once, here: a half-written last line must not be appended to.
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = self.path.open("a")
            self._events = _Events(Path(folder) / "tensorboard", first_step) if tensorboard else None

    def write(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """One line {"step": step, ...}; a NaN or infinity is null. Returns the line. It is with the operating
        system when this returns, so that killing the process does not lose it."""
        line = {"step": int(step), **{name: _clean(value) for name, value in values.items()}}
        with _told(self.path):
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
            if self._events is not None:
                self._events.write(line)
        return line

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a folder's log, without a half-written last one; [] if there is none.

    Raises AmortjaxError naming the line if another is damaged.
    """
    path = Path(folder) / FILE
    with _told(path):
        return _lines(path)


def _lines(path: Path) -> list[dict[str, Any]]:
    texts = path.read_bytes().splitlines() if path.is_file() else []
    lines = [_parsed(text) for text in texts]
    if lines and lines[-1] is None:
        lines.pop()
    for i, line in enumerate(lines):
        if line is None:
            raise AmortjaxError(f"{path}: line {i + 1} is not a line of a log: mend or delete it")
    return [line for line in lines if line is not None]


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:  # of json, and of bytes that are not text
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


def _clean(value: Any) -> Any:
    """A number, text, or None, as JSON has them."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    number = float(value)  # NumPy's and JAX's scalars too
    return number if math.isfinite(number) else None


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns a full disk and the like into one line."""
    try:
        yield
    except OSError as error:
        raise AmortjaxError(
            f"{path}: can't be read or written ({error.strerror or error}). Mend that and run the same command "
            "again: it goes on from the last checkpoint"
        ) from error


class _Events:
    """TensorBoard's file of scalars, one event per line. tensorboardX's own SummaryWriter is not used: it writes
    from a thread, and waits for ever once that thread has met a full disk."""

    def __init__(self, folder: Path, first_step: int):
        from tensorboardX import RecordWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        events, summaries = cast(Any, event_pb2), cast(Any, summary_pb2)  # names pyright can't see
        self._event, self._summary = events.Event, summaries.Summary
        folder.mkdir(parents=True, exist_ok=True)
        # Nanoseconds, because a file of the same name would be written over.
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._file = RecordWriter(str(folder / name))
        self._put(file_version="brain.Event:2")
        # TensorBoard then forgets events from this step on that an earlier process wrote.
        self._put(step=first_step + 1, session_log=events.SessionLog(status=events.SessionLog.START))

    def write(self, line: dict[str, Any]) -> None:
        numbers = {name: value for name, value in line.items() if isinstance(value, (int, float))}
        del numbers["step"]
        values = [self._summary.Value(tag=name, simple_value=float(n)) for name, n in numbers.items()]
        self._put(step=line["step"], summary=self._summary(value=values))

    def close(self) -> None:
        self._file.close()

    def _put(self, **fields: Any) -> None:
        self._file.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._file.flush()
