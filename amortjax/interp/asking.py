"""Asking a judge: what was asked before is taken from the transcript, what can't be read is asked once more."""

import dataclasses
import time
from typing import Any, Protocol

from amortjax.interp.cost import CHARACTERS, EXPLANATION_TOKENS, Budget, Estimate
from amortjax.interp.judges import Judge
from amortjax.interp.prompts import Request
from amortjax.interp.transcripts import Transcript, key_of

TRIES = 2  # of an answer that can be read


class Asks(Protocol):
    def ask(self, request: Request, about: dict[str, Any]) -> Any: ...


@dataclasses.dataclass
class Asker:
    """One judge with its transcript. `subject`: written into every line (the checkpoint and the mode)."""

    judge: Judge
    transcript: Transcript
    budget: Budget
    subject: dict[str, Any] = dataclasses.field(default_factory=dict)

    def ask(self, request: Request, about: dict[str, Any]) -> Any:
        """What was read of the answer (`Request.read`), None if it can't be read twice over. `about`: for the line."""
        identity = self.judge.identity
        for attempt in range(1, TRIES + 1):
            key = key_of(identity, request)
            text = self.transcript.find(key)
            if text is None:
                self.budget.before(request)
                start = time.perf_counter()
                answer = self.judge.answer(request)
                self.budget.after(request, answer)
                text = answer.text
                own = {"judge": identity, "attempt": attempt, "parsed": request.read(text)}
                own["seconds"] = round(time.perf_counter() - start, 3)
                self.transcript.add(key, request, answer, self.subject | about | own)
            found = request.read(text)
            if found is not None:
                return found
            request = request.again(text)
        return None


@dataclasses.dataclass
class Estimator:
    """Asks nothing: counts what an Asker would ask, and goes on with a description of the expected length."""

    judge: Judge
    transcript: Transcript
    estimate: Estimate

    def ask(self, request: Request, about: dict[str, Any]) -> Any:
        del about
        for _ in range(TRIES):
            key = key_of(self.judge.identity, request)
            text = self.transcript.find(key)
            if text is None:
                return self._count(key, request)
            self.estimate.known += 1
            found = request.read(text)
            if found is not None:
                return found
            request = request.again(text)
        return None

    def _count(self, key: str, request: Request) -> Any:
        if key in self.estimate.seen:
            self.estimate.known += 1
        else:
            self.estimate.seen.add(key)
            self.estimate.add(request)
        # Of its own for each question, so that what follows from it is told apart.
        return (
            key.ljust(CHARACTERS * EXPLANATION_TOKENS, "x")
            if request.kind == "explain"
            else (0,) * len(request.shown)
        )
