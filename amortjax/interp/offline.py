"""The offline judge: explains by a rule about tokens and scores by applying it. No model, no network, nothing random.

It reads what a language model would (tokens and marks), answers in the same words and is parsed by the same parsers, so
a run with it is a test of all the rest, and a baseline: what a latent's tokens alone say.
"""

import dataclasses
import json
from typing import Any

from amortjax.interp.prompts import MAX_EXPLANATION, Answer, Request, Shown
from amortjax.interp.rules import Rule, find_rule, fulfils, read_rule, written


@dataclasses.dataclass(frozen=True)
class Offline:
    """Rules of `interp.rules`."""

    name: str = "offline"

    @property
    def identity(self) -> dict[str, Any]:
        return {"judge": self.name, "rules": 1}  # raised with every change of what it answers

    def prepare(self) -> None:
        """Nothing is needed."""

    def answer(self, request: Request) -> Answer:
        if request.kind == "explain":
            return Answer(f"EXPLANATION: {_explained(find_rule(request.shown))}")
        rule = read_rule(request.explanation)
        if rule is None:
            return Answer("This description is no rule that the offline judge wrote.")
        return Answer(json.dumps([int(_says(rule, shown, request.kind)) for shown in request.shown]))


def _explained(rule: Rule) -> str:
    while len(rule) > 1 and len(written(rule)) > MAX_EXPLANATION:
        rule = rule[:-1]
    return written(rule)


def _says(rule: Rule, shown: Shown, kind: str) -> bool:
    """Whether the rule holds on a token that counts: on a marked one, or on any where none is. Of marked tokens that
    may be the wrong ones, on most."""
    places = shown.marked or range(len(shown.tokens))
    holds = [fulfils(rule, shown.tokens, i) for i in places]
    return sum(holds) * 2 > len(holds) if kind == "fuzz" else any(holds)
