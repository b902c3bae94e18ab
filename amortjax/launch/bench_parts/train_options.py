"""A training as both sides are told it: a Recipe for amortjax, and the arguments of dictionary_learning's trainer."""

import dataclasses
from typing import Any, Literal, NamedTuple

from amortjax.training.recipe import Recipe

Variant = Literal["topk", "batch_topk", "standard", "april", "jumprelu", "gated", "matryoshka"]
AUXK = 1 / 32  # dictionary_learning's default
CLIP, NO_CLIP = 1.0, 1e9  # a bound that is never reached
# Shares of Matryoshka's groups, as in SAEBench.
GROUPS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)


class Theirs(NamedTuple):
    """How dictionary_learning 0.1 trains a variant. What its arguments leave open is given to our side too."""

    module: str  # of dictionary_learning.trainers
    trainer: str
    takes: tuple[str, ...]  # arguments beyond those that every trainer takes
    clips: bool = True
    beta1: float = 0.9


_RANKED = ("k", "auxk_alpha", "threshold_beta", "threshold_start_step")
_PENALISED = ("l1_penalty", "sparsity_warmup_steps")
THEIRS: dict[str, Theirs] = {
    "topk": Theirs("top_k", "TopKTrainer", _RANKED),
    "batch_topk": Theirs("batch_top_k", "BatchTopKTrainer", _RANKED),
    "matryoshka": Theirs(
        "matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer", (*_RANKED, "group_fractions", "group_weights")
    ),
    "standard": Theirs("standard", "StandardTrainer", _PENALISED, clips=False),
    "april": Theirs("standard", "StandardTrainerAprilUpdate", _PENALISED),
    "gated": Theirs("gdm", "GatedSAETrainer", _PENALISED, clips=False, beta1=0.0),
    "jumprelu": Theirs("jumprelu", "JumpReluTrainer", ("target_l0", "sparsity_warmup_steps"), beta1=0.0),
}
RANKED = tuple(name for name, theirs in THEIRS.items() if "k" in theirs.takes)
# Options that differ on purpose or by construction; everything else is the same number on both sides. {} is filled
# in from our recipe.
DIFFERENCES = {
    "all": (
        "the first weights are the same directions; the first warm-up step has a rate of lr / (warm-up + 1) in "
        "amortjax, of 0 in dictionary_learning"
    ),
    "standard": "decoder rows start at norm 1 in amortjax; at .1, and 1 after a step, in the other; b_dec as april",
    "april": "b_dec starts at the mean of the data in amortjax, at 0 in dictionary_learning",
    "gated": "as april",
    "jumprelu": (
        "amortjax: kernel width {bandwidth}, thresholds from .1 / sqrt(D) at {threshold_lr} times the rate, b_dec "
        "subtracted from the input, L0 counted before the jump; dictionary_learning: .001, from .001 at the rate, not "
        "subtracted, after the jump"
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One training, in units of the data divided by sqrt(mean |x|^2)."""

    variant: Variant
    d_model: int
    n_latents: int
    k: int
    lam: float
    batch_size: int
    steps: int
    lr: float
    warmup: int
    sparsity_warmup: int
    decay_from: float
    dead_tokens: int
    seed: int = 0

    def recipe(self) -> Recipe:
        theirs = THEIRS[self.variant]
        sparsity: dict[str, Any] = {"lam": self.lam}
        if self.variant in RANKED:
            sparsity = {"k": self.k}
        elif self.variant == "jumprelu":
            sparsity = {"target_l0": float(self.k)}
        return Recipe(
            variant=self.variant, n_latents=self.n_latents, steps=self.steps, batch_size=self.batch_size, lr=self.lr,
            warmup=self.warmup, sparsity_warmup=self.sparsity_warmup, decay_from=self.decay_from, auxk=AUXK,
            dead_tokens=self.dead_tokens, clip=CLIP if theirs.clips else NO_CLIP, beta1=theirs.beta1, scale="norm",
            seed=self.seed, **sparsity,
        ).check()  # fmt: skip

    def for_peer(self, device: str) -> dict[str, Any]:
        """`module`, `trainer`, `options` and `attributes` of `train_peer`'s setup; device is cpu or cuda."""
        theirs, decay = THEIRS[self.variant], int(self.decay_from * self.steps)
        able = {
            "k": self.k,
            "target_l0": float(self.k),
            "l1_penalty": self.lam,
            "auxk_alpha": AUXK,
            "sparsity_warmup_steps": self.sparsity_warmup,
            "threshold_beta": self.recipe().threshold_decay,
            "threshold_start_step": 0,
            "group_fractions": list(GROUPS),
            # Its loss is the mean of the weighted errors of the prefixes; ours the mean of the errors.
            "group_weights": [1.0] * len(GROUPS),
        }
        options = {
            "steps": self.steps, "activation_dim": self.d_model, "dict_size": self.n_latents, "lr": self.lr,
            "warmup_steps": self.warmup, "decay_start": decay if decay < self.steps else None, "seed": self.seed,
            "device": device, "layer": 0, "lm_name": "none",
        } | {name: able[name] for name in theirs.takes}  # fmt: skip
        counts = self.variant in RANKED or self.variant == "jumprelu"
        return {
            "module": f"dictionary_learning.trainers.{theirs.module}",
            "trainer": theirs.trainer,
            "options": options,
            "attributes": {"dead_feature_threshold": self.dead_tokens} if counts else {},
        }
