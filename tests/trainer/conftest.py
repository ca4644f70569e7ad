"""What the trainer's tests share: a tiny Llama with its tokenizer, text, and a spec over a folder store."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.stages.context import StageContext
from trenchcoat_trainer.stages.opening import open_context

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


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher on disk, in fp32, with untied embeddings; do not change it."""
    folder = tmp_path_factory.mktemp("teacher")
    save_teacher(folder, make_config())
    return folder


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two JSONL files of 300 documents; do not change it."""
    folder = tmp_path_factory.mktemp("text")
    documents = make_documents(300)
    for part in range(2):
        lines = [json.dumps({"text": text}) for text in documents[part::2]]
        (folder / f"part-{part}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


SpecFactory = Callable[..., TrenchcoatSpec]


@pytest.fixture
def make_spec(teacher_folder: Path, text_folder: Path) -> SpecFactory:
    """Makes a spec over the tiny teacher and text; keyword arguments replace or extend its YAML fields."""

    def make(**changes: Any) -> TrenchcoatSpec:
        body: dict[str, Any] = {
            "model": {"source": teacher_folder.as_uri()},
            "data": {
                "source": f"{text_folder.as_uri()}/*.jsonl",
                "tokens": 6400,
                "sequenceLength": 64,
                "heldOutTokens": 640,
                "heldOutPercent": 10,
            },
            "store": {
                "endpoint": "http://127.0.0.1:9000",
                "bucket": "trenchcoat",
                "credentialsSecretRef": {"name": "minio"},
            },
            "layersPerCria": 2,
            "dtype": "float32",
            "attention": {"window": 16, "featureDim": 8},
        }
        for name, value in changes.items():
            old = body.get(name)
            body[name] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
        return TrenchcoatSpec.model_validate(body)

    return make


@pytest.fixture
def open_stage(tmp_path: Path) -> Callable[..., StageContext]:
    """Opens the context of a stage over a folder store below tmp_path."""

    def open_it(spec: TrenchcoatSpec, stage: Stage, **options: Any) -> StageContext:
        return open_context(spec, stage, folder=tmp_path / "store", **options)

    return open_it
