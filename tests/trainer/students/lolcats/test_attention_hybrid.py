"""The student's attention: forward, gradients, its parts, and decoding in constant memory."""

import itertools

import pytest
import torch
from attention_problems import ARGUMENTS, decode_step, hybrid_attention, problem, relative
from hypothesis import given, settings
from hypothesis import strategies as st
from trenchcoat_trainer.students.lolcats import naive
from trenchcoat_trainer.students.lolcats.attention import HybridState
from trenchcoat_trainer.students.lolcats.hybrid import HybridInputs, linear_share, running_sum

TOKENS = (1, 7, 63, 64, 65, 127, 129, 200, 1000)


def output_and_gradients(tensors, upstream, **options):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    y = hybrid_attention(*leaves, **options)
    y.backward(upstream)
    return y.detach(), [x.grad if x.grad is not None else torch.zeros_like(x) for x in leaves]


@pytest.mark.parametrize("window_size", [16, 64])
@pytest.mark.parametrize("tokens", TOKENS)
def test_equals_naive(tokens, window_size):
    tensors = problem(tokens, batch=2 if tokens < 500 else 1, heads=4 if tokens < 500 else 2, kv_heads=2)
    upstream = torch.randn_like(tensors[0])
    y, gradients = output_and_gradients(tensors, upstream, window_size=window_size, backend="tiled")
    truth, true_gradients = output_and_gradients(tensors, upstream, window_size=window_size, backend="naive")
    assert relative(y, truth) < 1e-9
    for name, gradient, true_gradient in zip(ARGUMENTS, gradients, true_gradients, strict=True):
        assert relative(gradient, true_gradient) < 1e-8, name


@pytest.mark.parametrize("keep_parts", ["window", "linear"])
def test_parts_equal_naive(keep_parts):
    tensors = problem(150, heads=4, kv_heads=2, map_heads=2)
    y = hybrid_attention(*tensors, window_size=16, keep_parts=keep_parts)
    truth = hybrid_attention(*tensors, window_size=16, keep_parts=keep_parts, backend="naive")
    assert relative(y, truth) < 1e-9
    if keep_parts == "linear":
        assert not y[:, :, :32].any()


def test_linear_share_is_the_weight_below_the_window():
    q, k, _, w_q, w_k, factor = problem(100, heads=4, kv_heads=2)
    x = HybridInputs(q, k, k, w_q, w_k, factor, 16)
    share = linear_share(x)
    a = naive.log_weights(x).softmax(-1)
    below = ~naive.window_mask(torch.arange(100), 16)
    torch.testing.assert_close(share, (a * below).sum(-1))


@pytest.mark.parametrize("map_heads", [4, 2])
@pytest.mark.parametrize("prompt", [0, 16, 70])
def test_decoding_equals_the_full_forward(prompt, map_heads):
    tokens, window_size = 90, 16
    q, k, v, *maps = problem(tokens, batch=2, heads=4, kv_heads=2, map_heads=map_heads)
    full = hybrid_attention(q, k, v, *maps, window_size=window_size)
    state, rows = HybridState(), []
    cuts = [0, *([prompt] if prompt else []), *range(prompt + 1, tokens + 1)]
    for start, stop in itertools.pairwise(cuts):
        new = slice(start, stop)
        rows.append(
            decode_step(state, q[:, :, new], k[:, :, new], v[:, :, new], *maps, window_size=window_size)
        )
        assert state.keys.shape[2] <= 2 * window_size - 1
        if stop >= window_size:
            assert state.keys.shape[2] >= window_size
    assert state.tokens == tokens
    assert relative(torch.cat(rows, dim=2), full) < 1e-12


def test_prompt_in_pieces_equals_the_full_forward():
    q, k, v, *maps = problem(200, heads=4, kv_heads=2)
    full = hybrid_attention(q, k, v, *maps, window_size=16)
    state, rows, start = HybridState(), [], 0
    for length in (5, 50, 16, 1, 90, 38):
        new = slice(start, start + length)
        rows.append(decode_step(state, q[:, :, new], k[:, :, new], v[:, :, new], *maps, window_size=16))
        start += length
    assert relative(torch.cat(rows, dim=2), full) < 1e-12


def test_state_rows_can_be_reordered():
    q, k, v, *maps = problem(60, batch=3)
    first, last = (slice(None), slice(None), slice(0, 59)), (slice(None), slice(None), slice(59, 60))
    state = HybridState()
    decode_step(state, q[first], k[first], v[first], *maps, window_size=16)
    rows = torch.tensor([2, 0])
    state.reorder(rows)
    y = decode_step(state, q[last][rows], k[last][rows], v[last][rows], *maps, window_size=16)
    full = hybrid_attention(q, k, v, *maps, window_size=16)
    assert relative(y, full[last][rows]) < 1e-12


sizes = st.integers(min_value=1, max_value=70)
windows = st.sampled_from([1, 4, 16, 32])


@settings(deadline=None, max_examples=40)
@given(tokens=sizes, window_size=windows, seed=st.integers(0, 1000))
def test_rows_of_weights_sum_to_one(tokens, window_size, seed):
    q, k, v, *maps = problem(tokens, seed=seed)
    y = hybrid_attention(q, k, torch.ones_like(v), *maps, window_size=window_size)
    torch.testing.assert_close(y, torch.ones_like(y))


@settings(deadline=None, max_examples=40)
@given(tokens=sizes, seed=st.integers(0, 1000), spare=st.integers(0, 9))
def test_a_window_over_everything_is_softmax_attention(tokens, seed, spare):
    q, k, v, w_q, w_k, factor = problem(tokens, seed=seed)
    y = hybrid_attention(q, k, v, w_q, w_k, torch.full_like(factor, 100.0), window_size=tokens + spare)
    torch.testing.assert_close(y, torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


@settings(deadline=None, max_examples=30)
@given(tokens=sizes, window_size=windows, order=st.permutations(range(4)))
def test_permuting_heads_permutes_results(tokens, window_size, order):
    q, k, v, w_q, w_k, factor = problem(tokens, heads=4)
    y = hybrid_attention(q, k, v, w_q, w_k, factor, window_size=window_size)
    order = list(order)
    permuted = hybrid_attention(
        q[:, order], k[:, order], v[:, order], w_q[order], w_k[order], factor[order], window_size=window_size
    )
    torch.testing.assert_close(permuted, y[:, order])


@settings(deadline=None, max_examples=30)
@given(tokens=st.integers(2, 70), window_size=windows, seed=st.integers(0, 1000), data=st.data())
def test_no_row_sees_the_future(tokens, window_size, seed, data):
    q, k, v, *maps = problem(tokens, seed=seed)
    cut = data.draw(st.integers(1, tokens - 1))
    y = hybrid_attention(q, k, v, *maps, window_size=window_size)
    changed = [x.clone() for x in (q, k, v)]
    for x in changed:
        x[:, :, cut:] = 1e3
    y_changed = hybrid_attention(*changed, *maps, window_size=window_size)
    torch.testing.assert_close(y_changed[:, :, :cut], y[:, :, :cut])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("blocks", [0, 1, 37])
def test_running_sums_are_those_of_torch_to_the_last_bit(blocks, dtype):
    generator = torch.Generator().manual_seed(0)
    x, dy = torch.randn(2, 2, 2, 1, blocks, 6, 5, generator=generator).to(dtype)[:, :, :, 0].unbind(0)
    x = x.unsqueeze(0).requires_grad_()
    results = []
    for sums in (running_sum, lambda x: x.cumsum(3)):
        y = sums(x)
        results += [(y, *torch.autograd.grad(y, x, dy.unsqueeze(0)))]
    for own, torchs in zip(*results, strict=True):
        assert torch.equal(own, torchs)
