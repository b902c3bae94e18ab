"""One SAE's measurements: each made once, kept on disk, and written out as result rows.

Conditions come in order: `same_lambda` first, because its optimum is what gaps are measured against and where
the other calibrations start.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import amortjax
from amortjax.errors import AmortjaxError
from amortjax.files import write_atomically
from amortjax.inference import objective
from amortjax.inference.api import bar_of
from amortjax.inference.calibrate import Calibration
from amortjax.inference.gaps import Proof
from amortjax.inference.modes import MODES, relevant
from amortjax.metrics import absorption, kept, matching, probes, streaming, uncertainty
from amortjax.metrics.labels import Units
from amortjax.metrics.matching import Setting
from amortjax.metrics.measure import Knobs, Measured, Subject, measure
from amortjax.metrics.plan import Plan
from amortjax.metrics.uncertainty import Estimate
from amortjax.saes.digest import digest

OTHER_TOLERANCES = (1e-3, 1e-6)  # at which the optimum's L0 and dead share are shown beside its own
PUBLISHED_CALIBRATION = 16000  # tokens below which a row says that it was calibrated on few
NUMBERS = 4  # raised with every change of what a measurement computes, so that old ones are not reused
HEAD_METRICS = ("nmse", "l0", "dead", "own_gap", "suboptimality_lower", "suboptimality_upper")


class Bench:
    """One SAE's measurements: makes each once, keeps it, and writes rows from it."""

    def __init__(self, subject: Subject, plan: Plan, folder: Path | None, progress: bool) -> None:
        self.subject, self.plan, self.folder, self.progress = subject, plan, folder, progress
        self.memory: dict[str, kept.Kept] = {}
        rows = (subject.calibrate_rows, subject.probe_rows, subject.test_rows)
        self.identity = {
            "version": [amortjax.__version__, NUMBERS],
            "sae": digest(subject.sae),
            "record": dataclasses.asdict(subject.problem.record),
            "store": _store_identity(subject.acts.manifest),
            "rows": [hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest()[:16] for part in rows],
            "options": dataclasses.asdict(plan.options),
            "probes": [subject.units, subject.clip, plan.seed, "train_f1" in self.choices],
            "heads": plan.heads,
        }

    @property
    def choices(self) -> tuple[str, ...]:
        return self.plan.literal_choices if self.plan.protocol == "literal" else ()

    # --- conditions ---

    def controlled_rows(self) -> Iterator[dict[str, Any]]:
        plan, subject = self.plan, self.subject
        encoder_l0 = float(subject.calibration[1].l0.mean())
        asked = plan.target_l0 or (plan.target_dense and plan.target_dense * subject.problem.n_latents)
        if asked:
            matching.check_target(subject, asked)
        target = float(asked or encoder_l0)
        if not target > 0:
            raise AmortjaxError(
                "this SAE's encoder fires on no calibration token: a wrong layer, hook or scale?"
            )
        wanted = target <= subject.problem.rank_bound and self.needs_star()
        star = self.calibrated("star", lambda: matching.star(subject, target)) if wanted else None
        if star is not None:
            columns = {"l0_target": target, "l0_calibration": star.achieved}
            yield from self.at_one_lambda("same_lambda", star.lam, columns, matching.missed(star))
        yield from self.settings("same_l0", lambda mode: matching.at_l0(subject, mode, target, star))
        if "same_nmse" in plan.conditions:
            nmse = matching.nmse_of(subject, "amortized", Knobs(None))
            start = (
                star.lam
                if star
                else 0.1 * float(np.median(objective.lam_max(subject.problem, subject.calibration[0])))
            )
            yield from self.settings("same_nmse", lambda mode: matching.at_nmse(subject, mode, nmse, start))
        if subject.sae.info.lam_train:
            yield from self.at_one_lambda("trained_lambda", subject.sae.info.lam_train / 2, {}, ())

    def needs_star(self) -> bool:
        """Whether something is measured at lambda*, or another lambda is looked for near it."""
        turned = any(MODES[mode].knob == "lam" for mode in self.plan.modes)
        return "same_lambda" in self.plan.conditions or (
            turned and not {"same_l0", "same_nmse"}.isdisjoint(self.plan.conditions)
        )

    def literal_rows(self) -> Iterator[dict[str, Any]]:
        l0 = float((np.asarray(self.subject.calibration[1].values) > 0).sum(axis=1).mean())
        find = lambda mode: matching.literal(self.subject, mode, self.choices, l0)  # noqa: E731
        for row in self.settings("literal", find):
            yield row | (self.papers_gap(find) if row["mode"] == "amortized" else {})

    def papers_gap(self, find: Callable[[str], Setting]) -> dict[str, float]:
        """The encoder's gap to ISTA-200 at ISTA-200's lambda; nothing if that mode was not asked for."""
        if "non_amortized" not in self.plan.modes:
            return {}
        knobs = self.calibrated("literal non_amortized", lambda: find("non_amortized")).knobs
        best = self.measurement("non_amortized", knobs, None, "literal")
        own = self.measurement("amortized", knobs, None, "literal")
        return matching.literal_gap(own.proof.objective, best.proof.objective)

    def at_one_lambda(
        self, condition: str, lam: float, columns: dict, flags: tuple[str, ...]
    ) -> Iterator[dict[str, Any]]:
        """All modes at one lambda, the optimum first: the others' gaps are measured against it."""
        if condition not in self.plan.conditions:
            return
        reference, base = self.measurement("optimal", Knobs(lam), None, condition).proof, None
        # Pursuit knows no lambda and is slow: once, beside the others at lambda*, is enough.
        chosen = [mode for mode in self.plan.modes if mode != "omp" or condition == "same_lambda"]
        for mode in chosen:
            setting = dataclasses.replace(matching.at_lambda(self.subject, mode, lam, columns), flags=flags)
            found = self.measurement(mode, setting.knobs, reference, condition)
            base = found.estimates if mode == "amortized" else base
            yield self.row(condition, mode, setting, found, base)

    def settings(self, condition: str, setting_of: Any) -> Iterator[dict[str, Any]]:
        if condition not in (*self.plan.conditions, "literal"):
            return
        base = None
        for mode in self.plan.modes:
            setting = self.calibrated(f"{condition} {mode}", lambda mode=mode: setting_of(mode))
            if setting is None:
                continue
            if not setting.evaluate:
                yield self.row(condition, mode, setting, None, None)
                continue
            found = self.measurement(mode, setting.knobs, None, condition)
            base = found.estimates if mode == "amortized" else base
            yield self.row(condition, mode, setting, found, base)

    # --- measurements ---

    def calibrated(self, name: str, find: Callable[[], Any]) -> Any:
        """A Calibration or Setting, found once and kept."""
        about = self.identity | {"calibration": name, "target": [self.plan.target_l0, self.plan.target_dense]}
        about["options"] = self.relevant("optimal", name.split()[-1])  # found near the optimum's lambda
        path = (
            self.folder and self.folder / f"calibration_{kept.key_of(about | {'choices': self.choices})}.json"
        )
        if path and path.exists():
            return _revived(json.loads(path.read_text()))
        found = find()
        if path:
            write_atomically(path, json.dumps(None if found is None else dataclasses.asdict(found)))
        return found

    def measurement(self, mode: str, knobs: Knobs, reference: Proof | None, condition: str) -> kept.Kept:
        """Codes and metrics of `mode`, from memory, from disk or measured now."""
        if MODES[mode].knob == "none":
            same = next((f for name, f in self.memory.items() if name.startswith(f"{mode} ")), None)
            if same and knobs.lam is None:
                return _without_objective(same)
        # The tables at one lambda show no probes; codes that other conditions share are probed all the same.
        probed = (
            condition not in ("same_lambda", "trained_lambda")
            or MODES[mode].knob == "none"
            or mode == "optimal"
        )
        against = mode != "optimal" and reference is not None
        split = against and condition == "same_lambda" and self.plan.details
        about = {"mode": mode, "knobs": knobs, "against": against, "probed": probed, "split": split}
        about["options"] = self.relevant(mode, *(("optimal",) if against else ()))
        if mode == "optimal" and not self.plan.details:
            about["details"] = False
        key = kept.key_of(self.identity | about)
        name = f"{mode} {key}"
        if name not in self.memory:
            path = self.folder and self.folder / f"{mode}_{key}.npz"
            found = kept.load(path) if path else None
            if found is None:
                found = self.measure_now(mode, knobs, reference, condition, probed, split)
                if path:
                    kept.save(path, found)
            # Its file holds the draws that other rows on the same tokens can be paired with.
            self.memory[name] = found._replace(values=found.values | {"measurement": f"{mode}_{key}"})
        return self.memory[name]

    def relevant(self, *names: str) -> dict[str, Any]:
        """The options that measurements of these modes depend on: others share the measurement."""
        return {k: v for mode in names if mode in MODES for k, v in relevant(mode, self.plan.options).items()}

    def estimates(self, mode: str) -> dict[str, uncertainty.Estimate]:
        """Of a mode that depends on no lambda, with its draws: what other SAEs on the same tokens are paired with."""
        return self.measurement(mode, Knobs(None), None, "same_l0").estimates

    def measure_now(
        self, mode: str, knobs: Knobs, reference: Proof | None, condition: str, probed: bool, split: bool
    ) -> kept.Kept:
        subject, began = self.subject, time.monotonic()
        total = len(subject.test_rows) + (
            len(subject.probe_rows) if probed and subject.units != "norms" else 0
        )
        label = f"{condition}: {mode}"
        with bar_of(self.progress, total, label) as bar:
            measured = measure(subject, mode, knobs, reference, self.plan.heads, probed, split, bar)
        found = self.scores(measured)
        values = streaming.finalise(measured.sums, self.plan.options.tol)
        for n, sums in measured.heads.items():
            head = streaming.finalise(sums, self.plan.options.tol)
            values |= {f"{name}@{n}": head.get(name) for name in HEAD_METRICS}
        if measured.screen is not None:
            values["certified_dead"] = float(1 - measured.screen.latents.mean())
            values["possibly_active"] = float(measured.screen.count.mean())
            if condition == "same_lambda" and self.plan.details:
                values |= self.at_other_tolerances(knobs)
        base = float(measured.sums.base.sum())
        values |= {f"nmse@prefix:{n}": e / base for n, e in measured.prefixes.items() if base > 0}
        values["iterations"] = measured.iterations
        values |= found.pop("about")
        values["seconds"] = round(time.monotonic() - began, 2)
        return kept.Kept(values, found, measured.proof)

    def at_other_tolerances(self, knobs: Knobs) -> dict[str, float]:
        """A gap certifies the objective, not the support: the optimum's L0 and dead share at other tolerances."""
        out = {}
        for tol in OTHER_TOLERANCES:
            options = dataclasses.replace(self.subject.options, tol=tol)
            other = dataclasses.replace(self.subject, options=options)
            sums = measure(other, "optimal", knobs, probes=False).sums
            values = streaming.finalise(sums)
            out |= {f"l0_tol{tol:g}": values["l0"], f"dead_tol{tol:g}": values["dead"]}
        return out

    def scores(self, measured: Measured) -> dict[str, Any]:
        """Every estimate of a measurement, and under "about" what the row says of the probes."""
        n_documents = len(np.unique(self.subject.acts.doc_ids[self.subject.test_rows]))
        found: dict[str, Any] = dict(uncertainty.estimates(measured.sums, n_documents, seed=self.plan.seed))
        train, test, fewest = measured.train, measured.test, {}
        if train is None or test is None:
            return found | {"about": {"n_documents": n_documents}}
        if "pseudo_labels" in self.choices:
            train, test = (self.by_norm(part) for part in (train, test))
            fewest = {"min_documents": 1}
        if "train_f1" in self.choices:
            train = test
        probe = probes.evaluate_probes(train, test, seed=self.plan.seed, **fewest)
        absorbed = absorption.evaluate_absorption(train, test, seed=self.plan.seed, **fewest)
        found |= probe.estimates | absorbed.estimates
        spread = {f"{name}_spread": value for name, value in absorbed.spread.items()}
        found["about"] = probe.row() | spread | {"n_documents": n_documents}
        return found

    def by_norm(self, units: Units) -> Units:
        """The papers' pseudo-labels: whether a token's ||x|| exceeds the median."""
        subject = self.subject
        rows = subject.test_rows if len(units.groups) == len(subject.test_rows) else subject.probe_rows
        norms = np.linalg.norm(subject.acts.read(rows[: len(units.groups)]), axis=1)
        high = norms > (np.median(norms) if len(norms) else 0)
        return Units(units.codes, {"norm above median": high}, units.groups, "norm pseudo-labels")

    def row(
        self,
        condition: str,
        mode: str,
        setting: Setting,
        found: kept.Kept | None,
        base: dict[str, Estimate] | None,
    ) -> dict[str, Any]:
        """A result row: what was measured, what was held equal, and paired differences from the encoder."""
        sae, plan, options = self.subject.sae, self.plan, self.plan.options
        steps = {"semi_amortized": options.semi_steps, "non_amortized": options.ista_steps}.get(mode)
        record = dataclasses.replace(self.subject.problem.record, lam=setting.knobs.lam)
        row: dict[str, Any] = {
            "checkpoint": sae.info.name,
            "mode": mode,
            "condition": condition,
            "protocol": plan.protocol,
            "variant": sae.variant,
            "n_latents": sae.n_latents,
            "d_model": sae.d_in,
            "steps": steps,
            "lam": setting.knobs.lam,
            "scale": setting.knobs.scale if MODES[mode].knob == "scale" else None,
            "record": dataclasses.asdict(record),
            "n_calibration_tokens": len(self.subject.calibrate_rows),
            "seed": plan.seed,
            "tol": options.tol,
            "flags": self.flags(condition, setting),
        }
        row |= setting.columns
        if found is not None:
            row |= found.values | uncertainty.flatten(found.estimates)
            if base is not None and mode != "amortized":
                row |= uncertainty.flatten_differences(found.estimates, base)
        return row

    def flags(self, condition: str, setting: Setting) -> tuple[str, ...]:
        sae, manifest = self.subject.sae, self.subject.acts.manifest
        found = list(setting.flags)
        if condition == "same_lambda" and sae.info.lam_train is None:
            found.append("shrinkage_mismatch")
        if len(self.subject.calibrate_rows) < PUBLISHED_CALIBRATION:
            found.append("few_calibration_tokens")
        if sae.info.trained_on != manifest["corpus_fingerprint"]:
            found.append("trained_on_unknown")
        if manifest.get("lm_train_known") is False:
            found.append("lm_train_unknown")
        if sae.batch_rule:
            found.append("batch_rule")
        return tuple(found)


def _without_objective(found: kept.Kept) -> kept.Kept:
    """The same codes where no lambda is in force: nothing that depends on one is kept."""
    lam_bound = ("objective", "gap", "own_gap", "suboptimality", "price", "certified", "l1")
    clean = lambda d: {name: value for name, value in d.items() if not name.startswith(lam_bound)}  # noqa: E731
    return kept.Kept(clean(found.values), clean(found.estimates), found.proof)


def _revived(found: dict | None) -> Any:
    if found is None:
        return None
    if "knobs" in found:
        return Setting(Knobs(*found["knobs"]), found["columns"], tuple(found["flags"]), found["evaluate"])
    return Calibration(**{**found, "interval": tuple(found["interval"])})


def _store_identity(manifest: dict) -> dict:
    names = (
        "model_name",
        "model_fingerprint",
        "hook",
        "layer_index",
        "corpus_fingerprint",
        "n_rows",
        "dtype",
    )
    return {name: manifest.get(name) for name in names}
