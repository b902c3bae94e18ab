"""A judge behind any OpenAI-compatible chat endpoint: POST BASE_URL/chat/completions, with the standard library.

The key is read from the environment variable whose name is given and goes into one request header. It stands in no
message, no error and no repr; where a server repeats it, it is cut out. Redirects are refused, because the header would
go along to wherever they point.
"""

import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from amortjax.errors import AmortjaxError
from amortjax.interp.prompts import Answer, Request

if TYPE_CHECKING:
    from amortjax.interp.judges import JudgeOptions

MOST_BYTES = 8 << 20  # of a reply
LONGEST_WAIT = 60.0  # seconds between two tries
RETRIED = (408, 409, 425, 429)  # and 500 and above
LOCAL = ("localhost", "127.0.0.1", "::1")  # hosts that are this machine
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class _Retry(Exception):
    """Worth another try; `wait` seconds if the server said how long."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs


def _may_be_key(name: str) -> bool:
    """Whether this unset name is unlike names of variables: in small letters, or long and without a `_`."""
    return name != name.upper() or (len(name) >= 16 and "_" not in name)


def check_name(name: str | None) -> None:
    """AmortjaxError, which does not repeat it, if this may be a key and not the name of an environment variable."""
    if name and (not _NAME.match(name) or (name not in os.environ and _may_be_key(name))):
        raise AmortjaxError(
            "--api_key_env: no environment variable of that name; give the variable's NAME (as in OPENAI_API_KEY), "
            "never the key itself"
        )


def read_key(name: str | None) -> str | None:
    """The key in the environment variable `name`; None without a name."""
    check_name(name)
    if not name:
        return None
    key = os.environ.get(name, "").strip()
    if not key:  # an error does not repeat the name: a key in capitals looks like one
        raise AmortjaxError(
            "--api_key_env: the environment variable that it names is not set; export it first"
        )
    if not key.isascii() or not key.isprintable():
        raise AmortjaxError(f"{name}: the key in it holds characters that no header can; export it again")
    return key


def checked_url(base_url: str | None, with_key: bool) -> str:
    """The endpoint's address without a slash at its end. A key travels over https, or stays on this machine."""
    if not base_url:
        raise AmortjaxError("the endpoint judge needs --base_url, as in https://api.openai.com/v1")
    try:
        parts = urllib.parse.urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise AmortjaxError("--base_url is not an address; give one as in https://host/v1") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise AmortjaxError(
            "--base_url holds a name, a password or a query: it is written to files, so give the bare address and "
            "the key by --api_key_env"
        )
    if parts.scheme not in ("http", "https") or not host or not base_url.isascii() or " " in base_url:
        raise AmortjaxError("--base_url is not an http address; give one as in https://host/v1")
    if with_key and parts.scheme == "http" and host not in LOCAL:
        raise AmortjaxError(
            "--base_url: the key would leave this machine unencrypted; use https, or leave --api_key_env out"
        )
    return base_url.rstrip("/")


def _opener(base_url: str) -> urllib.request.OpenerDirector:
    """Follows no redirects; asks no proxy for a server on this machine, which http_proxy would send the key off to."""
    if urllib.parse.urlsplit(base_url).hostname in LOCAL:
        return urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(_NoRedirect)


class Endpoint:
    """Retries on 429, 5xx, timeouts and broken connections with doubling waits (or as long as the server says);
    everything else is an AmortjaxError in one line."""

    name = "endpoint"

    def __init__(self, options: "JudgeOptions") -> None:
        if not options.model:
            raise AmortjaxError("the endpoint judge needs --judge_model: the endpoint's name of a model")
        if options.answer_tokens_field not in ("max_tokens", "max_completion_tokens"):
            raise AmortjaxError(
                f"answer_tokens_field {options.answer_tokens_field!r}: max_tokens or max_completion_tokens"
            )
        check_name(options.api_key_env)
        self.base_url = checked_url(options.base_url, bool(options.api_key_env))
        self.options, self._key = options, None
        self._opener = _opener(self.base_url)

    @property
    def identity(self) -> dict[str, Any]:
        named = ("model", "base_url", "answer_tokens", "temperature", "seed")
        return {"judge": self.name} | {name: getattr(self.options, name) for name in named}

    def prepare(self) -> None:
        self._key = read_key(self.options.api_key_env)

    def answer(self, request: Request) -> Answer:
        if self._key is None:
            self.prepare()
        body = self._body(request)
        for attempt in range(self.options.retries + 1):
            try:
                return self._read(self._post(body))
            except _Retry as error:
                if attempt == self.options.retries:
                    raise AmortjaxError(
                        f"{self.base_url}: {error} ({attempt + 1} tries): try again later (the same command goes on "
                        "from here), or raise --retries or --timeout"
                    ) from None
                wait = self.options.backoff * 2**attempt if error.wait is None else error.wait
                time.sleep(min(wait, LONGEST_WAIT))
        raise AssertionError("unreachable")

    def _body(self, request: Request) -> bytes:
        options = self.options
        about: dict[str, Any] = {"model": options.model, "messages": list(request.messages)}
        about |= {options.answer_tokens_field: options.answer_tokens, "seed": options.seed}
        if options.temperature is not None:
            about["temperature"] = options.temperature
        return json.dumps(about).encode()

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "User-Agent": "amortjax"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(f"{self.base_url}/chat/completions", body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.options.timeout) as reply:
                return reply.read(MOST_BYTES)
        except urllib.error.HTTPError as error:
            raise self._refused(error) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise AmortjaxError(f"{self.base_url}: its certificate can't be verified") from None
            raise _Retry(f"can't be reached ({self._clean(str(error.reason))})") from None
        except (OSError, http.client.HTTPException) as error:  # a timeout or a cut while reading
            raise _Retry(f"no whole reply ({type(error).__name__})") from None

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP error is: worth a retry, or the user's to mend."""
        code, where = error.code, self.base_url
        try:
            said = self._clean(error.read(4096).decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException):
            said = ""
        if code in RETRIED or code >= 500:
            return _Retry(f"answers {code}", _retry_after(error.headers.get("Retry-After")))
        if code in (401, 403):  # such replies may repeat parts of the key, so they are not shown
            name = self.options.api_key_env
            remedy = f"check the key in {name}" if name else "give the key's variable by --api_key_env"
            return AmortjaxError(f"{where}: the key is not accepted ({code}): {remedy}")
        if 300 <= code < 400:
            return AmortjaxError(
                f"{where}: redirects elsewhere ({code}), which is refused: give its new address"
            )
        return AmortjaxError(f"{where}: answers {code} ({said}): check --base_url and --judge_model")

    def _read(self, reply: bytes) -> Answer:
        try:
            found = json.loads(reply)
            choice = found["choices"][0]
            text = choice["message"]["content"]
            if not isinstance(text, str | None):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise _Retry("the reply is no chat completion") from None
        usage = found.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        asked, answered = (_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
        note = "cut at the answer's length" if choice.get("finish_reason") == "length" else ""
        return Answer(self._without_key(text or ""), asked, answered, note)

    def _without_key(self, text: str) -> str:
        text = text.encode("utf-8", "replace").decode()
        return text if self._key is None else text.replace(self._key, "[key]")

    def _clean(self, text: str) -> str:
        """One short line of a server's words, without the key."""
        return " ".join(self._without_key(text).split())[:160]


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else None


def _retry_after(text: str | None) -> float | None:
    """Seconds of a Retry-After header, a number or a date."""
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
