"""Rules about tokens, found from examples and written so that they can be read again: what the offline judge thinks in.

    rule = find_rule(shown)                # tuple of clauses; a token fulfils the rule if it fulfils one
    text = written(rule)                   # 'token " the"; token " of" after " number"; any token after " the"'
    read_rule(text) == rule

A clause is (kind, words). There is nothing to learn and nothing random: the same examples give the same rule.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from amortjax.interp.prompts import Shown

MAX_CLAUSES = 8
AFFIX = 3  # least letters of a beginning or an ending
SHAPES = {
    "digits": lambda t: t.strip().isdigit(),
    "punctuation": lambda t: bool(t.strip()) and not any(c.isalnum() for c in t),
    "white space": lambda t: not t.strip(),
    "a capital letter": lambda t: t.strip()[:1].isupper(),
}


class Clause(NamedTuple):
    kind: str  # token, pair, after, begins, ends, shape: from the most specific to the least
    words: tuple[str, ...]


FORMS = {
    "token": "token {}",
    "pair": "token {} after {}",
    "after": "any token after {}",
    "begins": "a word beginning with {}",
    "ends": "a word ending with {}",
    "shape": "tokens of {}",
}
Rule = tuple[Clause, ...]


def clauses_at(tokens: Sequence[str], i: int) -> Iterator[Clause]:
    """Every clause that token i fulfils."""
    token, word = tokens[i], tokens[i].strip().lower()
    yield Clause("token", (token,))
    if i:
        yield Clause("pair", (token, tokens[i - 1]))
        yield Clause("after", (tokens[i - 1],))
    for n in range(AFFIX, len(word)):
        yield Clause("begins", (word[:n],))
        yield Clause("ends", (word[-n:],))
    yield from (Clause("shape", (name,)) for name, test in SHAPES.items() if test(token))


def fulfils(rule: Rule, tokens: Sequence[str], i: int) -> bool:
    return not set(rule).isdisjoint(clauses_at(tokens, i))


def find_rule(shown: Sequence[Shown]) -> Rule:
    """Clauses chosen one after the other, each the one with the most contexts newly won (a marked token fulfils it)
    less those newly lost (an unmarked token does, and no marked one), while something is gained; at least one."""
    won: dict[Clause, set[int]] = {}
    lost: dict[Clause, set[int]] = {}
    for number, context in enumerate(shown):
        for i in range(len(context.tokens)):
            table = won if i in context.marked else lost
            for clause in clauses_at(context.tokens, i):
                table.setdefault(clause, set()).add(number)
    rule: list[Clause] = []
    covered: set[int] = set()
    spoilt: set[int] = set()
    kinds = {kind: i for i, kind in enumerate(FORMS)}
    # Of equal gain: least wrong, most specific, first in the alphabet.
    order = sorted(won, key=lambda clause: (len(lost.get(clause, ())), kinds[clause.kind], clause.words))

    def gain(clause: Clause) -> int:
        return len(won[clause] - covered) - len(lost.get(clause, set()) - won[clause] - spoilt)

    while won and len(rule) < MAX_CLAUSES:
        best = max(order, key=gain)  # the first of those with the most
        if rule and gain(best) <= 0:
            break
        rule.append(best)
        covered |= won[best]
        spoilt |= lost.get(best, set()) - won[best]
    return tuple(rule)


def _quoted(word: str) -> str:
    """JSON in ASCII; of a run of spaces all but the first are escaped, so that nobody takes them for one."""
    return re.sub("(?<= ) ", r"\\u0020", json.dumps(word))


def written(rule: Rule) -> str:
    quoted = [map(_quoted, clause.words) for clause in rule]
    return "; ".join(FORMS[clause.kind].format(*words) for clause, words in zip(rule, quoted, strict=True))


_STRING = r'("(?:[^"\\]|\\.)*")'
_READERS = {
    kind: re.compile(re.escape(form).replace(r"\{\}", _STRING))
    for kind, form in sorted(FORMS.items(), key=lambda item: -item[1].count("{}"))
}


def read_rule(text: str) -> Rule | None:
    """The rule that `written` wrote; None if the text is none."""
    rule, at = [], 0
    while True:
        matches = ((kind, reader.match(text, at)) for kind, reader in _READERS.items())
        kind, found = next((pair for pair in matches if pair[1]), ("", None))
        if found is None:
            return None
        rule.append(Clause(kind, tuple(json.loads(word) for word in found.groups())))
        if found.end() == len(text):
            return tuple(rule)
        if text[found.end() : found.end() + 2] != "; ":
            return None
        at = found.end() + 2
