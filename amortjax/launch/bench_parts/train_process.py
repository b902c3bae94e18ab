"""The peer as seen from here: a process of another Python that answers line by line (`train_peer` says what)."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from amortjax.errors import AmortjaxError

SCRIPT = Path(__file__).with_name("train_peer.py")
INSTALL = (
    "python -m venv peer && peer/bin/pip install torch dictionary-learning && peer/bin/pip uninstall -y torchvision, "
    "then --peer_python=peer/bin/python"
)


# A key that each answer has: what answers without is no peer.
HAS = {"hello": "versions", "setup": "device", "train": "seconds", "quieten": "dead", "encode": "seconds"}


class Peer:
    """`with Peer(python) as peer: peer.ask("setup", ...)`; it computes only between a question and its answer."""

    def __init__(self, python: str, script: Path = SCRIPT) -> None:
        self.python = python
        # A pipe that nobody reads would fill up and stop it.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        hidden = ("PYTHONPATH", "PYTHONHOME")  # ours lead to our packages
        environment = {key: value for key, value in os.environ.items() if key not in hidden}
        try:
            self._process = subprocess.Popen(
                [python, "-u", str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=environment,
            )
        except OSError as error:
            self._errors.close()
            raise AmortjaxError(f"--peer_python={python}: {error.strerror}. To make one: {INSTALL}") from None

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """The answer. Raises AmortjaxError with the peer's last words if it failed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **more}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:  # it has gone
            line = ""
        try:
            said = json.loads(line)
        except ValueError:
            said = {"error": f"no answer ({self._last_words()})"}
        if not isinstance(said, dict) or HAS[do] not in said:
            text = (
                str(said["error"])
                if isinstance(said, dict) and "error" in said
                else f"it answered {line.strip()}"
            )
            hint = f". It needs torch and dictionary-learning: {INSTALL}" if "ModuleNotFound" in text else ""
            raise AmortjaxError(f"--peer_python={self.python}: {do} failed: {' '.join(text.split())}{hint}")
        return said

    def _last_words(self) -> str:
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), f"code {self._process.returncode}")

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()  # it holds nothing that is worth keeping
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            try:
                pipe.close()
            except OSError:  # what was not yet sent to a process that has gone
                continue

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
