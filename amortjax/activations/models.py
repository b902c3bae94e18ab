"""Language models of Hugging Face, ready to be read from: loaded, their blocks found, their special tokens known."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amortjax.activations.tokens import readable
from amortjax.errors import ModelError

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).resolve().parents[1] / "assets" / "tiny_lm"


@dataclass(frozen=True)
class Model:
    """A language model ready to be read from."""

    name: str
    module: Any
    tokenizer: Any
    blocks: Any
    d_model: int
    # Longest sequence it takes; None if it says nothing.
    max_positions: int | None
    # Stands for configuration and weights.
    fingerprint: str
    special_ids: frozenset[int]
    device: str
    # The token put before each document, where that was asked for and the tokenizer puts none.
    lead: int | None = None

    def vocabulary(self) -> list[str]:
        """The text of each token id, a leading space shown as such."""
        strings = [""] * len(self.tokenizer)
        for token, number in self.tokenizer.get_vocab().items():
            if number < len(strings):
                strings[number] = token
        return readable(strings, set(self.special_ids))


def load_model(name: str, dtype: str = "float32", device: str = "auto", prepend_bos: bool = False) -> Model:
    """A model by hub id or folder, or `embedded`; ModelError if there is none or it can't be read.

    prepend_bos: each document begins with the BOS token, also where the tokenizer adds none (GPT-2, Pythia): it takes
    the outlying norm of a first position, and gives no row.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    # Every retry of a hub that can't be reached would be a line; the error below says it once.
    for library in ("transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    path = str(EMBEDDED_FOLDER) if name == EMBEDDED else name
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise ModelError(f"{name}: no such folder: give a hub id or a folder with config.json and weights.")
    try:
        # Alone at first, because an id that is not there then fails once and not several times over.
        config = AutoConfig.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path, config=config)
        module = AutoModel.from_pretrained(path, config=config, dtype=getattr(torch, dtype))
    except Exception as error:  # transformers and the hub raise many kinds, without a common base.
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"{name}: can't be loaded ({reason[0][:200] if reason else type(error).__name__}): check the id "
            "and the network, or give a folder with config.json, weights and tokenizer."
        ) from error
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return wrap_model(name, module.to(device), tokenizer, device, prepend_bos)


def wrap_model(
    name: str, module: Any, tokenizer: Any, device: str = "cpu", prepend_bos: bool = False
) -> Model:
    """A Model from a transformers module and its tokenizer."""
    config = module.config.get_text_config()
    # An unknown-word token that has no other use stands for text.
    roles = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.cls_token}
    unknown = set() if tokenizer.unk_token in roles else {tokenizer.unk_token_id}
    return Model(
        name=name,
        module=module.eval(),
        tokenizer=tokenizer,
        blocks=_find_blocks(module, config.num_hidden_layers),
        d_model=int(config.hidden_size),
        max_positions=getattr(config, "max_position_embeddings", None),
        fingerprint=_fingerprint(module),
        special_ids=frozenset(set(tokenizer.all_special_ids) - unknown),
        device=device,
        lead=_lead(name, tokenizer) if prepend_bos else None,
    )


def _lead(name: str, tokenizer: Any) -> int | None:
    """The BOS token, or None where the tokenizer begins with it anyway; ModelError if it has none."""
    if tokenizer.bos_token_id is None:
        raise ModelError(f"{name}: its tokenizer has no BOS token: leave out --prepend_bos.")
    return None if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] else tokenizer.bos_token_id


def _find_blocks(module: Any, count: int) -> Any:
    import torch

    for _, child in module.named_modules():
        if isinstance(child, torch.nn.ModuleList) and len(child) == count:
            return child
    raise ModelError(f"{type(module).__name__}: no list of {count} blocks found; its layout is not known.")


def _fingerprint(module: Any) -> str:
    """Hash of the configuration and of the beginning of every weight."""
    config = {
        k: v for k, v in module.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")
    }
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=8)
    for name, value in sorted(module.state_dict().items()):
        start = value.detach().flatten()[:256].float().cpu().numpy()
        digest.update(f"{name}{tuple(value.shape)}".encode() + start.tobytes())
    return digest.hexdigest()


def check_layer(model: Model, layer_index: int, max_seq_len: int) -> None:
    """ModelError, with what would be valid, on a block that is not there or sequences that are too long."""
    count = len(model.blocks)
    if not 0 <= layer_index < count:
        raise ModelError(f"--layer_index={layer_index}: {model.name} has blocks 0 to {count - 1}.")
    if max_seq_len < 2 or (model.max_positions and max_seq_len > model.max_positions):
        raise ModelError(
            f"--max_seq_len={max_seq_len}: {model.name} takes 2 to {model.max_positions} tokens."
        )
