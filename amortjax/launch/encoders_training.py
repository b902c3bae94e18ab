"""What `launch.encoders` trains: recipes in the paper's units, SAEs in one pass, the searched dictionary in another."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from amortjax.errors import AmortjaxError, CheckpointError
from amortjax.files import write_atomically
from amortjax.launch import train
from amortjax.training.lca_dictionary import LITERAL_ITERATIONS, LITERAL_LAM, LITERAL_LR, LcaRecipe
from amortjax.training.recipe import Recipe

LITERAL_BATCH = 128
LCA_ITERATIONS = 100


def recipes(config: Any, scale: float) -> dict[str, Recipe | LcaRecipe]:
    """{method: its recipe}. scale: what inputs are divided by.

    The paper's loss is |x - x_hat|^2 / s^2 + lam * sum z with raw codes z; codes of inputs divided by s are z / s, so
    that their lambda is lam * s.
    """
    shared: dict[str, Any] = {
        "n_latents": config.n_latents, "steps": config.steps, "batch_size": config.batch_size,
        "resample_every": config.resample_every, "seed": config.seed,
        # The penalty and the later rate are constant, as in the paper.
        "warmup": config.warmup, "sparsity_warmup": 0, "decay_from": 1.0,
    }  # fmt: skip
    every = {
        "sae": lambda: Recipe(variant="standard", lam=config.lam * scale, lr=config.lr, **shared),
        "mlp": lambda: Recipe(
            variant="mlp",
            lam=config.mlp_lam * scale,
            lr=config.mlp_lr or config.lr,
            hidden=config.width,
            linear=False,
            **shared,
        ),
        "lca": lambda: lca_recipe(config, scale),
    }
    return {name: every[name]() for name in config.methods}


def lca_recipe(config: Any, scale: float) -> LcaRecipe:
    """The searched dictionary's. Its P is half of the SAE's loss: half the lambda."""
    literal = config.lca == "literal"
    lam = (config.lca_lam or LITERAL_LAM) if literal else (config.lca_lam or config.lam) * scale / 2
    return LcaRecipe(
        n_latents=config.n_latents,
        lam=lam,
        steps=config.lca_steps or config.steps,
        batch_size=config.lca_batch_size or (LITERAL_BATCH if literal else config.batch_size),
        lr=config.lca_lr or (LITERAL_LR if literal else config.lr),
        codes=config.lca,
        iterations=config.lca_iterations or (LITERAL_ITERATIONS if literal else LCA_ITERATIONS),
        tol=config.lca_tol,
        rounds=config.lca_rounds,
        # The released dictionary's dead atoms are left as they are.
        resample_every=0 if literal else config.resample_every,
        seed=config.seed,
    )


def lent_saes(config: Any) -> dict[str, Any]:
    """{method: SAE} of --ckpts. AmortjaxError naming the flag if one can't be read."""
    from amortjax.saes.formats import load_sae

    found = {}
    for name, path in config.lent().items():
        try:
            found[name] = load_sae(path)
        except CheckpointError as error:
            raise AmortjaxError(
                f"--ckpts={name}={path}: {error}; give another, or none and {name} is trained"
            ) from None
    return found


def _check_widths(lent: dict[str, Any], width: int) -> None:
    for name, sae in lent.items():
        if sae.d_in != width:
            raise AmortjaxError(
                f"--ckpts: {name} takes activations of width {sae.d_in}, but these have width {width}: give one of "
                f"their model, layer and hook, or none and {name} is trained"
            )


def trained(config: Any, store: Any, lent: dict[str, Any]) -> dict[str, Any]:
    """{method: SAE in raw units}, in the order of --methods: lent (`lent_saes`), found trained, or trained now."""
    from amortjax.report import training
    from amortjax.saes.formats import load_sae
    from amortjax.training import log, loop

    out = config.folder
    paths: dict[str, str | Path] = {}
    own = [name for name in config.methods if name not in lent]
    if store is not None:
        _check_widths(lent, store.d_model)
    pace = loop.Pace(
        checkpoint_every=config.checkpoint_every, log_every=config.log_every, eval_every=config.eval_every
    )
    if own:
        sources = _Sources(config, store)
        _check_widths(lent, sources(config.batch_size).d_model)
        made = recipes(config, kept_scale(out / "units.json", sources(config.batch_size)))
        one_pass = {name: (made[name], None) for name in own if name != "lca"}
        if one_pass:
            paths |= train.train_all(one_pass, sources(config.batch_size), out, pace)  # pyright: ignore[reportArgumentType]
        if "lca" in own:
            recipe = made["lca"]
            assert isinstance(recipe, LcaRecipe)
            paths["lca"] = train_lca(recipe, sources(recipe.batch_size), out, pace)
        training.draw({name: log.read(out / name) for name in own}, out / "training.png")
    saes = {}
    for name in config.methods:
        sae = lent[name] if name in lent else load_sae(str(paths[name]))
        saes[name] = dataclasses.replace(sae, info=dataclasses.replace(sae.info, name=name))
    return saes


class _Sources:
    """Batches of a store's training rows, or of the language model: sources(batch size)."""

    def __init__(self, config: Any, store: Any) -> None:
        self.config, self.store, self.made = config, store, {}

    def __call__(self, batch_size: int) -> Any:
        if batch_size not in self.made:
            self.made = {}  # frees a language model before another is loaded
            self.made[batch_size] = self._make(batch_size)
        return self.made[batch_size]

    def _make(self, batch_size: int) -> Any:
        config = self.config
        if self.store is not None:
            from amortjax.training.batches import Batches

            return Batches(self.store, batch_size, config.seed)
        from amortjax.launch.text import model_and_corpus
        from amortjax.training.streamed import Streamed

        model, corpus = model_and_corpus(config, dtype=config.model_dtype, device=config.device)
        most = max(config.steps, config.lca_steps or 0)
        return Streamed(
            model, corpus, config.layer_index, batch_size, seed=config.seed, stop=most, hook=config.hook,
            max_seq_len=config.max_seq_len, num_sequences=config.num_sequences, buffer_tokens=config.buffer_tokens,
        )  # fmt: skip


def kept_scale(path: Path, source: Any) -> float:
    """What a source's inputs are divided by: from `path`, or measured now and written there. Kept, because a streamed
    model's activations can differ in their last bits from process to process, and recipes must not.

    AmortjaxError if the file is of other rows, or is not readable.
    """
    from amortjax.training.batches import scale_and_centre
    from amortjax.training.loop import SAMPLE
    from amortjax.training.saved import source_identity

    rows = source_identity(source.manifest)
    if path.is_file():
        return _scale_of(path, rows)
    scale = float(f"{scale_and_centre(source.sample(SAMPLE), 'mean', 'centred')[0]:.8g}")
    write_atomically(path, json.dumps({"scale": scale, "rows": rows}, indent=1) + "\n")
    return scale


def _scale_of(path: Path, rows: dict[str, Any]) -> float:
    try:
        found = json.loads(path.read_text())
        scale, other = float(found["scale"]), found["rows"]
        usable = 0 < scale < np.inf and isinstance(other, dict)
    except (ValueError, KeyError, TypeError, OverflowError):
        usable, scale, other = False, 0.0, {}
    if not usable:
        raise AmortjaxError(f"{path}: holds no scale of the activations: delete it and run again")
    differ = [name for name, value in rows.items() if other.get(name) != value]
    if differ:
        raise AmortjaxError(
            f"{path.parent} is of other activations ({differ[0]} {other.get(differ[0])}, not {rows[differ[0]]}): use "
            "another --out"
        )
    return scale


def train_lca(recipe: LcaRecipe, source: Any, out: Path, pace: Any) -> Path:
    """Trains the searched dictionary into OUT/lca, or finds it trained; the path of its weights."""
    from amortjax.saes.formats import load_sae, save_sae
    from amortjax.training import lca_loop, lca_plan, room, saved

    folder = out / "lca"
    path, file = folder / "sae.safetensors", folder / "train.json"
    identity = {"recipe": dataclasses.asdict(recipe), "store": saved.source_identity(source.manifest)}
    done = read_record(file)
    if done is not None:
        _check_same(file, identity, done)
        load_sae(path)
        print(f"{folder}: trained already with these flags", file=sys.stderr)
        return path
    lca_plan.announce(recipe, source, out, pace)
    found = lca_loop.train(source, recipe, folder, out / "lca_state", pace)
    room.room_for_checkpoint(folder, room.nbytes(found.sae))
    save_sae(found.sae, path)
    write_atomically(file, json.dumps(identity | {"summary": found.summary}, indent=1) + "\n")
    saved.clear_steps(out / "lca_state")
    return path


def read_record(file: Path) -> dict[str, Any] | None:
    """A finished training's train.json, None if there is none; AmortjaxError if it can't be read."""
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise AmortjaxError(f"{file}: not readable as json; delete it to train again")
    return found


def _check_same(file: Path, identity: dict[str, Any], done: dict[str, Any]) -> None:
    # Through json, as the file went: tuples become lists.
    identity = json.loads(json.dumps(identity))
    for part, values in identity.items():
        own = done.get(part)
        own = own if isinstance(own, dict) else {}
        for key, value in values.items():
            if own.get(key) != value:
                raise AmortjaxError(
                    f"{file.parent} holds a finished dictionary trained with {key}={own.get(key)}, not {value}: use "
                    "another --out, or delete that folder"
                )
