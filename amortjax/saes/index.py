"""Which variant, sparsity and training step each checkpoint below some folders is of, without reading weights.

    index(["outputs/ckpts", "org/repo:folder"])       # [Entry("topk", "k=20", 20.0, 244, False, ".../ae_244.pt"), ...]

Known layouts: what `launch.train` writes (NAME/train.json, with snapshots in NAME/checkpoints/STEP);
dictionary_learning's and so SAEBench's (trainer_i/config.json, with ae.pt and checkpoints/ae_STEP.pt); and
VARIANT/SPARSITY/STEP/ around a file of any format.

Sparsity and the last step are read from the settings saved with a checkpoint. A trainer's number says nothing: in
SAEBench's suites trainer 5 is the sparsest of Standard and trainer 0 that of TopK. Folder names count in the third
layout alone, and there too settings come first.
"""

import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from amortjax.errors import CheckpointError
from amortjax.saes.formats import FORMATS, hub
from amortjax.saes.formats.checked import setting
from amortjax.saes.formats.dictionary_learning_config import class_name, config_file
from amortjax.saes.formats.opened import CONTAINERS, open_weights, read_json

TRAINERS = {
    "StandardTrainer": "standard", "StandardTrainerAprilUpdate": "april", "PAnnealTrainer": "p_anneal",
    "GatedSAETrainer": "gated", "JumpReluTrainer": "jumprelu", "TrainerJumpRelu": "jumprelu",
    "TopKTrainer": "topk", "TrainerTopK": "topk", "BatchTopKTrainer": "batch_topk",
    "TrainerBatchTopK": "batch_topk", "MatryoshkaBatchTopKTrainer": "matryoshka",
}  # fmt: skip
CLASSES = {
    "standard": "AutoEncoder", "april": "AutoEncoder", "p_anneal": "AutoEncoder", "gated": "GatedAutoEncoder",
    "jumprelu": "JumpReluAutoEncoder", "topk": "AutoEncoderTopK", "batch_topk": "BatchTopKSAE",
    "matryoshka": "MatryoshkaBatchTopKSAE",
}  # fmt: skip
# Settings that give the sparsity, and its name in a label; the first that is there counts. (A JumpReLU trainer has
# sparsity_penalty beside its target.)
OURS = {"k": "k", "target_l0": "target_l0", "lam": "l1"}
THEIRS = {
    "k": "k", "target_l0": "target_l0", "l1_penalty": "l1", "sparsity_penalty": "l1", "initial_sparsity_penalty": "l1",
}  # fmt: skip
BY_VARIANT = {"jumprelu": "target_l0"} | dict.fromkeys(("topk", "batch_topk", "matryoshka", "loca"), "k")
SPELLINGS = {"lam": "l1", "lambda": "l1", "l1_penalty": "l1", "l0": "target_l0"}
_STEP = re.compile(r"(?:.*[_-])?step[_=-]?(\d+)(?:[_-].*)?|(\d+)", re.IGNORECASE)
_SPARSITY = re.compile(
    r"(?:(k|l1|lam|lambda|l1_penalty|target_l0|l0)[_=-]?)?(\d+\.?\d*(?:e-?\d+)?|\.\d+)", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A checkpoint. `sparsity` is a label as in "k=20", "l1=0.06" or "target_l0=40", `value` its number; `final`: it is
    the last of its training. `load_sae(path, **choices)` reads it."""

    variant: str
    sparsity: str
    value: float
    step: int
    final: bool
    path: str
    choices: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.variant} {self.sparsity} step {self.step}"


def index(
    paths: Iterable[str],
    variants: Sequence[str] = (),
    sparsities: Sequence[str] = (),
    steps: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> list[Entry]:
    """The checkpoints at and below `paths` (local, or hub ids of folders), by variant, sparsity and step.

    The filters keep what they name: variants; sparsities as labels or numbers; steps as numbers or "final". Files that
    are no readable checkpoint are left out, `say` is told why. CheckpointError: nothing is found or left, or two
    checkpoints have the same variant, sparsity and step.
    """
    found: dict[Path, Entry] = {}
    for path in paths:
        for file in _files(path):
            try:
                entry = None if file.resolve() in found else _entry(file)
            except CheckpointError as error:
                say(f"left out: {error}")
                continue
            if entry:
                found[file.resolve()] = entry
    if not found:
        raise CheckpointError(
            f"{', '.join(paths)}: no checkpoint found; known are launch.train's folders, trainer_i/config.json with "
            "ae.pt or checkpoints/ae_STEP.pt, and VARIANT/SPARSITY/STEP/"
        )
    entries = sorted(_chosen(list(found.values()), variants, sparsities, steps), key=_order)
    _refuse_conflicts(entries)
    return entries


def _order(entry: Entry) -> tuple[str, float, int]:
    return entry.variant, entry.value, entry.step


def table(entries: Sequence[Entry]) -> str:
    """What was found, a line for each variant and sparsity."""
    lines: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        lines.setdefault((entry.variant, entry.sparsity), []).append(
            f"{entry.step}{' (final)' * entry.final}"
        )
    cells = [("variant", "sparsity", "steps")] + [(*key, ", ".join(steps)) for key, steps in lines.items()]
    wide = [max(len(line[i]) for line in cells) for i in (0, 1)]
    return "\n".join(f"{a:{wide[0]}}  {b:{wide[1]}}  {c}" for a, b, c in cells)


def _files(path: str) -> list[Path]:
    """Weight files at or below a path or a hub's folder."""
    root = Path(path)
    if not root.exists():
        if not hub.is_hub_id(path):
            raise CheckpointError(f"{path}: no such file or folder")
        root = hub.download(path)
    if root.is_file():
        return [root]
    return sorted(file for file in root.rglob("*") if file.suffix in CONTAINERS and file.is_file())


def _entry(file: Path) -> Entry | None:
    """None if the file holds no SAE."""
    opened = open_weights(file)
    form = opened and next((name for name, form in FORMATS.items() if form.detect(opened)), None)
    if not form:
        return None
    snapshot = file.parent.parent.name == "checkpoints"
    owner = file.parents[2] if snapshot else file.parent
    if (owner / "train.json").is_file():
        return _ours(file, owner / "train.json", snapshot)
    config = read_json(config_file(file))
    if "trainer" in config:
        return _theirs(file, config)
    if snapshot and form == "native":
        raise CheckpointError(f"{file}: there is no {owner / 'train.json'}: its training has not finished")
    return _by_folders(file, form)


def _ours(file: Path, settings: Path, snapshot: bool) -> Entry:
    recipe = setting(settings, read_json(settings), "recipe", dict, {})
    variant, last = _needed(settings, recipe, "variant", str), _needed(settings, recipe, "steps", int)
    step = _step_of(file, file.parent.name) if snapshot else last
    if recipe.get("group_k") is not None:
        text = setting(settings, recipe, "group_k", str, "")
        if not re.fullmatch(r"\d+(/\d+)*", text):
            raise CheckpointError(f"{settings}: group_k is {text!r:.60}, not whole numbers joined by '/'")
        value = float(sum(map(int, text.split("/"))))
        return Entry(variant, f"k={value:g}", value, step, not snapshot, str(file))
    return Entry(variant, *_sparsity(settings, recipe, OURS), step, not snapshot, str(file))


def _theirs(file: Path, config: dict[str, Any]) -> Entry:
    """dictionary_learning's: an ae.pt is of the last step, unless its folder's name has one."""
    settings = config_file(file)
    trainer = setting(settings, config, "trainer", dict, {})
    trained_by = class_name(_needed(settings, trainer, "trainer_class", str))
    label, value = _sparsity(settings, trainer, THEIRS)
    last = setting(settings, trainer, "steps", int, None)
    numbered = re.fullmatch(r"ae_(\d+)", file.stem)
    if numbered:
        step = int(numbered[1])
    elif _STEP.fullmatch(file.parent.name):
        step = _step_of(file, file.parent.name)
    elif last is not None and file.stem == "ae":
        step = last
    else:
        raise CheckpointError(
            f"{file}: neither its name nor trainer.steps in {settings} says of which step it is"
        )
    return Entry(TRAINERS.get(trained_by, trained_by), label, value, step, step == last, str(file))


def _by_folders(file: Path, form: str) -> Entry:
    """VARIANT/SPARSITY/STEP/file; the largest step is the final one. k comes from settings beside the file if there."""
    folder = file.absolute().parent
    variant, sparsity, name = ["", "", "", *folder.parts][-3:]
    if not _STEP.fullmatch(name):
        raise CheckpointError(
            f"{file}: nothing says of which training and step it is: no train.json, no trainer in a config.json, and "
            "it lies in no VARIANT/SPARSITY/STEP/"
        )
    step = _step_of(file, name)
    others = [part.name for part in folder.parent.iterdir() if _STEP.fullmatch(part.name)]
    final = step == max(_step_of(file, other) for other in others)
    known = form == "dictionary_learning" and variant in CLASSES
    # Without a config.json the tensors may be those of two classes.
    choices = {"dict_class": CLASSES[variant]} if known else {}
    return Entry(variant, *_named_sparsity(file, variant, sparsity), step, final, str(file), choices)


def _named_sparsity(file: Path, variant: str, folder: str) -> tuple[str, float]:
    for beside in (file.with_suffix(".json"), file.with_name("cfg.json"), file.with_name("config.json")):
        settings = read_json(beside)
        if settings.get("k") is not None:
            return _sparsity(beside, settings, {"k": "k"})
    named = _SPARSITY.fullmatch(folder)
    if not named or not (named[1] or variant in CLASSES or variant in BY_VARIANT):
        raise CheckpointError(
            f"{file}: the folder {folder!r} says no sparsity, and no settings beside the file do: name it as in k=20, "
            "l1=0.06 or target_l0=40"
        )
    kind = (named[1] or BY_VARIANT.get(variant, "l1")).lower()
    value = float(named[2])
    return f"{SPELLINGS.get(kind, kind)}={value:g}", value


def _needed(file: Path, settings: dict[str, Any], key: str, kind: type) -> Any:
    value = setting(file, settings, key, kind, None)
    if value is None or (kind is int and value < 0):
        raise CheckpointError(
            f"{file}: {key} is {'missing' if value is None else value}; copy the file again"
        )
    return value


def _sparsity(file: Path, settings: dict[str, Any], names: dict[str, str]) -> tuple[str, float]:
    """Label and number from the first of the settings `names` that is there."""
    for key, kind in names.items():
        value = setting(file, settings, key, float, None)
        if value is None:
            continue
        if value < 0:
            raise CheckpointError(f"{file}: {key} is {value}; wanted no negative number")
        return f"{kind}={value:g}", float(value)
    raise CheckpointError(f"{file}: none of {', '.join(names)} is there, which would say how sparse it is")


def _step_of(file: Path, text: str) -> int:
    found = _STEP.fullmatch(text)
    if not found:
        raise CheckpointError(f"{file}: the folder {text!r} is no number of a step")
    return int(found[1] or found[2])


def _chosen(
    entries: list[Entry], variants: Sequence[str], sparsities: Sequence[str], steps: Sequence[str]
) -> list[Entry]:
    """What the filters leave; a filter's item that fits nothing is refused with what there is."""
    filters = {
        "variants": (variants, lambda e: {e.variant}),
        "sparsities": (sparsities, lambda e: {e.sparsity, f"{e.value:g}"}),
        "steps": (steps, lambda e: {str(e.step), *(("final",) if e.final else ())}),
    }
    for flag, (wanted, names) in filters.items():
        there = set().union(*map(names, entries)) if entries else set()
        for item in wanted:
            if item not in there:
                some = ", ".join(sorted(there, key=lambda name: (len(name), name))[:12])
                raise CheckpointError(f"--{flag}: {item} is not there; found: {some or 'nothing'}")
        entries = [e for e in entries if not wanted or names(e) & set(wanted)]
    if not entries:
        raise CheckpointError("--variants, --sparsities and --steps together leave no checkpoint")
    return entries


def _refuse_conflicts(entries: list[Entry]) -> None:
    seen: dict[str, str] = {}
    for entry in entries:
        if entry.name in seen:
            raise CheckpointError(
                f"{entry.name} is there twice: {seen[entry.name]} and {entry.path}; give folders that hold one of them"
            )
        seen[entry.name] = entry.path
