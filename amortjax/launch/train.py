"""Trains SAEs on the activations of a store (amortjax.launch.collect), or straight from a language model.

Only rows of the sae_train split are trained on. Writes FOLDER/sae.safetensors and sae.json, metrics.jsonl,
train.json and training.png. With --sweep or --configs, several SAEs are trained in one pass on the same batches,
each in a folder of its own below FOLDER. A killed run goes on from FOLDER/state, a finished one is left as it is.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from amortjax.errors import AmortjaxError
from amortjax.files import write_atomically
from amortjax.launch import flagged
from amortjax.launch.sweep import expand
from amortjax.launch.text import Text, model_and_corpus
from amortjax.training.recipe import Recipe

# Folders below --out that are not an SAE's.
RESERVED = {"state", "base_state", "rows", "checkpoints", "tensorboard", "acts", "figures"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Recipe, Text):
    out: Annotated[str, "Folder for the SAE, or for the folders of several."]
    acts: Annotated[
        str | None, "Activation store, as written by amortjax.launch.collect; without it, --model_name."
    ] = None
    init: Annotated[str | None, "SAE to go on from: a path or hub id."] = None
    sweep: Annotated[
        tuple[str, ...],
        "Several SAEs on the same batches: FLAG:VALUE/VALUE, as in k:20/40/80; axes multiply.",
    ] = ()
    configs: Annotated[
        tuple[str, ...], "Several SAEs on the same batches: flagfiles, each with what it changes."
    ] = ()
    checkpoint_every: Annotated[int, "Steps between checkpoints of the training's state; 0: none."] = 500
    log_every: Annotated[int, "Steps between lines of metrics.jsonl."] = 50
    eval_every: Annotated[int, "Steps between FVU, L0 and dead on held-out rows; 0: never."] = 250
    gap_every: Annotated[
        int | None,
        "Steps between measurements of the encoder's gap to the certified optimum, on held-out rows; 0: never. "
        "Empty: a quarter of the steps, never in runs below 2000.",
    ] = None
    save_at: Annotated[
        tuple[float, ...], "Shares of the steps after which a snapshot is written to checkpoints/STEP."
    ] = ()
    tensorboard: Annotated[bool, "Also write TensorBoard's event files."] = False
    model_dtype: Annotated[Literal["float32", "bfloat16", "float16"], "In which the model computes."] = (
        "float32"
    )
    device: Annotated[str, "Of the language model: auto, cpu or cuda."] = "auto"
    buffer_tokens: Annotated[int, "Tokens that are shuffled together when they come from the model."] = (
        262_144
    )

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag. The recipes have checks of their own."""
        for flag in ("checkpoint_every", "eval_every", "gap_every"):
            if (getattr(self, flag) or 0) < 0:
                raise AmortjaxError(f"--{flag}={getattr(self, flag)}: must not be negative")
        for flag in ("log_every", "buffer_tokens"):
            if getattr(self, flag) < 1:
                raise AmortjaxError(f"--{flag}={getattr(self, flag)}: must be at least 1")
        if any(not 0 <= share <= 1 for share in self.save_at):
            raise AmortjaxError("--save_at: shares of the steps, from 0 to 1")
        return self


def train(config: Config, source: Any = None) -> list[Path]:
    """Trains, or finds the finished training of the same flags; returns the paths of the SAEs' weights.

    `source` may be given instead of `config.acts`: a store, or a `training.feed.Source`.
    """
    config = config.checked()
    recipes = {name: recipe.check() for name, recipe in expand(config, Recipe).items()}
    if source is None and config.acts is None and (config.model_name is None or config.layer_index is None):
        raise AmortjaxError("give --acts, or --model_name and --layer_index to train straight from a model")
    # Heavy imports after the flags' checks, so that --help and mistakes are quick.
    from amortjax.saes.formats import load_sae
    from amortjax.training import loop

    start = load_sae(config.init) if config.init else None
    source = _source(config, next(iter(recipes.values())), source)
    pace = loop.Pace(**{f.name: getattr(config, f.name) for f in dataclasses.fields(loop.Pace)})
    if config.gap_every is None:
        pace = dataclasses.replace(pace, gap_every=config.steps // 4 if config.steps >= 2000 else 0)
    named = {name: (recipe, start) for name, recipe in recipes.items()}
    return list(train_all(named, source, Path(config.out), pace).values())


def train_all(
    named: dict[str, tuple[Recipe, Any]], source: Any, out: Path, pace: Any, state: str = "state"
) -> dict[str, Path]:
    """Trains {name: (recipe, SAE to go on from or None)} in one pass into OUT/NAME (OUT itself for ""), or finds
    them trained; {name: path of its weights}. The training's state is kept in OUT/`state` until it is finished."""
    from amortjax.saes.formats import save_sae
    from amortjax.training import loop, plan, room, saved

    taken = sorted(set(named) & RESERVED)
    if taken:
        raise AmortjaxError(
            f"{taken[0]}: a folder of that name is the trainer's own; name the flagfile otherwise"
        )
    folders = {name: out / name if name else out for name in named}
    for _, start in named.values():
        if start is not None and start.d_in != source.d_model:
            raise AmortjaxError(
                f"--init takes activations of width {start.d_in}, but these have width {source.d_model}: is it of "
                "another model, layer or hook?"
            )
    identities = {name: _identity(recipe, source.manifest, start) for name, (recipe, start) in named.items()}
    finished = {name: _finished(folders[name], identities[name]) for name in named}
    paths = {name: folder / "sae.safetensors" for name, folder in folders.items()}
    if all(finished.values()):
        print(f"{out}: trained already with these flags", file=sys.stderr)
        return paths
    if any(finished.values()) and not saved.has_steps(out / state):
        named = {name: one for name, one in named.items() if not finished[name]}
        print(f"{out}: {sum(finished.values())} of {len(finished)} trained already", file=sys.stderr)
    plan.announce([recipe for recipe, _ in named.values()], source, out, pace)
    jobs = [loop.Job(recipe, folders[name], start) for name, (recipe, start) in named.items()]
    trained = loop.train(source, jobs, out / state, pace)
    for name, one in zip(named, trained, strict=True):
        room.room_for_checkpoint(folders[name], room.nbytes(one.sae))
        save_sae(one.sae, paths[name])
        done = identities[name] | {"summary": one.summary}
        write_atomically(folders[name] / "train.json", json.dumps(done, indent=1) + "\n")
    # The state is three times the weights, and no use once they are written.
    saved.clear_steps(out / state)
    _draw({name or out.name: folder for name, folder in folders.items()}, out)
    return paths


def _source(config: Config, recipe: Recipe, given: Any) -> Any:
    """Where batches come from: a store's training rows, or the language model."""
    from amortjax.activations.store import open_store
    from amortjax.training.batches import Batches
    from amortjax.training.streamed import Streamed

    if hasattr(given, "held_out"):
        return given
    if given is not None or config.acts:
        store = open_store(str(config.acts)) if given is None else given
        return Batches(store, recipe.batch_size, recipe.order_seed)
    model, corpus = model_and_corpus(config, dtype=config.model_dtype, device=config.device)
    return Streamed(
        model,
        corpus,
        config.layer_index or 0,
        recipe.batch_size,
        seed=recipe.order_seed,
        stop=recipe.steps,
        hook=config.hook,
        max_seq_len=config.max_seq_len,
        num_sequences=config.num_sequences,
        buffer_tokens=config.buffer_tokens,
    )


def _identity(recipe: Recipe, manifest: dict[str, Any], start: Any) -> dict[str, Any]:
    """What tells one training from another: recipe, training rows, and the SAE it goes on from."""
    from amortjax.saes.digest import digest
    from amortjax.training.saved import source_identity

    own = {"recipe": dataclasses.asdict(recipe), "store": source_identity(manifest)}
    return own | {"init": {"digest": digest(start) if start is not None else None}}


def _finished(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether `folder` holds this very training, finished. Refuses to write over another."""
    from amortjax.saes.formats import load_sae

    file = folder / "train.json"
    if not file.is_file():
        return False
    try:
        done = json.loads(file.read_text())
    except ValueError:
        raise AmortjaxError(f"{file}: not readable as json; delete it to train again") from None
    # Through json, as the file went: tuples become lists.
    identity = json.loads(json.dumps(identity))
    other = [
        f"{key}={done.get(part, {}).get(key)}, not {value}"
        for part, values in identity.items()
        for key, value in values.items()
        if done.get(part, {}).get(key) != value
    ]
    if other:
        raise AmortjaxError(
            f"{folder} holds a finished SAE trained with {'; '.join(other)}: use another --out, or delete that "
            "folder"
        )
    load_sae(folder / "sae.safetensors")
    return True


def _draw(folders: dict[str, Path], out: Path) -> None:
    from amortjax.report import training
    from amortjax.training import log

    training.draw({name: log.read(folder) for name, folder in folders.items()}, out / "training.png")


def run(config: Config) -> None:
    for path in train(config):
        print(path)


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.train")
