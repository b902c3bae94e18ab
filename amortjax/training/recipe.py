"""Every number of a training run that changes its result, with the defaults and where they come from."""

import dataclasses
from typing import Annotated, Literal

from amortjax.errors import AmortjaxError

Trainable = Literal["standard", "topk", "jumprelu", "gated", "batch_topk", "matryoshka"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters. Inputs are centred on nothing and divided by s, s^2 = mean of |x - mean|^2, so a
    loss of 1 is that of predicting the mean; penalties and bandwidths are in these units, the saved SAE is
    in raw units."""

    variant: Annotated[Trainable, "SAE variant."] = "topk"
    n_latents: Annotated[int, "Number of latents, M."] = 6144
    k: Annotated[int | None, "Latents per token: topk, batch_topk and matryoshka (mean over a batch)."] = None
    lam: Annotated[float | None, "L1 penalty on z_j ||W_j||, inputs of rms 1: standard and gated."] = None
    target_l0: Annotated[float | None, "Mean number of firing latents to train towards: jumprelu."] = None
    steps: Annotated[int, "Optimizer steps."] = 1200
    batch_size: Annotated[int, "Tokens per step."] = 1024
    lr: Annotated[float, "Adam's peak learning rate."] = 4e-4
    warmup: Annotated[
        int | None, "Steps of linear warm-up of the rate; empty: a twentieth, at most 1000."
    ] = None
    decay_from: Annotated[float, "Share of the steps after which the rate falls linearly to 0."] = 0.8
    sparsity_warmup: Annotated[
        int | None, "Steps over which the sparsity loss grows to full; empty: a tenth, at most 2000."
    ] = None
    clip: Annotated[float, "Largest norm of the gradient."] = 1.0
    auxk: Annotated[float, "Weight of the auxiliary loss of dead latents: topk, batch_topk, matryoshka."] = (
        1 / 32
    )
    dead_tokens: Annotated[
        int | None,
        "Tokens without firing after which a latent is dead; empty: an eighth of the run, at most 10 M.",
    ] = None
    bandwidth: Annotated[float, "Width of the kernel that gives JumpReLU's thresholds a gradient."] = 0.03
    threshold_lr: Annotated[float, "JumpReLU: learning rate of the thresholds, in multiples of lr."] = 3.0
    groups: Annotated[str, "Matryoshka: shares of the latents, joined by '/', adding to 1."] = (
        "0.03125/0.0625/0.125/0.25/0.53125"
    )
    b_dec_init: Annotated[Literal["mean", "geometric_median"], "Where the decoder's bias starts."] = "mean"
    seed: Annotated[int, "Seeds the first weights and the order of tokens."] = 0

    def check(self) -> "Recipe":
        """Returns itself, or raises AmortjaxError naming the flag to change."""
        for flag in ("n_latents", "steps", "batch_size", "lr", "clip", "bandwidth", "threshold_lr"):
            if not getattr(self, flag) > 0:
                raise AmortjaxError(f"--{flag}={getattr(self, flag)}: must be above 0")
        for flag in ("warmup", "sparsity_warmup", "dead_tokens", "auxk", "lam"):
            value = getattr(self, flag)
            if value is not None and value < 0:
                raise AmortjaxError(f"--{flag}={value}: must not be negative")
        if not 0 < self.decay_from <= 1:
            raise AmortjaxError(f"--decay_from={self.decay_from}: must be above 0 and at most 1")
        needed = NEEDS[self.variant]
        for flag in ("k", "lam", "target_l0"):
            value = getattr(self, flag)
            if flag == needed and value is None:
                raise AmortjaxError(f"--variant={self.variant} needs --{flag}")
            if flag != needed and value is not None:
                raise AmortjaxError(
                    f"--{flag} does nothing for --variant={self.variant}, which takes --{needed}"
                )
        sparsity = self.k if self.k is not None else self.target_l0
        if sparsity is not None and not 0 < sparsity <= self.n_latents:
            raise AmortjaxError(
                f"--{needed}={sparsity}: must be above 0 and at most --n_latents={self.n_latents}"
            )
        self.group_sizes()
        return self

    def group_sizes(self) -> tuple[int, ...]:
        """Matryoshka's group sizes, adding up to n_latents; () for other variants."""
        if self.variant != "matryoshka":
            return ()
        try:
            shares = [float(share) for share in self.groups.split("/")]
        except ValueError:
            raise AmortjaxError(f"--groups={self.groups}: not numbers joined by '/'") from None
        if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise AmortjaxError(f"--groups={self.groups}: the shares must be positive and add up to 1")
        sizes = [int(share * self.n_latents) for share in shares]
        sizes[-1] += self.n_latents - sum(sizes)
        if min(sizes) < 1:
            raise AmortjaxError(f"--groups={self.groups}: a group of {self.n_latents} latents would be empty")
        return tuple(sizes)

    @property
    def warmup_steps(self) -> int:
        return min(1000, self.steps // 20) if self.warmup is None else self.warmup

    @property
    def sparsity_warmup_steps(self) -> int:
        return min(2000, self.steps // 10) if self.sparsity_warmup is None else self.sparsity_warmup

    @property
    def dead_after(self) -> int:
        # 10 M tokens is what dictionary_learning, sparsify and Gao et al. use; a short run would never get
        # there.
        whole = self.steps * self.batch_size
        return min(10_000_000, max(whole // 8, 1)) if self.dead_tokens is None else self.dead_tokens

    @property
    def threshold_decay(self) -> float:
        """Of the running mean of the smallest firing value: 0.999 as in dictionary_learning, faster in
        short runs."""
        return min(0.999, max(0.9, 1 - 20 / self.steps))


NEEDS = {
    "standard": "lam",
    "gated": "lam",
    "topk": "k",
    "batch_topk": "k",
    "matryoshka": "k",
    "jumprelu": "target_l0",
}
