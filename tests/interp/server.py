"""A chat endpoint on this machine for tests, which answers as it is told and remembers what it was asked."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from amortjax.interp.prompts import Request, Shown

KEY = "sk-Test-5up3rSecret-0123456789"


class Fake:
    """`script`: what the next requests get, a status or bytes; when it is empty, `answer(messages)` in a completion."""

    def __init__(self, key: str | None = KEY) -> None:
        self.key, self.script, self.asked, self.headers, self.retry_after = key, [], [], [], None
        self.answer: Callable[[list[dict[str, str]]], Any] = self.offline
        self.usage: Any = {"prompt_tokens": 100, "completion_tokens": 7}
        self.delay = threading.Event()
        self.waits = 0.0
        self.url = ""

    def offline(self, messages: list[dict[str, str]]) -> str:
        """A reader of prompts: says what is marked most often, and looks for it in the texts."""
        texts = [
            json.loads(line.split(". ", 1)[1])
            for line in messages[1]["content"].split("\n")
            if line[:1].isdigit()
        ]
        if "EXPLANATION" in messages[0]["content"]:
            marked = [part.split(">>")[0] for text in texts for part in text.split("<<")[1:]]
            return f"EXPLANATION: {max(sorted(set(marked)), key=lambda m: (marked.count(m), -len(m)))}"
        word = messages[1]["content"].split("\n")[0].removeprefix("Description: ")
        return json.dumps([int(word in text) for text in texts])

    def reply(self, body: bytes) -> tuple[int, bytes]:
        if self.script:
            found = self.script.pop(0)
            return (200, found) if isinstance(found, bytes) else (found, b"it is so")
        messages = json.loads(body)["messages"]
        choice = {"message": {"role": "assistant", "content": self.answer(messages)}, "finish_reason": "stop"}
        return 200, json.dumps({"choices": [choice], "usage": self.usage}).encode()


@contextlib.contextmanager
def serving(fake: Fake) -> Iterator[Fake]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            fake.asked.append(json.loads(body))
            fake.headers.append(dict(self.headers) | {"path": self.path})
            if fake.waits:
                fake.delay.wait(fake.waits)
            if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
                status, said = 401, f"wrong key {self.headers.get('Authorization')}".encode()
            else:
                status, said = fake.reply(body)
            with contextlib.suppress(OSError):  # who asked may have gone
                self.send_response(status)
                if status in (301, 302, 307, 308):
                    self.send_header("Location", fake.url + "/elsewhere")
                if status in (429, 503) and fake.retry_after is not None:
                    self.send_header("Retry-After", str(fake.retry_after))
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

        def log_message(self, *args: Any) -> None:
            del args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield fake
    finally:
        fake.delay.set()
        server.shutdown()
        server.server_close()


def question() -> Request:
    """One context to score."""
    messages = {"role": "system", "content": "s"}, {"role": "user", "content": 'Description: x\n1. "x"'}
    return Request("detect", messages, (Shown(("x",), (), None),), "x")
