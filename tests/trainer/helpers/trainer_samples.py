"""A tiny Llama with its tokenizer, text, and a stop at a chosen moment, for the trainer's tests."""

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trenchcoat_trainer.runtime.stop import StopRequest

LAYERS = 5
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def make_config(**changes: Any) -> LlamaConfig:
    """A Llama with grouped queries and llama3 rope scaling, small enough for any machine."""
    fields: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "rope_parameters": dict(ROPE),
        "bos_token_id": 0,
        "eos_token_id": 1,
        "initializer_range": 0.1,
    }
    return LlamaConfig(**(fields | changes))


def save_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer with bos and eos."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 20, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(
        folder
    )


def save_teacher(folder: Path, config: LlamaConfig, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """A random teacher in several safetensors files, with its tokenizer."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(dtype).eval()
    model.save_pretrained(folder, max_shard_size="100KB")
    save_tokenizer(folder)
    return model


def make_documents(count: int, seed: int = 0) -> list[str]:
    """Reproducible English-like documents of different lengths."""
    words = [*"abcdefghijklmnopqrstuvwxyz", "the", "quick", "brown", "fox", "over", "lines", "of text"]
    source = random.Random(seed)
    return [" ".join(source.choices(words, k=source.randint(5, 120))) + f" {index}" for index in range(count)]


class StopAfter(StopRequest):
    """A stop that is requested once it was asked about `looks` times."""

    def __init__(self, looks: int) -> None:
        self._looks = looks

    @property
    def requested(self) -> bool:
        self._looks -= 1
        return self._looks < 0
