"""Preflight: is this checkpoint read as it was trained, and where it was trained?

Prints what an SAE is and, with activations (--acts, or a language model and text), its measured L0, dead latents
and FVU; with a model, the FVU at each neighbouring hook. A wrong layer or hook, a missing input scale, a TopK read
as a ReLU, a bias on the wrong side and the like are named, each in a line `fault: ... remedy: ...`.

Exit code: 0 no fault, 1 faults, 2 input that can't be read. With --out, writes preflight.json and preflight.png
and .svg.
"""

import dataclasses
import json
import sys
import warnings
from typing import TYPE_CHECKING, Annotated, Any, Literal

from amortjax.errors import AmortjaxError
from amortjax.launch import flagged
from amortjax.launch.choices import Choices
from amortjax.launch.text import Text, model_and_corpus

if TYPE_CHECKING:
    import numpy as np

    from amortjax.metrics.verdict import Finding, Known
    from amortjax.saes.formats.hooks import Site
    from amortjax.saes.sae import SAE

# Which rows of a store, the first of these that it has.
SPLITS = ("test", "calibrate", "probe_train", "sae_train")
# A remedy holds if with it the FVU is this close to what was found to be possible.
HOLDS = 1.15


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Text, Choices):
    ckpt: Annotated[str, "SAE checkpoint: a file, a folder with one, or a hub id (org/repo:path)."]
    acts: Annotated[str | None, "Activation store; its hook is compared with the SAE's."] = None
    layer_index: Annotated[int | None, "Block L of the model; empty: as the checkpoint says."] = None
    hook: Annotated[
        Literal["resid_post", "resid_pre", "mlp_out", "attn_out"] | None,
        "Where in the block; empty: as the checkpoint says, resid_post if it says nothing.",
    ] = None
    tokens: Annotated[int, "Tokens to measure on, about (whole documents)."] = 4096
    out: Annotated[str | None, "Folder for preflight.json and the picture."] = None

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag."""
        if self.tokens < 1:
            raise AmortjaxError(f"--tokens={self.tokens}: must be above 0")
        if self.num_sequences is not None and self.num_sequences < 1:
            raise AmortjaxError(f"--num_sequences={self.num_sequences}: at least 1")
        return self


@dataclasses.dataclass(frozen=True)
class Preflight:
    """What `run` found: the page as printed, the faults, and what was measured."""

    page: str
    findings: "tuple[Finding, ...]"
    known: "Known"


def load(config: Config, **more: Any) -> "SAE":
    """The SAE with the choices of the flags; warnings of the reader are its notes already."""
    from amortjax.saes.formats import load_sae

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_sae(config.ckpt, **config.given() | more)


def run(config: Config) -> Preflight:
    """Measures, prints, and with --out writes."""
    config = config.checked()
    config.given()
    from amortjax.report import preflight as report

    sae = load(config)
    known, text = measured(config, sae)
    findings, notes = judged(config, known)
    page = report.page(known, findings, notes, text)
    print(page)
    if config.out is not None:
        out = flagged.folder_of(config.out)
        pictures = report.draw(known, out / "preflight.png")
        from amortjax.files import write_atomically

        whole = report.record(known, findings, notes, text)
        write_atomically(out / "preflight.json", json.dumps(whole, indent=1))
        print(f"\nresults {out}/preflight.json, picture {pictures[0]}", file=sys.stderr)
    return Preflight(page, tuple(findings), known)


def measured(config: Config, sae: "SAE") -> "tuple[Known, str]":
    """All numbers, and what the tokens are of."""
    from amortjax.metrics import preflight, whatif
    from amortjax.metrics.verdict import Known

    place, rows, text = _place(config, sae), None, ""
    if config.acts is not None:
        place, rows, text = _stored(config)
    hooks: dict[Site, np.ndarray] = {}
    if config.model_name is not None:
        hooks, words = _at_hooks(config, place, sae)
        if rows is None:
            rows, text = hooks[place], words
    found = Known(sae, preflight.dictionary(sae), place)
    if rows is None:
        return found, ""
    if rows.shape[1] != sae.d_in:
        raise AmortjaxError(
            f"{config.ckpt}: takes activations of width {sae.d_in}, but these have width {rows.shape[1]} ({text}): "
            f"they are of another model than the SAE's ({sae.info.model_name or 'not said'}), or of another hook"
        )
    found = found._replace(seen=preflight.on_rows(sae, rows))
    if preflight.is_transcoder(sae):
        return found, text
    few = whatif.rows_for(sae, rows)
    fits = preflight.by_hook(sae, hooks, place, whatif.n_rows(sae)) if hooks else None
    return found._replace(x=few, what_if=whatif.ask(sae, few), hooks=fits), text


def judged(config: Config, known: "Known") -> "tuple[list[Finding], list[str]]":
    """Faults, their remedies tried where they are flags of the loader, and notes."""
    from amortjax.metrics import verdict

    findings = [_tried(config, known, finding) for finding in verdict.verdict(known)]
    return findings, verdict.notes(known)


def _tried(config: Config, known: "Known", finding: "Finding") -> "Finding":
    """With the loader's choice as its remedy, if one of them brings the FVU that was found to be possible."""
    from amortjax.metrics import preflight
    from amortjax.saes.formats import FORMATS

    form = FORMATS.get(known.sae.info.format)
    for choice in finding.choices:
        if known.x is None or form is None or not set(choice) <= set(form.choices):
            continue
        try:
            fvu = preflight.fvu(known.x, preflight.reconstruction(load(config, **choice), known.x))
        except AmortjaxError:
            continue
        limit = finding.fvu if finding.fvu is not None else known.what_if.now if known.what_if else 0.0
        if fvu <= HOLDS * limit:
            flags = " ".join(f"--{name}={_shown(value)}" for name, value in choice.items())
            given = ", ".join(f"{name}={_shown(value, python=True)}" for name, value in choice.items())
            remedy = f"load it with {flags} (load_sae(..., {given})): FVU {fvu:.3g}, measured"
            return dataclasses.replace(finding, remedy=remedy)
    return finding


def _shown(value: Any, python: bool = False) -> str:
    if isinstance(value, bool):
        return str(value) if python else str(value).lower()
    return (
        repr(value)
        if python and isinstance(value, str)
        else f"{value:.4g}"
        if isinstance(value, float)
        else str(value)
    )


def _place(config: Config, sae: "SAE") -> "Site":
    """Where the activations are to be taken: the flags, and for what they leave out the SAE's file."""
    from amortjax.metrics import places
    from amortjax.saes.formats.hooks import Site

    own = places.declared(sae.info)
    hook = config.hook or (own.hook if own.hook in places.READABLE else "resid_post")
    layer = own.layer if config.layer_index is None else config.layer_index
    if config.model_name is not None and config.acts is None:
        if layer is None:
            raise AmortjaxError(f"{config.ckpt}: does not say which block it is of: give --layer_index")
        if config.hook is None and own.hook and own.hook not in places.READABLE:
            raise AmortjaxError(
                f"{config.ckpt}: is of {places.named(own)}, which can't be collected "
                f"({', '.join(places.READABLE)} can): give --hook and --layer_index, or --acts"
            )
    return Site(hook, layer)


def _stored(config: Config) -> "tuple[Site, np.ndarray, str]":
    """The place, some rows and their description, of --acts."""
    from amortjax.activations.store import open_store
    from amortjax.saes.formats.hooks import Site

    store = open_store(str(config.acts))
    present = set(store.documents["split"].tolist())
    split = next((name for name in SPLITS if name in present), SPLITS[0])
    x, manifest = store.read(store.rows(split, config.tokens)), store.manifest
    text = f"{manifest['dataset']} ({split}) by {manifest['model_name']}"
    return Site(manifest["hook"], int(manifest["layer_index"])), x, text


def _at_hooks(config: Config, place: "Site", sae: "SAE") -> "tuple[dict[Site, np.ndarray], str]":
    """Rows of the same tokens at `place`, its neighbours and where the SAE's file says it is of."""
    from amortjax.activations import models, stream
    from amortjax.metrics import places

    model, corpus = model_and_corpus(config)
    models.check_layer(model, place.layer or 0, config.max_seq_len)
    sites = places.neighbours(place, len(model.blocks))
    own = places.declared(sae.info)
    if places.known(own) and 0 <= (own.layer or 0) < len(model.blocks):
        sites += [] if any(places.same(own, site) for site in sites) else [own]
    windows = stream.first_rows(
        model,
        corpus,
        [(site.layer or 0, site.hook) for site in sites],
        config.tokens,
        config.max_seq_len,
        config.num_sequences,
    )
    rows = {site: window.x for site, window in zip(sites, windows, strict=True)}
    return rows, f"{corpus.name} by {model.name}"


def main(config: Config) -> None:
    """As the command line has it: exit code 1 if there are faults."""
    if run(config).findings:
        raise SystemExit(1)


if __name__ == "__main__":
    flagged.launch(Config, main, "amortjax.launch.inspect")
