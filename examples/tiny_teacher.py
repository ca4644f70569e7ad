#!/usr/bin/env python3
"""Make the teacher and the text of examples/tiny.yaml: a small Llama, trained here on what every machine has.

    python examples/tiny_teacher.py --store build/store

The text is the source code of the Python standard library. The model has 12 decoder layers and grouped
queries and is trained for about two minutes on two cores. Both are written below FOLDER/trenchcoat/, as the
bucket `trenchcoat` of a folder store, and kept in the cache folder for the next time.
"""

import argparse
import fcntl
import gzip
import hashlib
import json
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

BUCKET = "trenchcoat"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything the teacher depends on; a change makes a new one."""

    vocab_size: int = 1024
    hidden_size: int = 64
    layers: int = 12
    heads: int = 4
    head_dim: int = 16
    kv_heads: int = 2
    intermediate_size: int = 192
    initializer_range: float = 0.08  # weights of so narrow a model must start larger than Llama's 0.02
    sequence_length: int = 512
    batch_size: int = 4
    steps: int = 500
    muon_learning_rate: float = 0.02
    adam_learning_rate: float = 6e-3
    corpus_bytes: int = 12_000_000
    seed: int = 0


def documents(limit: int) -> Iterator[dict[str, str]]:
    """The standard library's modules in a fixed order, until `limit` bytes of text."""
    root = Path(sysconfig.get_path("stdlib"))
    total = 0
    skipped = {
        "site-packages",
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "__pycache__",
        "encodings",
        "pydoc_data",
    }
    files = [path for path in root.rglob("*.py") if not skipped & set(path.relative_to(root).parts)]
    # By hash, so that a limit takes from everywhere.
    for path in sorted(files, key=lambda path: hashlib.sha256(str(path.relative_to(root)).encode()).digest()):
        text = path.read_text(encoding="utf-8", errors="replace")
        if total + len(text) > limit:
            return
        total += len(text)
        yield {"path": str(path.relative_to(root)), "text": text}


def write_corpus(recipe: Recipe, folder: Path) -> None:
    """Write the documents as gzipped JSONL in four files."""
    folder.mkdir(parents=True)
    records = list(documents(recipe.corpus_bytes))
    for part in range(4):
        with gzip.open(folder / f"part-{part}.jsonl.gz", "wt", encoding="utf-8") as file:
            for record in records[part::4]:
                file.write(json.dumps(record) + "\n")


def train_tokenizer(recipe: Recipe, texts: list[str]):
    """Byte-level BPE over the corpus."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        clean_up_tokenization_spaces=False,
    )


def train_teacher(recipe: Recipe, texts: list[str], folder: Path) -> None:
    """Train the model and save it with its tokenizer as a Hugging Face checkpoint in several files."""
    import torch
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    tokenizer = train_tokenizer(recipe, texts)
    ids = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts):
        ids += [tokenizer.bos_token_id, *encoding.ids]
    tokens = torch.tensor(ids)
    windows = tokens[: len(tokens) // recipe.sequence_length * recipe.sequence_length].view(
        -1, recipe.sequence_length
    )

    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        intermediate_size=recipe.intermediate_size,
        max_position_embeddings=4 * recipe.sequence_length,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        initializer_range=recipe.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    # Muon on the layers' matrices learns about twice as much per step as AdamW alone on so few steps.
    matrices = [
        weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name
    ]
    others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=recipe.muon_learning_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=recipe.adam_learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peaks = [recipe.muon_learning_rate, recipe.adam_learning_rate]
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.cat([torch.randperm(len(windows), generator=generator) for _ in range(64)])
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task(f"training the teacher on {len(tokens):,} tokens", total=recipe.steps, loss="")
        for step in range(recipe.steps):
            warm = min(1.0, (step + 1) / 20)
            cooling = min(1.0, (recipe.steps - step) / (0.5 * recipe.steps))
            for optimizer, peak in zip(optimizers, peaks, strict=True):
                optimizer.param_groups[0]["lr"] = peak * warm * cooling
            batch = windows[order[step * recipe.batch_size : (step + 1) * recipe.batch_size]]
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if step % 50 == 0 and not bar.console.is_terminal:
                print(f"teacher: step {step} of {recipe.steps}, loss {loss.item():.3f}", flush=True)
            bar.update(task, advance=1, loss=f"loss {loss.item():.3f}")
    model.save_pretrained(folder, max_shard_size="1MB")
    tokenizer.save_pretrained(folder)


def make_cached(recipe: Recipe, made: Path) -> None:
    """Make the folder with both, whole or not at all."""
    partial = made.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    write_corpus(recipe, partial / "corpora" / "stdlib")
    started = time.monotonic()
    texts = [record["text"] for record in documents(recipe.corpus_bytes)]
    train_teacher(recipe, texts, partial / "teachers/tiny")
    print(f"teacher trained in {time.monotonic() - started:.0f} s")
    partial.rename(made)


def make(recipe: Recipe, store: Path, cache: Path) -> None:
    """Put teacher and text below `store`, from the cache when they are there."""
    key = hashlib.sha256(json.dumps([asdict(recipe), sys.version_info[:2]]).encode()).hexdigest()[:12]
    made = cache / "teacher" / key
    made.parent.mkdir(parents=True, exist_ok=True)
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # it is made once, and nobody takes away what another one writes
        if not made.exists():
            make_cached(recipe, made)
    shutil.copytree(made, store / BUCKET, dirs_exist_ok=True)
    print(f"teacher: {store / BUCKET / 'teachers/tiny'}\ntext:    {store / BUCKET / 'corpora/stdlib'}")


def main() -> None:
    """Parse arguments and make both."""
    default_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trenchcoat"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, required=True, help="folder that serves as the store")
    parser.add_argument(
        "--cache", type=Path, default=default_cache, help="where the finished teacher is kept"
    )
    arguments = parser.parse_args()
    make(Recipe(), arguments.store, arguments.cache)


if __name__ == "__main__":
    main()
