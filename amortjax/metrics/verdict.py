"""From what was measured of an SAE to named faults, each with its remedy.

Of the readings under which the FVU would be lower (another hook, rule, bias, scale, ...) only the best is named: one
fault makes several readings look better than the SAE as it is.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from amortjax.metrics import places
from amortjax.metrics.preflight import Dictionary, Fit, Seen
from amortjax.metrics.whatif import WhatIf
from amortjax.saes.formats.hooks import Site
from amortjax.saes.sae import SAE

# A reading is a fault if it brings the FVU below this share of what it is. Another hook or a bias costs little; an SAE
# with an L1 penalty has its lowest FVU at 1.4 times its inputs, where it is .7 of what it is.
BELOW = {"hook": 0.9, "bias": 0.85, "rule": 0.75, "scale": 0.75, "centred": 0.7, "rows": 0.6}
SCALE_FROM = 1.7
# Of SAEs whose L0 is fixed: no more latents fire at another scale.
SCALE_BELOW_FIXED = 0.85
# A ReLU SAE that does no worse with a quarter of its latents was trained to fire no more.
FEW = 0.25
# Beside a hook that is not the SAE's own, only readings that bring the FVU below this share are named.
BESIDE_HOOK = 0.5
# Readings this close to the best are as good: then the first of BELOW is named. (A ReLU that fires too often is helped
# by a smaller scale and by normed rows too, whatever its true fault.)
AS_GOOD = 1.25
NOTHING_EXPLAINED = 0.9
# The smallest k this close to the best is named: a few latents more than in training cost nothing.
AS_GOOD_K = 1.05
UNIT = 0.01  # decoder norms this close to 1 count as 1


@dataclasses.dataclass(frozen=True)
class Finding:
    """A fault and its remedy. `fvu`: what it would be with the remedy, if it is known. `choices`: of `load_sae`, one of
    which may be the remedy."""

    name: str
    fault: str
    remedy: str
    fvu: float | None = None
    choices: tuple[dict[str, Any], ...] = ()


class Reading(NamedTuple):
    ratio: float  # FVU under it over FVU now
    finding: Finding


class Known(NamedTuple):
    """All that was measured; None where it was not."""

    sae: SAE
    dictionary: Dictionary
    place: Site  # where the activations are from
    seen: Seen | None = None
    what_if: WhatIf | None = None
    hooks: dict[Site, Fit] | None = None  # at each; that of `place` among them
    x: np.ndarray | None = None  # the rows of `what_if`


def verdict(known: Known) -> list[Finding]:
    """The faults, the gravest first."""
    declared, of_file = _declared(known), list(_of_file(known))
    # With the wrong rule, all that is said of another scale or bias is beside the point.
    wrong_rule = any(finding.name == "threshold" for finding in of_file)
    readings = [] if wrong_rule else sorted(_readings(known), key=lambda reading: reading.ratio)
    near = [r for r in readings if r.ratio <= AS_GOOD * readings[0].ratio]
    best = min(near, key=lambda r: list(BELOW).index(r.finding.name), default=None)
    found = list(declared)
    if best and not (declared and (best.finding.name == "hook" or best.ratio > BESIDE_HOOK)):
        found.append(best.finding)
    return [*found, *of_file, *_of_codes(known, explained=bool(found) or wrong_rule)]


def _declared(known: Known) -> list[Finding]:
    """The file names another place than the activations do; unless the FVU is lower where they are."""
    own = places.declared(known.sae.info)
    if not places.known(own) or not places.known(known.place) or places.same(own, known.place):
        return []
    there, here = _at(known, own), _at(known, known.place)
    if there and here and there.ratio >= 1:
        return []
    told = f" (FVU {here.fvu:.3g}, there {there.fvu:.3g})" if there and here else ""
    fault = f"the activations are {places.named(known.place)}, the SAE is of {places.named(own)} by its file{told}"
    return [Finding("hook", fault, _take(own), there.fvu if there else None)]


def _at(known: Known, place: Site) -> Fit | None:
    return next((fit for site, fit in (known.hooks or {}).items() if places.same(site, place)), None)


def _take(place: Site) -> str:
    return f"take activations with --layer_index={place.layer} --hook={place.hook}"


def _readings(known: Known) -> list[Reading]:
    readings, sae, found = [], known.sae, known.what_if
    here = _at(known, known.place)
    if known.hooks and here:
        site, fit = min(known.hooks.items(), key=lambda pair: pair[1].ratio)
        fault = (
            f"the activations are {places.named(known.place)} (FVU {here.fvu:.3g}, L0 {here.l0:.3g}), but the SAE "
            f"fits {places.named(site)} better (FVU {fit.fvu:.3g}, L0 {fit.l0:.3g})"
        )
        readings.append(Reading(fit.ratio, Finding("hook", fault, _take(site), fit.fvu)))
    if found is not None and found.now > 0 and known.x is not None:
        for finding in (_rule(sae, found), _bias(sae, found), _scale(sae, found, known.x), *_rows(found)):
            if finding is not None and finding.fvu is not None:
                # An infinite FVU (NaN, overflow) is worse than any.
                ratio = (
                    finding.fvu / found.now if np.isfinite(found.now) else float(not np.isfinite(finding.fvu))
                )
                readings.append(Reading(ratio, finding))
    below = BELOW | ({"scale": SCALE_BELOW_FIXED} if found is not None and not found.topk and sae.k else {})
    if found is not None:
        few = [value for k, value in found.topk.items() if k <= FEW * found.l0]
        below["rule"] = 1.0 if min(few, default=np.inf) <= found.now else below["rule"]
    return [reading for reading in readings if reading.ratio <= below[reading.finding.name]]


def _rule(sae: SAE, found: WhatIf) -> Finding | None:
    """TopK or BatchTopK read as something without a limit."""
    if not found.topk:
        return None
    lowest = min(found.topk.values())
    k = min(k for k, value in found.topk.items() if value <= AS_GOOD_K * lowest)
    fault = (
        f"L0 is {found.l0:.4g} of {sae.n_latents} latents; as TopK with k about {k} the FVU would be "
        f"{found.topk[k]:.3g} instead of {found.now:.3g}: a TopK SAE read as {sae.variant}"
    )
    remedy = f"dataclasses.replace(sae, variant='topk', k={k}), with the k that its name or paper gives"
    tries = ({"k": k}, {"k": k, "dict_class": "AutoEncoderTopK"}, {"batch_rule": True})
    return Finding("rule", fault, remedy, found.topk[k], tries)


def _bias(sae: SAE, found: WhatIf) -> Finding | None:
    if found.bias_flipped is None:
        return None
    subtracted = bool(np.any(sae.pre_bias))
    fault = (
        f"b_dec is {'' if subtracted else 'not '}subtracted before encoding; the other way the FVU would be "
        f"{found.bias_flipped:.3g} instead of {found.now:.3g}"
    )
    other = "0 * sae.pre_bias" if subtracted else "sae.b_dec"
    key = "apply_b_dec_to_input" if sae.info.format.startswith("saelens") else "its format's switch"
    remedy = (
        f"dataclasses.replace(sae, pre_bias={other}), or mend {key} in the configuration beside the weights"
    )
    return Finding("bias", fault, remedy, found.bias_flipped)


def _scale(sae: SAE, found: WhatIf, x: np.ndarray) -> Finding | None:
    s = found.scale
    if not found.scales or 1 / SCALE_FROM < s < SCALE_FROM:
        return None
    near = {name: value for name, value in _conventions(x).items() if abs(np.log(s / value)) < np.log(1.25)}
    fault = (
        f"the activations seem to be about {1 / s:.3g} times what it was trained on: fed {s:.3g} x, it has FVU "
        f"{found.scales[s]:.3g} instead of {found.now:.3g}"
        + "".join(f"; {value:.4g} would be {name}" for name, value in near.items())
        + (f"; fed x / ||x||, FVU {found.unit:.3g}" if found.unit and found.unit < found.scales[s] else "")
    )
    remedy = f"feed it {s:.3g} x and divide its reconstruction by {s:.3g}"
    # Formats differ in whether they divide or multiply by it.
    tries = tuple({"norm_factor": float(value)} for v in (*near.values(), s) for value in (v, 1 / v))
    return Finding("scale", fault, remedy, found.scales[s], tries)


def _conventions(x: np.ndarray) -> dict[str, float]:
    """By what libraries multiply their inputs, of rows x (N, D)."""
    norms = np.linalg.norm(np.asarray(x, np.float64), axis=1)
    return {
        "sqrt(D) / mean ||x||, the scale of SAELens' expected_average_only_in and Llama Scope": float(
            np.sqrt(x.shape[1]) / norms.mean()
        ),
        "1 / sqrt(mean ||x||^2), the scale of dictionary_learning": float(1 / np.sqrt(np.mean(norms**2))),
    }


def _rows(found: WhatIf) -> Iterable[Finding]:
    centred = "x - mean(x), each row without its own mean (TransformerLens' center_writing_weights)"
    readings = {
        "centred": (
            ("centred", found.centred, centred, "feed it x - x.mean(-1, keepdims=True) and add it back"),
        ),
        "rows": (
            ("", found.unit, "rows of norm 1", "feed it x / ||x|| and multiply its reconstruction by ||x||"),
            ("constant_norm", found.constant, "rows of norm sqrt(D)", ""),
            ("layer_norm", found.layer_norm, "rows of mean 0 and standard deviation 1", ""),
        ),
    }
    for name, options in readings.items():
        for norm, value, what, remedy in options:
            if value is not None:
                fault = f"it seems to expect {what}: FVU {value:.3g} instead of {found.now:.3g}"
                yield Finding(name, fault, remedy or f"dataclasses.replace(sae, norm={norm!r})", value)


def _of_codes(known: Known, explained: bool) -> Iterable[Finding]:
    seen, sae = known.seen, known.sae
    if seen is None:
        return
    if seen.not_finite:
        yield Finding(
            "finite",
            f"{seen.not_finite} of {seen.n_tokens} reconstructions are NaN or infinite",
            "leave out tokens of norm 0 and activations collected in float16",
        )
    if max(seen.error_share, seen.variance_share) > 0.5:
        yield Finding(
            "outliers",
            f"1 % of the tokens make {100 * seen.variance_share:.0f} % of the variance and "
            f"{100 * seen.error_share:.0f} % of the squared error, so FVU and NMSE tell of little else",
            "leave out BOS, a document's first token (--prepend_bos) and other rows of huge norm"
            + ("" if seen.fvu_ordinary is None else f": without outliers FVU {seen.fvu_ordinary:.3g}"),
        )
    if explained:
        return
    # A latent that fires as often as the mean one is silent on that many tokens once in e^30.
    expected = seen.n_tokens * seen.l0 / sae.n_latents
    if seen.silent >= 0.5 and expected >= 30:
        yield Finding(
            "dead",
            f"{100 * seen.silent:.0f} % of the latents never fired on {seen.n_tokens} tokens, where the mean latent "
            f"fires {expected:.0f} times",
            "they are dead or of other text: try more --tokens and another --dataset, or another SAE",
        )
    thresholded = sae.variant in ("batch_topk", "matryoshka") and not sae.batch_rule
    if sae.k is not None and thresholded and not sae.k / 3 <= seen.l0 <= 3 * sae.k:
        yield Finding(
            "l0",
            f"L0 is {seen.l0:.4g} where the file says k = {sae.k}",
            "its threshold does not fit these activations: load it with batch_rule=True, or look for a missing scale",
            choices=({"batch_rule": True},),
        )
    if seen.fvu is not None and seen.fvu >= NOTHING_EXPLAINED:
        at = known.sae.info.model_name
        yield Finding(
            "nothing",
            f"FVU is {seen.fvu:.3g}, as bad as the mean of all tokens, and no other reading that was tried helps",
            "check the model"
            + (f" (the file says {at})" if at else "")
            + ", the layer, and that it is no transcoder",
        )


def _of_file(known: Known) -> Iterable[Finding]:
    sae, d = known.sae, known.dictionary
    zero = int((d.norms == 0).sum())
    if zero:
        yield Finding(
            "zero", f"{zero} of {len(d.norms)} decoder rows are zero", "such latents can be left out"
        )
    threshold = float(np.max(sae.extra.get("threshold", 0.0)))
    if sae.variant in ("batch_topk", "matryoshka") and not sae.batch_rule and threshold < 0:
        yield Finding(
            "threshold",
            f"its threshold is {threshold:g}: never measured, so all positive latents fire",
            "load it with batch_rule=True, or with threshold=NUMBER",
            choices=({"batch_rule": True},),
        )


def notes(known: Known) -> list[str]:
    """What is no fault but should be known."""
    sae, d, said = known.sae, known.dictionary, list(known.sae.info.notes)
    low, high = float(d.norms.min()), float(d.norms.max())
    if low < 1 - UNIT or high > 1 + UNIT:
        free = sae.k is None and not sae.group_k and not sae.rescale and sae.variant != "matching_pursuit"
        mend = "; saes.sae.unit_decoder gives the same SAE with norms 1" if free else ""
        said.append(
            f"decoder rows are not of norm 1 ({low:.3g} to {high:.3g}): compare latents as z_j ||W_j||{mend}"
        )
    if d.coherence > 0.999:
        said.append(f"atoms {d.pair[0]} and {d.pair[1]} are equal but for a factor (|cos| {d.coherence:.5g})")
    if d.cosine is not None and d.cosine < 3 / np.sqrt(sae.d_in):
        said.append(
            f"encoder and decoder point apart (median cosine {d.cosine:.2g}): a transcoder, or a matrix the wrong "
            "way round"
        )
    own = places.declared(sae.info)
    if own.hook and own.hook not in places.READABLE:
        said.append(f"it reads {places.named(own)}, which no --hook collects: its FVU elsewhere says little")
    if (
        not places.same(own, known.place)
        and places.known(own)
        and places.known(known.place)
        and not _declared(known)
    ):
        said.append(
            f"the file says {places.named(own)}, but the FVU is no higher at {places.named(known.place)}"
        )
    return said
