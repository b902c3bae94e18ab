"""From codes and text to scores: latents are picked, explained and scored, each on its own.

picked = pick_latents([codes_a, codes_b], text, n=200)
scores = score_latents(codes_a, text, picked.latents, make_judge("offline"))
"""

import concurrent.futures
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from amortjax.errors import AmortjaxError
from amortjax.inference.api import bar_of
from amortjax.interp.asking import Asker, Asks
from amortjax.interp.cost import Budget
from amortjax.interp.examples import Column, Examples, Settings, Text, collect, column_of
from amortjax.interp.judges import Judge
from amortjax.interp.prompts import explain_request, fuzz_requests, fuzzed, score_requests
from amortjax.interp.scoring import SCORED, UNPARSED, Counts, LatentScore
from amortjax.interp.transcripts import Transcript


class Picked(NamedTuple):
    """`latents`: ascending; `eligible`: latents with enough examples under each codes; `common`: under all of them."""

    latents: list[int]
    eligible: list[int]
    common: int


def documents_of(codes: scipy.sparse.csr_array, text: Text) -> np.ndarray:
    """(M,) number of documents in which each latent fires."""
    _check(codes, text)
    document = np.repeat(text.document, np.diff(codes.indptr))[codes.data != 0]
    latent = codes.indices[codes.data != 0]
    distinct = np.unique(document.astype(np.int64) * width(codes) + latent)
    return np.bincount(distinct % width(codes), minlength=width(codes))


def pick_latents(
    codes: Sequence[scipy.sparse.csr_array], text: Text, n: int = 200, settings: Settings | None = None
) -> Picked:
    """At most n latents drawn by the settings' seed from those that fire in at least `min_examples` documents under
    every one of `codes` (n, M). AmortjaxError if there is none."""
    settings = settings or Settings()
    if n < 1 or not codes:
        raise AmortjaxError(f"latents={n}: ask for at least 1, of at least one set of codes")
    enough = [documents_of(z, text) >= settings.min_examples for z in codes]
    if len({len(own) for own in enough}) > 1:
        raise AmortjaxError("these codes have different numbers of latents: pick latents of each on its own")
    common = np.flatnonzero(np.all(enough, axis=0))
    if not len(common):
        raise AmortjaxError(
            f"no latent fires in {settings.min_examples} of the {text.n_documents} documents under every mode: take "
            "more --eval_tokens, or a smaller --min_examples"
        )
    drawn = np.random.default_rng([settings.seed, 4]).permutation(common)[:n]
    return Picked(sorted(map(int, drawn)), [int(own.sum()) for own in enough], len(common))


def score_latents(
    codes: scipy.sparse.csr_array,
    text: Text,
    latents: Sequence[int],
    judge: Judge,
    *,
    scorer: Judge | None = None,
    settings: Settings | None = None,
    transcript: Transcript | None = None,
    budget: Budget | None = None,
    subject: Mapping[str, Any] | None = None,
    explanations: Mapping[int, str] | None = None,
    hints: Mapping[int, str] | None = None,
    parallel: int = 1,
    progress: bool = False,
) -> list[LatentScore]:
    """Scores in the order of `latents`. codes (n, M) of the n tokens of `text`; `scorer`: by default the judge that
    explains; `transcript` keeps answers, so that a run that was stopped goes on; `explanations`: {latent: text} to
    score instead of asking for them; `hints`: {latent: text} shown to the interpreter."""
    transcript, budget = transcript or Transcript(), budget or Budget()
    about = dict(subject or {})
    interpreter, asker = (Asker(one, transcript, budget, about) for one in (judge, scorer or judge))
    run = Run(codes, text, settings or Settings(), interpreter, asker, explanations, hints)
    return run.all(latents, parallel, progress)


class Run:
    """One set of codes, ready to be asked about latent by latent."""

    def __init__(
        self,
        codes: scipy.sparse.csr_array,
        text: Text,
        settings: Settings,
        interpreter: Asks,
        scorer: Asks,
        explanations: Mapping[int, str] | None = None,
        hints: Mapping[int, str] | None = None,
    ) -> None:
        _check(codes, text)
        self.codes, self.text, self.settings = codes, text, settings
        self.interpreter, self.scorer = interpreter, scorer
        self.explanations, self.hints = explanations, hints or {}

    def all(self, latents: Sequence[int], parallel: int = 1, progress: bool = False) -> list[LatentScore]:
        """In the order of `latents`; several at a time if `parallel` > 1, with the same scores."""
        chosen = list(dict.fromkeys(map(int, latents)))
        bad = [j for j in chosen if not 0 <= j < width(self.codes)]
        if bad:
            raise AmortjaxError(f"latent {bad[0]}: there is none; they go from 0 to {width(self.codes) - 1}")
        columns = self._columns(chosen)
        others = self._others(chosen)
        with bar_of(progress, len(chosen), "latents") as bar:
            bar.unit = "latent"

            def one(latent: int) -> LatentScore:
                found = self.one(latent, columns[latent], others.get(latent))
                bar.update(1)
                return found

            return _mapped(one, chosen, parallel)

    def _columns(self, latents: Sequence[int]) -> dict[int, Column]:
        part = scipy.sparse.csc_array(self.codes[:, list(latents)])
        return {latent: column_of(part, i) for i, latent in enumerate(latents)}

    def _others(self, latents: Sequence[int]) -> dict[int, Column]:
        """The fixed other latent of each, under `literal`."""
        if self.settings.protocol != "literal":
            return {}
        named = [j for j in self.settings.other_latents if 0 <= j < width(self.codes)]
        columns = self._columns(named)
        usable = [j for j in named if len(columns[j].rows)]
        if len(usable) < 2:
            raise AmortjaxError(
                "--other_latents: the literal protocol needs two latents that fire (the second for the first one's own "
                f"turn); of {', '.join(map(str, self.settings.other_latents))}, {len(usable)} do: name others"
            )
        return {latent: columns[next(j for j in usable if j != latent)] for latent in latents}

    def one(self, latent: int, column: Column, other: Column | None) -> LatentScore:
        examples = collect(column, self.text, latent, self.settings, other)
        n_fires = len(column.rows)
        if isinstance(examples, str):
            return LatentScore(latent, examples, n_fires=n_fires)
        held = {
            "contexts": examples.score,
            "shown": examples.explain,
            "peak": examples.peak,
            "n_fires": n_fires,
        }
        explanation = self._explained(latent, examples)
        if explanation is None:
            return LatentScore(latent, UNPARSED, **held)
        requests = score_requests(explanation, examples.score, self.settings)
        said = self._asked(latent, requests)
        if said is None:
            return LatentScore(latent, UNPARSED, explanation, **held)
        counts = Counts.of([context.positive for context in examples.score], said)
        fuzz = self._fuzzed(latent, explanation, examples) if self.settings.fuzz else None
        return LatentScore(latent, SCORED, explanation, counts, fuzz, said=said, **held)

    def _explained(self, latent: int, examples: Examples) -> str | None:
        if self.explanations is not None:
            return self.explanations.get(latent)
        request = explain_request(examples, self.settings, self.hints.get(latent, ""))
        return self.interpreter.ask(request, {"latent": latent})

    def _asked(self, latent: int, requests: list) -> tuple[int, ...] | None:
        """The answers of all parts; None if one can't be read."""
        out: list[int] = []
        for request in requests:
            said = self.scorer.ask(request, {"latent": latent})
            if said is None:
                return None
            out += said
        return tuple(out)

    def _fuzzed(self, latent: int, explanation: str, examples: Examples) -> Counts | None:
        shown, right = fuzzed(examples, latent, self.settings)
        if len(set(right)) < 2:
            return None
        said = self._asked(latent, fuzz_requests(explanation, shown, self.settings))
        return None if said is None else Counts.of(right, said)


def _mapped(one: Callable[[int], LatentScore], latents: list[int], parallel: int) -> list[LatentScore]:
    if parallel <= 1:
        return [one(latent) for latent in latents]
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        futures = [pool.submit(one, latent) for latent in latents]
        try:
            return [future.result() for future in futures]
        except BaseException:
            # What is under way ends and is kept; nothing new is begun.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def width(codes: Any) -> int:
    """M of codes (n, M), whose shape has no type."""
    return int(codes.shape[1])


def _check(codes: Any, text: Text) -> None:
    if int(codes.shape[0]) != len(text):
        raise AmortjaxError(f"codes of {int(codes.shape[0])} tokens do not belong to a text of {len(text)}")


def shuffled(scores: Sequence[LatentScore]) -> dict[int, str]:
    """{latent: the description of the next latent that has one}: what descriptions score that are not the latent's."""
    own = [s for s in scores if s.explanation is not None]
    turned = own[1:] + own[:1] if len(own) > 1 else []
    return {s.latent: str(t.explanation) for s, t in zip(own, turned, strict=len(own) == len(turned))}
