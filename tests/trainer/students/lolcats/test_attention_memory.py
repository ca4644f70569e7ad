"""Peak memory of the losses and of the student grows linearly with the number of tokens."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

MEASURE = """
import sys
sys.path[:0] = {path!r}
import torch
from attention_problems import hybrid_attention, problem, transfer_loss
from tests.trainer.helpers.peak_memory import peak
torch.set_num_threads(1)

def run(tokens):
    tensors = problem(tokens, heads=1, head_dim=8, feature_dim=4, dtype=torch.float32)
    tensors = [t.requires_grad_() for t in tensors]
    if {what!r} == "losses":
        transfer_loss(*tensors, window_size=64, backend="tiled").loss.backward()
    else:
        hybrid_attention(*tensors, window_size=64, backend="tiled").sum().backward()

run(256)
before = peak()
for tokens in {sizes}:
    run(tokens)
    print(peak() - before)
"""


def growth(what, *sizes):
    """MiB for each number of tokens, which grow: a peak stays."""
    program = MEASURE.format(path=sys.path, what=what, sizes=sizes)
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    return [int(line) / 2**20 for line in run.stdout.split()]


@pytest.mark.parametrize("what", ["losses", "student"])
def test_32k_tokens_stay_far_below_one_map(what):
    one_map = 32768**2 * 4 / 2**20
    quarter, whole = growth(what, 8192, 32768)
    assert whole < one_map / 20, f"{whole:.0f} MiB beside a map of {one_map:.0f} MiB"
    assert whole < 6 * quarter + 32, f"{quarter:.0f} MiB at 8k tokens, {whole:.0f} MiB at 32k"
