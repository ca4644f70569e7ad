"""The checks of tests/gpu on the CPU, and what there is of them that needs no GPU."""

import pytest
import torch
from trenchcoat_trainer.students import Heads
from window_checks import attend_errors, decode, decode_error, make_heads, make_layer, make_visible

from tests.trainer.helpers.waits import Waits

TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])


@DTYPES
@pytest.mark.parametrize(("tokens", "window"), [(133, 64), (300, 128)])
def test_forward_and_gradients(tokens, window, dtype):
    errors = attend_errors(make_layer(window, 4), make_heads(tokens, "cpu", dtype))
    assert {name: error for name, error in errors.items() if not error < TOLERANCE[dtype]} == {}


@DTYPES
@pytest.mark.parametrize("where", [None, "left", "right"])
def test_decoding(where, dtype):
    assert (
        decode_error(make_layer(64, 4), make_heads(200, "cpu", dtype), (90, 1, 7), where) < TOLERANCE[dtype]
    )


@pytest.mark.parametrize("where", [None, "left", "right"])
def test_nothing_in_it_waits_for_a_gpu(where):
    layer, heads = make_layer(64, 4), make_heads(300, "cpu", torch.float32)
    visible = None if where is None else make_visible(300, where, "cpu")
    with Waits() as waits:
        layer.attend(Heads(*(x.requires_grad_() for x in heads)), {}, visible=visible).sum().backward()
        decode(layer, make_heads(300, "cpu", torch.float32), (200, 1, 70), visible)
    assert waits.found == []
