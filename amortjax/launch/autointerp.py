"""Can it be said what a latent fires on? Descriptions by a judge, and how well they tell new contexts apart.

An interpreter sees contexts in which a latent fires and describes it; a scorer sees the description and further
contexts, from other documents, half of them without a firing (checked token by token), and says in which the latent
fires. The score is macro-F1, with its chance level. Encoder and optimum (or any modes, brought to equal L0) are
compared on the same latents, paired. Judges: `offline` (rules about tokens; no model, deterministic), `local` (a
causal language model on this machine), `endpoint` (any OpenAI-compatible chat endpoint; the key is read from an
environment variable and written nowhere). What it will cost is printed before the first call; --dry_run stops there.
Writes results.parquet, .csv and .json, latents.csv and .json, transcripts.jsonl, a picture, report.md and
report.html; answers that are there are not asked for again.
"""

import dataclasses
from typing import Annotated, Any, Literal

from amortjax.errors import AmortjaxError
from amortjax.launch import audits, flagged, section5

Name = Literal["offline", "local", "endpoint"]
ALIASES = {"ckpt": "ckpts"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(audits.Config):
    encode_modes: Annotated[tuple[section5.Mode, ...], "Codes whose latents are interpreted, at equal L0."] = (
        "amortized", "optimal",
    )  # fmt: skip
    protocol: Annotated[
        Literal["controlled", "literal"],
        "Contexts by rank and by importance against windows checked to be silent; or the compute-optimal-inference "
        "paper's: top contexts only, against those of one fixed other latent, unchecked.",
    ] = "controlled"
    latents: Annotated[int, "How many latents, drawn from those with enough examples under every mode."] = 200
    latent_list: Annotated[
        tuple[int, ...], "Numbers of the latents to interpret, from 0; empty: --latents of them are drawn."
    ] = ()
    same_latents: Annotated[
        bool,
        "The SAEs' latents correspond by number (one was trained on from the other): compare them paired.",
    ] = False
    judge: Annotated[Name, "Who describes."] = "offline"
    scorer: Annotated[Name | None, "Who scores; empty: the judge."] = None
    judge_model: Annotated[
        str | None, "Model of the judge: a folder, a hub id or `embedded` (local), a name the endpoint knows."
    ] = None
    scorer_model: Annotated[str | None, "Model of the scorer; empty: the judge's."] = None
    base_url: Annotated[str | None, "The endpoint, as in https://api.openai.com/v1."] = None
    api_key_env: Annotated[
        str | None, "NAME of the environment variable with the endpoint's key; empty: it needs none."
    ] = None
    temperature: Annotated[float | None, "Of the endpoint's model; none: leave it to the endpoint."] = 0.0
    max_answer_tokens: Annotated[int, "Most tokens of an answer."] = 300
    answer_tokens_field: Annotated[
        Literal["max_tokens", "max_completion_tokens"],
        "What the endpoint calls the limit on an answer's tokens, which is --max_answer_tokens.",
    ] = "max_tokens"
    retries: Annotated[int, "Of a call, on 429, 5xx, timeouts and broken connections."] = 5
    timeout: Annotated[float, "Seconds to wait for the endpoint."] = 120.0
    parallel_calls: Annotated[int, "Latents asked about at a time."] = 1
    price_per_million_input: Annotated[float | None, "Price of a million prompt tokens."] = None
    price_per_million_output: Annotated[float | None, "Price of a million tokens of answers."] = None
    max_calls: Annotated[int | None, "Most calls to an endpoint in this run."] = 2000
    max_cost: Annotated[float | None, "Most that this run may cost, in the prices' money."] = None
    dry_run: Annotated[bool, "Print what it would cost, ask nothing and write no results."] = False
    top_examples: Annotated[int, "Contexts of a latent by rank, each from another document."] = 10
    quantile_examples: Annotated[int, "Contexts drawn from equal parts of its importance (z²)."] = 10
    left: Annotated[int, "Tokens of context before."] = 30
    right: Annotated[int, "Tokens of context after."] = 5
    min_examples: Annotated[int, "A latent with fewer contexts is skipped."] = 4
    counterexamples: Annotated[bool, "Show the interpreter silent contexts too (controlled only)."] = True
    other_latents: Annotated[
        tuple[int, ...],
        "Numbers of at least two latents for --protocol=literal. The top contexts of the first that fires are every "
        "latent's negatives; for that latent itself, those of the next that fires.",
    ] = (0, 15)
    contexts_per_call: Annotated[int, "Contexts the scorer judges at a time."] = 20
    fuzz: Annotated[bool, "Also score whether marked tokens are the active ones."] = False
    shuffled: Annotated[
        bool, "Also score each latent by another one's description: what remains is not the description's."
    ] = False
    logit_lens: Annotated[
        str | None,
        "Causal model whose output embedding, times a latent's atom, gives tokens that the interpreter sees too, as "
        "the paper's does.",
    ] = None
    eval_tokens: Annotated[int, "Tokens (whole documents) that contexts are taken from."] = 65536

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag. An endpoint's key is not looked for."""
        super().checked()
        self._check_secrets()
        if not self.encode_modes:
            raise AmortjaxError("--encode_modes is empty: name at least one mode")
        for name in ("latents", "parallel_calls", "max_answer_tokens"):
            if getattr(self, name) < 1:
                raise AmortjaxError(f"--{name}={getattr(self, name)}: must be at least 1")
        if min(self.latent_list, default=0) < 0:
            raise AmortjaxError(f"--latent_list={min(self.latent_list)}: latents are numbered from 0")
        for name in ("max_calls", "max_cost", "price_per_million_input", "price_per_million_output"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise AmortjaxError(f"--{name}={value}: must be a number, 0 or more")
        if self.max_cost is not None and not self.prices.known:
            raise AmortjaxError("--max_cost needs --price_per_million_input and --price_per_million_output")
        if (self.scorer or self.judge) == "offline" and self.judge != "offline":
            raise AmortjaxError(
                "--scorer=offline reads only the offline judge's own descriptions: give --judge=offline, or another "
                "scorer"
            )
        if self.same_latents and len(self.ckpts) < 2:
            raise AmortjaxError("--same_latents compares SAEs: give at least two --ckpts")
        return self

    def _check_secrets(self) -> None:
        """AmortjaxError if a key or a password may be among the flags: they are written to files, whoever judges."""
        if not (self.base_url or self.api_key_env):
            return
        from amortjax.interp import endpoint

        endpoint.check_name(self.api_key_env)
        if self.base_url:
            endpoint.checked_url(self.base_url, bool(self.api_key_env))

    @property
    def prices(self) -> Any:
        from amortjax.interp import Prices

        return Prices(self.price_per_million_input, self.price_per_million_output)


def run(config: Config) -> list[dict[str, Any]]:
    """Prints the cost, asks, scores, writes and prints; returns the rows ([] of a dry run)."""
    config = config.checked()
    # Heavy imports after the flags' checks, so that --help and mistakes are quick.
    from amortjax.launch import autointerp_parts as parts
    from amortjax.launch import autointerp_results as results
    from amortjax.report import tables

    settings = parts.settings_of(config)
    judge, scorer = parts.judges_of(config)
    # A key or a model that is not there is told before the codes are made; but what is all answered needs neither.
    if not config.dry_run and not (config.folder / "transcripts.jsonl").exists():
        for one in {id(j): j for j in (judge, scorer)}.values():
            one.prepare()
    saes, acts = audits.prepare(config)
    parts.check_latents(config.latent_list, saes)
    scene = parts.pose(config, settings, judge, scorer, saes, acts)
    parts.announce(config, scene)
    if config.dry_run:
        return []
    scores = parts.ask(config, scene)
    rows = results.rows_of(config, scene, scores)
    tables.write_results(rows, config.folder)
    results.write_latents(config.folder, scores)
    report(config, rows, scores, section5.about_run(acts, saes) | results.about(scene))
    return rows


def report(config: Config, rows: list[dict[str, Any]], scores: Any, about: dict[str, str]) -> None:
    """The picture, report.md, report.html and config.json; prints tables and sentences."""
    from amortjax.files import write_atomically
    from amortjax.launch import autointerp_results
    from amortjax.report import figures_interp, interp, sheets

    out, latents = config.folder, autointerp_results.latent_rows(scores)
    pictures = figures_interp.draw(rows, latents, out / "figures")
    found = interp.report(rows, about, pictures)
    interp.write(found, latents, out, section5.used_versions(), dataclasses.asdict(config))
    write_atomically(out / "config.json", flagged.to_json(config))
    print(sheets.printed(found))
    print(f"\nresults {out}/results.csv, transcripts {out}/transcripts.jsonl, report {out}/report.html")


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.autointerp", ALIASES)
