"""A judge on this machine: a causal language model of transformers, greedy, one question at a time. Loads torch.

A model with a chat template is asked in it; one without is given the bare text to go on with. A prompt that is too long
for the model loses its beginning, and the answer says so.
"""

import logging
import threading
from typing import Any

import numpy as np

from amortjax.activations.models import EMBEDDED, EMBEDDED_FOLDER
from amortjax.errors import ModelError
from amortjax.interp.prompts import Answer, Request

CUT = "the prompt was longer than the model takes: its beginning was cut"


class Local:
    """`model`: a folder, a hub id, or `embedded`. ModelError if it can't be read or is no causal model."""

    name = "local"

    def __init__(self, model: str, answer_tokens: int = 300, device: str = "auto") -> None:
        if not model:
            raise ModelError("the local judge needs --judge_model: a folder or a hub id of a causal model")
        self.model, self.answer_tokens, self.device = model, answer_tokens, device
        self.tokenizer: Any = None
        self.module: Any = None
        self._lock = threading.Lock()

    def prepare(self) -> None:
        import torch

        if self.module is None:
            self.tokenizer, module = _load(self.model)
            if self.device == "auto":
                self.device = "cuda" if torch.cuda.is_available() else "cpu"
            self.module = module.to(self.device).eval()

    @property
    def identity(self) -> dict[str, Any]:
        return {"judge": self.name, "model": self.model, "answer_tokens": self.answer_tokens}

    def answer(self, request: Request) -> Answer:
        import torch

        with self._lock:
            self.prepare()
        ids = self.tokenizer(self._prompt(request), add_special_tokens=not self._templated)["input_ids"]
        limit = getattr(self.module.config.get_text_config(), "max_position_embeddings", None)
        most = self.answer_tokens if limit is None else min(self.answer_tokens, limit // 2)
        room = len(ids) if limit is None else limit - most
        kept = torch.tensor([ids[-room:]], device=self.device)
        with self._lock, torch.inference_mode():
            out = self.module.generate(
                kept, attention_mask=torch.ones_like(kept), max_new_tokens=most, do_sample=False,
                pad_token_id=self._pad, use_cache=True,
            )  # fmt: skip
        new = out[0, kept.shape[1] :].tolist()
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        note = CUT if room < len(ids) else ""
        return Answer(text.encode("utf-8", "replace").decode(), kept.shape[1], len(new), note)

    @property
    def _templated(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def _pad(self) -> int:
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((number for number in known if number is not None), 0)

    def _prompt(self, request: Request) -> str:
        if not self._templated:
            return "\n\n".join(message["content"] for message in request.messages) + "\n\n"
        given: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
        try:
            return self.tokenizer.apply_chat_template(list(request.messages), **given)
        except Exception:  # a template's own error: some know no system message, and say so in their own way
            first, second, *rest = request.messages
            joined = {"role": "user", "content": f"{first['content']}\n\n{second['content']}"}
            return self.tokenizer.apply_chat_template([joined, *rest], **given)


def _load(name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    for library in ("transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    path = str(EMBEDDED_FOLDER) if name == EMBEDDED else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, dtype="auto", output_loading_info=True)
    except Exception as error:  # transformers and the hub raise many kinds, without a common base.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{name}: can't be loaded as a causal language model ({reason[:160]}): check the id and the network, or "
            "give a folder with config.json, weights and tokenizer"
        ) from None
    module, about = loaded
    if about["missing_keys"]:
        missing = sorted(about["missing_keys"])[0]
        raise ModelError(
            f"{name}: {missing} is not in its weights, so it writes nothing: give a causal model"
        )
    return tokenizer, module if _has_half_kernels(module) else module.float()


def _has_half_kernels(module: Any) -> bool:
    import torch

    return torch.cuda.is_available() or next(module.parameters()).dtype in (torch.float32, torch.bfloat16)


def unembedding(name: str) -> tuple[np.ndarray, list[str]]:
    """(V, D) output embedding of a causal model and the text of each token, for the logit lens."""
    from amortjax.activations.tokens import readable

    tokenizer, module = _load(name)
    head = module.get_output_embeddings()
    strings = [""] * len(tokenizer)
    for token, number in tokenizer.get_vocab().items():
        if number < len(strings):
            strings[number] = token
    weight = head.weight.detach().float().cpu().numpy()[: len(strings)]
    return weight, readable(strings, set(tokenizer.all_special_ids))[: len(weight)]
