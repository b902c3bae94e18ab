"""What every number is called, which direction is good, and what it means: one table for tables, pages,
figures.

`id` names the definition, so that a number read years later can be told from a namesake: a change of formula
changes the id.
"""

from typing import Literal, NamedTuple

Direction = Literal["lower", "higher", "neither"]
ARROWS: dict[Direction, str] = {"lower": "↓", "higher": "↑", "neither": ""}


class Metric(NamedTuple):
    id: str
    unit: str  # "" for a pure number
    direction: Direction  # which way is better
    label: str  # short, for a column or a panel
    text: str  # what it means, one or two sentences

    @property
    def header(self) -> str:
        """The label with its direction."""
        return f"{self.label} {ARROWS[self.direction]}".strip()


METRICS: dict[str, Metric] = {
    "nmse": Metric(
        "nmse.v1",
        "",
        "lower",
        "NMSE",
        "Sum of |x - x_hat|^2 over sum of |x - b_out|^2, raw units. 0 is exact, 1 is what all-zero codes "
        "give.",
    ),
    "nmse_literal": Metric(
        "nmse_literal.v1",
        "",
        "lower",
        "NMSE (literal)",
        "Sum of |x - x_hat|^2 over sum of |x|^2, as the papers' code has it. A large mean of x makes it "
        "small.",
    ),
    "fvu": Metric(
        "fvu.v1",
        "",
        "lower",
        "FVU",
        "Fraction of variance unexplained: squared error over squared distance from the mean of all tokens."
        " The "
        "mean alone gives 1.",
    ),
    "l0": Metric(
        "l0.v1", "latents per token", "neither", "L0", "Mean number of latents that fire on a token."
    ),
    "density": Metric("density.v1", "", "neither", "density", "L0 divided by the number of latents."),
    "l1": Metric(
        "l1.v1", "", "neither", "L1", "Mean over tokens of the sum of |z_j| times the norm of its atom."
    ),
    "objective": Metric(
        "objective.half.v1",
        "objective units",
        "lower",
        "P",
        "Mean of P = 1/2 |t - z W|^2 + lambda * sum_j |z_j| |W_j|. Comparable at the same lambda only.",
    ),
    "gap": Metric(
        "gap_own_dual.v1",
        "objective units",
        "lower",
        "own-dual gap (mean)",
        "Mean of P minus the dual value made from the code's own residual. An upper bound on P - P*, often "
        "loose.",
    ),
    "own_gap": Metric(
        "own_gap_relative.v1",
        "",
        "lower",
        "own gap",
        "Sum of own-dual gaps over sum of P. Certifies a good code; for a poor one it is far above its "
        "suboptimality, so it is never printed as that.",
    ),
    "own_gap_median": Metric(
        "own_gap_median.v1", "", "lower", "own gap (median)", "Median over tokens of own-dual gap / P."
    ),
    "gap_lower": Metric(
        "gap_lower.v1",
        "objective units",
        "lower",
        "amortization gap, at least",
        "Mean of P minus P of the best code known for the token: the gap to the optimum is at least this.",
    ),
    "gap_upper": Metric(
        "gap_upper.v1",
        "objective units",
        "lower",
        "amortization gap, at most",
        "Mean of P minus the best dual value known for the token: the gap to the optimum is at most this.",
    ),
    "gap_lower_median": Metric(
        "gap_lower_median.v1",
        "objective units",
        "lower",
        "gap (median), at least",
        "Median of the lower bound.",
    ),
    "gap_upper_median": Metric(
        "gap_upper_median.v1",
        "objective units",
        "lower",
        "gap (median), at most",
        "Median of the upper bound.",
    ),
    "suboptimality_lower": Metric(
        "suboptimality_lower.v1",
        "",
        "lower",
        "(P - P*)/P*, at least",
        "(sum P - sum P*) / sum P*, with P* replaced by the best code known for each token.",
    ),
    "suboptimality_upper": Metric(
        "suboptimality_upper.v1",
        "",
        "lower",
        "(P - P*)/P*, at most",
        "(sum P - sum P*) / sum P*, with P* replaced by the best dual value known for each token: a "
        "certificate.",
    ),
    "gap_width": Metric(
        "gap_width.v1",
        "objective units",
        "lower",
        "gap interval's width",
        "Mean over tokens of the best P known minus the best dual value known: how far the gap to the optimum "
        "is not known.",
    ),
    "price_amplitude": Metric(
        "price_amplitude.v1",
        "",
        "lower",
        "amplitude",
        "The part of (P - P*)/P* that the same latents could save: (sum P - sum of the least P on each code's "
        "own support, at the same lambda) / sum P*. At least this.",
    ),
    "price_amplitude_upper": Metric(
        "price_amplitude_upper.v1",
        "",
        "lower",
        "amplitude, at most",
        "The same with the dual value of the lasso on each code's own support: a certificate.",
    ),
    "price_support": Metric(
        "price_support.v1",
        "",
        "lower",
        "support",
        "The rest of (P - P*)/P*: what the wrong latents cost. The best code known stands for the optimum; "
        "amplitude and support sum to (P - P*)/P*, at least.",
    ),
    "price_support_lower": Metric(
        "price_support_lower.v1",
        "",
        "lower",
        "support, at least",
        "The same from the dual value on each code's own support and the best code known.",
    ),
    "price_support_upper": Metric(
        "price_support_upper.v1",
        "",
        "lower",
        "support, at most",
        "The same from the best code on each code's own support and the best dual value known.",
    ),
    "certified": Metric(
        "certified.v1",
        "",
        "higher",
        "certified",
        "Share of tokens whose own relative gap is within the tolerance.",
    ),
    "dead": Metric(
        "dead.v1",
        "",
        "lower",
        "dead",
        "Share of latents that fire on none of the N evaluated tokens. Falls with N: mostly sampling when N"
        " is small.",
    ),
    "certified_dead": Metric(
        "certified_dead.v1",
        "",
        "neither",
        "certified dead",
        "Share of latents proved to be 0 at every optimum of each evaluated token, by the gap-safe test.",
    ),
    "possibly_active": Metric(
        "possibly_active.v1",
        "latents per token",
        "neither",
        "possibly active",
        "Mean number of latents that the gap-safe test does not prove to be 0: no optimum has a larger L0.",
    ),
    "dead_half": Metric(
        "dead_rarefied_half.v1",
        "",
        "lower",
        "dead, half",
        "Expected share of latents that fire in none of a random half of the documents (rarefied; documents"
        " in up "
        "to 200 blocks). Its interval is a delete-a-block jackknife.",
    ),
    "dense@0.1": Metric(
        "dense.v1", "", "lower", "dense@0.1", "Share of latents that fire on at least a tenth of all tokens."
    ),
    "dense@0.2": Metric(
        "dense.v1", "", "lower", "dense@0.2", "Share of latents that fire on at least a fifth of all tokens."
    ),
    "f1@1": Metric(
        "f1_probe.v1",
        "",
        "higher",
        "F1@1",
        "Held-out F1 of a logistic probe on the one latent that correlates best with a class, averaged over"
        " classes.",
    ),
    "f1@2": Metric("f1_probe.v1", "", "higher", "F1@2", "The same with the two best latents."),
    "df1": Metric(
        "df1.v1",
        "",
        "lower",
        "ΔF1",
        "F1@2 - F1@1: what a second latent adds. Large when a concept is split over latents.",
    ),
    "absorption": Metric(
        "absorption_proxy.v1",
        "",
        "lower",
        "absorption",
        "Among a class's positives, how often its main latent is silent while one of the next five fires. "
        "Rises "
        "with density alone: read it against the chance value.",
    ),
    "absorption_chance": Metric(
        "absorption_chance.v1",
        "",
        "neither",
        "chance",
        "Absorption of independent latents with the same firing rates: (1 - p_main)(1 - prod(1 - p_aux)).",
    ),
    "absorption_excess": Metric(
        "absorption_excess.v1", "", "lower", "absorption - chance", "Absorption minus its chance value."
    ),
    "absorption_null": Metric(
        "absorption_null.v1",
        "",
        "neither",
        "permuted",
        "Absorption after every latent's firings are shuffled over the positives (mean of 20 permutations).",
    ),
    "ce_clean": Metric(
        "ce_clean.v1",
        "nats",
        "lower",
        "CE clean",
        "The language model's next-token loss as it is: mean over tokens that are not special and have a next one.",
    ),
    "ce": Metric(
        "ce_spliced.v1",
        "nats",
        "lower",
        "CE spliced",
        "The same with reconstructions at the hook; special tokens keep their activations.",
    ),
    "ce_zero": Metric(
        "ce_zero.v1",
        "nats",
        "neither",
        "CE zero",
        "The same with zeros at the hook, special tokens included.",
    ),
    "ce_mean": Metric(
        "ce_mean.v1",
        "nats",
        "neither",
        "CE mean",
        "The same with the mean activation of the calibration tokens at the hook; special tokens keep theirs.",
    ),
    "ce_added": Metric("ce_added.v1", "nats", "lower", "CE added", "CE spliced minus CE clean."),
    "ce_recovered": Metric(
        "ce_recovered_zero.v1",
        "",
        "higher",
        "CE recovered",
        "(CE zero - CE spliced) / (CE zero - CE clean): 1 is what the model does alone, 0 what it does with zeros.",
    ),
    "ce_recovered_mean": Metric(
        "ce_recovered_mean.v1",
        "",
        "higher",
        "CE recovered (mean)",
        "The same against the mean activation: a harder reference, so a smaller number.",
    ),
    "kl": Metric(
        "kl_spliced.v1",
        "nats",
        "lower",
        "KL",
        "Mean over tokens that are not special of KL(clean next-token distribution || spliced one).",
    ),
    "kl_zero": Metric("kl_zero.v1", "nats", "neither", "KL zero", "The same with zeros at the hook."),
    "kl_mean": Metric("kl_mean.v1", "nats", "neither", "KL mean", "The same with the mean activation there."),
    "kl_recovered": Metric(
        "kl_recovered_zero.v1",
        "",
        "higher",
        "KL recovered",
        "(KL zero - KL) / KL zero: 1 is the clean model.",
    ),
    "kl_recovered_mean": Metric(
        "kl_recovered_mean.v1", "", "higher", "KL recovered (mean)", "(KL mean - KL) / KL mean."
    ),
    "forwards": Metric(
        "forwards.v1",
        "encoder forwards",
        "lower",
        "forwards",
        "What the codes cost a token, counted: 2 D M operations an encoder forward, 4 D M a step of ISTA or a layer of "
        "ALISTA, whose first layer starts from zero and is half of that.",
    ),
    "jaccard_encoder": Metric(
        "jaccard_support.v1",
        "",
        "neither",
        "support in common with encoder",
        "Pairs of a token and a latent that fire in both codes, over those that fire in either.",
    ),
    "jaccard_previous": Metric(
        "jaccard_support.v1",
        "",
        "neither",
        "with fewer steps",
        "The same with the codes of the next smaller number of steps.",
    ),
    "jaccard_optimal": Metric(
        "jaccard_support.v1", "", "higher", "with optimum", "The same with the optimum at lambda*."
    ),
    "rises": Metric(
        "rises.v1",
        "",
        "lower",
        "P rises",
        "Share of tokens whose P at the same lambda is above that of the next smaller number of steps (by 1e-6 of it).",
    ),
    "decay": Metric(
        "decay.v1",
        "",
        "lower",
        "gap's factor a step",
        "What a step multiplies the mean gap to the optimum by, on average since the next smaller number of steps.",
    ),
}
