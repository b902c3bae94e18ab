"""Reads an SAE of any format and writes it in another, checked: what was written is read back, and codes and
reconstructions of random inputs are compared with the SAE's own before anything is put in place.
"""

import os
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from amortjax.launch.choices import Choices

if TYPE_CHECKING:
    import numpy as np

    from amortjax.saes.sae import SAE

PROBES = 256
TOLERANCE = 1e-5  # of x_hat, relative to the largest entry of its row
NOISE = 2e-5  # inputs whose latents change under so much of their length are near a tie: rounding may flip them too
FEWEST = 16  # inputs that are not, to tell anything by


@dataclass(frozen=True, kw_only=True)
class Config(Choices):
    input: Annotated[str, "File, folder or hub id (org/repo:path) of the SAE."]
    output: Annotated[str, "A folder; of the native format a folder or the stem of its two files."]
    format: Annotated[
        Literal["native", "saelens", "dictionary_learning", "loca"], "Which format to write."
    ] = "native"
    overwrite: Annotated[bool, "Replace an SAE that is at --output already."] = False
    bias_latent: Annotated[
        bool, "With --format=loca: b_dec as one more latent that is always 1 (the format has no b_dec)."
    ] = False


class Check(NamedTuple):
    """What was measured on the probe inputs."""

    difference: float  # largest of |x_hat - x_hat'| / max |x_hat| in a row
    same_latents: int
    near_ties: int  # inputs not counted in either
    l0: float


def run(config: Config) -> Check:
    """Converts and prints a small table. Raises AmortjaxError, and leaves nothing behind, where that is not exact."""
    from amortjax.saes.formats import load_sae, save_sae

    _check_apart(config)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        sae = load_sae(config.input, **config.given())
    for warning in said:
        print(f"warning: {warning.message}", file=sys.stderr)
    target = _target(config)
    options = {"bias_latent": True} if config.bias_latent else {}
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=_nearest_folder(target)) as scratch:
        written = save_sae(sae, Path(scratch) / target.name, format=config.format, **options)
        back = _read_back(written)
        check = compare(sae, back)
        _check_exact(check, config)
        _put_in_place(Path(scratch), target, config)
    _print_table(config, sae, back, target.parent / written.relative_to(scratch), check)
    return check


def _read_back(written: Path) -> "SAE":
    from amortjax.saes.formats import load_sae

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what there is to say was said of the input
        return load_sae(written)


def _check_apart(config: Config) -> None:
    from amortjax.errors import AmortjaxError

    source, output = Path(config.input).resolve(), Path(config.output).resolve()
    if source.is_dir() and (output == source or source in output.parents):
        raise AmortjaxError(
            f"--output={config.output} is in --input: the folder would hold two SAEs; give another place"
        )


def _target(config: Config) -> Path:
    """The folder to be written, or the stem of the native pair. AmortjaxError if it is taken."""
    from amortjax.errors import AmortjaxError
    from amortjax.saes.formats.native import stem_of

    output = Path(config.output)
    if config.format != "native":
        taken = output.exists() and (not output.is_dir() or any(output.iterdir()))
    else:
        output = stem_of(output)
        taken = any(file.exists() for file in _pair(output))
    if taken and not config.overwrite:
        raise AmortjaxError(f"{output}: is there already; give another --output, or --overwrite")
    return output.resolve()


def _pair(stem: Path) -> tuple[Path, Path]:
    return stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")


def _nearest_folder(target: Path) -> Path:
    return next(folder for folder in target.parents if folder.is_dir())


def _put_in_place(scratch: Path, target: Path, config: Config) -> None:
    """Moves what was written to where it belongs; a folder as a whole, of a native pair the json last."""
    from amortjax.errors import AmortjaxError

    target.parent.mkdir(parents=True, exist_ok=True)
    if config.format == "native":
        weights, settings = _pair(target)
        settings.unlink(missing_ok=True)
        os.replace(scratch / weights.name, weights)
        os.replace(scratch / settings.name, settings)
        return
    new, old = scratch / target.name, scratch / ".old"
    if target.is_dir():
        strange = sorted({file.name for file in target.iterdir()} - {file.name for file in new.iterdir()})
        if strange:
            raise AmortjaxError(
                f"{target}: holds {strange[0]}, which is no part of a {config.format} SAE, and would be lost; "
                "give another --output"
            )
        os.replace(target, old)
    elif target.exists():
        raise AmortjaxError(f"{target}: is a file, and this format a folder; give another --output")
    os.replace(new, target)


def compare(sae: "SAE", other: "SAE") -> Check:
    """How far `other` is from `sae` on inputs that make it fire."""
    import numpy as np

    from amortjax.saes import api

    x = probes(sae)
    z, y = api.encode(sae, x), api.reconstruct(sae, x)
    z_other, y_other = api.encode(other, x), api.reconstruct(other, x)
    same = ((z != 0) == (z_other != 0)).all(axis=1)
    counted = np.ones(len(x), bool)
    if not same.all():
        counted = ~_near_a_tie(sae, x, z)
    size = np.maximum(np.abs(y).max(axis=1), np.finfo(np.float32).tiny)
    difference = np.abs(y_other - y).max(axis=1) / size
    return Check(
        difference=float(difference[counted].max(initial=0)),
        same_latents=int(same[counted].sum()),
        near_ties=int((~counted).sum()),
        l0=float(np.count_nonzero(z, axis=1).mean()),
    )


def probes(sae: "SAE") -> "np.ndarray":
    """PROBES Gaussian inputs (PROBES, D) around what the encoder subtracts, of lengths from a quarter to four times
    one at which half of them fire."""
    import numpy as np

    from amortjax.saes import api

    r = np.random.default_rng(0)
    directions = r.standard_normal((PROBES, sae.d_in)) / np.sqrt(sae.d_in)
    directions *= np.exp(r.uniform(np.log(0.25), np.log(4), (PROBES, 1)))
    # So long that W_enc has as much to say as biases and thresholds.
    offsets = [np.abs(np.asarray(sae.b_enc))]
    offsets += [np.abs(np.asarray(sae.extra[name])) for name in ("threshold", "b_gate") if name in sae.extra]
    columns = np.sqrt(np.einsum("dm,dm->m", *(np.asarray(sae.W_enc),) * 2))
    length = np.sqrt(sae.d_in) * max(1e-6, sum(float(np.median(o)) for o in offsets))
    length /= max(1e-6, float(np.median(columns)))
    for _ in range(20):
        x = (np.asarray(sae.pre_bias) + length * directions).astype(np.float32)
        if sae.norm != "none" or (api.encode(sae, x) != 0).any(axis=1).mean() >= 0.5:
            break
        length *= 2
    return x


def _near_a_tie(sae: "SAE", x: "np.ndarray", z: "np.ndarray") -> "np.ndarray":
    """(N,): whether a little noise changes which latents fire."""
    import numpy as np

    from amortjax.saes import api

    r = np.random.default_rng(1)
    unstable = np.zeros(len(x), bool)
    for _ in range(4):
        noise = r.standard_normal(x.shape) / np.sqrt(x.shape[1])
        noisy = x + NOISE * np.linalg.norm(x, axis=1, keepdims=True) * noise
        unstable |= ((api.encode(sae, noisy.astype(np.float32)) != 0) != (z != 0)).any(axis=1)
    return unstable


def _check_exact(check: Check, config: Config) -> None:
    from amortjax.errors import AmortjaxError

    counted = PROBES - check.near_ties
    if counted < FEWEST:
        raise AmortjaxError(
            f"{config.input}: {check.near_ties} of {PROBES} random inputs are too near a tie to tell whether it is the "
            f"same SAE as {config.format}; nothing is left of it. --format=native keeps it bit for bit"
        )
    if check.same_latents < counted or not check.difference <= TOLERANCE:
        raise AmortjaxError(
            f"{config.input}: as {config.format} it is another SAE: other latents fire on "
            f"{counted - check.same_latents} of {counted} random inputs, and x_hat differs by up to "
            f"{check.difference:.1e}; nothing is left of it. --format=native keeps the SAE bit for bit"
        )


def _print_table(config: Config, sae: "SAE", back: "SAE", written: Path, check: Check) -> None:
    place = f"{sae.info.hook or 'hook not known'}" + (
        "" if sae.info.layer_index is None else f" of block {sae.info.layer_index}"
    )
    print(f"read     {_kind(sae)}   {place}{sae.info.model_name and f', {sae.info.model_name}'}")
    print(f"         {sae.info.source}")
    for note in sae.info.notes:
        print(f"         {note}")
    print(f"written  {_kind(back)}")
    print(f"         {written}")
    counted = PROBES - check.near_ties
    print(
        f"checked  {PROBES} random inputs, L0 {check.l0:.1f}: x_hat within {check.difference:.1e}, the same latents "
        f"on {check.same_latents} of {counted}"
        + (f" ({check.near_ties} near a tie left out)" if check.near_ties else "")
    )
    if not check.l0:
        print("         no latent fires on random inputs: only the decoder's bias was compared")


def _kind(sae: "SAE") -> str:
    sizes: dict[str, Any] = {"D": sae.d_in, "M": sae.n_latents, "k": sae.k}
    if sae.d_out != sae.d_in:
        sizes["D_out"] = sae.d_out
    shown = "  ".join(f"{name} {size}" for name, size in sizes.items() if size is not None)
    return f"{sae.info.format}  {sae.variant}  {shown}"


if __name__ == "__main__":
    from amortjax.launch import flagged

    flagged.launch(Config, run, "amortjax.launch.convert")
