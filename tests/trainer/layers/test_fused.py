"""The fused operations between matrix products, under Triton's interpreter, and prefetching on the CPU."""

import json
import os
import subprocess
import sys

import pytest
import torch
from trenchcoat_trainer.layers.prefetch import on_device

RUN = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import torch
import fused_checks
from trenchcoat_trainer.layers import float8
torch.set_num_threads(1)
# Triton's interpreter loses the carry where it rounds to FP8 (31.4 becomes 16): all but this step is held.
float8.E4M3 = torch.float32
names = ("norm", "first_norm", "rope", "rope_by_row", "rope_parts", "swiglu", "dropout", "float8")
print(json.dumps({name: getattr(fused_checks, f"{name}_errors")() for name in names}))
"""


@pytest.mark.slow
def test_kernels_equal_plain_torch():
    pytest.importorskip("triton", reason="needs Triton for its interpreter")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, json.dumps(sys.path)],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    for operation, errors in json.loads(run.stdout).items():
        for name, error in errors.items():
            assert error < 1e-6, f"{operation} {name}"


def test_every_batch_arrives_once_and_in_order():
    batches = [torch.full((3,), float(i)) for i in range(5)]
    assert [int(x[0]) for x in on_device(iter(batches), "cpu")] == [0, 1, 2, 3, 4]
