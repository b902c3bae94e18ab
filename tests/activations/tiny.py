"""Random language models of every supported architecture, small enough for tests, and a byte tokenizer."""

import functools
import random
from typing import Any

WIDTH, BLOCKS, VOCABULARY = 16, 3, 257
ARCHITECTURES = ("gpt_neox", "gpt2", "llama", "gemma2", "gemma3", "bert")


def tokenizer():
    """Bytes as tokens 1 to 256, led by a BOS, token 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<bos>": 0} | {character: i + 1 for i, character in enumerate(alphabet)}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    bytes_only.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    bytes_only.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bytes_only, bos_token="<bos>", eos_token="<bos>")


@functools.cache
def module(architecture: str):
    """A transformers base model with random weights of a size at which all its parts matter."""
    import torch
    import transformers

    torch.manual_seed(0)
    # Matrices this small gain nothing from threads that wait for one another.
    torch.set_num_threads(1)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    }
    shared: dict[str, Any] = {
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    configs = {
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**sizes),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=BLOCKS, n_head=2, n_positions=64
        ),
        "llama": lambda: transformers.LlamaConfig(**sizes, **shared),
        "gemma2": lambda: transformers.Gemma2Config(**sizes, **shared, sliding_window=8),
        "gemma3": lambda: transformers.Gemma3TextConfig(**sizes, **shared, sliding_window=8),
        "bert": lambda: transformers.BertConfig(**sizes),
    }
    model = transformers.AutoModel.from_config(configs[architecture](), attn_implementation="eager")
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.3 * torch.randn_like(value))
    return model.eval()


@functools.cache
def model(architecture: str):
    """The same, as amortjax reads it."""
    from amortjax.activations.models import wrap_model

    return wrap_model(architecture, module(architecture), tokenizer())


def texts(count: int, seed: int = 0, shortest: int = 1, longest: int = 60) -> list[str]:
    """Random words, between so many characters."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz    "
    return ["".join(rng.choices(letters, k=rng.randint(shortest, longest))) + "." for _ in range(count)]
