"""The Triton kernels under Triton's interpreter, on the CPU at small shapes."""

import pytest

from tests.trainer.helpers.interpreted import interpreted

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="needs Triton for its interpreter")

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
    # A prompt: within its terrace, on a block's edge and off it, blocks of several tiles, shared maps.
    ("prompt_errors", {"tokens": 30, "window_size": 16}),
    ("prompt_errors", {"tokens": 64, "window_size": 16, "feature_dim": 24}),
    ("prompt_errors", {"tokens": 75, "window_size": 16, "heads": 2, "kv_heads": 1, "batch": 2}),
    ("prompt_errors", {"tokens": 75, "window_size": 32, "heads": 4, "kv_heads": 2, "map_heads": 2}),
    ("prompt_errors", {"tokens": 400, "window_size": 128, "heads": 2, "kv_heads": 1, "map_heads": 1}),
    ("prompt_errors", {"tokens": 75, "window_size": 16, "batch": 4, "lengths": [75, 1, 33, 64]}),
]


@pytest.fixture(scope="module")
def errors():
    """Workers share a file's cases: each computes only those that it is asked for."""
    with interpreted("kernel_checks") as ask:
        yield ask


@pytest.mark.parametrize("case", CASES, ids=[f"{check} {shape}" for check, shape in CASES])
def test_equals_naive(errors, case):
    assert {name: error for name, error in errors(case).items() if not error < 1e-5} == {}
