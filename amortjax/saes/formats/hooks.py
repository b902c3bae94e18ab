"""Where in a language model an SAE reads, from the names that libraries give to that place."""

import re
from typing import NamedTuple


class Site(NamedTuple):
    """`hook` as `amortjax.launch.collect --hook` takes it where it can: resid_pre, resid_post, mlp_out, attn_out;
    others (resid_mid, hook_z, ln2, embed, ...) are only told. Block L from 0; None = not said."""

    hook: str = ""
    layer: int | None = None


# {pattern: hook}; the first that matches the whole name. TransformerLens, Hugging Face modules, SAEBench folders.
_NAMES = {
    r"blocks\.(\d+)\.hook_(resid_pre|resid_post|resid_mid|mlp_out|attn_out)": "{1}",
    r"blocks\.(\d+)\.attn\.hook_(z|q|k|v)": "hook_{1}",
    r"blocks\.(\d+)\.ln2\.hook_normalized": "ln2",
    r"blocks\.(\d+)\.mlp\.hook_(in|pre|post)": "mlp_{1}",
    r"(?:(?:model|transformer|gpt_neox)\.)?(?:layers|h)\.(\d+)(?:\.output)?": "resid_post",
    r"(?:(?:model|transformer|gpt_neox)\.)?(?:layers|h)\.(\d+)\.input": "resid_pre",
    r"(?:(?:model|transformer|gpt_neox)\.)?(?:layers|h)\.(\d+)\.self_attn\.o_proj\.input": "hook_z",
    r"(?:(?:model|transformer|gpt_neox)\.)?(?:layers|h)\.(\d+)\.pre_feedforward_layernorm\.output": "ln2",
    r"(?:(?:model|transformer|gpt_neox)\.)?(?:layers|h)\.(\d+)\.(?:mlp|post_feedforward_layernorm)(?:\.output)?": (
        "mlp_out"
    ),
    r"(?:(?:model|transformer|gpt_neox)\.)?(?:layers|h)\.(\d+)\.(?:self_attn|attn|attention)(?:\.output)?": (
        "attn_out"
    ),
    r"(resid_post|resid_pre)_layer_(\d+)": "{0}",
    r"(?:mlp|mlp_out)_layer_(\d+)": "mlp_out",
    r"(?:attention|attn_out)_layer_(\d+)": "attn_out",
}


def site(name: str) -> Site:
    """The place a name means; its own words and no layer if it is none of the known ones."""
    for pattern, hook in _NAMES.items():
        found = re.fullmatch(pattern, name)
        if found:
            layer = next(int(group) for group in found.groups() if group.isdigit())
            return Site(hook.format(*found.groups()), layer)
    if name in ("hook_embed", "embed_tokens", "model.embed_tokens", "blocks.0.hook_embed"):
        return Site("embed")
    return Site(name)


# {hook: what TransformerLens calls it, after `blocks.{layer}.`}
_TRANSFORMER_LENS = {
    name: f"hook_{name}" for name in ("resid_pre", "resid_mid", "resid_post", "mlp_out", "attn_out")
}
_TRANSFORMER_LENS |= {f"hook_{name}": f"attn.hook_{name}" for name in "zqkv"}
_TRANSFORMER_LENS |= {f"mlp_{name}": f"mlp.hook_{name}" for name in ("in", "pre", "post")}
_TRANSFORMER_LENS |= {"ln2": "ln2.hook_normalized"}


def transformer_lens_name(hook: str, layer: int | None) -> str:
    """TransformerLens' name of a Site, so that `site` of it is that Site again; the hook's own word where there is
    none or no layer."""
    if hook == "embed":
        return "hook_embed"
    if layer is None or hook not in _TRANSFORMER_LENS:
        return hook
    return f"blocks.{layer}.{_TRANSFORMER_LENS[hook]}"
