"""The window's parts, one of which is taken away, and the share of attention on the first tokens."""

from types import SimpleNamespace

import pytest
import torch
from trenchcoat_trainer.students.window import naive
from trenchcoat_trainer.students.window.form import Window, WindowLayer

from tests.trainer.students.window.test_window_attention import problem

PLACE = torch.arange(150)


def layer(window, first_tokens):
    return WindowLayer(4, 2, 4, window, first_tokens)


def weights(heads, seen_TT):
    """Softmax weights over the keys that are seen, materialised: [B, H, T, T]."""
    scores = heads.q @ heads.k.repeat_interleave(2, 1).mT / heads.q.shape[3] ** 0.5
    return scores.masked_fill(~(seen_TT & (PLACE[:, None] >= PLACE)), -torch.inf).softmax(-1)


def test_without_first_tokens_there_is_the_window_alone():
    heads = problem(150)
    torch.testing.assert_close(layer(20, 4).attend(heads, {}, "window"), naive.attend(heads, 20, 0))


def test_without_the_window_there_are_the_first_tokens_alone():
    heads = problem(150)
    expected = weights(heads, PLACE[None] < 4) @ heads.v.repeat_interleave(2, 1)
    torch.testing.assert_close(layer(20, 4).attend(heads, {}, "first"), expected)


def test_the_share_outside_is_what_first_tokens_have_once_the_window_left_them():
    heads = problem(150)
    seen = (PLACE[:, None] - PLACE < 20) | (PLACE < 4)
    share = weights(heads, seen)[:, :, 23:, :4].sum(-1).mean().item()
    assert layer(20, 4).share_outside(heads, {}) == pytest.approx(share)
    assert layer(20, 0).share_outside(heads, {}) is None
    assert layer(200, 4).share_outside(heads, {}) == 0.0


def test_without_first_tokens_there_is_but_one_part():
    assert Window().parts(SimpleNamespace(first_tokens=0)) == {}
    assert set(Window().parts(SimpleNamespace(first_tokens=1))) == {"withoutFirstTokens", "withoutWindow"}


def test_a_student_is_narrowed_to_its_shortest_window():
    def narrowed(*windows):
        return Window().narrowed(SimpleNamespace(windows=list(windows)))

    assert narrowed(8, None, 24) == {"windows": [8, 8, 8], "keep_softmax_layers": []}
    assert narrowed(8, 8) == narrowed(None, None) == {}
