"""Places in a language model, named so that equal ones are equal: what leaves block L is what enters block L + 1."""

from amortjax.saes.formats.hooks import Site
from amortjax.saes.sae import Info

# What can be read from a model (as in activations.export).
READABLE = ("resid_post", "resid_pre", "mlp_out", "attn_out")


def declared(info: Info) -> Site:
    """Where the SAE's file says it reads; "" and None for what it does not say."""
    return Site(info.hook, info.layer_index)


def known(place: Site) -> bool:
    return place.hook in READABLE and place.layer is not None


def _plain(place: Site) -> Site:
    """resid_post of block L as resid_pre of block L + 1."""
    if place.hook == "resid_post" and place.layer is not None:
        return Site("resid_pre", place.layer + 1)
    return place


def same(a: Site, b: Site) -> bool:
    return _plain(a) == _plain(b)


def named(place: Site) -> str:
    """As in `resid_post of block 3`."""
    hook = place.hook or "an unnamed hook"
    return hook if place.layer is None else f"{hook} of block {place.layer}"


def neighbours(place: Site, n_blocks: int) -> list[Site]:
    """The residual stream before and after the blocks L - 1, L, L + 1 that the model has (the embedding is what enters
    block 0), what block L adds to it, and, for an SAE of mlp_out or attn_out, the same of the blocks beside."""
    layer = place.layer or 0
    beside = [i for i in (layer - 1, layer, layer + 1) if 0 <= i < n_blocks]
    found = [Site("resid_pre", beside[0]), *(Site("resid_post", i) for i in beside)]
    adds = ("mlp_out", "attn_out")
    found += [Site(hook, i) for hook in adds for i in beside if i == layer or hook == place.hook]
    return [place if same(place, site) else site for site in found]
