"""The page and the picture of `amortjax.launch.inspect`: what an SAE is, what was measured, what is wrong."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amortjax.metrics import places
from amortjax.metrics.preflight import OUTLIER, Dictionary, Seen
from amortjax.metrics.verdict import Finding, Known
from amortjax.report.canvas import blank, log_ticks, saved
from amortjax.report.numbers import short
from amortjax.saes.sae import SAE

WIDTH = 14


def page(known: Known, findings: Sequence[Finding], notes: Sequence[str], text: str = "") -> str:
    """Everything as text; `text` says what the tokens are of."""
    lines = [*_file(known.sae), "", *_dictionary(known.dictionary)]
    if known.seen is not None:
        lines += ["", *_seen(known.sae, known.seen, places.named(known.place), text)]
    if known.hooks:
        lines += ["", *_hooks(known)]
    lines += ["", *(f"note: {note}" for note in notes)]
    lines += [f"fault: {finding.fault}. remedy: {finding.remedy}" for finding in findings]
    if not findings:
        lines.append(
            "no fault found"
            if known.seen is not None
            else "no fault found in the file alone; --acts, or --model_name, measures it on activations"
        )
    return "\n".join(lines)


def _line(name: str, value: str) -> str:
    return f"{name:{WIDTH}s}{value}"


def _file(sae: SAE) -> list[str]:
    info = sae.info
    rule = [sae.variant]
    rule += [f"k {sae.k}"] if sae.k is not None else []
    rule += [f"groups {'/'.join(map(str, sae.groups))}"] if sae.groups else []
    rule += [f"k by group {'/'.join(map(str, sae.group_k))}"] if sae.group_k else []
    rule += ["k N largest of each batch"] if sae.batch_rule else []
    rule += ["ranked times ||W_j||"] if sae.rescale else []
    if np.any(sae.pre_bias):
        equal = sae.pre_bias.shape == sae.b_dec.shape and np.array_equal(sae.pre_bias, sae.b_dec)
        bias = "b_dec" if equal else "a vector of its own"
    else:
        bias = "nothing"
    shapes = [("W_enc", sae.W_enc), ("W_dec", sae.W_dec), *sae.extra.items()]
    return [
        _line("file", info.source or "in memory"),
        _line("format", info.format),
        _line("variant", ", ".join(rule)),
        _line("input", f"normalisation {sae.norm}; {bias} subtracted before encoding"),
        _line(
            "shapes", ", ".join(f"{name} {'x'.join(map(str, a.shape)) or 'a number'}" for name, a in shapes)
        ),
        _line("declared", f"{places.named(places.declared(info))}, model {info.model_name or 'not said'}"),
    ]


def _dictionary(d: Dictionary) -> list[str]:
    low, middle, high = (short(float(f(d.norms))) for f in (np.min, np.median, np.max))
    part = (
        "" if d.compared >= len(d.norms) else f", at least: of {d.compared} of {len(d.norms)} atoms with all"
    )
    return [
        _line("decoder norms", f"min {low}, median {middle}, max {high}"),
        _line("coherence", f"{short(d.coherence)} (atoms {d.pair[0]} and {d.pair[1]}{part})"),
        _line("Lipschitz", f"{short(d.lipschitz)} (largest singular value squared, atoms at norm 1)"),
        _line("enc-dec cos", f"{short(d.cosine)} (median)"),
    ]


def _seen(sae: SAE, seen: Seen, place: str, text: str) -> list[str]:
    lines = [
        _line("tokens", f"{seen.n_tokens} of {place}" + (f", {text}" if text else "")),
        _line("L0", f"{short(seen.l0)} measured, {sae.k or sum(sae.group_k) or 'nothing'} declared"),
        _line("silent", f"{100 * seen.silent:.3g} % of latents; {100 * seen.dense:.3g} % dense@0.1"),
    ]
    if seen.fvu is None:
        return [*lines, _line("FVU", "of a transcoder, which does not reconstruct its input: not measured")]
    lines.append(_line("FVU", f"{short(seen.fvu)}, NMSE about b_dec {short(seen.nmse)}"))
    shares = f"{100 * seen.error_share:.3g} % of the squared error, {100 * seen.variance_share:.3g} % of the variance"
    lines.append(_line("largest 1 %", f"of tokens: {shares}"))
    if seen.outliers:
        told = f"{100 * seen.outliers:.2g} % of tokens, ||x|| over {OUTLIER:g} times the median"
        lines.append(_line("outliers", f"{told}; without them FVU {short(seen.fvu_ordinary)}"))
    return lines


def _hooks(known: Known) -> list[str]:
    lines, hooks = [f"{'FVU by hook':32s}FVU      L0"], known.hooks or {}
    for site, fit in hooks.items():
        marks = ["used"] if places.same(site, known.place) else []
        marks += ["declared"] if places.same(site, places.declared(known.sae.info)) else []
        marks += ["fits best"] if fit.ratio == min(other.ratio for other in hooks.values()) else []
        lines.append(
            f"  {places.named(site):25s}{short(fit.fvu):>8s}{short(fit.l0):>8s}  {', '.join(marks)}".rstrip()
        )
    return lines


def record(known: Known, findings: Sequence[Finding], notes: Sequence[str], text: str) -> dict[str, Any]:
    """The same for a machine; numbers that are not finite are null."""
    sae, d = known.sae, known.dictionary
    low, middle, high = (float(f(d.norms)) for f in (np.min, np.median, np.max))
    settings = {name: getattr(sae, name) for name in ("variant", "k", "groups", "group_k", "norm", "rescale")}
    whole = {
        "info": dataclasses.asdict(sae.info),
        "settings": settings | {"batch_rule": sae.batch_rule, "pre_bias": bool(np.any(sae.pre_bias))},
        "shapes": {"W_enc": sae.W_enc.shape, "W_dec": sae.W_dec.shape}
        | {name: array.shape for name, array in sae.extra.items()},
        "decoder_norms": {"min": low, "median": middle, "max": high},
        "coherence": {"value": d.coherence, "pair": d.pair, "compared": d.compared},
        "lipschitz": d.lipschitz,
        "encoder_decoder_cosine": d.cosine,
        "place": {"hook": known.place.hook, "layer": known.place.layer},
        "text": text,
        "seen": dataclasses.asdict(known.seen) if known.seen else None,
        "what_if": dataclasses.asdict(known.what_if) if known.what_if else None,
        "hooks": [
            {"hook": site.hook, "layer": site.layer, **fit._asdict()}
            for site, fit in (known.hooks or {}).items()
        ],
        "faults": [
            {"name": f.name, "fault": f.fault, "remedy": f.remedy, "fvu": f.fvu} for f in findings
        ],
        "notes": list(notes),
    }  # fmt: skip
    return _plain(whole)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def draw(known: Known, path: str | Path) -> list[Path]:
    """Decoder norms, FVU by hook and FVU by input scale, those that are known, to `path` as png and svg."""
    panels: list[Any] = [_draw_norms]
    panels += [_draw_hooks] if known.hooks else []
    panels += [_draw_scales] if known.what_if and known.what_if.scales else []
    figure = blank(3.6 * len(panels), 2.9)
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axis, known)
        axis.tick_params(labelsize=7, length=2)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return saved(figure, Path(path).parent, Path(path).stem)


BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#7F7F7F"


def _draw_norms(axis: Any, known: Known) -> None:
    norms = known.dictionary.norms
    # Norms that differ by rounding only are one bar, not a landscape of their last digits.
    middle = float(np.median(norms))
    near = max(0.05 * middle, 1e-6)
    span = (min(float(norms.min()), middle - near), max(float(norms.max()), middle + near))
    axis.hist(norms, bins=40, range=span, color=BLUE)
    axis.set_yscale("log")
    axis.set_ylim(bottom=0.7)  # a bar of one latent is seen
    log_ticks(axis.yaxis)
    axis.set_title("decoder norms (latents)", fontsize=8.5, loc="left")


def _draw_hooks(axis: Any, known: Known) -> None:
    hooks = list((known.hooks or {}).items())
    values = [min(fit.fvu, 1.5) if math.isfinite(fit.fvu) else 1.5 for _, fit in hooks]
    colours = [ORANGE if places.same(site, known.place) else GREY for site, _ in hooks]
    axis.barh(range(len(hooks)), values, color=colours, height=0.7)
    for y, (_, fit) in enumerate(hooks):
        axis.text(values[y] + 0.02, y, short(fit.fvu), va="center", fontsize=7)
    axis.set_yticks(range(len(hooks)), [places.named(s).replace(" of block", "") for s, _ in hooks])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.25 * max(values))
    axis.set_title("FVU by hook ↓ (orange: used)", fontsize=8.5, loc="left")


def _draw_scales(axis: Any, known: Known) -> None:
    found = known.what_if
    points = {s: value for s, value in (found.scales if found else {}).items() if math.isfinite(value)}
    axis.plot(list(points), list(points.values()), color=BLUE, linewidth=1.3, marker=".", markersize=3)
    axis.axvline(1, color=ORANGE, linewidth=0.8)
    axis.set_xscale("log")
    axis.set_yscale("log")
    low = min(points.values(), default=1.0)
    bottom, top = low / 1.3, min(max(points.values(), default=1.0) * 1.3, 30 * max(low, 1e-9))
    axis.set_ylim(bottom, top)
    log_ticks(axis.yaxis)
    axis.set_title("FVU of SAE(s x) / s ↓ by s (orange: as it is)", fontsize=8.5, loc="left")
