"""The claims of the two papers, in our own words, each with where it is made, what is tested here, and the rule.

To add a claim: a judge in claims_inference, _training, _coding or _synthetic, and an entry here.
Numbers are quoted from public notes on the papers, not from their text.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from amortjax.report import claims_coding as coding
from amortjax.report import claims_inference as inference
from amortjax.report import claims_synthetic as synthetic
from amortjax.report import claims_training as training
from amortjax.report.evidence import Row, Verdict


class Claim(NamedTuple):
    id: str
    text: str  # one sentence
    where: str  # section, figure or table of the paper
    tested: str  # what is looked at here
    rule: str  # what counts as claimed
    judge: Callable[[Sequence[Row]], Verdict]


PRICE = "The Price of Amortized Inference in Sparse Autoencoders"
CODING = "Compute Optimal Inference and Provable Amortisation Gap in Sparse Autoencoders"
_EXCESS = "paired difference above 0, {} or more not excluded; SAEs off the L0 by more than 2 % are left out"
_TRAINED = (
    "last step minus first, intervals subtracted end from end; encoders too dense to match are left out"
)

_PRICE = (
    Claim(
        "dead", "Encoders leave latents dead that exact inference on the same dictionary uses.",
        "section 5, mode comparison", "dead latents of the encoder minus the certified optimum's, at equal L0",
        _EXCESS.format(".01"), inference.excess_of("dead_half"),
    ),
    Claim(
        "dead cause", "Dead latents are the encoder's doing more than the dictionary's.",
        "section 5", "encoder's dead latents that fire under the optimum minus those that do not, at equal L0",
        "difference of the two shares above 0, .01 or more not excluded", inference.dead_cause,
    ),
    Claim(
        "dense", "Encoders make more latents dense than exact inference does.",
        "sections 4.3 and 5", "dense@0.1 of the encoder minus the optimum's, at equal L0",
        _EXCESS.format(".005"), inference.excess_of("dense@0.1"),
    ),
    Claim(
        "splitting", "Encoders split concepts over latents more than exact inference does.",
        "section 5, mode comparison", "ΔF1 of the encoder minus the optimum's, at equal L0",
        _EXCESS.format(".01"), inference.excess_of("df1"),
    ),
    Claim(
        "absorption", "Encoders show more absorption than exact inference does.",
        "section 5, mode comparison",
        "absorption above its chance value, encoder minus optimum, at equal L0 (literal: absorption itself)",
        _EXCESS.format(".02"), inference.excess_of("absorption_excess"),
    ),
    Claim(
        "above chance", "Absorption and splitting, as measured, are found in what SAEs learn.",
        "section 5, metrics (no control is reported)",
        "absorption minus that of independent latents of the same rates; both minus those of null models",
        "difference above 0; .02 (absorption) or .01 (ΔF1) or more not excluded", inference.above_chance,
    ),
    Claim(
        "reconstruction", "Exact inference reconstructs better than the encoder.",
        "section 5, mode comparison",
        "NMSE of the encoder minus that of the optimum, and of its support refitted, at equal L0",
        _EXCESS.format(".01"), inference.better_nmse,
    ),
    Claim(
        "semi", "A few steps from the encoder's code cut the reconstruction error.",
        "section 5, mode comparison (TopK on Pythia 1.499 to .087, by third-party notes)",
        "NMSE of the encoder minus that after 30 steps, at equal L0", _EXCESS.format(".01"), inference.semi_nmse,
    ),
    Claim(
        "NMSE above 1", "TopK encoders reconstruct worse than all-zero codes would.",
        "section 5, mode comparison (1.499 on Pythia, by third-party notes)",
        "NMSE of TopK encoders minus 1, under the literal and the controlled protocol",
        "interval above 1", inference.worse_than_zeros,
    ),
    Claim(
        "ISTA-200", "200 ISTA steps from zero are the optimum.",
        "sections 4.3 and 5, reference", "its (P-P*)/P*, and its L0 beside the optimum's, at the same lambda",
        "both intervals within 1 % (gap) and 2 % (L0) of 0", inference.ista_is_optimum,
    ),
    Claim(
        "Gated", "Gated SAEs have few dead and many dense latents.",
        "section 4.3 (third-party notes)", "dense@0.1 and dead latents of Gated encoders",
        "dense share above .1 and dead share below .01", inference.gated_dense,
    ),
    Claim(
        "control", "Better inference gives latents that serve the model better (TPP and GIS in the paper).",
        "appendix", "a stand-in: CE recovered by exact codes minus the encoder's, at equal L0",
        "paired difference above 0, .005 or more not excluded", inference.model_notices,
    ),
    Claim(
        "gap falls", "The gap to the optimum falls while an SAE trains.",
        "section 4.3, Figs. 1 and 2", "(P-P*)/P* and (P-P of ISTA-200)/P of ISTA-200, first step minus last",
        "difference above 0, .01 or more not excluded; " + _TRAINED, training.gap_falls,
    ),
    Claim(
        "pathologies grow", "Dead and dense latents, splitting and absorption grow while an SAE trains.",
        "section 4.3, Figs. 1 and 2", "each of the encoder's numbers, last step minus first", _TRAINED,
        training.pathologies_grow,
    ),
    Claim(
        "divergence", "Pathologies grow in trainings whose gap falls.",
        "section 4.3, Figs. 1 and 2", "of trainings whose gap falls, the pathology that rose most clearly", _TRAINED,
        training.divergence,
    ),
    Claim(
        "TopK in training", "TopK's splitting and absorption rise with training.",
        "section 4.3, Fig. 2", "ΔF1 and absorption above chance of TopK encoders, last step minus first", _TRAINED,
        training.topk_rises,
    ),
    Claim(
        "TopK and sparsity", "TopK's splitting and absorption rise with sparsity.",
        "section 4.3, Fig. 2", "ΔF1 and absorption above chance, sparsest TopK minus densest, at their last steps",
        "intervals subtracted end from end", training.topk_sparser,
    ),
    Claim(
        "early dense", "Early checkpoints of Standard SAEs are dense in more than two thirds of their latents.",
        "section 4.3 (above .66, by third-party notes)", "largest dense@0.2 of each Standard training minus .66",
        "interval above .66", training.early_dense,
    ),
    Claim(
        "more steps", "Reconstruction improves with every further step from 5 to 50.",
        "section 5, step sweep", "NMSE after 5 steps minus that after 50, at equal L0",
        "difference above 0, .01 or more not excluded, and no rise between neighbours told apart", training.steps_nmse,
    ),
    Claim(
        "dead at once", "The first steps revive all dead latents.",
        "section 5, step sweep", "1 % minus the dead share after 5 steps, where the encoder has more than that",
        "interval above 0", training.steps_dead,
    ),
    Claim(
        "flat", "Splitting and absorption no longer change after the first few steps.",
        "section 5, step sweep", "ΔF1 and absorption above chance after 25 steps minus those after 5, at equal L0",
        "interval within .01 (ΔF1) and .02 (absorption) of 0", training.steps_flat,
    ),
    Claim(
        "steps suffice", "5 to 25 steps are enough.",
        "section 5, step sweep", "after 25 steps: each number minus the optimum's, and (P-P*)/P*",
        "intervals below .01 (absorption .02): none is worse than the optimum", training.steps_suffice,
    ),
    Claim(
        "LocA", "LocA-SAE beats a single encoder.",
        "section 6, mode comparison", "plain TopK of the same k and as much training minus LocA, paired",
        "difference above 0, .005 (NMSE), .01 or .02 (absorption) or more not excluded", training.loca_beats_single,
    ),
    Claim(
        "grouping", "LocA's gain comes from grouping latents by angular variance.",
        "section 6", "NMSE of random groups and of uniform budgets minus LocA's, paired",
        "difference above 0, .005 or more not excluded", training.grouping_matters,
    ),
)  # fmt: skip

_MCC = "difference of MCC above 0, .02 or more not excluded; intervals subtracted end from end"
_CODING = (
    Claim(
        "gap exists", "A linear encoder with a pointwise nonlinearity can't reach the optimum of its dictionary.",
        "Theorem 3.1 (of exact codes, not of supports)",
        "a consequence: the certified lower bound of encoders' gaps, and that of the best affine encoder fitted to P",
        "interval above 0", coding.encoder_has_gap,
    ),
    Claim(
        "wider encoders", "More expressive encoders narrow the gap.",
        "known-code scenario, on real activations here",
        "share of the price that an MLP encoder removes beyond the best affine one, both fitted to P",
        "interval above 0, .01 or more not excluded", coding.wider_encoder_helps,
    ),
    Claim(
        "known codes", "With codes known, wide MLP encoders recover them better than the SAE's encoder.",
        "known-code scenario", "MCC of the best MLP minus the SAE's", _MCC,
        synthetic.scenario("known_codes", "mlp", "sae"),
    ),
    Claim(
        "known dictionary", "With the dictionary known, optimised codes beat MLPs, and MLPs beat the SAE.",
        "known-dictionary scenario", "MCC of each kind minus the next", _MCC,
        synthetic.scenario("known_dictionary", "ito", "mlp", "sae"),
    ),
    Claim(
        "both unknown", "With nothing known, sparse coding recovers codes better than MLPs and SAEs.",
        "scenario with codes and dictionary unknown", "MCC of sparse coding minus the best MLP's, and minus the SAE's",
        _MCC, lambda rows: synthetic.together(rows, "unknown", ("sc", "mlp"), ("sc", "sae")),
    ),
    Claim(
        "optimised codes", "Optimising codes on a trained SAE's dictionary recovers more than its encoder.",
        "scenario with codes and dictionary unknown", "MCC of optimised codes minus the SAE's", _MCC,
        synthetic.scenario("unknown", "ito", "sae"),
    ),
    Claim(
        "boundary", "Sparse coding's lead is largest where codes can be recovered but dimensions are fewer than codes.",
        "scaling figures, K ln(N/K) <= M < N", "mean lead of sparse coding over the SAE inside minus outside", _MCC,
        synthetic.boundary,
    ),
    Claim(
        "per operation", "At equal training operations sparse coding recovers more than the SAE.",
        "compute figures", "MCC of sparse coding minus the SAE's where it took no more training operations", _MCC,
        synthetic.coding_per_operation,
    ),
    Claim(
        "agreement", "Sparse inference recovers latents that encoders miss (a stand-in where the truth is unknown).",
        "recovery claims", "how much more codes of two seeds agree under the optimum, latents matched by dictionary",
        "paired difference above 0, .01 or more not excluded", coding.seeds_agree,
    ),
    Claim(
        "interpretability", "Latents of MLP encoders are easier to explain than those of SAEs.",
        "auto-interpretability on GPT-2 (medians .83 and .63, by third-party notes)",
        "macro-F1 of a judge on latents of the MLP minus the SAE's, at about the same L0",
        "above 0, .02 or more not excluded", coding.mlp_is_explained,
    ),
)  # fmt: skip

CLAIMS: dict[str, tuple[Claim, ...]] = {PRICE: _PRICE, CODING: _CODING}
