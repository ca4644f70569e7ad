"""The window against its few lines: outputs, every gradient, decoding, and what is hidden."""

import pytest
import torch
from trenchcoat_trainer.students import Heads
from trenchcoat_trainer.students.window import naive
from trenchcoat_trainer.students.window.attention import WindowAttention
from trenchcoat_trainer.students.window.blocks import BLOCK

LENGTHS = [1, 63, 64, 65, 127, 128, 129]
SIZES = [  # window, first tokens
    (1, 0), (1, 4), (5, 4), (64, 0), (64, 4), (100, 4), (128, 1), (64, 130), (2000, 4), (300, 70),
]  # fmt: skip


def problem(tokens, *, batch=2, heads=4, kv_heads=2, head_dim=4, dtype=torch.float64):
    draws = torch.Generator().manual_seed(tokens)
    shapes = [(batch, count, tokens, head_dim) for count in (heads, kv_heads, kv_heads)]
    return Heads(*(torch.randn(*shape, generator=draws, dtype=dtype) for shape in shapes))


def layer(window, first_tokens, *, heads=4, kv_heads=2, head_dim=4):
    return WindowAttention(heads, kv_heads, head_dim, window, first_tokens)


def part(heads, start, stop):
    return Heads(*(x[:, :, start:stop] for x in heads))


def decoded(attention, heads, lengths, visible=None):
    """Decode in pieces of these lengths, what is left in a last one; returns the rows and the state."""
    state, rows, start, tokens = attention.new_state(), [], 0, heads.q.shape[2]
    for length in (*lengths, tokens):
        stop = min(start + length, tokens)
        if stop > start:
            some = None if visible is None else visible[:, start:stop]
            some = None if some is None or bool(some.all()) else some
            rows.append(attention.decode(state, part(heads, start, stop), {}, some))
        start = stop
    return torch.cat(rows, 2), state


@pytest.mark.parametrize(("window", "first_tokens"), SIZES)
@pytest.mark.parametrize("tokens", LENGTHS)
def test_outputs_and_every_gradient_are_those_of_the_materialised_map(tokens, window, first_tokens):
    heads = Heads(*(x.requires_grad_() for x in problem(tokens)))
    upstream = problem(tokens + 1).q[:, :, :tokens]
    results = []
    for y in (
        layer(window, first_tokens).attend(heads, {}),
        naive.attend(heads, window, first_tokens),
    ):
        results.append((y, *torch.autograd.grad((y * upstream).sum(), heads)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("window", "first_tokens"), [(64, 4), (128, 4), (600, 4), (64, 1500)])
def test_a_thousand_tokens(window, first_tokens):
    heads = Heads(*(x.requires_grad_() for x in problem(1000, batch=1, heads=2, kv_heads=1)))
    results = []
    for y in (
        layer(window, first_tokens, heads=2, kv_heads=1).attend(heads, {}),
        naive.attend(heads, window, first_tokens),
    ):
        results.append((y, *torch.autograd.grad(y.square().sum(), heads)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)


def test_a_window_over_everything_is_softmax_attention():
    q, k, v = problem(90)
    softmax = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    for window, first_tokens in ((90, 0), (89, 1), (1, 90)):
        torch.testing.assert_close(layer(window, first_tokens).attend(Heads(q, k, v), {}), softmax)


def test_a_key_is_seen_from_the_first_tokens_or_the_window_alone():
    heads = problem(200, batch=1)
    attention, position = layer(50, 4), 150
    base = attention.attend(heads, {})[:, :, position]
    for key, is_seen in ((3, True), (4, False), (100, False), (101, True), (150, True), (151, False)):
        k = heads.k.clone()
        k[:, :, key] += 1
        changed = attention.attend(heads._replace(k=k), {})[:, :, position]
        assert torch.equal(changed, base) != is_seen


@pytest.mark.parametrize(("window", "first_tokens"), SIZES)
@pytest.mark.parametrize("lengths", [(), (1,) * 200, (2, 1, 1, 70, 1, 5), (129, 1, 1), (66, 66)])
@torch.no_grad()
def test_decoding_gives_the_rows_of_the_full_forward(window, first_tokens, lengths):
    attention = layer(window, first_tokens)
    heads = problem(200)
    rows, state = decoded(attention, heads, lengths)
    torch.testing.assert_close(rows, attention.attend(heads, {}), rtol=0, atol=1e-12)
    assert (state.tokens, state.batch_size) == (200, 2)


@torch.no_grad()
def test_the_state_stops_growing_at_the_bytes_that_are_named():
    attention = layer(10, 4)
    heads = problem(500, dtype=torch.float32)
    for lengths in ((1,) * 500, (3, 200, 1, 1), (500,)):
        _, state = decoded(attention, heads, lengths)
        held = (state.keys.numel() + state.values.numel()) * 4
        assert held == 2 * attention.state_bytes(torch.float32)  # of two sequences
    assert attention.state_bytes(torch.bfloat16) * 2 == attention.state_bytes(torch.float32)


@torch.no_grad()
def test_rows_are_reordered_and_repeated():
    attention = layer(5, 2)
    heads, rows = problem(40), torch.tensor([1, 0, 1])
    visible = torch.ones(2, 40, dtype=torch.bool)
    visible[1, :9] = False
    expected = attention.attend(Heads(*(x[rows] for x in heads)), {}, visible=visible[rows])[:, :, -1:]
    _, state = decoded(attention, part(heads, 0, 39), (30,), visible)
    state.reorder(rows)
    last = Heads(*(x[rows] for x in part(heads, 39, 40)))
    torch.testing.assert_close(attention.decode(state, last, {}), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("window", "first_tokens"), [(1, 0), (5, 4), (64, 4), (20, 130), (300, 4)])
@pytest.mark.parametrize("where", ["left", "right", "both", "holes"])
@torch.no_grad()
def test_hidden_tokens_are_neither_seen_nor_counted(window, first_tokens, where):
    tokens, attention = 150, layer(window, first_tokens)
    heads, visible = problem(tokens, batch=3), torch.ones(3, 150, dtype=torch.bool)
    if where in ("left", "both"):
        visible[0, :149], visible[1, :70] = False, False
    if where in ("right", "both"):
        visible[1, 140:], visible[2, 60:] = False, False
    if where == "holes":
        visible = torch.rand(3, 150, generator=torch.Generator().manual_seed(1)) > 0.3
    alone = torch.zeros_like(heads.q)
    for row in range(3):
        own = Heads(*(x[row : row + 1, :, visible[row]] for x in heads))
        alone[row, :, visible[row]] = attention.attend(own, {})[0]
    for lengths in ((), (100, 1, 1, 20), (30, 1, 60)):
        y, _ = decoded(attention, heads, lengths, visible)
        assert y.isfinite().all()
        torch.testing.assert_close(y * visible[:, None, :, None], alone, rtol=0, atol=1e-12)
    expected = naive.attend(heads, window, first_tokens, visible)
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-12)


def test_gradients_pass_what_is_hidden_and_what_is_remembered():
    attention, heads = layer(5, 2), Heads(*(x.requires_grad_() for x in problem(40)))
    visible = torch.ones(2, 40, dtype=torch.bool)
    visible[0, :11] = False
    shown = visible[:, None, :, None]
    expected = torch.autograd.grad((naive.attend(heads, 5, 2, visible) * shown).square().sum(), heads)
    for lengths in ((), (20, 1, 1)):
        y, _ = decoded(attention, heads, lengths, visible)
        actual = torch.autograd.grad((y * shown).square().sum(), heads)
        for mine, theirs in zip(actual, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_memory_is_linear_in_the_number_of_tokens():
    """By the largest tensor that is made: a materialised map would be 16 times as large."""

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for x in result if isinstance(result, tuple | list) else (result,):
                if isinstance(x, torch.Tensor):
                    self.found = max(self.found, x.numel())
            return result

    found = []
    for tokens in (1024, 4096):
        heads = Heads(*(x.requires_grad_() for x in problem(tokens, batch=1, heads=2, kv_heads=1)))
        with Largest() as largest:
            layer(64, 4, heads=2, kv_heads=1).attend(heads, {}).sum().backward()
        found.append(largest.found)
    assert found[1] <= 4.1 * found[0]
    assert found[1] < 4096 * 4096 / 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"v": torch.zeros(2, 2, 9, 4)}, "do not match q"),
        ({"q": torch.zeros(2, 3, 8, 4)}, "3 query heads cannot be grouped over 2"),
        ({"q": torch.zeros(2, 4, 9, 4)}, "do not match q"),
        ({"q": torch.zeros(2, 4, 8)}, "must be"),
    ],
)
def test_shapes_that_do_not_belong_together_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        layer(4, 1).attend(problem(8, dtype=torch.float32)._replace(**change), {})


def test_there_are_no_parts_and_no_parameters():
    assert dict(layer(4, 1).shapes) == {}
    with pytest.raises(ValueError, match="no parameter called w_q"):
        layer(4, 1).initialize("w_q", torch.zeros(1))
    with pytest.raises(ValueError, match="keep_parts must be both"):
        layer(4, 1).attend(problem(8), {}, "window")


def test_blocks_follow_the_window_between_two_bounds():
    assert BLOCK[0] < 128 < BLOCK[1], "the sizes above try blocks of either bound, and of the window"
