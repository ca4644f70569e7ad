"""The Triton kernels under Triton's interpreter, on the CPU at small shapes."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="needs Triton for its interpreter")

RUN = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import torch
import kernel_checks
torch.set_num_threads(1)
print(json.dumps(getattr(kernel_checks, sys.argv[2])(**json.loads(sys.argv[3]))))
"""

CASES = [
    ("transfer_errors", {"tokens": 70, "window_size": 16, "feature_dim": 24}),
    ("transfer_errors", {"tokens": 1, "window_size": 64, "feature_dim": 16}),
    ("transfer_errors", {"tokens": 100, "window_size": 32, "heads": 2, "kv_heads": 1}),
    ("distill_errors", {"tokens": 70, "window_size": 16, "heads": 2, "kv_heads": 1}),
    ("distill_errors", {"tokens": 70, "window_size": 32, "heads": 2, "kv_heads": 1, "map_heads": 1}),
    ("hybrid_errors", {"tokens": 70, "window_size": 16, "heads": 2, "kv_heads": 1}),
]


@pytest.mark.parametrize(("check", "arguments"), CASES)
def test_equals_naive(check, arguments):
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, json.dumps(sys.path), check, json.dumps(arguments)],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    for name, error in json.loads(run.stdout).items():
        assert error < 1e-5, name
