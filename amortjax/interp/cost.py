"""What a run will cost before its first call, and what keeps it within bounds while it runs.

Token counts are estimates, four characters a token, where a judge does not count itself; answers are expected to be
short, and at worst as long as they may be. Hidden reasoning is counted in the worst case only.
"""

import dataclasses
import threading
from typing import Any, NamedTuple

from amortjax.errors import AmortjaxError
from amortjax.interp.prompts import Answer, Request

CHARACTERS = 4  # of a token, about
MESSAGE_TOKENS = 6  # around a message, about
EXPLANATION_TOKENS = 60  # expected


class Prices(NamedTuple):
    """Money per million tokens; None: not known."""

    input: float | None = None
    output: float | None = None

    @property
    def known(self) -> bool:
        return self.input is not None and self.output is not None

    def of(self, prompt: int, completion: int) -> float | None:
        if self.input is None or self.output is None:
            return None
        return (prompt * self.input + completion * self.output) / 1e6


def prompt_tokens(request: Request) -> int:
    """About so many."""
    size = sum(-(-len(message["content"]) // CHARACTERS) for message in request.messages)
    return size + MESSAGE_TOKENS * len(request.messages)


def completion_tokens(request: Request) -> int:
    """Expected: two tokens a number."""
    return EXPLANATION_TOKENS if request.kind == "explain" else 2 * len(request.shown) + 2


@dataclasses.dataclass
class Estimate:
    """What is still to be asked. `answer_tokens`: the most that an answer may have. `known`: answers on disk, or to
    questions that come twice; `seen`: keys of those that were counted."""

    answer_tokens: int
    calls: int = 0
    prompt: int = 0
    completion: int = 0
    known: int = 0
    seen: set[str] = dataclasses.field(default_factory=set)

    def add(self, request: Request) -> None:
        self.calls += 1
        self.prompt += prompt_tokens(request)
        self.completion += min(completion_tokens(request), self.answer_tokens)

    @property
    def worst_completion(self) -> int:
        return self.calls * self.answer_tokens

    def lines(self, prices: Prices) -> list[str]:
        """What is printed before the first call."""
        words = [
            f"{self.calls} calls ({self.known} answers are there already), about {self.prompt} prompt tokens and "
            f"{self.completion} tokens of answers (at most {self.worst_completion}); an answer that can't be read is "
            "asked for once more"
        ]
        expected, worst = (prices.of(self.prompt, n) for n in (self.completion, self.worst_completion))
        if expected is not None and worst is not None:
            words.append(
                f"about {expected:.2f} at these prices, {worst:.2f} if every answer is as long as it may be"
            )
        return words

    def refuse(self, prices: Prices, max_calls: int | None, max_cost: float | None) -> None:
        """AmortjaxError if it is more than is allowed."""
        if max_calls is not None and self.calls > max_calls:
            raise AmortjaxError(
                f"{self.calls} calls are needed, --max_calls={max_calls} are allowed: allow more, or take fewer "
                "--latents or --encode_modes"
            )
        cost = prices.of(self.prompt, self.worst_completion)
        if max_cost is not None and cost is not None and cost > max_cost:
            raise AmortjaxError(
                f"it may cost {cost:.2f}, --max_cost={max_cost:g} is allowed: allow more, or take fewer --latents or "
                "--encode_modes, or a smaller --max_answer_tokens"
            )


class Budget:
    """What calls have cost so far; stops before the one that would be too many. For several threads."""

    def __init__(
        self, max_calls: int | None = None, max_cost: float | None = None, prices: Prices | None = None
    ) -> None:
        self.max_calls, self.max_cost, self.prices = max_calls, max_cost, prices or Prices()
        self.calls, self.prompt, self.completion = 0, 0, 0
        self._lock = threading.Lock()

    @property
    def spent(self) -> float | None:
        return self.prices.of(self.prompt, self.completion)

    def before(self, request: Request) -> None:
        """Counts a call that is about to be made. AmortjaxError if it may not be."""
        with self._lock:
            if self.max_calls is not None and self.calls >= self.max_calls:
                raise AmortjaxError(
                    f"stopped after --max_calls={self.max_calls} calls; all answers are kept, the same command goes on"
                )
            more = self.prices.of(self.prompt + prompt_tokens(request), self.completion)
            if self.max_cost is not None and more is not None and more > self.max_cost:
                raise AmortjaxError(
                    f"stopped before --max_cost={self.max_cost:g} is passed; all answers are kept, the same command "
                    "with more goes on"
                )
            self.calls += 1

    def after(self, request: Request, answer: Answer) -> None:
        own = (prompt_tokens(request), -(-len(answer.text) // CHARACTERS))
        told: tuple[Any, Any] = (answer.prompt_tokens, answer.completion_tokens)
        with self._lock:
            self.prompt += own[0] if told[0] is None else told[0]
            self.completion += own[1] if told[1] is None else told[1]
