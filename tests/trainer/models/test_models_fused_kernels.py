"""RoPE and SwiGLU as kernels under Triton's interpreter; tests/gpu has the real."""

import pytest

from tests.trainer.helpers.interpreted import interpreted

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="needs Triton for its interpreter")

CASES = [
    ("rope_errors", {"tokens": 5, "head_dim": 16}),
    ("rope_errors", {"tokens": 70, "head_dim": 16, "rows": 2}),
    ("rope_errors", {"tokens": 33, "head_dim": 24}),  # half of it is no power of two
    ("swiglu_errors", {"tokens": 7, "width": 1000}),
]


@pytest.fixture(scope="module")
def errors():
    with interpreted("tests.trainer.models.fused_model_checks") as ask:
        yield ask


@pytest.mark.parametrize("case", CASES, ids=[f"{check} {shape}" for check, shape in CASES])
def test_equals_the_truth(errors, case):
    assert {name: error for name, error in errors(case).items() if not error < 1e-6} == {}
