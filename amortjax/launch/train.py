"""Trains an SAE on the activations of a store (amortjax.launch.collect) and writes it as a native
checkpoint.

Only rows of the sae_train split are read. Writes FOLDER/sae.safetensors and sae.json, metrics.jsonl and
train.json; a killed run goes on from FOLDER/state, a finished one is left as it is.
"""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

from amortjax.errors import AmortjaxError
from amortjax.files import write_atomically
from amortjax.launch import flagged
from amortjax.training.recipe import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    acts: Annotated[str, "Activation store, as written by amortjax.launch.collect."]
    out: Annotated[str, "Folder for the SAE."]
    checkpoint_every: Annotated[int, "Steps between checkpoints of the training's state."] = 500
    log_every: Annotated[int, "Steps between lines of metrics.jsonl."] = 50

    def recipe(self) -> Recipe:
        return Recipe(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Recipe)})


def train(config: Config, store: Any = None) -> Path:
    """Trains, or finds the finished training of the same flags; returns the path of the SAE's weights.

    `store` may be given instead of read from `config.acts`: anything with `.rows`, `.read`, `.d_model`,
    `.manifest`.
    """
    for flag in ("checkpoint_every", "log_every"):
        if getattr(config, flag) < 1:
            raise AmortjaxError(f"--{flag}={getattr(config, flag)}: must be at least 1")
    recipe, folder = config.recipe().check(), Path(config.out)
    # Heavy imports after the flags' checks, so that --help and mistakes are quick.
    from amortjax.activations.store import open_store
    from amortjax.saes.formats import save_sae
    from amortjax.training import loop

    store = open_store(config.acts) if store is None else store
    identity = {"recipe": dataclasses.asdict(recipe), "store": _identity(store)}
    if _finished(folder, identity):
        print(f"{folder}: trained already with these flags", file=sys.stderr)
        return folder / "sae.safetensors"
    trained = loop.train(
        store, recipe, folder, checkpoint_every=config.checkpoint_every, log_every=config.log_every
    )
    sae = dataclasses.replace(trained.sae, info=_info(trained.sae.info, folder, store))
    path = save_sae(sae, folder / "sae.safetensors")
    done = identity | {"summary": trained.summary}
    write_atomically(folder / "train.json", json.dumps(done, indent=1) + "\n")
    # The state is three times the weights, and no use once they are written.
    shutil.rmtree(folder / "state", ignore_errors=True)
    return path


def _identity(store: Any) -> dict[str, Any]:
    """What tells one store's training rows from another's."""
    keys = (
        "model_name",
        "model_fingerprint",
        "hook",
        "layer_index",
        "dataset",
        "corpus_fingerprint",
        "n_rows",
    )
    return {key: store.manifest.get(key) for key in keys}


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
    for part in ("recipe", "store"):
        for key, value in identity[part].items():
            if done.get(part, {}).get(key) != value:
                raise AmortjaxError(
                    f"{folder} holds a finished SAE trained with {key}={done.get(part, {}).get(key)}, not "
                    f"{value}: use another --out, or delete that folder"
                )
    load_sae(folder / "sae.safetensors")
    return True


def _info(info: Any, folder: Path, store: Any) -> Any:
    manifest = store.manifest
    return dataclasses.replace(
        info,
        name=folder.name,
        model_name=str(manifest.get("model_name", "")),
        layer_index=manifest.get("layer_index"),
        hook=str(manifest.get("hook", "")),
        trained_on=str(manifest.get("corpus_fingerprint", "")),
    )


def run(config: Config) -> None:
    print(train(config))


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.train")
