"""The synthetic scenarios as tables and words (rows of `launch.synthetic`).

A row is one (scenario, distribution, method, run, step): what `synthetic.found` says of codes and atoms; mse,
loss_test, objective, l0@THRESHOLD; train_flops, inference_flops (of all test samples) and the same under the paper's
convention; `codes`: "own", or by what other means codes were found on the method's dictionary.
"""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from amortjax.report.numbers import MISSING, short
from amortjax.report.schema import Row
from amortjax.report.sheets import Report, Sheet

TITLE = "Sparse inference on synthetic data with known truth"
LABELS = {"sae": "SAE", "sae_ito": "SAE + ITO", "sparse_coding": "sparse coding"}
CODES = {
    "optimal": "certified optimum", "ito_warm": "ITO from the SAE's codes", "ito_random": "ITO from random codes",
    "ito_released": "ITO as released",
}  # fmt: skip
COUNTS = ("paper", "linear", "xla")
SCENARIOS = {
    "known_codes": "codes known", "known_dictionary": "dictionary known", "unknown": "both unknown",
}  # fmt: skip
EXPLAINED = (
    "N sources, M dimensions, K active sources of a sample; x = s D, D with unit atoms, no noise.\n\n"
    "Latent MCC: mean over sources of |Pearson r| with the latent that a Hungarian matching gives it; with known codes "
    "identity matching and signed r. Dictionary MCC: the same over the M entries of atoms. Chance: ReLU encoders with "
    "random weights on the same x (about .48 at 16 / 8 / 3), unrelated Gaussian dictionaries. Corrected: "
    "(MCC - chance) / (1 - chance). Unrelated codes of the same density score far less (see the other measures).\n\n"
    "Loss: mean squared error + lambda_c * mean |z|, means over all entries (the released form). P: the same objective "
    "per sample in half form, lambda = lambda_c M / 2N. (P - P*) / P*: distance to the certified optimum on the same "
    "dictionary. L0: mean number of codes above .001; log codes are never exactly 0. With known codes the cosine loss "
    "fixes no scale, so that there is no error to tell.\n\n"
    "FLOPs: of all training steps, and of coding all test samples, `linear` convention; the paper's and XLA's own "
    "count are in a table of their own. An active set is counted by the rounds it took.\n\n"
    "Mean +- standard deviation over runs. literal: with known codes and known dictionary all runs have the same data "
    "and differ in their first weights only, as released; ITO on a known dictionary has no randomness at all. In the "
    "paper's other sweeps runs differ in data too, so its deviations do not mean one thing. controlled: runs differ in "
    "data, dictionary and first weights."
)


def label_of(row: Row) -> str:
    """ "MLP-32", "SAE", "SAE, certified optimum"."""
    name = str(row["method"])
    name = f"MLP-{name[3:]}" if name.startswith("mlp") else LABELS.get(name, name)
    codes = row.get("codes", "own")
    if codes == "own":
        return name
    solver = {"fista": "FISTA-", "ista": "ISTA-"}
    other = next((dash + codes[len(key) :] for key, dash in solver.items() if codes.startswith(key)), codes)
    if row.get("scenario") != "unknown" and codes != "ito_warm":
        name = "true dictionary"  # the same codes beside every method
    if str(codes).startswith("ito_"):
        other = f"{CODES.get(codes, codes)}, {row['iterations']} iterations"
    return f"{name}, {CODES.get(codes, other) if not codes.startswith('ito_') else other}"


def groups(rows: Iterable[Row], *keys: str) -> dict[tuple, list[Row]]:
    out: dict[tuple, list[Row]] = {}
    for row in rows:
        out.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return out


def spread(rows: Sequence[Row], key: str) -> str:
    """ ".862 ±.025" over runs; the standard deviation is the population's, as published."""
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return MISSING
    mean = short(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ±{short(statistics.pstdev(values), 2)}"


def mean(rows: Sequence[Row], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return statistics.fmean(values) if values else None


def curves(rows: Iterable[Row]) -> dict[str, dict[int, list[Row]]]:
    """{method: {step: its runs}} of the methods' own codes, steps ascending."""
    own = [row for row in rows if row.get("codes", "own") == "own"]
    found = {str(method): block for (method,), block in groups(own, "method").items()}
    return {
        method: {step: runs for (step,), runs in sorted(groups(block, "step").items())}
        for method, block in found.items()
    }


COLUMNS = (
    ("latent MCC ↑", "mcc"), ("chance", "mcc_chance"), ("corrected ↑", "mcc_corrected"),
    ("dictionary MCC ↑", "dict_mcc"), ("chance", "dict_mcc_chance"), ("corrected ↑", "dict_mcc_corrected"),
    ("(P - P*) / P* ↓", "suboptimality"), ("MSE ↓", "mse"), ("loss ↓", "loss_test"), ("L0", "l0@0.001"),
)  # fmt: skip


def sheet(title: str, blocks: Sequence[list[Row]], text: str = "") -> Sheet:
    """A line for each block of runs."""
    shown = [column for column in COLUMNS if any(mean(runs, column[1]) is not None for runs in blocks)]
    header = ["codes", *(name for name, _ in shown), "steps", "training FLOPs", "inference FLOPs"]
    body = []
    for runs in blocks:
        first = runs[0]
        cells = [short(mean(runs, key)) if "chance" in key else spread(runs, key) for _, key in shown]
        tail = [
            short(first.get("updates")),
            *(short(float(first[f"{k}_flops"])) for k in ("train", "inference")),
        ]
        body.append([label_of(first), *cells, *tail])
    return Sheet(title, header, body, text)


def _title(scenario: str, distribution: str) -> str:
    return f"{SCENARIOS.get(scenario, scenario)}, {distribution}"


def sheets_of(rows: Sequence[Row]) -> list[Sheet]:
    out = []
    for (scenario, distribution), block in groups(rows, "scenario", "distribution").items():
        found = curves(block)
        last = [list(steps.values())[-1] for steps in found.values()]
        others = [row for row in block if row.get("codes", "own") != "own"]
        title = _title(scenario, distribution)
        out.append(sheet(f"{title}: at the end", last))
        if others:
            found = groups([row | {"label": label_of(row)} for row in others], "label", "method").items()
            # The same codes stand beside every method: once.
            beside = {label: runs for (label, _), runs in reversed(found)}
            out.append(sheet(f"{title}: other codes on the same dictionaries", list(beside.values())[::-1]))
        out.append(_measures(f"{title}: other measures", last))
    return out


def _measures(title: str, blocks: Sequence[list[Row]]) -> Sheet:
    """Other similarities and matchings than those of the first table, and L0 at each threshold."""
    columns = (
        ("latent cosine", "mcc_cosine"), ("chance", "mcc_cosine_chance"), ("corrected", "mcc_cosine_corrected"),
        ("Hungarian MCC", "mcc_hungarian"), ("greedy MCC", "mcc_greedy"), ("MCC of unrelated codes", "mcc_independent"),
        ("dictionary cosine", "dict_mcc_cosine"), ("chance", "dict_mcc_cosine_chance"),
        ("corrected", "dict_mcc_cosine_corrected"), ("greedy dictionary MCC", "dict_mcc_greedy"),
        *((f"L0 above {above}", f"l0@{above}") for above in ("0.001", "0.0001", "1e-05", "0")),
    )  # fmt: skip
    shown = [column for column in columns if any(mean(runs, column[1]) is not None for runs in blocks)]
    body = [[label_of(runs[0]), *(spread(runs, key) for _, key in shown)] for runs in blocks]
    return Sheet(title, ["codes", *(name for name, _ in shown)], body)


def flops_sheet(rows: Sequence[Row]) -> Sheet:
    """Rows of `metrics.flops.beside`: a training step on the batch, and one sample's inference, by three counts."""
    header = ["scenario", "method", *(f"{part}, {how}" for part in ("step", "inference") for how in COUNTS)]
    body = [
        [
            SCENARIOS.get(row["scenario"], row["scenario"]),
            label_of(row),
            *(_counted(row, part, how) for part in ("train", "inference") for how in COUNTS),
        ]
        for row in rows
    ]
    text = (
        "Of one training step on the batch, and of one sample's inference (codes by optimisation: all iterations). XLA "
        "counts what it compiled: Adam once per parameter, the loss, the atoms' gradient; > where that holds a loop, "
        "whose body is counted once."
    )
    return Sheet("FLOPs in three conventions", header, body, text)


def _counted(row: Row, part: str, how: str) -> str:
    value = row.get(f"{part}_{how}")
    less = how == "xla" and value is not None and not row.get(f"{part}_xla_whole")
    return (">" if less else "") + short(None if value is None else float(value))


def sentences(rows: Sequence[Row]) -> list[str]:
    """What each scenario shows: the best method, and curves that pass their own end."""
    out = []
    for (scenario, distribution), block in groups(rows, "scenario", "distribution").items():
        found = curves(block)
        last = {m: mean(list(steps.values())[-1], "mcc") or 0.0 for m, steps in found.items()}
        if not last:
            continue
        ranked = sorted(last, key=lambda m: -last[m])
        named = ", ".join(f"{label_of({'method': m})} {short(last[m])}" for m in ranked)
        chance = short(mean(block, "mcc_chance"))
        out.append(f"{_title(scenario, distribution)}: latent MCC at the end (chance {chance}): {named}.")
        for method, steps in found.items():
            best = max(steps, key=lambda s: mean(steps[s], "mcc") or 0.0)
            peak = mean(steps[best], "mcc") or 0.0
            if peak - last[method] > 0.02:
                text = f"{label_of({'method': method})} was at {short(peak)} at step {best} and fell to"
                out.append(f"{_title(scenario, distribution)}: {text} {short(last[method])}.")
    return out


def about(rows: Sequence[Row]) -> dict[str, str]:
    first = rows[0]
    runs = len({row["run"] for row in rows})
    sizes = f"N = {first['n']} sources, M = {first['m']} dimensions, K = {first['k']} active"
    cpu = {(row["scenario"], row["method"]): row.get("cpu_seconds") or 0.0 for row in rows}
    return {
        "protocol": str(first["protocol"]), "sizes": sizes, "runs": str(runs),
        "lambda": f"{short(first['lam_c'])} (released form), {short(first['lam'])} (half form)",
        "CPU time": f"{sum(cpu.values()):.0f} s",
    }  # fmt: skip


def report(rows: Sequence[Row], pictures: Sequence[Path], counted: Sequence[Row] = ()) -> Report:
    """`counted`: rows of `flops_sheet`."""
    sheets = [*sheets_of(rows), *([flops_sheet(counted)] if counted else [])]
    return Report(TITLE, about(rows), sentences(rows), sheets, EXPLAINED, pictures)


def for_pareto(rows: Iterable[Row]) -> list[Row]:
    """Rows as `figures_pareto` takes them: the label is the method, and what iterates moves along its iterations."""
    out = []
    for row in rows:
        codes = str(row.get("codes", "own"))
        name = label_of(row | {"iterations": ""}).removesuffix(",  iterations")
        step = row["iterations"] if codes.startswith("ito_") else row["step"]
        out.append(row | {"method": name, "step": step, "loss": row.get("loss_test")})
    return out
