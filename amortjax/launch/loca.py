"""LocA-SAE and its controls: is the gain its grouping, or its budget?

Trains a TopK SAE, measures each latent's angular variance, groups latents by it and goes on under the group TopK
("The Price of Amortized Inference in Sparse Autoencoders", section 6). Beside it, from the same SAE, on the same
batches and for as many steps: plain TopK of the same k, random groups, uniform budgets, budgets scaled to the first
SAE's k, a separate wider encoder for each group, and groups by each latent's measured price. All are evaluated on the
same held-out tokens; differences are paired. Writes FOLDER/NAME/sae.safetensors for each, loca.csv, loca.json,
report.md and pictures. A killed run goes on where it was.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from amortjax.errors import AmortjaxError
from amortjax.launch import flagged, train
from amortjax.training.recipe import LOCA_K, Recipe

Control = Literal[
    "loca", "topk", "random_groups", "uniform_k", "price_groups", "loca_same_k", "topk_same_k", "mlp_groups"
]

Mode = Literal["encoder_refit", "optimal", "optimal_refit"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    acts: Annotated[str, "Activation store, as written by amortjax.launch.collect."]
    out: Annotated[str, "Folder of the SAEs and results."]
    base: Annotated[str | None, "TopK SAE to start from, instead of training one."] = None
    n_latents: Annotated[int, "Number of latents, M."] = 6144
    k: Annotated[int, "Latents per token of the first SAE."] = 20
    group_k: Annotated[str, "Latents per token and group, joined by '/', highest angular variance first."] = (
        LOCA_K
    )
    steps: Annotated[int, "Optimizer steps of the first SAE."] = 1200
    fine_steps: Annotated[int, "Optimizer steps of each that goes on from it."] = 600
    batch_size: Annotated[int, "Tokens per step."] = 1024
    lr: Annotated[float, "Adam's peak learning rate for the first SAE."] = 4e-4
    fine_lr: Annotated[float | None, "For those that go on; empty: half."] = None
    hidden: Annotated[int | None, "mlp_groups: width of each group's hidden layer; empty: its latents."] = (
        None
    )
    controls: Annotated[tuple[Control, ...], "What is trained and compared."] = (
        "loca", "topk", "random_groups", "uniform_k", "price_groups", "loca_same_k", "topk_same_k", "mlp_groups",
    )  # fmt: skip
    avar: Annotated[
        Literal["centred", "literal"],
        "Of x - b_dec, corrected for few firings; or as released: of x, uncorrected, silent latents first.",
    ] = "centred"
    avar_tokens: Annotated[int, "Training tokens on which angular variance is measured."] = 65536
    price_tokens: Annotated[int, "Training tokens on which latents' prices are measured."] = 4096
    encode_modes: Annotated[tuple[Mode, ...], "Inference modes beside the encoder."] = (
        "encoder_refit", "optimal", "optimal_refit",
    )  # fmt: skip
    calibration_tokens: Annotated[int, "Tokens on which lambda is calibrated."] = 16384
    eval_tokens: Annotated[int, "Test tokens (whole documents)."] = 32768
    probe_tokens: Annotated[int, "Tokens on which probes are fitted."] = 16384
    checkpoint_every: Annotated[int, "Steps between checkpoints of the training's state."] = 500
    log_every: Annotated[int, "Steps between lines of metrics.jsonl."] = 50
    eval_every: Annotated[int, "Steps between FVU, L0 and dead on held-out rows."] = 250
    seed: Annotated[int, "Of weights, order of tokens, random groups and resamples."] = 0

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag. The recipes have checks of their own."""
        for name in (
            "avar_tokens",
            "price_tokens",
            "calibration_tokens",
            "eval_tokens",
            "fine_steps",
            "log_every",
        ):
            if getattr(self, name) < 1:
                raise AmortjaxError(f"--{name}={getattr(self, name)}: must be above 0")
        if "loca" not in self.controls:
            raise AmortjaxError("--controls: loca itself is what the others are compared with; add it")
        for recipe in (self.first(), *map(self.recipe, self.controls)):
            recipe.check()
        return self

    @property
    def ks(self) -> tuple[int, ...]:
        return Recipe(variant="loca", n_latents=self.n_latents, group_k=self.group_k).check().group_ks()

    def first(self) -> Recipe:
        """The recipe of the SAE that the others start from."""
        return self._recipe(variant="topk", k=self.k, steps=self.steps, lr=self.lr)

    def recipe(self, name: Control) -> Recipe:
        """The recipe of one of those that go on."""
        from amortjax.training.loca import scaled, uniform

        ks = self.ks
        joined = lambda ks: "/".join(map(str, ks))  # noqa: E731
        own: dict[str, Any] = {
            "topk": {"variant": "topk", "k": sum(ks)},
            "topk_same_k": {"variant": "topk", "k": self.k},
            "uniform_k": {"variant": "loca", "group_k": joined(uniform(sum(ks), len(ks)))},
            "loca_same_k": {"variant": "loca", "group_k": joined(scaled(ks, self.k))},
            "mlp_groups": {
                "variant": "mlp", "group_k": joined(ks), "hidden": self.hidden or max(self.n_latents // len(ks), 1),
            },
        }.get(name, {"variant": "loca", "group_k": joined(ks)})  # fmt: skip
        return self._recipe(**own, steps=self.fine_steps, lr=self.fine_lr or self.lr / 2)

    def _recipe(self, **own: Any) -> Recipe:
        shared = {"n_latents": self.n_latents, "batch_size": self.batch_size, "seed": self.seed}
        return Recipe(**shared, **own).check()


def signals(config: Config, base: Any, store: Any) -> dict[str, Any]:
    """Of each latent of `base`: angular variance, firings, and price, on training rows."""
    import numpy as np

    from amortjax.inference.prices import latent_prices
    from amortjax.training.loca import angular_variance

    rows = store.rows("sae_train", config.avar_tokens, whole_documents=False, seed=config.seed)
    batches = (store.read(part) for part in np.array_split(rows, max(len(rows) // 4096, 1)))
    literal = config.avar == "literal"
    more = {"centred": False, "corrected": False, "least": 0} if literal else {}
    found = angular_variance(base, batches, **more)
    rows = store.rows("sae_train", config.price_tokens, whole_documents=False, seed=config.seed)
    try:
        price = latent_prices(base, store.read(rows))
    except AmortjaxError as error:
        if "price_groups" in config.controls:
            raise AmortjaxError(f"{error}; leave price_groups out of --controls") from None
        price = np.full(base.n_latents, np.nan)
    return {"avar": found.avar, "fires": found.fires, "price": price}


def starts(config: Config, base: Any, found: dict[str, Any]) -> dict[str, Any]:
    """{name: the SAE it goes on from}: the same weights, in their groups."""
    import numpy as np

    from amortjax.training.loca import order_by, regroup

    shuffled = np.random.default_rng([config.seed, 7]).permutation(base.n_latents)
    price = np.where(found["fires"] > 0, found["price"], np.nan)
    out = {}
    for name in config.controls:
        score = price if name == "price_groups" else found["avar"]
        order = shuffled if name == "random_groups" else order_by(score, found["fires"])
        ks = config.recipe(name).group_ks()
        out[name] = regroup(base, order, ks, found["avar"]) if ks else base
    return out


def trained(config: Config, store: Any) -> tuple[dict[str, Path], dict[str, Any]]:
    """Trains all; {name: path of its weights}, and what was measured of the first SAE's latents."""
    from amortjax.saes.formats import load_sae
    from amortjax.training import loop
    from amortjax.training.batches import Batches

    out = Path(config.out)
    pace = loop.Pace(
        checkpoint_every=config.checkpoint_every, log_every=config.log_every, eval_every=config.eval_every
    )
    if config.base is None:
        first = config.first()
        source = Batches(store, first.batch_size, first.order_seed)
        print("the first SAE, plain TopK:", file=sys.stderr)
        paths = train.train_all({"base": (first, None)}, source, out, pace, "base_state")
        base = load_sae(paths["base"])
    else:
        base = load_sae(config.base)
    wanted = {"variant": "topk", "n_latents": config.n_latents, "k": config.k, "d_in": store.d_model}
    for name, value in wanted.items():
        if getattr(base, name) != value:
            told = f"the activations' width is {value}" if name == "d_in" else f"--{name}={value} is wanted"
            raise AmortjaxError(f"--base={config.base}: its {name} is {getattr(base, name)}, but {told}")
    print("angular variance and price of its latents", file=sys.stderr)
    found = signals(config, base, store)
    begun = starts(config, base, found)
    named = {name: (config.recipe(name), begun[name]) for name in config.controls}
    recipe = config.recipe("loca")
    # Another order of the tokens than the first SAE saw.
    source = Batches(store, recipe.batch_size, recipe.order_seed + 1)
    print("LocA and its controls, on the same batches:", file=sys.stderr)
    return train.train_all(named, source, out, pace, "state"), found


def evaluated(config: Config, paths: dict[str, Path], store: Any) -> list[dict[str, Any]]:
    """A row for each SAE: encoder, refitted and certified codes at its own L0; differences from LocA, paired."""
    from amortjax.metrics.bench import Bench
    from amortjax.metrics.plan import make_plan, pose_subject
    from amortjax.saes.formats import load_sae

    plan = make_plan(
        modes=("amortized", *config.encode_modes),
        conditions=("same_lambda", "same_l0"),
        calibration_tokens=config.calibration_tokens,
        eval_tokens=config.eval_tokens,
        probe_tokens=config.probe_tokens,
        seed=config.seed,
    )
    rows, draws = [], {}
    for name, path in paths.items():
        sae = load_sae(path)
        print(f"{name}: evaluating", file=sys.stderr)
        subject = dataclasses.replace(pose_subject(sae, store, plan), progress=sys.stderr.isatty())
        bench = Bench(subject, plan, Path(config.out) / "rows", sys.stderr.isatty())
        found = {(row["condition"], row["mode"]): row for row in bench.controlled_rows()}
        draws[name] = bench.estimates("amortized")
        rows.append(_row(name, sae, found))
    for row in rows:
        row |= _differences(draws[row["name"]], draws["loca"])
    return rows


def _row(name: str, sae: Any, found: dict[tuple[str, str], dict]) -> dict[str, Any]:
    own, at_lambda = found["same_l0", "amortized"], found["same_lambda", "amortized"]
    keep = (
        "l0",
        "nmse",
        "fvu",
        "dead",
        "dead_half",
        "dense@0.1",
        "f1@1",
        "df1",
        "absorption",
        "absorption_chance",
    )
    row: dict[str, Any] = {"name": name, "variant": sae.variant, "k": sae.k or sum(sae.group_k)}
    row["parameters"] = int(sum(a.size for key, a in _weights(sae).items()))
    for key in keep:
        row |= {column: own.get(column) for column in (key, f"{key}_lo", f"{key}_hi")}
    for key in ("suboptimality_lower", "suboptimality_upper", "price_amplitude", "price_support", "lam"):
        row[key] = at_lambda.get(key)
    for mode in ("encoder_refit", "optimal", "optimal_refit"):
        row[f"nmse_{mode}"], row[f"l0_{mode}"] = (
            found.get(("same_l0", mode), {}).get(key) for key in ("nmse", "l0")
        )
    row["certified"] = found.get(("same_l0", "optimal"), {}).get("certified")
    row |= {key: own.get(key) for key in ("n_tokens", "n_documents")}
    return row


def _weights(sae: Any) -> dict[str, Any]:
    """The arrays that training sets."""
    from amortjax.saes.checks import tensors

    return {name: a for name, a in tensors(sae).items() if name not in RECORDS}


RECORDS = ("pre_bias", "extra.norm_factor", "extra.origin", "extra.avar")


def _differences(own: dict[str, Any], loca: dict[str, Any]) -> dict[str, Any]:
    from amortjax.metrics.uncertainty import difference

    out = {}
    for name in ("nmse", "l0", "dead_half", "df1", "absorption"):
        d = difference(own[name], loca[name]) if name in own and name in loca else None
        key = f"{name}_minus_loca"
        out |= {key: d and d.value, f"{key}_lo": d and d.lo, f"{key}_hi": d and d.hi}
    return out


def run(config: Config) -> list[dict[str, Any]]:
    """Trains, evaluates, writes and prints; returns the rows."""
    config = config.checked()
    from amortjax.activations.store import open_store
    from amortjax.files import write_atomically
    from amortjax.report import loca

    store, out = open_store(config.acts), Path(config.out)
    paths, found = trained(config, store)
    rows = evaluated(config, paths, store)
    about = {"config": dataclasses.asdict(config), "signals": loca.about_signals(found)}
    write_atomically(out / "loca.json", json.dumps({"rows": rows, **about}, indent=1, default=str) + "\n")
    print(loca.write(rows, found, out, flagged.to_json(config)))
    return rows


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.loca")
