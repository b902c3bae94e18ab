"""What `launch.encoders` measures: the methods' codes of one store's test tokens, matched in L0, and what they cost."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amortjax.errors import AmortjaxError
from amortjax.launch import encoders_training
from amortjax.launch.encoders_released import released_row
from amortjax.metrics import flops

ENCODERS = ("sae", "mlp")  # methods with an encoder of their own
SEARCHED = ("optimal", "optimal_refit")
# Of a method's row at equal L0, what its rows at one lambda say of its gap.
GAPS = ("suboptimality_lower", "suboptimality_upper")
MOST_OF_RANK = 0.9
PANELS = {"same_lambda": "star", "trained_lambda": "trained"}


def method_of(name: str, mode: str) -> str:
    """sae, mlp, lca; the first two's dictionaries under searched codes are sae_optimal and mlp_optimal."""
    return name if name == "lca" or mode == "amortized" else f"{name}_optimal"


class Comparison:
    """The methods' measurements on one store, each made once and kept in OUT/rows."""

    def __init__(self, config: Any, saes: dict[str, Any], acts: Any) -> None:
        self.config, self.saes, self.acts = config, saes, acts
        self.parts = config.folder / "rows"
        self.benches = {name: self._bench(name) for name in saes}  # all mistakes now, not after an hour
        self.l0 = {
            name: float(self.benches[name].subject.calibration[1].l0.mean())
            for name in ENCODERS
            if name in saes
        }
        silent = [name for name, l0 in self.l0.items() if not l0 > 0]
        if silent:
            raise AmortjaxError(
                f"{silent[0]}: its encoder fires on no calibration token: lower its lambda, train longer, or check "
                "layer and hook"
            )
        self.estimates: dict[tuple[str, str], dict[str, Any]] = {}
        self.found: dict[tuple[str, str, str], tuple[Any, Any]] = {}  # (bench, setting) of each row to judge

    def _bench(self, name: str, target: float | None = None) -> Any:
        from amortjax.metrics.bench import Bench
        from amortjax.metrics.plan import make_plan, pose_subject

        own = target is None and name in ENCODERS
        keys = (
            "tol",
            "solver",
            "precision",
            "calibration_tokens",
            "eval_tokens",
            "probe_tokens",
            "chunk",
            "seed",
        )
        conditions = ("same_lambda", "same_l0", "trained_lambda") if own else ("same_l0", "trained_lambda")
        plan = make_plan(
            modes=(("amortized", *SEARCHED) if own else SEARCHED), conditions=conditions if own or target is None
            else ("same_l0",), heads=(), details=False, target_l0=target,
            **{key: getattr(self.config, key) for key in keys},
        )  # fmt: skip
        subject = dataclasses.replace(
            pose_subject(self.saes[name], self.acts, plan), progress=sys.stderr.isatty()
        )
        return Bench(subject, plan, self.parts, sys.stderr.isatty())

    # --- rows ---

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for each method, mode and L0 matched; and each objective's own."""
        for name in self.l0:
            print(f"{name}: encoder L0 {self.l0[name]:.1f}", file=sys.stderr)
            yield from self._of(name, self.benches[name], name)
        for matched, l0 in self._targets():
            for name in self.saes:
                if name != matched and (name == "sae" or name == "lca"):
                    yield from self._of(name, self._bench(name, l0), matched)
        if "lca" in self.saes:
            yield from self._trained("lca")
            if self.config.lca == "literal" and "lca" not in self.config.lent():
                yield self._described(released_row(self.benches["lca"], self.config), "lca", "own")

    def _targets(self) -> Iterator[tuple[str, float]]:
        """(whose encoder's L0, L0): that of each encoder, and multiples of the SAE's that an optimum can have."""
        wanted = dict(self.l0)
        if "sae" in self.l0:
            wanted |= {f"sae x {factor:g}": factor * self.l0["sae"] for factor in self.config.factors}
        bound = min(bench.subject.problem.rank_bound for bench in self.benches.values())
        for name, l0 in wanted.items():
            if l0 < MOST_OF_RANK * bound:
                yield name, l0
            else:
                print(
                    f"{name}: hardly an optimum has L0 {l0:.0f}, at most {bound}: left out", file=sys.stderr
                )

    def _of(self, name: str, bench: Any, matched: str) -> Iterator[dict[str, Any]]:
        rows = list(bench.controlled_rows())
        gaps = {(row["condition"], row["mode"]): {key: row.get(key) for key in GAPS} for row in rows}
        for row in rows:
            row = self._described(row, name, matched if row["condition"] == "same_l0" else "own")
            if row["condition"] == "same_l0":
                for condition, short in PANELS.items():
                    own = gaps.get((condition, row["mode"]), {})
                    row |= {f"{short}_{key}": value for key, value in own.items()}
                row |= self._paired(row, bench, name, matched)
            yield row

    def _trained(self, name: str) -> Iterator[dict[str, Any]]:
        """A dictionary without an encoder at its own lambda."""
        bench = self.benches[name]
        lam = bench.subject.sae.info.lam_train
        if lam:
            for row in bench.at_one_lambda("trained_lambda", lam / 2, {}, ()):
                yield self._described(row, name, "own")

    def _described(self, row: dict[str, Any], name: str, matched: str) -> dict[str, Any]:
        """The row with its method, what it was matched to, and its FLOPs."""
        row = row | {"method": method_of(name, row["mode"]), "matched": matched}
        return row | self.cost(name, row)

    def _paired(self, row: dict[str, Any], bench: Any, name: str, matched: str) -> dict[str, Any]:
        """Paired differences from the encoder whose L0 this is; keeps what a judge is shown."""
        mode = row["mode"]
        setting = bench.calibrated(f"same_l0 {mode}", lambda: None)
        if setting is None or not setting.evaluate:
            return {}
        own = bench.measurement(mode, setting.knobs, None, "same_l0").estimates
        self.found[row["method"], mode, matched] = bench, setting
        if matched not in ENCODERS or (name == matched and mode == "amortized"):
            return {}
        from amortjax.metrics.uncertainty import flatten_differences

        base = self.benches[matched].estimates("amortized")
        kept = {key: own[key] for key in ("nmse", "nmse_literal", "fvu", "l0", "dead_half") if key in own}
        return flatten_differences(kept, base, "encoder")

    # --- costs ---

    def cost(self, name: str, row: dict[str, Any]) -> dict[str, int | None]:
        """FLOPs of the method's training and, a token, of its inference (encode and decode); None where not known."""
        sae, mode = self.saes[name], row["mode"]
        d, m, hidden = sae.d_in, sae.n_latents, hidden_of(sae)
        one_pass = flops.mlp_inference(d, m, hidden) if hidden else flops.sae_inference(d, m)
        per_token: int | None = one_pass
        rounds, active = row.get("iterations"), row.get("l0")
        if mode == "released":
            # No encoder's pass: it starts at zero.
            per_token = None if rounds is None else round(rounds * released_flops(d, m)) + 2 * d * m
        elif mode in SEARCHED:
            # The encoder's pass, where the search starts and what decoding costs.
            searched = (
                None if rounds is None or active is None else searched_flops(d, m, rounds, active, mode)
            )
            per_token = None if searched is None else searched + one_pass
        return {"train_flops": self._train_flops(name), "inference_flops": per_token}

    def _train_flops(self, name: str) -> int | None:
        lent = self.config.lent().get(name)
        folder = self.config.folder / name if lent is None else Path(lent)
        folder = folder.parent if folder.is_file() else folder
        done = encoders_training.read_record(folder / "train.json")
        return None if done is None else train_flops(self.saes[name], name, done)

    # --- interpretability ---

    def judged(self, rows: list[dict[str, Any]]) -> dict[str, list[float]]:
        """{method: macro-F1 of each judged latent}; the rows get what `interp.summary` says. The encoders at their own
        L0, searched codes at that of the dictionary's encoder (LCA: the SAE's)."""
        if self.config.judge == "none" or not self.config.judge_latents:
            return {}
        found: dict[str, list[float]] = {}
        for (method, mode, matched), (bench, setting) in self.found.items():
            own = matched if method == "lca" else method.removesuffix("_optimal")
            if (
                mode == "optimal_refit"
                or matched != own
                or (method == "lca" and matched != next(iter(self.l0), ""))
            ):
                continue
            scores = self._scores(method, mode, bench, setting)
            if scores is None:
                continue
            from amortjax import interp

            summary = interp.summary(scores, seed=self.config.seed)
            columns = {
                key if key.startswith("macro_f1") else f"judge_{key}": value for key, value in summary.items()
            }
            for row in rows:
                if (row["method"], row["mode"], row["matched"], row["condition"]) == (
                    method,
                    mode,
                    matched,
                    "same_l0",
                ):
                    row |= columns
            found[method] = [score.macro_f1 for score in scores if score.macro_f1 is not None]
        return found

    def _scores(self, method: str, mode: str, bench: Any, setting: Any) -> list[Any] | None:
        """A judge's scores of a method's latents, kept in OUT/judge; None if the text or the latents do not do."""
        from amortjax import interp
        from amortjax.metrics.coded import Coder

        settings = interp.Settings(seed=self.config.seed)
        print(f"{method}: judging latents", file=sys.stderr)
        codes = Coder(bench, self.parts, sys.stderr.isatty()).codes("test", mode, setting.knobs)
        try:
            text = interp.text_of(self.acts, bench.subject.test_rows)
            picked = interp.pick_latents([codes], text, self.config.judge_latents, settings)
        except AmortjaxError as error:
            print(f"{method}: not judged: {error}", file=sys.stderr)
            return None
        transcript = interp.Transcript(self.config.folder / "judge" / f"{method}.jsonl")
        return interp.score_latents(
            codes, text, picked.latents, interp.make_judge("offline"), settings=settings, transcript=transcript,
            progress=sys.stderr.isatty(),
        )  # fmt: skip


def hidden_of(sae: Any) -> int:
    """Hidden units of its encoder, all layers; 0 of a linear one."""
    shape = sae.extra["W_hidden"].shape if "W_hidden" in sae.extra else (0, 0, 0)
    return int(shape[0] * shape[2])


def searched_flops(d: int, m: int, rounds: float, active: float, mode: str) -> int:
    """Of one token's certified optimum, and of least squares on its support."""
    k = round(active)
    refit = (2 * k**2 * d + 2 * k**3 // 3) if mode == "optimal_refit" else 0
    return round(rounds * flops.active_set(d, m, 1, k)) + refit


def released_flops(d: int, m: int) -> int:
    """Of one token's iteration of the released search, without the way back: it decodes the code (2 D M), correlates
    the residual (2 D M), and decodes both codes that it tries (4 D M): two of ISTA's steps, small terms as there."""
    return flops.ista(d, m, 2)


def train_flops(sae: Any, name: str, done: dict[str, Any]) -> int | None:
    """Of a training as its train.json has it; None if that does not say."""
    try:
        recipe, summary = done["recipe"], done["summary"]
        steps, batch = int(recipe["steps"]), int(recipe["batch_size"])
        d, m = sae.d_in, sae.n_latents
        if name != "lca":
            hidden = hidden_of(sae)
            one = flops.mlp_train(d, m, hidden) if hidden else flops.sae_train(d, m)
            return steps * batch * one
        taken, l0, codes = float(summary["iterations"]), float(summary["l0"]), recipe["codes"]
        rounds = int(recipe["rounds"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    # What a step takes beside the codes is what learning the atoms adds to an SAE's step.
    atoms = flops.sae_train(d, m) - flops.sae_train(d, m, False, False)
    if codes == "literal":
        search = 3 * released_flops(d, m)  # gone back through, which `flops` counts as two forwards
    else:
        search = flops.active_set(d, m, 1, round(l0)) if codes == "certified" else flops.ista(d, m, 1)
    return round(steps * rounds * batch * (taken * search + atoms))
