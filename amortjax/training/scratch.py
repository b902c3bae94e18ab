"""Device memory of a training, counted from the arrays that are alive together in `step.train_step`.

States and batches are exact. Scratch is an upper estimate, fitted to what XLA sets aside on a CPU: the total is 1 to
1.5 times that of the compiled step (1.6 for some batch rules; 249 steps, every variant, N 128 to 8 192, D 64 to
1 024, M 1 024 to 32 768), and the tests hold a step of each variant against it.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from amortjax.training import sparse, watch
from amortjax.training.recipe import Recipe

F = 4  # bytes of a float32, and of an int32
Where = Literal["device", "host", "disk"]
# Dense (N, M) arrays alive at once beside the pre-activations: codes, their gradient, masks, powers.
DENSE = {"l1": 2.25, "p_anneal": 5.25, "gated": 4.25, "jumprelu": 4.25}


class Term(NamedTuple):
    """`remedy`: the flag that governs it, and what to do with it. `held`: bytes of it that are taken already."""

    name: str
    nbytes: int
    where: Where
    remedy: str
    held: int = 0


def weights(recipe: Recipe, d: int) -> int:
    """Bytes of a recipe's weights, all float32."""
    m, extra = recipe.n_latents, 0
    if recipe.variant == "mlp":
        width, layers = recipe.hidden or 0, max(len(recipe.group_sizes()), 1)
        extra = layers * width * (d + 1) + width * m
    extra += {"jumprelu": m, "gated": 3 * m}.get(recipe.variant, 0)
    return F * (2 * d * m + m + d + extra)


def state(recipe: Recipe, d: int) -> int:
    """Bytes of `step.State`: weights, Adam's two moments, a counter per latent and a few numbers."""
    return 3 * weights(recipe, d) + F * (recipe.n_latents + 16)


def device_terms(
    recipes: Sequence[Recipe], d: int, devices: int, held_out: int, evaluate: bool
) -> list[Term]:
    n = -(-recipes[0].batch_size // devices)
    most = max(recipes, key=lambda recipe: recipe.n_latents)
    fewer = "train fewer SAEs in one pass, or lower" if len(recipes) > 1 else "lower"
    narrow, short = f"{fewer} --n_latents={most.n_latents}", f"lower --batch_size={recipes[0].batch_size}"
    w = sum(weights(recipe, d) for recipe in recipes)
    terms = [
        Term("weights", w, "device", narrow),
        Term("Adam's two moments, counters", sum(state(r, d) for r in recipes) - w, "device", narrow),
        Term("batch, raw and scaled", 2 * F * n * d, "device", short),
    ]
    if held_out:
        terms.append(Term("held-out rows, scaled", F * held_out * d * len(recipes), "device", narrow))
    # One after the other, and one SAE after the other, so the largest counts.
    moments = [phase for recipe in recipes for phase in (_backward(recipe, d, n), _update(recipe, d))]
    moments += [_evaluation(recipe, d, held_out) for recipe in recipes if held_out and evaluate]
    return terms + max(moments, key=lambda terms: sum(term.nbytes for term in terms))


def _update(recipe: Recipe, d: int) -> list[Term]:
    """The gradient; without its part along the rows; the new weights, before and after their rows have norm 1."""
    copies = 4.1 if recipe.unit_decoder else 2.1
    copies += 1.2 if _has_auxk(recipe) else 0.5 if recipe.variant == "gated" else 0
    return [_gradients(recipe, d, copies)]


def _gradients(recipe: Recipe, d: int, copies: float) -> Term:
    narrow = f"lower --n_latents={recipe.n_latents}"
    return Term("gradients and update", int(copies * weights(recipe, d)), "device", narrow)


def _backward(recipe: Recipe, d: int, n: int) -> list[Term]:
    """Loss and gradient of n rows: gradients and transposed weights beside what the rows take."""
    m, kind, short = recipe.n_latents, _kind(recipe), f"lower --batch_size={recipe.batch_size}"
    pre = Term("pre-activations (N x M)", F * n * m, "device", short)
    hidden = 3 * F * n * (recipe.hidden or 0) * max(len(recipe.group_sizes()), 1)
    if kind in DENSE:
        # A hidden layer's part is added to a copy.
        factor = DENSE[kind] + (1.25 if recipe.variant == "mlp" else 0)
        dense = int(factor * F * n * m) + 3 * F * n * d + hidden
        copies = 2 if recipe.unit_decoder else 1
        return [_gradients(recipe, d, copies), pre, Term("dense codes, gradients", dense, "device", short)]
    chosen = [pre, *_sparse(recipe, d, n, kind, hidden, short)]
    return [_gradients(recipe, d, 4.2 if _has_auxk(recipe) else 3), *chosen]


def _sparse(recipe: Recipe, d: int, n: int, kind: str, hidden: int, short: str) -> list[Term]:
    """Of the variants that work on a list of active latents."""
    m, t = recipe.n_latents, n * (recipe.k or sum(recipe.group_ks()))
    entries = 2 * F * n * d + 8 * F * t + _products(t, d) + hidden
    entries += 2 * F * n * d * len(recipe.group_sizes()) if kind == "matryoshka" else 0
    by_batch = kind in ("batch_topk", "matryoshka")
    candidates = F * min(16 * t, n * m) if by_batch else 0
    # The batch rule ranks a copy laid out otherwise, groups are cut out of one.
    copy = int(3.5 * candidates) + (F * n * m if by_batch or recipe.group_ks() else 0)
    copy += F * n * m // 8 if by_batch else 0  # maxima of blocks
    auxk = _auxk(recipe, d, n)
    # Gone before the auxiliary loss needs its own; a hidden layer's part is added to a copy.
    early = F * n * m if recipe.variant == "mlp" else 0
    terms = [
        Term("active latents", entries, "device", short),
        Term("choosing the active latents", copy + max(early - auxk, 0), "device", short),
        Term("auxiliary loss of dead latents", auxk, "device", f"{short}, or set --auxk=0"),
    ]
    return [term for term in terms if term.nbytes]


def _has_auxk(recipe: Recipe) -> bool:
    return _kind(recipe) not in DENSE and recipe.auxk > 0


def _auxk(recipe: Recipe, d: int, n: int) -> int:
    """Masked pre-activations, and up to D / 2 latents a token as a list."""
    t = n * max(1, min(d // 2, recipe.n_latents))
    return F * n * recipe.n_latents + 10 * F * t + _products(t, d) if _has_auxk(recipe) else 0


def _products(t: int, d: int) -> int:
    """Rows of D that are in flight for t active latents (`training.sparse`)."""
    return 3 * F * d * min(t, sparse.chunk(d))


def _kind(recipe: Recipe) -> str:
    """Which loss (`losses.LOSSES`) decides about scratch."""
    if recipe.variant in ("standard", "april") or (recipe.variant == "mlp" and recipe.lam is not None):
        return "l1"
    return recipe.variant


def _evaluation(recipe: Recipe, d: int, held_out: int) -> list[Term]:
    rows = watch.blocks(held_out, recipe.n_latents)[1]
    scratch = int(3.5 * F * rows * recipe.n_latents) + weights(recipe, d)
    return [
        Term(
            "held-out metrics", scratch, "device", f"lower --n_latents={recipe.n_latents}, or --eval_every=0"
        )
    ]
