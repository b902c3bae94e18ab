"""Automated interpretability: descriptions of latents by a judge, and how well they tell where a latent fires.

text = interp.text_of(acts, rows)
picked = interp.pick_latents([codes], text, n=200)
scores = interp.score_latents(codes, text, picked.latents, interp.make_judge("offline"))
row = interp.summary(scores)
"""

from amortjax.interp.cost import Budget, Prices
from amortjax.interp.examples import Settings, Text, text_of
from amortjax.interp.judges import JUDGES, JudgeOptions, make_judge
from amortjax.interp.pipeline import Picked, pick_latents, score_latents, shuffled
from amortjax.interp.scoring import LatentScore, difference, summary
from amortjax.interp.transcripts import Transcript

__all__ = [
    "JUDGES", "Budget", "JudgeOptions", "LatentScore", "Picked", "Prices", "Settings", "Text", "Transcript",
    "difference", "make_judge", "pick_latents", "score_latents", "shuffled", "summary", "text_of",
]  # fmt: skip
