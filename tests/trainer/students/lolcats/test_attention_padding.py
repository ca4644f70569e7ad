"""Sequences of unequal length: blocks are counted from each one's first visible token."""

import pytest
import torch
from attention_problems import layer, named, problem
from trenchcoat_trainer.students import Heads
from trenchcoat_trainer.students.lolcats import naive

WINDOW = 16
# First and last visible token of each sequence, among 150.
SPANS = {
    "left": [(0, 150), (149, 150), (117, 150), (118, 150), (119, 150), (86, 150)],
    "right": [(0, 150), (0, 1), (0, 31), (0, 32), (0, 33), (0, 64)],
    "both": [(0, 150), (20, 149), (40, 41), (3, 51), (77, 150), (0, 17)],
}


def spans(side):
    column = torch.arange(150)
    return torch.stack([(column >= first) & (column < last) for first, last in SPANS[side]])


def ragged(map_heads=None):
    tensors = problem(150, batch=6, heads=4, kv_heads=2, map_heads=map_heads)
    return Heads(*tensors[:3]), tensors[3:]


@pytest.mark.parametrize("side", SPANS)
@pytest.mark.parametrize("backend", ["naive", "tiled"])
@pytest.mark.parametrize("keep_parts", ["both", "linear"])
def test_every_backend_equals_naive(side, backend, keep_parts):
    heads, maps = ragged()
    visible = spans(side)
    own = layer(heads.k, *maps[:2], WINDOW, backend)
    leaves = Heads(*(x.clone().requires_grad_() for x in heads))
    again = Heads(*(x.clone().requires_grad_() for x in heads))
    y = own.attend(leaves, named(*maps), keep_parts, visible)
    truth = naive.attend(own.inputs(again, named(*maps)), keep_parts, visible)
    shown = visible[:, None, :, None]
    torch.testing.assert_close(y * shown, truth * shown, rtol=0, atol=1e-9)
    (y * shown).square().sum().backward()
    (truth * shown).square().sum().backward()
    for mine, true in zip(leaves, again, strict=True):
        torch.testing.assert_close(mine.grad, true.grad, rtol=0, atol=1e-8)


def test_naive_gives_a_sequence_what_it_gives_it_alone():
    heads, maps = ragged()
    own = layer(heads.k, *maps[:2], WINDOW)
    y = naive.attend(own.inputs(heads, named(*maps)), visible=spans("both"))
    for row, (first, last) in enumerate(SPANS["both"]):
        part = Heads(*(x[row : row + 1, :, first:last] for x in heads))
        torch.testing.assert_close(
            y[row, :, first:last], naive.attend(own.inputs(part, named(*maps)))[0], rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("map_heads", [4, 2])
@pytest.mark.parametrize("side", SPANS)
@pytest.mark.parametrize("pieces", [[150], [1] * 150, [40, 1, 1, 30, 60, 18], [5, 120, *[1] * 25]])
@torch.no_grad()
def test_decoding_in_any_pieces_equals_naive(side, pieces, map_heads):
    heads, maps = ragged(map_heads)
    visible, own = spans(side), layer(heads.k, *maps[:2], WINDOW)
    state, rows, start = own.new_state(), [], 0
    for length in pieces:
        part = slice(start, start + length)
        shown = visible[:, part]
        new = Heads(*(x[:, :, part] for x in heads))
        rows.append(own.decode(state, new, named(*maps), None if shown.all() else shown))
        assert state.keys.shape[2] <= 2 * WINDOW - 1
        start += length
    truth = naive.attend(own.inputs(heads, named(*maps)), visible=visible)
    shown = visible[:, None, :, None]
    torch.testing.assert_close(torch.cat(rows, 2) * shown, truth * shown, rtol=0, atol=1e-9)
    assert state.tokens == 150
