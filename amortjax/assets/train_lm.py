"""Trains the embedded language model: a byte-level BPE tokenizer and a small GPT-NeoX, on `pydoc`.

Only lm_train documents are read; the held-out loss is that of whole test documents. The learning rate
follows the clock, so the run ends on time on any machine (and is not repeated bit for bit).
"""

import copy
import dataclasses
import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from amortjax.activations import pydoc
from amortjax.activations.splits import PYDOC_FRACTIONS, Splitter
from amortjax.files import write_atomically

END = "<|endoftext|>"
FOLDER = Path(__file__).parent / "tiny_lm"
# Beside the model: what it was trained on, so that a machine with other packages can say so.
PROVENANCE = "trained_on.json"


@dataclass(frozen=True)
class Config:
    out: Annotated[str, "Folder of the model."] = str(FOLDER)
    minutes: Annotated[float, "How long to train, by the clock."] = 45.0
    d_model: Annotated[int, "Width of the residual stream (D)."] = 128
    n_layers: Annotated[int, "Blocks."] = 4
    n_heads: Annotated[int, "Attention heads."] = 4
    vocab_size: Annotated[int, "Tokens of the byte-level BPE."] = 4096
    context: Annotated[int, "Tokens of a training sequence."] = 128
    batch_size: Annotated[int, "Sequences per step."] = 16
    lr: Annotated[float, "Highest learning rate."] = 2e-3
    weight_decay: Annotated[float, "AdamW's, on matrices."] = 0.1
    snapshot_minutes: Annotated[float, "A usable model is saved this often."] = 5.0
    threads: Annotated[int, "PyTorch threads; matrices this small gain nothing from more."] = 1
    cache_dir: Annotated[str, "Where the corpus is cached."] = "outputs/cache"
    seed: Annotated[int, "Seed of weights, batches and sample."] = 0


def documents_by_split(cache_dir: str) -> dict[str, list[str]]:
    """{split: texts} of `pydoc`, as collect assigns them."""
    splitter = Splitter(PYDOC_FRACTIONS, near_copies=False)
    texts: dict[str, list[str]] = {}
    for text, _ in pydoc.load(cache_dir):
        texts.setdefault(splitter.assign(text), []).append(text)
    return texts


def train_tokenizer(texts: list[str], config: Config) -> Any:
    """A byte-level BPE; every text starts with the end-of-text token, which also takes the place of a BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{END} $A", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        model_max_length=config.context,
        clean_up_tokenization_spaces=False,
    )


def make_model(config: Config, end_id: int) -> Any:
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(config.seed)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            intermediate_size=4 * config.d_model,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            bos_token_id=end_id,
            eos_token_id=end_id,
            use_cache=False,
        )
    )


def _optimizer(model: Any, config: Config) -> Any:
    import torch

    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))


def _rate(done: float, step: int) -> float:
    """Part of the highest rate: linear over 100 steps, then a cosine to 2 % at `done` = 1."""
    warm = min(1.0, (step + 1) / 100)
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def _batches(stream: np.ndarray, config: Config) -> Iterator[np.ndarray]:
    """(batch, context) token ids, windows of the joined documents in a new order and phase each epoch."""
    rng = np.random.default_rng(config.seed)
    while True:
        phase = int(rng.integers(config.context))
        windows = stream[phase : phase + (len(stream) - phase) // config.context * config.context]
        windows = windows.reshape(-1, config.context)
        order = rng.permutation(len(windows))
        for start in range(0, len(order) - config.batch_size + 1, config.batch_size):
            yield windows[order[start : start + config.batch_size]]


def held_out(model: Any, tokenizer: Any, texts: list[str], context: int) -> dict[str, float]:
    """Loss of whole documents in windows of `context`, each led by the end-of-text token.

    Returns nats_per_token, bits_per_byte and tokens; what is predicted is every token of every document.
    """
    import torch

    nats, tokens = 0.0, 0
    end = tokenizer.bos_token_id
    windows = []
    for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        windows += [[end, *ids[i : i + context - 1]] for i in range(0, len(ids), context - 1)]
    windows.sort(key=len)
    model.eval()
    with torch.no_grad():
        for start in range(0, len(windows), 64):
            batch = windows[start : start + 64]
            width = len(batch[-1])
            padded = torch.full((len(batch), width), end)
            targets = torch.full((len(batch), width), -100)
            for row, ids in enumerate(batch):
                padded[row, : len(ids)] = torch.tensor(ids)
                targets[row, : len(ids)] = torch.tensor(ids)
            # Padding stands to the right, so a causal model's predictions before it don't change.
            logits = model(input_ids=padded).logits[:, :-1].flatten(0, 1)
            nats += float(
                torch.nn.functional.cross_entropy(logits, targets[:, 1:].flatten(), reduction="sum")
            )
            tokens += sum(len(ids) - 1 for ids in batch)
    model.train()
    size = sum(len(text.encode()) for text in texts)
    return {"nats_per_token": nats / tokens, "bits_per_byte": nats / math.log(2) / size, "tokens": tokens}


def sample(model: Any, tokenizer: Any, prompt: str, seed: int, temperature: float = 0.7) -> str:
    """The prompt and 60 sampled tokens; temperature 0 is greedy."""
    import torch

    torch.manual_seed(seed)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    model.eval()
    with torch.no_grad():
        for _ in range(60):
            logits = model(input_ids=ids).logits[0, -1]
            if temperature:
                following = torch.multinomial(torch.softmax(logits / temperature, -1), 1)
            else:
                following = logits.argmax()[None]
            ids = torch.cat([ids, following[None]], dim=1)
    model.train()
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def save(model: Any, tokenizer: Any, folder: Path, record: dict) -> None:
    """Writes float16 safetensors, tokenizer and provenance beside `folder`, then puts them in its place."""
    import torch

    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    half = copy.deepcopy(model).to(torch.float16)
    half.save_pretrained(part)
    tokenizer.save_pretrained(part)
    (part / "generation_config.json").unlink(missing_ok=True)
    write_atomically(part / PROVENANCE, json.dumps(record, indent=1) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    # One file at a time: somebody may be reading the folder.
    for path in part.iterdir():
        path.chmod(0o644)
        path.replace(folder / path.name)
    part.rmdir()


def _provenance(config: Config, training_tokens: int, parameters: int) -> dict:
    return {
        "corpus": "pydoc",
        "corpus_fingerprint": pydoc.fingerprint(),
        "package_versions": pydoc.versions(),
        "split_fractions": PYDOC_FRACTIONS,
        "trained_split": "lm_train",
        "training_tokens": training_tokens,
        "parameters": parameters,
        "config": {k: v for k, v in dataclasses.asdict(config).items() if k not in ("out", "cache_dir")},
    }


def _step(model: Any, optimizer: Any, batch: np.ndarray) -> float:
    """One update on (batch, context) token ids; the loss before it, nats per token."""
    import torch

    ids = torch.from_numpy(batch)
    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def run(config: Config) -> dict:
    """Trains, saves and reports; returns the record that is saved beside the model."""
    import torch

    torch.set_num_threads(config.threads)
    texts = documents_by_split(config.cache_dir)
    tokenizer = train_tokenizer(texts["lm_train"], config)
    encoded = tokenizer(texts["lm_train"], verbose=False)["input_ids"]
    stream = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in encoded])
    model = make_model(config, tokenizer.bos_token_id)
    optimizer = _optimizer(model, config)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(texts['lm_train'])} documents, {len(stream)} tokens, {parameters} parameters", flush=True)
    record = _provenance(config, len(stream), parameters)
    began = saved = time.monotonic()
    smooth = math.log(config.vocab_size)
    folder = Path(config.out)
    for step, batch in enumerate(_batches(stream, config)):
        done = (time.monotonic() - began) / (60 * config.minutes)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _rate(done, step)
        loss = _step(model, optimizer, batch)
        smooth += (loss - smooth) * max(0.02, 1 / (step + 1))
        record |= {"steps": step + 1, "minutes": (time.monotonic() - began) / 60}
        if step % 100 == 0:
            rate = (step + 1) * batch.size / (time.monotonic() - began)
            print(f"step {step}  {100 * done:.1f} %  loss {smooth:.3f}  {rate:.0f} tokens/s", flush=True)
        if time.monotonic() - saved > 60 * config.snapshot_minutes:
            saved = time.monotonic()
            record["held_out"] = held_out(model, tokenizer, texts["test"][:200], config.context)
            save(model, tokenizer, folder, record)
            print(f"saved after {record['minutes']:.1f} minutes: {record['held_out']}", flush=True)
    record["held_out"] = held_out(model, tokenizer, texts["test"], config.context)
    save(model, tokenizer, folder, record)
    print(json.dumps(record, indent=1))
    for temperature in (0.0, 0.7):
        text = sample(model, tokenizer, "Return the", config.seed, temperature)
        print(f"--- temperature {temperature}\n{text}")
    return record


if __name__ == "__main__":
    from amortjax.launch import flagged

    flagged.launch(Config, run, "amortjax.assets.train_lm")
