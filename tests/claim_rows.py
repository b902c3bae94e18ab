"""Result rows as the launchers write them, in which a claim's number is `value` with `half` an interval on each side.

`half` None: no interval. MAKERS[claim id](value, half) gives (file name, rows) pairs; value is signed as the claim is.
"""

from amortjax.report.claims_marks import LEAST

T_OF_TWO = 12.706204736  # Student's .975 quantile, one degree of freedom


def interval(key, value, half):
    ends = (
        {f"{key}_lo": None, f"{key}_hi": None}
        if half is None
        else {f"{key}_lo": value - half, f"{key}_hi": value + half}
    )
    return {key: value, **ends}


def row(mode, condition, **more):
    base = {
        "checkpoint": "sae",
        "mode": mode,
        "condition": condition,
        "protocol": "controlled",
        "variant": "topk",
    }
    return base | {"flags": []} | more


def results(*rows):
    return [("results.json", list(rows))]


def excess(key):
    def make(value, half):
        level = interval(key, max(0.5, LEAST[key]), 0.01)
        other = row("optimal", "same_l0", **interval(f"{key}_minus_amortized", -value, half))
        return results(row("amortized", "same_l0", **level), other)

    return make


def dead_cause(value, half):
    whole = interval("dead_encoder_half", 0.6, 0.01) | interval("encoder_only_half", 0.3 + value, half)
    whole |= interval("dead_half", 0.2, 0.0) | interval("under_converged_half", 0.1, 0.0)
    return results(row("optimal", "dead_audit", tol=1e-4, **whole), row("optimal", "dead_audit", tol=1e-6))


def above_chance(value, half):
    nulls = row("random_encoder", "same_l0", null_draws=3, **interval("df1_minus_amortized", -value, half))
    base = row("amortized", "same_l0", null_draws=1)
    encoder = row("amortized", "same_l0", **interval("absorption_excess", value, half))
    return [("results.json", [encoder]), ("nulls/results.json", [base, nulls])]


def reconstruction(value, half):
    modes = ("optimal", "optimal_refit")
    return results(
        row("amortized", "same_l0"),
        *(row(mode, "same_l0", **interval("nmse_minus_amortized", -value, half)) for mode in modes),
    )


def semi(value, half):
    more = interval("nmse_minus_amortized", -value, half)
    return results(row("amortized", "same_l0"), row("semi_amortized", "same_l0", steps=30, **more))


def above_one(value, half):
    literal = row("amortized", "literal", protocol="literal", **interval("nmse_literal", 1 + value, half))
    controlled = row("amortized", "same_l0", **interval("nmse", 1 + value, half))
    return [("results.json", [controlled]), ("literal/results.json", [literal])]


def ista(value, half):
    bounds = {"suboptimality_upper": value, "suboptimality_lower": value}
    if half is not None:
        bounds |= {"suboptimality_lower_lo": value - half, "suboptimality_upper_hi": value + half}
    l0 = interval("l0", 20.0, 0.0), interval("l0", 20.0 + 20 * value, None if half is None else 20 * half)
    return results(
        row("amortized", "same_lambda"),
        row("optimal", "same_lambda", **l0[0]),
        row("non_amortized", "same_lambda", steps=200, **l0[1], **bounds),
    )


def gated(value, half):
    own = interval("dense@0.1", 0.1 + value, half) | interval(
        "dead_half", 0.01 - value / 20, half and half / 20
    )
    return results(row("amortized", "same_l0", **own) | {"variant": "gated"})


def control(value, half):
    more = interval("ce_recovered_minus_amortized", value, half)
    return results(
        row("amortized", "same_l0", ce_clean=3.0),
        *(row(mode, "same_l0", ce_clean=3.0, **more) for mode in ("optimal", "optimal_refit", "omp")),
    )


def trained(first, last, variant="topk", sparsity="k=20"):
    """Rows of two checkpoints from {condition: numbers}, and of one too dense to be matched."""
    rows = [row("amortized", "same_l0", step=0, unmatchable=True, **interval("df1", 5.0, 0.0))]
    for step, block in ((10, first), (100, last)):
        rows += [row("amortized", condition, step=step, **own) for condition, own in block.items()]
    about = {"variant": variant, "sparsity": sparsity, "sparsity_value": 20.0}
    return [
        own | about | {"checkpoint": f"{variant} {sparsity} {own['step']}", "final": own["step"] == 100}
        for own in rows
    ]


def gaps(value, half):
    """A gap that falls by `value`, to the optimum and to ISTA."""

    def at(level, half):
        ends = {"suboptimality_upper": level, "suboptimality_lower": level} | interval(
            "relative_gap_to_ista", level, half
        )
        return ends | (
            {}
            if half is None
            else {"suboptimality_lower_lo": level - half, "suboptimality_upper_hi": level + half}
        )

    return {"same_lambda": at(0.5 + value, 0.0)}, {"same_lambda": at(0.5, half)}


def rises(value, half, keys=("dead_half", "dense@0.1", "df1", "absorption_excess")):
    first, last = {}, {}
    for key in keys:
        first |= interval(key, 0.3, 0.0)
        last |= interval(key, 0.3 + value, half)
    return {"same_l0": first}, {"same_l0": last}


def divergence(value, half):
    first, last = (a | b for a, b in zip(gaps(0.2, 0.01), rises(value, half), strict=True))
    return results(*trained(first, last))


def sparser(value, half):
    keys = ("df1", "absorption_excess")
    rows = []
    for k, level, own in ((20, 0.3 + value, half), (80, 0.3, 0.0)):
        numbers = {"l0": float(k)}
        for key in keys:
            numbers |= interval(key, level, own)
        rows += trained({"same_l0": numbers}, {"same_l0": numbers}, sparsity=f"k={k}")
    return results(*rows)


def early(value, half):
    own = {"same_l0": interval("dense@0.2", 0.66 + value, half)}
    return results(*trained(own, {"same_l0": interval("dense@0.2", 0.01, 0.0)}, "standard", "l1=0.1"))


def swept(steps, condition="same_l0"):
    """{steps: numbers} from the encoder, and the optimum."""
    rows = [row("optimal", condition, start=None, jaccard_encoder=0.5)]
    return rows + [
        row("semi_amortized", condition, start="encoder", steps=n, **own) for n, own in steps.items()
    ]


def more_steps(value, half):
    steps = {5: 0.4, 25: 0.4 - value / 2, 50: 0.4 - value}
    own = {n: interval("nmse", level, 0.0 if n == 5 else half) for n, level in steps.items()}
    return results(*swept(own))


def dead_at_once(value, half):
    # What is left is 1 % less what is claimed: shares are not negative.
    left = {
        0: interval("dead_half", 0.3, 0.01),
        5: interval("dead_half", 0.01 - value / 20, half and half / 20),
    }
    return results(*swept(left))


def flat(value, half):
    keys = ("df1", "absorption_excess")
    own = {n: {k: v for key in keys for k, v in interval(f"{key}_minus_optimal", level, h).items()} for n, level, h in (
        (5, 0.1, 0.0), (25, 0.1 + value, half))}  # fmt: skip
    return results(*swept({n: numbers | dict.fromkeys(keys, 0.2) for n, numbers in own.items()}))


def suffice(value, half):
    keys = ("nmse", "dead_half", "df1", "absorption_excess")
    own = dict.fromkeys(keys, 0.2)
    for key in keys:
        own |= interval(f"{key}_minus_optimal", value, half)
    best = row("optimal", "same_l0", start=None, **dict.fromkeys(keys, 0.2))
    lam = {"suboptimality_upper": value, "suboptimality_lower": value}
    lam |= (
        {}
        if half is None
        else {"suboptimality_lower_lo": value - half, "suboptimality_upper_hi": value + half}
    )
    return results(best, *swept({25: own})[1:], *swept({25: lam}, "same_lambda"))


def loca(names, keys):
    def make(value, half):
        numbers = {k: v for key in keys for k, v in interval(f"{key}_minus_loca", value, half).items()}
        return [("loca.json", {"rows": [{"name": "loca"}, *({"name": name, **numbers} for name in names)]})]

    return make


def gap_exists(value, half):
    own = interval("suboptimality_lower", value, half) | {"suboptimality_upper": value}
    ladder = row("affine", "ladder", **interval("excess_lower", value, half))
    return [("results.json", [row("amortized", "same_lambda", **own)]), ("ladder/results.json", [ladder])]


def wider(value, half):
    return results(row("mlp", "ladder", **interval("share", value, half)))


def runs(value, half):
    """Two runs with that mean whose Student's interval has that half width; one run for none."""
    return [value] if half is None else [value - half / T_OF_TWO, value + half / T_OF_TWO]


def synthetic(scenario, *methods, **more):
    """The last method's MCC is .3, each one before is `value` more than the next."""

    def make(value, half):
        rows = [
            {
                "scenario": scenario,
                "distribution": "uniform",
                "method": method,
                "codes": "own",
                "n": 16,
                "m": 8,
            }
            | {"k": 3, "run": run, "step": step, "train_flops": 1e9, "mcc": 0.3 + lead * i * (step > 0)}
            | {"checkpoint": scenario, "mode": method, "condition": "uniform", "protocol": "controlled"}
            | more
            for i, method in enumerate(reversed(methods))
            for run, lead in enumerate(runs(value, half))
            for step in (0, 100)
        ]
        return results(*rows)

    return make


def unknown(value, half):
    rows = synthetic("unknown", "sparse_coding", "sae")(value, half)[0][1]
    mlp = [row | {"method": "mlp32"} for row in rows if row["method"] == "sae"]
    return results(*rows, *mlp)


def boundary(value, half):
    rows = []
    for m, lead, own in ((8, value, half), (16, 0.0, 0.0)):  # 8 of 16 dimensions are inside, 16 of 16 are not
        rows += synthetic("unknown", "sparse_coding", "sae", m=m)(lead, own)[0][1]
    return results(*rows)


def agreement(value, half):
    more = interval("mcc_by_dictionary_minus_amortized", value, half)
    return results(row("dictionary", "consistency", mcc=0.5), row("optimal", "consistency", **more))


def explained(value, half):
    own = (("sae", 0.5, 0.0), ("mlp", 0.5 + value, half))
    return results(*(
        row("amortized", "same_l0", checkpoint=name, method=name, matched=name, l0=20.0, **interval("macro_f1", f1, h))
        for name, f1, h in own
    ))  # fmt: skip


EFFECTS = {
    "dead": excess("dead_half"), "dense": excess("dense@0.1"), "splitting": excess("df1"),
    "absorption": excess("absorption_excess"), "dead cause": dead_cause, "above chance": above_chance,
    "reconstruction": reconstruction, "semi": semi, "NMSE above 1": above_one, "Gated": gated, "control": control,
    "gap falls": lambda v, h: results(*trained(*gaps(v, h))),
    "pathologies grow": lambda v, h: results(*trained(*rises(v, h))), "divergence": divergence,
    "TopK in training": lambda v, h: results(*trained(*rises(v, h))), "TopK and sparsity": sparser,
    "early dense": early, "more steps": more_steps, "dead at once": dead_at_once,
    "LocA": loca(["topk"], ["nmse", "dead_half", "df1", "absorption"]),
    "grouping": loca(["random_groups", "uniform_k"], ["nmse"]), "gap exists": gap_exists, "wider encoders": wider,
    "known codes": synthetic("known_codes", "mlp256", "sae"),
    "known dictionary": synthetic("known_dictionary", "sae_ito", "mlp32", "sae"),
    "both unknown": unknown, "optimised codes": synthetic("unknown", "sae_ito", "sae"), "boundary": boundary,
    "per operation": synthetic("unknown", "sparse_coding", "sae"), "agreement": agreement,
    "interpretability": explained,
}  # fmt: skip
WITHIN = {"ISTA-200": ista, "flat": flat, "steps suffice": suffice}
