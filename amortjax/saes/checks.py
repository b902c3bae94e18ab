"""What must hold of an SAE before it is used or written: shapes that fit, the variant's arrays, finite
numbers."""

import numpy as np

from amortjax.errors import CheckpointError
from amortjax.saes.encoders import VARIANTS
from amortjax.saes.sae import NORMS, SAE


def check(sae: SAE, source: str) -> SAE:
    """Returns `sae`, or raises CheckpointError naming `source` and the first tensor that is wrong."""
    if sae.variant not in VARIANTS:
        raise CheckpointError(f"{source}: SAE variant {sae.variant!r} is not one of {', '.join(VARIANTS)}")
    if sae.norm not in NORMS:
        raise CheckpointError(f"{source}: input norm {sae.norm!r} is not one of {', '.join(NORMS)}")
    _check_shapes(sae, source)
    _check_settings(sae, source)
    for name, array in tensors(sae).items():
        bad = _not_finite(np.asarray(array).reshape(-1))
        if bad:
            raise CheckpointError(
                f"{source}: {name} holds {bad} NaN or infinite values of {array.size}: the checkpoint is "
                "damaged or its training diverged"
            )
    return sae


def _not_finite(values: np.ndarray, block: int = 2**22) -> int:
    """How many of values (T,) are NaN or infinite; in blocks, to take no memory of their number."""
    return sum(
        int((~np.isfinite(values[first : first + block])).sum()) for first in range(0, values.size, block)
    )


def tensors(sae: SAE) -> dict:
    """{name: array} of all weights; further arrays are named `extra.NAME`."""
    named = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "pre_bias")}
    return named | {f"extra.{name}": array for name, array in sae.extra.items()}


def _check_shapes(sae: SAE, source: str) -> None:
    if sae.W_enc.ndim != 2 or sae.W_dec.ndim != 2:
        raise CheckpointError(
            f"{source}: W_enc {sae.W_enc.shape} and W_dec {sae.W_dec.shape} must both have two axes"
        )
    d, m, d_out = sae.W_enc.shape[0], sae.W_dec.shape[0], sae.W_dec.shape[1]
    wanted = {"W_enc": (d, m), "b_enc": (m,), "b_dec": (d_out,), "pre_bias": (d,)}
    for key, shape in wanted.items():
        got = tuple(getattr(sae, key).shape)
        if got != shape:
            raise CheckpointError(f"{source}: {key} has shape {got}, but W_enc and W_dec ask for {shape}")
    for key in VARIANTS[sae.variant].extra:
        if key not in sae.extra and not (key == "threshold" and sae.batch_rule):
            raise CheckpointError(f"{source}: a {sae.variant} SAE needs {key!r}, which is missing")
    for key, shapes in _extra_shapes(sae).items():
        got = tuple(sae.extra[key].shape) if key in sae.extra else shapes[0]
        if got not in shapes:
            wanted = " or ".join("a single number" if shape == () else str(shape) for shape in shapes)
            raise CheckpointError(f"{source}: {key} has shape {got}; wanted {wanted}")


def _extra_shapes(sae: SAE) -> dict[str, tuple[tuple[int, ...], ...]]:
    """{name: the shapes it may have}."""
    m = sae.n_latents
    records: dict[str, tuple[tuple[int, ...], ...]] = {
        "norm_factor": ((),),
        "origin": ((m,),),
        "avar": ((m,),),
    }
    decoder = {"f_dec": ((m,),), "W_skip": ((sae.d_in, sae.d_out),)}
    records |= {name: shapes for name, shapes in decoder.items() if name in sae.extra}
    if sae.variant == "matching_pursuit":
        return dict.fromkeys(VARIANTS[sae.variant].extra, ((),)) | records
    if sae.variant != "mlp":
        return dict.fromkeys(VARIANTS[sae.variant].extra, ((m,), ())) | records
    # One hidden layer for all latents, or one for each group, all of one width.
    counts = sorted({1, len(sae.groups) or 1})
    width = sae.extra["W_up"].shape[0] if sae.extra["W_up"].ndim else 0
    g = len(sae.extra["W_hidden"]) if sae.extra["W_hidden"].ndim else 0
    return {
        "W_up": ((width, m),),
        "W_hidden": tuple((count, sae.d_in, width) for count in counts),
        "b_hidden": ((g, width),),
    } | records


def _check_settings(sae: SAE, source: str) -> None:
    m = sae.n_latents
    if sae.batch_rule and VARIANTS[sae.variant].batch is None:
        raise CheckpointError(
            f"{source}: batch_rule is for {', '.join(_batch_variants())}, not {sae.variant}"
        )
    if (sae.variant in ("topk", "signed_topk", "abs_topk") or sae.batch_rule) and sae.k is None:
        raise CheckpointError(f"{source}: k is not in the file: load it with k=...")
    if sae.k is not None and not 0 < sae.k <= m:
        raise CheckpointError(f"{source}: k = {sae.k} must be from 1 to the number of latents, {m}")
    if min(sae.groups, default=0) < 0:
        raise CheckpointError(f"{source}: group sizes {sae.groups} must not be negative")
    if sae.groups and sum(sae.groups) != m:
        raise CheckpointError(
            f"{source}: group sizes {sae.groups} add up to {sum(sae.groups)}, not to {m} latents"
        )
    _check_group_k(sae, source)
    _check_records(sae, source)


def _check_records(sae: SAE, source: str) -> None:
    if "norm_factor" in sae.extra and float(sae.extra["norm_factor"]) <= 0:
        raise CheckpointError(
            f"{source}: norm_factor is {float(sae.extra['norm_factor'])}; inputs are divided by a positive one"
        )
    if "origin" in sae.extra:
        origin = np.asarray(sae.extra["origin"], np.float64)
        if (origin % 1 != 0).any() or origin.min() < 0 or len(np.unique(origin)) < len(origin):
            raise CheckpointError(
                f"{source}: origin must hold different whole numbers, one latent for each latent"
            )


def _check_group_k(sae: SAE, source: str) -> None:
    groups, ks = sae.groups, sae.group_k
    if not ks:
        if sae.variant == "loca":
            raise CheckpointError(f"{source}: a loca SAE needs group_k, how many latents of each group fire")
        return
    if not VARIANTS[sae.variant].grouped:
        grouped = ", ".join(name for name, variant in VARIANTS.items() if variant.grouped)
        raise CheckpointError(f"{source}: group_k is for {grouped}, not {sae.variant}")
    if len(ks) != len(groups):
        raise CheckpointError(
            f"{source}: group_k has {len(ks)} numbers for {len(groups)} groups; wanted one each"
        )
    for g, (k, size) in enumerate(zip(ks, groups, strict=True)):
        if not 0 <= k <= size:
            raise CheckpointError(
                f"{source}: group_k of group {g} is {k}; it must be from 0 to its {size} latents"
            )
    if not any(ks):
        raise CheckpointError(f"{source}: group_k is 0 for every group, so nothing could fire")


def _batch_variants() -> list[str]:
    return [name for name, variant in VARIANTS.items() if variant.batch]
