"""The Triton kernels under Triton's interpreter, on the CPU at small shapes."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="needs Triton for its interpreter")

ANSWER = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import torch
import kernel_checks
torch.set_num_threads(1)
for line in sys.stdin:
    check, arguments = json.loads(line)
    print(json.dumps(getattr(kernel_checks, check)(**arguments)), flush=True)
"""

CASES = [
    ("transfer_errors", {"tokens": 70, "window_size": 16, "feature_dim": 24}),
    ("transfer_errors", {"tokens": 1, "window_size": 64, "feature_dim": 16}),
    ("transfer_errors", {"tokens": 100, "window_size": 32, "heads": 2, "kv_heads": 1}),
    ("transfer_errors", {"tokens": 100, "window_size": 32, "heads": 2, "kv_heads": 1, "map_heads": 1}),
    ("transfer_errors", {"tokens": 70, "window_size": 16, "feature_dim": 24, "drop_window": True}),
    ("transfer_errors", {"tokens": 1, "window_size": 64, "feature_dim": 16, "drop_window": True}),
    (
        "transfer_errors",
        {"tokens": 100, "window_size": 32, "heads": 2, "kv_heads": 1, "map_heads": 1, "drop_window": True},
    ),
    ("distill_errors", {"tokens": 70, "window_size": 16, "heads": 2, "kv_heads": 1}),
    ("distill_errors", {"tokens": 70, "window_size": 32, "heads": 2, "kv_heads": 1, "map_heads": 1}),
    ("hybrid_errors", {"tokens": 70, "window_size": 16, "heads": 2, "kv_heads": 1}),
    # Each kernel leaves out what nobody wants.
    *(
        (check, {"tokens": 70, "window_size": 16, "heads": 2, "kv_heads": 1, "wanted": wanted})
        for check in ("distill_errors", "hybrid_errors")
        for wanted in (["q", "v"], ["v"], ["k"], ["q"], ["k", "w_k"], ["v", "window_factor"])
    ),
]


@pytest.fixture(scope="module")
def errors():
    """Tells a case's errors, in a process of its own: the interpreter is chosen when kernels are imported.

    Workers share a file's cases: each computes only those that it is asked for.
    """
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", ANSWER, json.dumps(sys.path)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def ask(case):
            process.stdin.write(json.dumps(case) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline() or pytest.fail("it died, and said why on stderr"))

        yield ask


@pytest.mark.parametrize("case", CASES, ids=[f"{check} {shape}" for check, shape in CASES])
def test_equals_naive(errors, case):
    assert {name: error for name, error in errors(case).items() if not error < 1e-5} == {}
