"""The benchmark's problems: one synthetic dictionary at three densities, and a trained SAE at lambda*."""

import dataclasses
from typing import NamedTuple

import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.inference import api, modes, objective
from amortjax.inference.codes import Codes
from amortjax.inference.objective import Problem
from amortjax.inference.request import Request, Settings
from amortjax.inference.solvers import SOLVERS
from amortjax.saes.sae import SAE

# Atoms that make up a token. At 30 lambda is fixed; the denser ones have theirs calibrated, so that the
# optimum uses as many atoms as the token was made of.
SYNTHETIC = {"synthetic": 30, "synthetic_l0_100": 100, "synthetic_l0_300": 300}
FIXED_LAM = 0.3
CALIBRATION_ROWS = 256  # of a synthetic problem, whose tokens are alike: L0 is known to 1 % from as many


@dataclasses.dataclass(frozen=True)
class Case:
    """A problem to solve. t (N, D) targets in random order, so that the first n are a fair sample; `lam` half
    form; `l0` and `objective` (N,): of the optimum, what solvers bounded in L0 are allowed and what
    `suboptimality` is against; `others` (N', D): targets to train on, none of them in t; `sae`, `x` (N, D) and
    folded `encoder` codes where there is an encoder."""

    name: str
    text: str
    problem: Problem
    t: np.ndarray
    lam: float
    others: np.ndarray
    l0: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))
    objective: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    sae: SAE | None = None
    x: np.ndarray | None = None
    encoder: Codes | None = None

    def request(self, n: int, settings: Settings, from_encoder: bool = False) -> Request:
        """For the first n tokens."""
        start = self.encoder.rows(0, n) if from_encoder and self.encoder is not None else None
        return Request(self.problem, self.t[:n], np.full(n, self.lam), start, self.l0[:n], settings)


class Sizes(NamedTuple):
    n_tokens: int
    d_model: int  # of the synthetic problems; an SAE has its own
    n_latents: int
    calibration_tokens: int  # others than the solved ones, to train on and (SAE) to find lambda on
    seed: int


def draw(sizes: Sizes, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Atoms (M, D) in coherent families of eight, and tokens (N, D) made of k of them, the common ones more
    often, plus noise. The order of the draws is part of the problem's definition."""
    r, (n, d, m) = np.random.default_rng(sizes.seed), sizes[:3]
    base = r.standard_normal((m // 8, d))
    atoms = r.standard_normal((m, d)) * np.sqrt(0.7) + np.repeat(base, 8, axis=0) * np.sqrt(0.3)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    return atoms, draw_tokens(r, atoms, n, k)


def draw_tokens(r: np.random.Generator, atoms: np.ndarray, n: int, k: int) -> np.ndarray:
    m, d = atoms.shape
    p = np.arange(1, m + 1) ** -0.7
    p /= p.sum()
    x = np.zeros((n, d))
    for row in x:
        chosen = r.choice(m, k, replace=False, p=p)
        row += (r.exponential(size=k) + 0.2) @ atoms[chosen]
    return x + 0.05 * r.standard_normal((n, d))


def _empty(n: int, m: int) -> Codes:
    return Codes(np.zeros((n, 8), np.int32), np.zeros((n, 8), np.float32), m)


def synthetic(name: str, sizes: Sizes) -> Case:
    k = SYNTHETIC[name]
    atoms, x = draw(sizes, k)
    problem, t = objective.pose_dictionary(atoms), np.asarray(x, np.float32)
    others = draw_tokens(np.random.default_rng([sizes.seed, 1]), atoms, sizes.calibration_tokens, k)
    text = f"synthetic dictionary, D = {sizes.d_model}, M = {sizes.n_latents}, {k} atoms a token"
    case = Case(name, text, problem, t, FIXED_LAM, others.astype(np.float32))
    if name == "synthetic":
        return _with_optimum(case)
    few = t[:CALIBRATION_ROWS]
    own = _empty(len(few), problem.n_latents)
    # Denser tokens are longer by the square root of their atoms: that is where the search starts.
    guess = FIXED_LAM * np.sqrt(k / 30)
    found = api.match_l0("optimal", problem, few, own, float(k), modes.Options(), start=guess, refuse=True)
    text += f", lambda calibrated to L0 {k} on {len(few)} of them"
    return _with_optimum(dataclasses.replace(case, text=text, lam=found.lam))


def trained(ckpt: str, acts: str, sizes: Sizes) -> Case:
    """Held-out tokens of a store under an SAE, at the lambda where the optimum is as dense as its encoder."""
    from amortjax.activations.store import open_store
    from amortjax.saes.formats import load_sae

    sae, store = load_sae(ckpt), open_store(acts)
    if store.d_model != sae.d_in or sae.d_in != sae.d_out:
        raise AmortjaxError(
            f"--ckpt={ckpt} takes {sae.d_in} to {sae.d_out} dimensions, --acts={acts} has {store.d_model}: the "
            "benchmark needs an SAE of that very store, not a transcoder"
        )
    problem = objective.pose(sae)
    if problem.signed:
        raise AmortjaxError(
            f"--ckpt={ckpt}: its codes may be negative, which the other libraries aren't asked"
        )

    def rows(split: str, n: int) -> np.ndarray:
        return store.read(store.rows(split, n, whole_documents=False, seed=sizes.seed))

    x = np.random.default_rng(sizes.seed).permutation(rows("test", sizes.n_tokens))
    own = rows("calibrate", sizes.calibration_tokens)
    guess = api.encode_codes(sae, own)
    l0 = float(guess.l0.mean())
    others = np.asarray(objective.targets(sae, own)[0])
    found = api.match_l0("optimal", problem, others, guess, l0, modes.Options(), refuse=True)
    text = (
        f"{sae.info.name} ({sae.variant}, D = {sae.d_in}, M = {sae.n_latents}), held-out tokens, lambda at which "
        f"the optimum has the encoder's L0 ({l0:.3g}, on {len(own)} others)"
    )
    t, codes = np.asarray(objective.targets(sae, x)[0]), problem.fold(api.encode_codes(sae, x))
    return _with_optimum(Case("sae", text, problem, t, found.lam, others, sae=sae, x=x, encoder=codes))


def _with_optimum(case: Case) -> Case:
    """The case with its optimum's L0 and objective, tight enough to tell solvers at 1e-4 apart."""
    n = len(case.t)
    case = dataclasses.replace(case, l0=np.zeros(n, int), objective=np.zeros(n))
    codes, _ = SOLVERS["active_set"].solve(case.request(n, Settings(tol=1e-6)))
    proof = objective.certify(case.problem, case.t, case.problem.unfold(codes), case.lam)
    return dataclasses.replace(case, l0=codes.l0, objective=proof.objective)


def make(name: str, sizes: Sizes, ckpt: str | None, acts: str | None) -> Case:
    if name in SYNTHETIC:
        return synthetic(name, sizes)
    return trained(str(ckpt), str(acts), sizes)
