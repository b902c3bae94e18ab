"""Reader of SAELens: `sae_weights.safetensors` beside `cfg.json`, of versions 6 and older.

The tensors have amortjax's orientation already, but for W_skip (D_out, D). Also read: checkpoints of training
(nothing folded) and `activation_scaler.json`, which holds the scale of a checkpoint's inputs.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from amortjax.errors import CheckpointError
from amortjax.saes.checks import check
from amortjax.saes.formats import saelens_config
from amortjax.saes.formats.checked import exponential
from amortjax.saes.formats.common import build, loud
from amortjax.saes.formats.opened import Opened, read_json
from amortjax.saes.formats.saelens_config import ARCHITECTURES, Config, Settings
from amortjax.saes.sae import SAE, Info, unit_decoder

CHOICES = ("k", "threshold", "normalize_decoder", "norm_factor", "batch_rule")
WEIGHTS = "sae_weights.safetensors"
# One factor per latent, learnt after the rest and applied in decode; the second name is version 5's.
FINE_TUNING = ("scaling_factor", "finetuning_scaling_factor")
BATCH = {"batchtopk": "batch_topk", "matryoshka_batchtopk": "matryoshka"}

Arrays = dict[str, np.ndarray]


def detect(opened: Opened) -> bool:
    """Whether it is a SAELens weights file: by its name, or by the settings beside it."""
    if opened.path.suffix != ".safetensors" or not opened.keys & {"W_enc", "W_dec"}:
        return False
    if opened.path.name == WEIGHTS:
        return True
    try:
        return "d_sae" in opened.json("cfg.json")
    except CheckpointError:
        return False


def load(opened: Opened, **choices: Any) -> SAE:
    """Reads the weights; choices (all optional): `k`; `norm_factor`, what activations were multiplied by in
    training if the file leaves that open (1 = they come scaled); `batch_rule` (True: the k * N largest of the
    whole batch, as in training, False: the stored threshold); `threshold` (a number for all latents, instead
    of the stored one or of top-k; True: the stored one); `normalize_decoder` (rows of norm 1).
    """
    config = saelens_config.read(opened.path.parent)
    t = _arrays(opened, config)
    notes = [*config.origin.notes, *(loud(opened.path, text) for text in config.origin.warnings)]
    if _can_be_tuned(config):
        _fine_tuning(opened, config, t, notes)
    residual_threshold = config.residual_threshold
    factor = _input_factor(opened, config, choices, notes)
    if factor != 1:
        _fold_input_factor(t, config, factor)
        residual_threshold /= factor
    rescale = config.rescale and config.variant in ("topk", "abs_topk", *BATCH.values())
    if rescale and (config.architecture in BATCH or not _row_norms(t["W_dec"]).all()):
        _fold_decoder_norms(t)
        rescale = False
    sae = _built(config, t, residual_threshold, rescale)
    sae = _with_rule(opened.path, config, sae, choices, notes)
    if choices.get("normalize_decoder"):
        sae = unit_decoder(sae)
    return check(dataclasses.replace(sae, info=_info(opened.path, config, notes)), str(opened.path))


def _arrays(opened: Opened, config: Config) -> Arrays:
    """{key: array}, in amortjax's orientation, once keys and shapes are what the settings say."""
    needed = set(ARCHITECTURES[config.architecture].keys)
    if "threshold" in needed and "log_threshold" in opened.keys and "threshold" not in opened.keys:
        needed = needed - {"threshold"} | {"log_threshold"}
    kind = f"a SAELens SAE of architecture {config.architecture}"
    missing = sorted(needed - opened.keys)
    if missing:
        raise CheckpointError(f"{opened.path}: tensor {missing[0]!r} is missing, which {kind} needs")
    optional = opened.keys & set(FINE_TUNING if _can_be_tuned(config) else ())
    strange = sorted(opened.keys - needed - optional) or sorted(optional)[1:]
    if strange:
        raise CheckpointError(
            f"{opened.path}: tensor {strange[0][:80]!r} does not belong to {kind}; without it the SAE would be "
            "another one, so check the architecture in cfg.json"
        )
    _check_shapes(opened, config)
    t = {key: opened.array(key, transpose=key == "W_skip") for key in sorted(opened.keys)}
    if t.pop("log_threshold", None) is not None:
        t["threshold"] = exponential(opened, "log_threshold")
    if config.variant == "matching_pursuit":
        t["W_enc"] = opened.array("W_dec", transpose=True)
    return t


def _can_be_tuned(config: Config) -> bool:
    return not config.is_transcoder and config.variant != "matching_pursuit"


def _check_shapes(opened: Opened, config: Config) -> None:
    stored = opened.shape("W_dec")
    if len(stored) != 2 or 0 in stored:
        raise CheckpointError(f"{opened.path}: W_dec has shape {stored}; wanted (latents, width)")
    m, out = config.d_sae or stored[0], config.d_out or stored[1]
    d = (config.d_in or max((1, *opened.shape("W_enc")[:1]))) if config.is_transcoder else out
    shapes = {"W_enc": (d, m), "W_dec": (m, out), "b_dec": (out,), "W_skip": (out, d), "topk_threshold": ()}
    for key in sorted(opened.keys):
        wanted = shapes.get(key, (m,))
        if opened.shape(key) != wanted:
            raise CheckpointError(
                f"{opened.path}: {key} has shape {opened.shape(key)}; cfg.json and the other tensors ask for "
                f"{wanted or 'a single number'}"
            )


def _fine_tuning(opened: Opened, config: Config, t: Arrays, notes: list[str]) -> None:
    """Renames the factors of fine-tuning to f_dec; factors of one are dropped, as SAELens does."""
    key = next((key for key in FINE_TUNING if key in t), None)
    if key is None:
        if config.fine_tuned:
            notes.append(
                loud(
                    opened.path,
                    "cfg.json says finetuning_scaling_factor, but the factors are not in the file: "
                    "reconstructions are those of before the fine-tuning",
                )
            )
        return
    factors = t.pop(key)
    if np.allclose(factors, 1):
        return
    if not config.fine_tuned:
        raise CheckpointError(
            f"{opened.path}: {key} is not all ones, but finetuning_scaling_factor in cfg.json is false; make "
            "that true if decode shall multiply codes by it, or take the tensor out"
        )
    t["f_dec"] = factors


def _number(path: Path, name: str, value: Any, above: float = 0.0) -> float:
    """A number that the user chose."""
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) not in (int, float) or not above < value < math.inf:
        raise CheckpointError(f"{path}: {name}={saelens_config.shown(value)} is no number above {above:g}")
    return float(value)


def _input_factor(opened: Opened, config: Config, choices: dict, notes: list[str]) -> float:
    """f such that the SAE was trained on x * f and the weights do not know yet; 1 if there is none."""
    path, chosen = opened.path, choices.get("norm_factor")
    factor = None if chosen is None else _number(path, "norm_factor", chosen)
    if config.outside != "expected_average_only_in" and factor not in (None, 1):
        raise CheckpointError(
            f"{path}: norm_factor={factor:g} has nothing to fold: normalize_activations in cfg.json is not "
            "expected_average_only_in"
        )
    if config.outside == "covariance_whitening" and factor is None:
        text = (
            "trained on whitened activations, and the whitening is not folded into the weights: codes of raw "
            "activations are wrong; use the SAE that SAELens saved at the end of training"
        )
        notes.append(loud(path, text))
    if not config.outside or config.outside == "covariance_whitening":
        return 1.0
    if factor is None:
        file = path.parent / "activation_scaler.json"
        factor = Settings(file, read_json(file)).number("scaling_factor")
    if factor is None:
        text = (
            "trained on activations times a factor f = sqrt(D) / mean ||x|| that is not stored here, so codes "
            "of raw activations are wrong: load it with norm_factor=f (norm_scaling_factor in SAELens' "
            "pretrained_saes.yaml), or with norm_factor=1 if your activations are scaled already"
        )
        notes.append(loud(path, text))
        return 1.0
    notes.append(f"norm_factor {factor:g} folded into the weights")
    return factor


def _fold_input_factor(t: Arrays, config: Config, factor: float) -> None:
    """In place: the SAE of x * factor becomes one of x. Codes keep the scale of training, and reconstructions
    that of x. SAELens' fold_activation_norm_scaling_factor."""
    with np.errstate(all="ignore"):  # what gets infinite is found by `check`
        t["b_dec"] /= factor
        if config.variant == "matching_pursuit":
            return  # encoder and decoder are one matrix: codes change their scale instead
        t["W_enc"] *= factor
        t["W_dec"] /= factor
        if "topk_threshold" in t and config.rescale:  # a bound on pre * ||W_dec row||
            t["topk_threshold"] /= factor


def _row_norms(w_dec: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("md,md->m", w_dec, w_dec))


def _fold_decoder_norms(t: Arrays) -> None:
    """In place: pre-activations take the norms of decoder rows, rows get norm 1. A row of zeros never fires."""
    norms = _row_norms(t["W_dec"])
    t["W_enc"] *= norms
    t["b_enc"] *= norms
    t["W_dec"] /= np.where(norms > 0, norms, np.float32(1))[:, None]


def _built(config: Config, t: Arrays, residual_threshold: float, rescale: bool) -> SAE:
    extra = {key: t[key] for key in ("threshold", "b_gate", "b_mag", "r_mag", "W_skip", "f_dec") if key in t}
    if "topk_threshold" in t:
        extra["threshold"] = t["topk_threshold"]
    bias = t["b_dec"]
    if config.variant == "matching_pursuit":
        limits = {
            "residual_threshold": residual_threshold,
            "max_iterations": config.max_iterations or t["W_enc"].shape[0],
            "stop_on_duplicate": config.stop_on_duplicate,
        }
        extra |= {name: np.asarray(value, np.float32) for name, value in limits.items()}
        # Its decoder adds b_dec only where the encoder subtracts it.
        bias = bias if config.subtract_b_dec else None
    return build(
        config.variant, t["W_enc"], t.get("b_enc"), t["W_dec"], bias, bias if config.subtract_b_dec else None,
        extra, groups=_groups(config, t["W_dec"].shape[0]), norm=config.norm, rescale=rescale,
    )  # fmt: skip


def _groups(config: Config, m: int) -> tuple[int, ...]:
    """Sizes of Matryoshka's groups; SAELens adds the whole width if the last prefix is shorter."""
    if not config.widths:
        return ()
    ends = config.widths if config.widths[-1] >= m else (*config.widths, m)
    return tuple(end - start for start, end in zip((0, *ends), ends, strict=False))


def _with_rule(path: Path, config: Config, sae: SAE, choices: dict, notes: list[str]) -> SAE:
    """Top-k, a threshold or the batch rule, as the file and the choices say."""
    wanted, rule = choices.get("threshold"), choices.get("batch_rule")
    # A finished BatchTopK SAE calls itself jumprelu and may remember what it was.
    before = BATCH.get(config.trained_as) if config.architecture == "jumprelu" else None
    if rule and before is None and sae.variant not in BATCH.values():
        raise CheckpointError(f"{path}: batch_rule is not for an SAE of architecture {config.architecture}")
    if wanted is not None and wanted is not False:
        if rule:
            raise CheckpointError(f"{path}: threshold and batch_rule exclude each other; choose one")
        sae, rule = _with_threshold(path, sae, wanted), False
    if sae.variant in BATCH.values() and rule is None and float(sae.extra["threshold"]) <= 0:
        text = "topk_threshold was never measured, so the batch rule of training is used: codes depend on the batch"
        notes.append(loud(path, text))
        rule = True
    if rule and before:
        sae = dataclasses.replace(sae, variant=before)
    k = _k(path, config, sae, bool(rule), choices.get("k"))
    return dataclasses.replace(sae, batch_rule=bool(rule), k=k)


def _k(path: Path, config: Config, sae: SAE, rule: bool, chosen: Any) -> int | None:
    """How many latents fire: None if that is no setting of the variant, or of no use and not whole."""
    if sae.variant not in ("topk", "abs_topk", *BATCH.values()):
        if chosen is not None:
            raise CheckpointError(f"{path}: k is not for an SAE of architecture {config.architecture}")
        return None
    k = config.k if chosen is None else _number(path, "k", chosen)
    if k is None or not k % 1:
        return None if k is None else int(k)
    if rule or sae.variant in ("topk", "abs_topk"):
        raise CheckpointError(f"{path}: k = {k:g} is not a whole number; load it with k=...")
    return None


def _with_threshold(path: Path, sae: SAE, wanted: Any) -> SAE:
    """Fires above the threshold `wanted`, the same of all latents, or the stored ones if it is True."""
    if sae.variant not in ("topk", "jumprelu", *BATCH.values()):
        raise CheckpointError(f"{path}: a {sae.variant} SAE takes no threshold")
    if wanted is True:
        if sae.variant == "topk":
            raise CheckpointError(f"{path}: holds no threshold; give a number, threshold=...")
        return sae
    value = _number(path, "threshold", wanted, above=-math.inf)
    shape = sae.extra["threshold"].shape if "threshold" in sae.extra else ()
    variant = "batch_topk" if sae.variant == "topk" else sae.variant
    return dataclasses.replace(sae, variant=variant, extra=sae.extra | {"threshold": jnp.full(shape, value)})


def _info(path: Path, config: Config, notes: list[str]) -> Info:
    trained = config.trained_as if config.trained_as not in ("", config.architecture) else ""
    return Info(
        name=path.parent.name if path.name == WEIGHTS else path.stem,
        source=str(path),
        format="saelens",
        model_name=config.origin.model_name,
        layer_index=config.origin.layer,
        hook=config.origin.hook,
        transcoder=config.is_transcoder,
        notes=(
            f"architecture {config.architecture}{trained and f', trained as {trained[:40]}'}",
            *notes,
        ),
    )
