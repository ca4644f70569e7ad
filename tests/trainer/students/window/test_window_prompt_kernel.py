"""A prompt's window as one kernel under Triton's interpreter; tests/gpu has the real."""

import pytest

from tests.trainer.helpers.interpreted import interpreted

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="needs Triton for its interpreter")

CASES = [  # window, first tokens, tokens
    (2, 1, 5),
    (8, 4, 64),  # a window within a tile
    (64, 4, 130),
    (17, 4, 200),  # on no tile's edge
    (128, 4, 333),  # a tile that every row sees whole
    (64, 0, 300),  # no first tokens
    (5, 130, 300),  # more first tokens than a tile has
    (1, 4, 200),
    (250, 4, 250),  # a window of all
]


@pytest.fixture(scope="module")
def errors():
    with interpreted("window_checks") as ask:
        yield ask


@pytest.mark.parametrize("case", CASES)
def test_equals_the_materialised_map(errors, case):
    window, first_tokens, tokens = case
    arguments = {"window": window, "first_tokens": first_tokens, "tokens": tokens}
    assert errors(("kernel_error", arguments))["y"] < 1e-6
