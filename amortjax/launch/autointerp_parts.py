"""What `autointerp` is made of: codes of every SAE and mode on one text, latents picked, calls counted, then made."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from amortjax import interp
from amortjax.errors import AmortjaxError
from amortjax.inference.modes import resolve
from amortjax.interp.asking import Asker, Estimator
from amortjax.interp.cost import Estimate
from amortjax.interp.pipeline import Run
from amortjax.interp.scoring import LatentScore
from amortjax.launch import audits

PROMOTED = 10  # tokens at each end of the logit lens


class Subject(NamedTuple):
    """One SAE's codes under one mode; `base`: what its result row begins with."""

    checkpoint: str
    mode: str
    codes: Any  # csr (n, M)
    base: dict[str, Any]
    latents: list[int]
    eligible: int | None  # None: latents were given as a list
    hints: dict[int, str]


class Scene(NamedTuple):
    """All that is asked about, and who is asked."""

    settings: interp.Settings
    judge: Any
    scorer: Any
    text: interp.Text
    subjects: list[Subject]
    transcript: interp.Transcript
    left_out: list[dict[str, Any]]  # rows of modes that can't be brought to the encoder's L0


class Scored(NamedTuple):
    subject: Subject
    scores: list[LatentScore]
    shuffled: list[LatentScore] | None


def settings_of(config: Any) -> interp.Settings:
    names = (
        "protocol",
        "left",
        "right",
        "min_examples",
        "counterexamples",
        "other_latents",
        "contexts_per_call",
    )
    given = {name: getattr(config, name) for name in (*names, "fuzz", "seed")}
    return interp.Settings(top=config.top_examples, quantile=config.quantile_examples, **given)


def judges_of(config: Any) -> tuple[Any, Any]:
    """The interpreter and the scorer: one object where they are the same."""
    names = ("base_url", "api_key_env", "temperature", "answer_tokens_field", "retries", "timeout", "seed")
    options = interp.JudgeOptions(
        model=config.judge_model,
        answer_tokens=config.max_answer_tokens,
        **{n: getattr(config, n) for n in names},
    )
    judge = interp.make_judge(config.judge, options)
    model = config.scorer_model or config.judge_model
    if (config.scorer or config.judge, model) == (config.judge, config.judge_model):
        return judge, judge
    return judge, interp.make_judge(config.scorer or config.judge, dataclasses.replace(options, model=model))


# --- what is asked about ---


def pose(
    config: Any, settings: interp.Settings, judge: Any, scorer: Any, saes: list[Any], acts: Any
) -> Scene:
    """Codes of every SAE and mode (kept on disk), and the latents to ask about."""
    modes = tuple(dict.fromkeys(resolve(mode) for mode in config.encode_modes))
    found: list[list[Subject]] = []
    left_out: list[dict[str, Any]] = []
    lens = _lens(config.logit_lens, acts)
    text = None
    for sae in saes:
        posed = audits.pose(config, sae, acts, modes)
        text = text or interp.text_of(acts, posed.coder.subject.test_rows)
        own = list(_coded(posed, modes, text, left_out))
        found.append(own)
    assert text is not None
    subjects = _picked(config, settings, found, text)
    hints = [s._replace(hints=_hints(lens, saes, s)) for s in subjects] if lens else subjects
    transcript = interp.Transcript(config.folder / "transcripts.jsonl")
    return Scene(settings, judge, scorer, text, hints, transcript, left_out)


def check_latents(latent_list: tuple[int, ...], saes: list[Any]) -> None:
    """AmortjaxError if an SAE does not have them all."""
    least, most = min(sae.n_latents for sae in saes), max(latent_list, default=0)
    if most >= least:
        raise AmortjaxError(f"--latent_list: there is no latent {most}, they go up to {least - 1}")


def _coded(posed: Any, modes: tuple[str, ...], text: interp.Text, left_out: list) -> Iterator[Subject]:
    for mode in modes:
        setting = posed.settings[mode]
        base = posed.coder.bench.row("same_l0", mode, setting, None, None)
        base |= {"condition": "autointerp", "n_tokens": len(text), "n_documents": text.n_documents}
        if not setting.evaluate:
            print(f"{posed.name}, {mode}: can't be brought to the encoder's L0, left out", file=sys.stderr)
            left_out.append(base)
            continue
        codes = posed.coder.codes("test", mode, setting.knobs)
        yield Subject(posed.name, mode, codes, base | {"l0": codes.nnz / max(len(text), 1)}, [], None, {})


def _picked(
    config: Any, settings: interp.Settings, found: list[list[Subject]], text: interp.Text
) -> list[Subject]:
    """The subjects with their latents: the same ones under every mode, and in every SAE with --same_latents."""
    groups = [[s for own in found for s in own]] if config.same_latents else [own for own in found if own]
    if not any(groups):
        raise AmortjaxError(
            "no mode can be brought to the encoder's L0: ask for amortized among --encode_modes"
        )
    out: list[Subject] = []
    for group in groups:
        given = sorted(set(config.latent_list))
        if given:
            out += [s._replace(latents=given) for s in group]
            continue
        picked = interp.pick_latents([s.codes for s in group], text, config.latents, settings)
        out += [
            s._replace(latents=picked.latents, eligible=n)
            for s, n in zip(group, picked.eligible, strict=True)
        ]
    return out


def _lens(model: str | None, acts: Any) -> tuple[np.ndarray, list[str]] | None:
    if not model:
        return None
    from amortjax.interp.local import unembedding

    weight, strings = unembedding(model)
    if weight.shape[1] != acts.d_model:
        raise AmortjaxError(
            f"--logit_lens={model}: its output embedding has width {weight.shape[1]}, the activations {acts.d_model}: "
            "give the model that the activations are of"
        )
    return weight, strings


def _hints(lens: tuple[np.ndarray, list[str]], saes: list[Any], subject: Subject) -> dict[int, str]:
    """The tokens that each latent's atom promotes most and least."""
    weight, strings = lens
    sae = next(sae for sae in saes if sae.info.name == subject.checkpoint)
    out = {}
    for latent in subject.latents:
        order = np.argsort(-(weight @ np.asarray(sae.W_dec[latent], np.float32)), kind="stable")
        most, least = ([strings[i] for i in part] for part in (order[:PROMOTED], order[::-1][:PROMOTED]))
        said = [json.dumps(part, ensure_ascii=False) for part in (most, least)]
        out[latent] = (
            f"Tokens whose probability the latent raises most: {said[0]}\nTokens it lowers most: {said[1]}"
        )
    return out


# --- what it costs, and asking ---


def announce(config: Any, scene: Scene) -> None:
    """Prints what is still to be asked; AmortjaxError if an endpoint would be asked too much."""
    estimate = Estimate(config.max_answer_tokens)
    asks = [Estimator(judge, scene.transcript, estimate) for judge in (scene.judge, scene.scorer)]
    for subject in scene.subjects:
        _scored(config, scene, subject, asks[0], asks[1])
    latents = len({(s.checkpoint, latent) for s in scene.subjects for latent in s.latents})
    print(
        f"latents: {latents}, sets of codes: {len(scene.subjects)}, protocol: {scene.settings.protocol}",
        file=sys.stderr,
    )
    for line in estimate.lines(config.prices):
        print(line, file=sys.stdout if config.dry_run else sys.stderr)
    if not config.dry_run and _remote(scene):
        estimate.refuse(config.prices, config.max_calls, config.max_cost)


def _remote(scene: Scene) -> bool:
    return "endpoint" in (scene.judge.name, scene.scorer.name)


def ask(config: Any, scene: Scene) -> list[Scored]:
    """Every subject's scores. What is answered is on disk at once."""
    limits = (config.max_calls, config.max_cost) if _remote(scene) else (None, None)
    budget, out = interp.Budget(*limits, config.prices), []
    for subject in scene.subjects:
        print(f"{subject.checkpoint}, {subject.mode}: {len(subject.latents)} latents", file=sys.stderr)
        about = {"checkpoint": subject.checkpoint, "mode": subject.mode}
        askers = [Asker(one, scene.transcript, budget, about) for one in (scene.judge, scene.scorer)]
        with _spent(config, budget):
            out.append(_scored(config, scene, subject, askers[0], askers[1], progress=sys.stderr.isatty()))
    print(
        f"{budget.calls} calls made, {budget.prompt} prompt tokens, {budget.completion} of answers",
        file=sys.stderr,
    )
    return out


@contextlib.contextmanager
def _spent(config: Any, budget: interp.Budget) -> Iterator[None]:
    """Says what was spent if asking stops early."""
    try:
        yield
    except BaseException:
        spent = "" if budget.spent is None else f", {budget.spent:.2f} at these prices"
        print(f"stopped after {budget.calls} calls{spent}; answers are in {config.folder}", file=sys.stderr)
        raise


def _scored(
    config: Any, scene: Scene, subject: Subject, interpreter: Any, scorer: Any, progress: bool = False
) -> Scored:
    run = Run(subject.codes, scene.text, scene.settings, interpreter, scorer, hints=subject.hints)
    scores = run.all(subject.latents, config.parallel_calls, progress)
    if not config.shuffled:
        return Scored(subject, scores, None)
    settings = dataclasses.replace(scene.settings, fuzz=False)
    turned = Run(subject.codes, scene.text, settings, interpreter, scorer, interp.shuffled(scores))
    return Scored(subject, scores, turned.all(subject.latents, config.parallel_calls, progress))
