"""Every number of a training run that changes its result, with the defaults and where they come from."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from amortjax.errors import AmortjaxError

Trainable = Literal[
    "standard",
    "april",
    "p_anneal",
    "gated",
    "jumprelu",
    "topk",
    "batch_topk",
    "matryoshka",
    "loca",
    "mlp",
]
# Loss that sets the sparsity, hence the flag a variant needs. An mlp takes one of the three.
NEEDS: dict[str, tuple[str, ...]] = {
    "standard": ("lam",),
    "april": ("lam",),
    "p_anneal": ("lam",),
    "gated": ("lam",),
    "jumprelu": ("target_l0",),
    "topk": ("k",),
    "batch_topk": ("k",),
    "matryoshka": ("k",),
    "loca": ("group_k",),
    "mlp": ("k", "lam", "group_k"),
}
# Tokens since a latent last fired are counted up to here, in an int32.
MOST_TOKENS = 2**30
SPARSITY = ("k", "lam", "target_l0", "group_k")
# LocA's budgets for 8 groups, the group of the highest angular variance first.
LOCA_K = "6/5/4/3/3/2/2/1"


Number = TypeVar("Number", int, float)


def _numbers(flag: str, text: str, kind: type[Number], what: str) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in text.split("/"))
    except ValueError:
        raise AmortjaxError(f"--{flag}={text}: not {what} joined by '/'") from None


def split_sizes(m: int, shares: Sequence[float]) -> tuple[int, ...]:
    """M latents split by shares that add up to 1. Ends are rounded, not sizes: shares that divide M in theory then
    do so here."""
    ends = [round(sum(shares[: i + 1]) * m) for i in range(len(shares))]
    return tuple(b - a for a, b in zip([0, *ends[:-1]], ends, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters. Inputs are centred on nothing and divided by s (see `scale`), so that by default a
    loss of 1 is that of predicting the mean; penalties and bandwidths are in these units, the saved SAE is
    in raw units."""

    variant: Annotated[Trainable, "SAE variant."] = "topk"
    n_latents: Annotated[int, "Number of latents, M."] = 6144
    k: Annotated[
        int | None, "Latents per token: topk, mlp; batch_topk and matryoshka (mean over a batch)."
    ] = None
    lam: Annotated[
        float | None,
        "L1 penalty on z_j ||W_j||, in units of the scaled inputs: standard, april, p_anneal, gated.",
    ] = None
    target_l0: Annotated[float | None, "Mean number of firing latents to train towards: jumprelu."] = None
    group_k: Annotated[
        str | None, f"Latents per token and group, joined by '/': loca (as in the paper: {LOCA_K}), mlp."
    ] = None
    groups: Annotated[
        str | None,
        "Shares of the latents in each group, joined by '/', adding to 1. Empty: matryoshka "
        "0.03125/0.0625/0.125/0.25/0.53125, loca and mlp equal groups.",
    ] = None
    hidden: Annotated[int | None, "mlp: width of the hidden layer (of each group's, with groups)."] = None
    linear: Annotated[
        bool | None,
        "mlp: false = no linear map beside the hidden layer, as in arXiv 2411.13117. Empty: with it.",
    ] = None
    steps: Annotated[int, "Optimizer steps."] = 1200
    batch_size: Annotated[int, "Tokens per step."] = 1024
    lr: Annotated[float, "Adam's peak learning rate."] = 4e-4
    beta1: Annotated[float, "Adam's decay of the first moment; the papers of gated and jumprelu use 0."] = 0.9
    warmup: Annotated[
        int | None, "Steps of linear warm-up of the rate; empty: a twentieth, at most 1000."
    ] = None
    decay_from: Annotated[float, "Share of the steps after which the rate falls linearly to 0."] = 0.8
    sparsity_warmup: Annotated[
        int | None, "Steps over which the sparsity loss grows to full; empty: a tenth, at most 2000."
    ] = None
    clip: Annotated[float, "Largest norm of the gradient."] = 1.0
    decoder: Annotated[
        Literal["unit", "free"] | None,
        "Rows of the decoder kept at norm 1, or free with the penalty weighted by their norms (for variants with "
        "--lam). Empty: free for april, unit for the others.",
    ] = None
    auxk: Annotated[
        float, "Weight of the auxiliary loss of dead latents: topk, batch_topk, matryoshka, loca, mlp."
    ] = 1 / 32
    dead_tokens: Annotated[
        int | None,
        "Tokens without firing after which a latent is dead; empty: an eighth of the run, at most 10 M.",
    ] = None
    resample_every: Annotated[
        int, "Steps between resamplings of dead latents (Bricken et al. 2023); 0: never."
    ] = 0
    bandwidth: Annotated[float, "Width of the kernel that gives JumpReLU's thresholds a gradient."] = 0.03
    threshold_lr: Annotated[float, "JumpReLU: learning rate of the thresholds, in multiples of lr."] = 3.0
    p_end: Annotated[float, "p_anneal: the last exponent p of the penalty sum_j z_j^p."] = 0.2
    p_from: Annotated[float, "p_anneal: share of the steps after which p starts to fall from 1."] = 0.1
    b_dec_init: Annotated[Literal["mean", "geometric_median", "zero"], "Where the decoder's bias starts."] = (
        "mean"
    )
    scale: Annotated[
        Literal["centred", "norm", "none"],
        "Inputs are divided by s: centred, s^2 = mean |x - mean|^2; norm, s^2 = mean |x|^2 (as in "
        "dictionary_learning); none, 1.",
    ] = "centred"
    seed: Annotated[int, "Seeds the first weights and, without --data_seed, the order of tokens."] = 0
    data_seed: Annotated[int | None, "Seeds the order of tokens."] = None

    def check(self) -> "Recipe":
        """Returns itself, or raises AmortjaxError naming the flag to change."""
        for flag in ("n_latents", "steps", "batch_size", "lr", "clip", "bandwidth", "threshold_lr"):
            if not getattr(self, flag) > 0:
                raise AmortjaxError(f"--{flag}={getattr(self, flag)}: must be above 0")
        for flag in (
            "warmup",
            "sparsity_warmup",
            "dead_tokens",
            "auxk",
            "lam",
            "resample_every",
            "seed",
            "data_seed",
        ):
            value = getattr(self, flag)
            if value is not None and not value >= 0:
                raise AmortjaxError(f"--{flag}={value}: must not be negative")
        for flag, low_is_out in (("decay_from", True), ("p_end", True), ("p_from", False)):
            value = getattr(self, flag)
            if not 0 <= value <= 1 or (low_is_out and value == 0):
                raise AmortjaxError(f"--{flag}={value}: must be from 0 to 1" + low_is_out * ", above 0")
        if self.warmup_steps >= self.steps and self.warmup:
            raise AmortjaxError(f"--warmup={self.warmup}: must be less than --steps={self.steps}")
        for flag, tokens in (
            ("dead_tokens", self.dead_after),
            ("resample_every", self.resample_every * self.batch_size),
        ):
            if tokens >= MOST_TOKENS:
                raise AmortjaxError(
                    f"--{flag}={getattr(self, flag)}: more than {MOST_TOKENS} tokens are not counted"
                )
        if self.variant in ("batch_topk", "matryoshka") and self.batch_size * self.n_latents >= 2**31:
            raise AmortjaxError(
                f"--batch_size={self.batch_size} times --n_latents={self.n_latents}: {self.variant} ranks a batch's "
                "latents together, at most 2^31 of them"
            )
        if not 0 <= self.beta1 < 1:
            raise AmortjaxError(f"--beta1={self.beta1}: must be from 0 to below 1")
        self._check_sparsity()
        self._check_groups()
        if self.decoder == "free" and self.lam is None:
            raise AmortjaxError(
                f"--decoder=free is for variants with --lam, whose penalty it weighs; {self.variant} keeps unit"
            )
        if (self.hidden is not None) != (self.variant == "mlp") or (
            self.hidden is not None and self.hidden < 1
        ):
            raise AmortjaxError(
                "--hidden: --variant=mlp needs it, a positive width; no other variant takes it"
            )
        if self.linear is not None and self.variant != "mlp":
            raise AmortjaxError(f"--linear is for --variant=mlp: {self.variant} has no hidden layer")
        return self

    def _check_sparsity(self) -> None:
        takes = NEEDS[self.variant]
        given = [flag for flag in SPARSITY if getattr(self, flag) is not None]
        named = " or ".join("--" + flag for flag in takes)
        for flag in given:
            if flag not in takes:
                raise AmortjaxError(
                    f"--{flag} does nothing for --variant={self.variant}, which takes {named}"
                )
        if len(given) != 1:
            both = f", not {' and '.join('--' + flag for flag in given)}" if given else ""
            raise AmortjaxError(f"--variant={self.variant} needs {named}{both}")
        value = self.k if self.k is not None else self.target_l0
        if value is not None and not 0 < value <= self.n_latents:
            raise AmortjaxError(
                f"--{given[0]}={value}: must be above 0 and at most --n_latents={self.n_latents}"
            )

    def _check_groups(self) -> None:
        sizes, ks = self.group_sizes(), self.group_ks()
        if self.groups is not None and not sizes:
            raise AmortjaxError(
                f"--groups does nothing here: --variant={self.variant} has none"
                + (" without --group_k" if self.variant == "mlp" else "")
            )
        if ks and len(ks) != len(sizes):
            raise AmortjaxError(
                f"--group_k={self.group_k}: {len(ks)} numbers, but --groups has {len(sizes)} groups"
            )
        for size, k in zip(sizes, ks, strict=False):
            if not 0 <= k <= size:
                raise AmortjaxError(
                    f"--group_k={self.group_k}: {k} is not from 0 to the group's {size} latents"
                )

    def group_ks(self) -> tuple[int, ...]:
        """k of each group: loca, and an mlp with groups; () for other variants."""
        if self.group_k is None:
            return ()
        ks = _numbers("group_k", self.group_k, int, "whole numbers")
        if sum(ks) < 1:
            raise AmortjaxError(f"--group_k={self.group_k}: no latent could fire")
        return ks

    def group_sizes(self) -> tuple[int, ...]:
        """Sizes of the groups, adding up to n_latents; () for variants without."""
        if self.variant == "matryoshka":
            shares = self._shares() or (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)
        elif self.group_k is not None:
            count = len(self.group_ks())
            shares = self._shares() or (1 / count,) * count
        else:
            return ()
        sizes = split_sizes(self.n_latents, shares)
        if min(sizes) < 1:
            raise AmortjaxError(
                f"{len(sizes)} groups of --n_latents={self.n_latents} (--groups, --group_k): one would be empty"
            )
        return sizes

    def _shares(self) -> tuple[float, ...]:
        if self.groups is None:
            return ()
        shares = _numbers("groups", self.groups, float, "numbers")
        if not (min(shares) > 0 and abs(sum(shares) - 1) <= 1e-6):
            raise AmortjaxError(f"--groups={self.groups}: the shares must be positive and add up to 1")
        return shares

    @property
    def unit_decoder(self) -> bool:
        return self.variant != "april" if self.decoder is None else self.decoder == "unit"

    @property
    def hidden_only(self) -> bool:
        """Whether the encoder's linear map W_enc is zero and stays so."""
        return self.variant == "mlp" and self.linear is False

    @property
    def order_seed(self) -> int:
        return self.seed if self.data_seed is None else self.data_seed

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
