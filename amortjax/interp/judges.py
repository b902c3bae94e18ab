"""Who explains and who scores: one interface, a registry of judges.

    judge = make_judge("offline")
    judge = make_judge("endpoint", JudgeOptions(model="a-model", base_url="https://host/v1", api_key_env="HOST_KEY"))
    judge.prepare()                    # reads the key, loads the model; AmortjaxError if that can't be
    judge.answer(request)              # Answer(text, prompt_tokens, completion_tokens, note)

To add one: an object with `name`, `identity` (all that its answers depend on, and no secret: it is written to
transcripts), `prepare` and `answer`, and a line in JUDGES. Making a judge costs nothing and needs no key.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from amortjax.errors import AmortjaxError
from amortjax.interp.offline import Offline
from amortjax.interp.prompts import Answer, Request


class Judge(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> dict[str, Any]: ...

    def prepare(self) -> None: ...

    def answer(self, request: Request) -> Answer: ...


@dataclasses.dataclass(frozen=True)
class JudgeOptions:
    """`model`: a folder or hub id (local), the endpoint's name of a model. `api_key_env`: the NAME of the environment
    variable that holds the key; the key itself is nowhere but in memory. `answer_tokens`: most tokens of an answer."""

    model: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    answer_tokens: int = 300
    answer_tokens_field: str = "max_tokens"
    temperature: float | None = 0.0
    retries: int = 5
    timeout: float = 120.0
    backoff: float = 1.0  # seconds before the first retry, doubled each time
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("answer_tokens", "timeout"):
            if not 0 < getattr(self, name) < 1e9:
                raise AmortjaxError(f"{name}={getattr(self, name)}: must be above 0")
        if self.retries < 0:
            raise AmortjaxError(f"retries={self.retries}: must not be negative")
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise AmortjaxError(
                f"temperature={self.temperature}: must be from 0 to 2, or none to leave it out"
            )


def _offline(options: JudgeOptions) -> Judge:
    del options
    return Offline()


def _local(options: JudgeOptions) -> Judge:
    from amortjax.interp.local import Local

    return Local(options.model or "", options.answer_tokens, options.device)


def _endpoint(options: JudgeOptions) -> Judge:
    from amortjax.interp.endpoint import Endpoint

    return Endpoint(options)


JUDGES: dict[str, Callable[[JudgeOptions], Judge]] = {
    "offline": _offline,
    "local": _local,
    "endpoint": _endpoint,
}


def make_judge(name: str, options: JudgeOptions | None = None) -> Judge:
    """AmortjaxError if there is no such judge, or it can't be had."""
    if name not in JUDGES:
        raise AmortjaxError(f"judge {name!r} is not one of {', '.join(JUDGES)}")
    return JUDGES[name](options or JudgeOptions())
