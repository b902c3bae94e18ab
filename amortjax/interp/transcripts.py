"""Every question and answer on disk, one JSON object a line: what was asked is never asked again.

A line is appended when its answer is there, so a run that is killed loses the question it was at. A last line that was
cut is dropped when the file is opened again.
"""

import dataclasses
import datetime
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from amortjax.errors import AmortjaxError
from amortjax.interp.prompts import Answer, Request


def key_of(identity: dict[str, Any], request: Request) -> str:
    """Of everything an answer depends on."""
    about = [identity, request.kind, list(request.messages), [list(shown) for shown in request.shown]]
    text = json.dumps(about, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclasses.dataclass
class Transcript:
    """Answers by key; `path` None: kept in memory only. AmortjaxError if the file is not one of transcripts."""

    path: Path | None = None
    answers: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._open = False
        if self.path is not None:
            self.path = Path(self.path)
            if self.path.exists():
                self._load(self.path)

    def _load(self, path: Path) -> None:
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], start=1):
            try:
                found = json.loads(line)
                key, answer = found["key"], found["answer"]
                if not isinstance(key, str) or not isinstance(answer, str):
                    raise TypeError
            except (ValueError, KeyError, TypeError, RecursionError):
                raise AmortjaxError(
                    f"{path}, line {number}: is no transcript of amortjax: move the file away, or mend the line"
                ) from None
            self.answers[key] = answer

    def find(self, key: str) -> str | None:
        return self.answers.get(key)

    def add(self, key: str, request: Request, answer: Answer, about: dict[str, Any]) -> None:
        """Appends a line, on disk when this returns. `about`: judge, latent, what was read and the like."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        line = {"key": key, "time": now, "kind": request.kind} | about
        line |= {"messages": list(request.messages), "answer": answer.text, "note": answer.note}
        line |= {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
        with self._lock:
            self.answers[key] = answer.text
            if self.path is not None:
                self._append(self.path, json.dumps(line) + "\n")

    def _append(self, path: Path, line: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if path.exists() else "w+b") as file:
            if not self._open:
                whole = file.read()
                file.truncate(whole.rfind(b"\n") + 1)
                self._open = True
            file.seek(0, os.SEEK_END)
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
