"""What `launch.decompose` does between its flags and its report: fits the rungs, measures them, keeps both."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.inference import modes, objective
from amortjax.inference.api import bar_of, encode_codes
from amortjax.inference.calibrate import Calibration
from amortjax.inference.codes import Codes
from amortjax.metrics import kept, ladder, latent_price, matching, streaming, uncertainty
from amortjax.metrics.bench import Bench
from amortjax.metrics.ladder import Coded, Coder, Optimum
from amortjax.metrics.matching import Setting
from amortjax.metrics.measure import Knobs
from amortjax.training import ladder as fitting
from amortjax.training.ladder import Fit, Rung, Sample
from amortjax.training.properties import latent_properties
from amortjax.training.relearn import relearn

RUNGS = ("encoder", *fitting.FITTED, "optimum", "relearned")
VERSION = 1  # raised with every change of what a rung computes, so that old ones are not reused
PROPERTIES = ("density", "avar", "angle", "neighbour")


class Ladder(NamedTuple):
    """Each rung's measurement, what its fit says of itself, and its latents' shares of the price ({} if none)."""

    found: dict[str, kept.Kept]
    about: dict[str, dict[str, Any]]
    shares: dict[str, dict[str, np.ndarray]]


class Rows(NamedTuple):
    """Rows of the store on which rungs are fitted, and on which they are chosen: no document is in both."""

    train: np.ndarray
    validation: np.ndarray


def fit_rows(acts: Any, fit_tokens: int, validation_tokens: int, seed: int) -> Rows:
    """Whole documents of sae_train, divided by a hash of their number."""
    rows = acts.rows("sae_train", fit_tokens + validation_tokens, seed=seed)
    share = validation_tokens / (fit_tokens + validation_tokens)
    held = streaming.splitmix64(acts.doc_ids[rows].astype(np.int64) + seed) < np.uint64(share * 2.0**64)
    if held.all() or not held.any():
        raise AmortjaxError(
            f"--fit_tokens={fit_tokens}, --validation_tokens={validation_tokens}: of {len(rows)} sae_train tokens of "
            f"{len(np.unique(acts.doc_ids[rows]))} documents none are left to "
            f"{'fit' if held.all() else 'choose'} with: give more"
        )
    return Rows(rows[~held], rows[held])


def lambda_star(bench: Bench, lam: float | None) -> tuple[Calibration, float]:
    """Where the optimum has the encoder's L0 on the calibration tokens, and that L0; or the lambda given."""
    subject = bench.subject
    l0 = float(subject.calibration[1].l0.mean())
    if not l0 > 0:
        raise AmortjaxError("this SAE's encoder fires on no calibration token: a wrong layer, hook or scale?")
    if lam is not None:
        return Calibration(lam, l0, l0, (lam, lam), 0, True), l0
    if l0 > subject.problem.rank_bound:
        raise AmortjaxError(
            f"the encoder fires {l0:.1f} latents per token, an optimum at most {subject.problem.rank_bound}: there is "
            "no lambda at which they could be compared; give one with --lam"
        )
    return bench.calibrated("star", lambda: matching.star(subject, l0)), l0


class Climb:
    """One SAE's ladder at one lambda: fits and measures each rung once and keeps it in the bench's folder."""

    def __init__(self, bench: Bench, rows: Rows, lam: float, fit: Fit, rounds: int, tokens: int) -> None:
        self.bench, self.rows, self.lam, self.fit = bench, rows, lam, fit
        self.subject, self.problem = bench.subject, bench.subject.problem
        self.rounds, self.tokens = rounds, tokens
        self.rungs: dict[str, Rung] = {}
        # Each rung's key holds those before it, because it starts from them.
        self.keys: dict[str, str] = {}
        whose = [bench.identity, VERSION, lam, [kept.key_of({"rows": part.tolist()}) for part in rows]]
        before = kept.key_of({"ladder": whose})
        for name in RUNGS:
            own = {"rung": name, "after": before} | self._settings(name)
            self.keys[name] = kept.key_of(own)
            if name in fitting.FITTED:
                before = self.keys[name]

    def _settings(self, name: str) -> dict[str, Any]:
        pace = {"pace": self.fit.pace} if name in ("affine", "mlp", "lista") else {}
        more = {
            "mlp": {"hidden": self.fit.hidden},
            "lista": {"layers": self.fit.layers},
            "relearned": {"rounds": self.rounds, "tokens": self.tokens},
        }
        return pace | more.get(name, {})

    def path(self, name: str, what: str) -> Path:
        return Path(str(self.bench.folder)) / f"{what}_{name}_{self.keys[name]}.npz"

    def bar(self, total: int, text: str) -> Any:
        return bar_of(self.subject.progress, total, text)

    @functools.cached_property
    def sample(self) -> Sample:
        """Training tokens in a shuffled order, so that the first n are of all documents; read when first needed."""
        subject, parts = self.subject, []
        for which, rows in zip(("fit on", "choose by"), self.rows, strict=True):
            x, t, _ = subject.batch(rows)
            order = np.random.default_rng([self.bench.plan.seed, 13]).permutation(len(rows))
            with self.bar(len(rows), f"encoding what to {which}") as bar:
                codes = encode_codes(subject.sae, x[order], subject.options.chunk)
                bar.update(len(rows))
            parts += [t[order], codes]
        return Sample(*parts)

    def run(self) -> Ladder:
        """All rungs, the optimum first: the others are measured against it."""
        out = Ladder({}, {}, {})
        optimum = self.measured("optimum", self._optimal, None, out)
        for name in RUNGS:
            if name == "optimum":
                continue
            out.about[name] = (
                self.fitted(name).about if name != "encoder" else {"parameters": 0, "forwards": 1.0}
            )
            reference = None if name == "relearned" else optimum
            self.measured(name, lambda name=name: self._coder(name), reference, out)
        out.about["optimum"] = {}
        return out

    # --- one rung ---

    def fitted(self, name: str) -> Rung:
        """A rung's arrays, from memory, from disk or fitted now."""
        if name not in self.rungs:
            path = self.path(name, "fit")
            found = ladder.load_arrays(path, ("about",))
            if found is not None:
                about = json.loads(found.pop("about").tobytes())
                self.rungs[name] = Rung(name, found, about)
            else:
                made = self._fit(name)
                text = np.frombuffer(json.dumps(made.about).encode(), np.uint8)
                ladder.save_arrays(path, made.arrays | {"about": text})
                self.rungs[name] = made
        return self.rungs[name]

    def _fit(self, name: str) -> Rung:
        if name == "relearned":
            return self._relearned()
        before = {other: self.fitted(other) for other in fitting.FITTED[: fitting.FITTED.index(name)]}
        return fitting.fit_rung(
            name, self.subject.sae, self.problem, self.sample, self.lam, before, self.fit, self.bar
        )

    def _relearned(self) -> Rung:
        sample, n = self.sample, min(self.tokens, len(self.sample.train))
        start = sample.train_codes.rows(0, n), sample.validation_codes
        tokens = sample.train[:n], sample.validation
        found = relearn(self.problem, *tokens, self.lam, self.rounds, self.subject.options, start, self.bar)
        about = {
            "train_start": found.train[0], "train": found.train[found.chosen], "step": found.chosen,
            "validation_start": found.validation[0], "validation": found.validation[found.chosen],
            "rounds": len(found.train) - 1, "validation_rounds": found.validation, "tokens": n,
        }  # fmt: skip
        return Rung("relearned", {"atoms": found.atoms, "shift": found.shift}, about)

    def _coder(self, name: str) -> Coder:
        if name == "encoder":
            return lambda t, encoder: Coded(self.problem, t, encoder)
        rung = self.fitted(name)
        if name == "relearned":
            own = objective.pose_dictionary(rung.arrays["atoms"], self.problem.record)
            return lambda t, encoder: self._solved(
                own, (t - rung.arrays["shift"]).astype(np.float32), encoder
            )
        code = fitting.coder(rung, self.problem)
        return lambda t, encoder: Coded(self.problem, t, self.problem.unfold(code(t, encoder)))

    def _optimal(self) -> Coder:
        return lambda t, encoder: self._solved(self.problem, t, encoder)

    def _solved(self, problem: objective.Problem, t: np.ndarray, encoder: Codes) -> Coded:
        return Coded(
            problem, t, modes.solve("optimal", problem, t, encoder, self.lam, 1.0, self.subject.options)[0]
        )

    def measured(
        self, name: str, coder: Callable[[], Coder], optimum: Optimum | None, out: Ladder
    ) -> Optimum | None:
        """Writes a rung's measurement into `out`; for the optimum, returns what the others are measured against."""
        path, beside = self.path(name, "rung"), self.path(name, "latents")
        names = ("indices", "values") if name == "optimum" else ladder.PARTS
        found, arrays = kept.load(path), ladder.load_arrays(beside, names)
        if found is None or arrays is None:
            how = self.subject, coder(), self.lam, optimum, self.bench.plan.seed
            made, codes, arrays = ladder.evaluate(*how, f"measuring {name}")
            if name == "optimum":
                arrays = {"indices": np.asarray(codes.indices), "values": np.asarray(codes.values)}
            ladder.save_arrays(beside, arrays)
            found = ladder.stored(path, made)
        out.found[name] = found
        if name == "optimum":
            codes = Codes(arrays["indices"], arrays["values"], self.problem.n_latents)
            return Optimum(codes, found.proof)
        out.shares[name] = arrays if optimum is not None else {}
        return None


# --- rows ---


def ladder_rows(climb: Climb, made: Ladder, star: Calibration, l0: float) -> list[dict[str, Any]]:
    """One row per rung, in order."""
    bench, subject = climb.bench, climb.subject
    block = streaming.block_of(subject.acts.doc_ids[subject.test_rows])
    n_documents = made.found["encoder"].values["n_documents"]
    proofs = {name: made.found[name].proof for name in RUNGS}
    steps = ladder.steps(proofs, "optimum", block, n_documents, bench.plan.seed)
    flags = bench.flags("same_lambda", Setting(Knobs(climb.lam), {}, matching.missed(star)))
    record = dataclasses.asdict(dataclasses.replace(climb.problem.record, lam=climb.lam))
    rows = []
    for name in RUNGS:
        found, about = made.found[name], made.about[name]
        row = {"mode": name, "condition": "ladder", "lam": climb.lam, "record": record, "flags": flags}
        row |= {"l0_target": l0, "l0_calibration": star.achieved}
        row |= found.values | uncertainty.flatten(found.estimates) | steps[name]
        rows.append(
            row | {f"fit_{key}": value for key, value in about.items() if not isinstance(value, list)}
        )
    return rows


def shared_columns(bench: Bench) -> dict[str, Any]:
    """What every row says of the SAE and the plan."""
    sae, plan = bench.subject.sae, bench.plan
    return {
        "checkpoint": sae.info.name, "protocol": plan.protocol, "variant": sae.variant, "n_latents": sae.n_latents,
        "d_model": sae.d_in, "seed": plan.seed, "tol": plan.options.tol,
        "n_calibration_tokens": len(bench.subject.calibrate_rows),
    }  # fmt: skip


def latents(climb: Climb, made: Ladder) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Columns of latents.csv, each (M,): the encoder's price latent by latent and what is known of each latent; and
    the table of what foretells it. Prices per test token; properties of the training tokens."""
    subject, rows = climb.subject, climb.rows.train
    batches = (subject.acts.read(part) for part in np.array_split(rows, max(1, len(rows) // 4096)))
    known = latent_properties(subject.sae, climb.problem, batches)
    shares, n = made.shares["encoder"], len(subject.test_rows)
    columns = {name: shares[name] / n for name in ladder.PARTS[:-1]} | {"firings": shares["firings"]}
    fires = np.maximum(shares["firings"], 1)
    each = np.where(shares["firings"] > 0, shares["price"] / fires, np.nan)
    # The encoder's price is mostly shrinkage: beside it, what a scale for each latent leaves of it.
    scaled = made.shares["scaled_each"]["price"] / n
    targets = {"price": columns["price"], "price_per_firing": each, "price_scaled": scaled}
    table = latent_price.predict(targets, {name: known[name] for name in PROPERTIES}, climb.bench.plan.seed)
    return {"latent": np.arange(len(fires))} | columns | {
        k: targets[k] for k in ("price_per_firing", "price_scaled")
    } | known, table
