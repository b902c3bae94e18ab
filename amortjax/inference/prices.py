"""What each latent of an encoder costs: its share of the price at the lambda that keeps the encoder's L0."""

import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.inference import api, objective
from amortjax.inference.gaps import per_latent
from amortjax.saes.sae import SAE


def latent_prices(sae: SAE, x: np.ndarray) -> np.ndarray:
    """(M,) objective units, over the tokens of x (N, D): see `gaps.per_latent`. AmortjaxError if no lasso optimum
    has the encoder's L0."""
    codes = api.encode_codes(sae, x)
    problem = objective.pose(sae)
    l0 = float(codes.l0.mean())
    if not 0 < l0 < problem.rank_bound:
        raise AmortjaxError(
            f"the encoder fires {l0:.1f} latents per token, an optimum at most {problem.rank_bound}: no lambda "
            "at which their prices could be compared"
        )
    lam = api.calibrate(sae, x).lam
    best = api.infer(sae, x, lam)
    t = np.asarray(objective.targets(sae, x, None)[0])
    return per_latent(problem, t, codes, best.codes, lam).price
