"""A checkpoint of several GB that takes no room on the disk, and how much memory a stage needs for it."""

import subprocess
import sys
from pathlib import Path

import torch
from transformers import LlamaForCausalLM
from trenchcoat_trainer.tensors.headers import TensorRange, build_header

from tests.trainer.helpers.trainer_samples import make_config, save_tokenizer

TOP = Path(__file__).parents[3]
RUN_AND_TELL_MEMORY = """
import sys
sys.path.append(sys.argv[1])
from tests.trainer.helpers.peak_memory import peak
from trenchcoat_trainer.cli import main
code = main(sys.argv[2:])
print(peak())
sys.exit(code)
"""


def peak_memory(arguments: list[str | Path]) -> int:
    """Largest resident memory, in bytes, of `trenchcoat` with these arguments in a process of its own."""
    command = [sys.executable, "-c", RUN_AND_TELL_MEMORY, str(TOP), *map(str, arguments)]
    child = subprocess.run(command, check=True, capture_output=True)
    return int(child.stdout.split()[-1])


def save_sparse_teacher(folder: Path, layer_bytes: int) -> int:
    """A checkpoint of one layer whose weights take no room on the disk; returns its size in bytes."""
    hidden = 2048
    config = make_config(
        hidden_size=hidden, num_hidden_layers=1, intermediate_size=layer_bytes // (6 * hidden)
    )
    config.save_pretrained(folder)
    save_tokenizer(folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).bfloat16()
    ranges = {
        name: TensorRange("BF16", tuple(tensor.shape), 0, tensor.nbytes)
        for name, tensor in model.state_dict().items()
    }
    header = build_header(ranges)
    size = len(header) + sum(place.length for place in ranges.values())
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(size)
    return size
