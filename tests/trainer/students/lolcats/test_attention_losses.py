"""The losses of attention transfer: tiled against naive, values and every gradient."""

import functools
import logging

import pytest
import torch
from attention_problems import distill_loss, problem, relative, transfer_loss, with_gradients
from trenchcoat_trainer.students.lolcats import backends, naive, tiled

TOKENS = (1, 7, 63, 64, 65, 127, 129, 200, 1000)
LOSS_64, GRADIENT_64, ALL_32 = 1e-9, 1e-8, 1e-5
MAPS = ("w_q", "w_k", "window_factor")
STUDENT = ("q", "k", "v", *MAPS)


def compare(function, tensors, wanted, *, loss_tolerance, gradient_tolerance, truth_tensors=None):
    tested, gradients = with_gradients(functools.partial(function, backend="tiled"), tensors, wanted)
    truth, true_gradients = with_gradients(
        functools.partial(function, backend="naive"), truth_tensors or tensors, wanted
    )
    for name in ("loss", "mse", "xent"):
        expected = getattr(truth, name).item()
        assert getattr(tested, name).item() == pytest.approx(
            expected, rel=loss_tolerance, abs=loss_tolerance / 100
        )
    assert relative(tested.output, truth.output) < loss_tolerance
    for name in wanted:
        assert relative(gradients[name], true_gradients[name]) < gradient_tolerance, name


@pytest.mark.parametrize("window_size", [16, 64])
@pytest.mark.parametrize("tokens", TOKENS)
def test_float64(tokens, window_size):
    tensors = problem(tokens, batch=2 if tokens < 500 else 1, heads=4 if tokens < 500 else 2, kv_heads=2)
    compare(
        functools.partial(transfer_loss, window_size=window_size),
        tensors, MAPS, loss_tolerance=LOSS_64, gradient_tolerance=GRADIENT_64,
    )  # fmt: skip


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("map_heads", [4, 2])
def test_a_dropped_window(tokens, map_heads):
    tensors = problem(tokens, batch=2 if tokens < 500 else 1, heads=4, kv_heads=2, map_heads=map_heads)
    compare(
        functools.partial(transfer_loss, window_size=16, drop_window=True),
        tensors, ("w_q", "w_k"), loss_tolerance=LOSS_64, gradient_tolerance=GRADIENT_64,
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["naive", "tiled"])
def test_a_dropped_window_leaves_linear_attention_over_all_keys(backend):
    q, k, v, w_q, w_k, factor = problem(90, heads=4, kv_heads=2)
    results = [
        transfer_loss(q, k, v, w_q, w_k, f, window_size=w, drop_window=True, backend=backend)
        for f, w in ((factor, 16), (factor + 3, 32))
    ]
    torch.testing.assert_close(results[0].loss, results[1].loss)
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    weights = (naive.features(q, w_q) @ naive.features(k, w_k).transpose(-1, -2)).tril()
    a = weights / weights.sum(-1, keepdim=True)
    teacher = naive.scores(q, k).masked_fill(~naive.causal_mask(90, q.device), float("-inf")).softmax(-1)
    torch.testing.assert_close(results[0].mse, (a @ v - teacher @ v).square().mean())
    xent = -(teacher * a.masked_fill(a == 0, 1).log()).sum(-1).mean()
    torch.testing.assert_close(results[0].xent, xent)


def test_a_dropped_window_trains_the_maps_alone():
    tensors = [t.requires_grad_() for t in problem(40)]
    transfer_loss(*tensors, window_size=16, drop_window=True).loss.backward()
    assert [t.grad is not None for t in tensors] == [False, False, False, True, True, False]


@pytest.mark.parametrize("drop_window", [False, True])
@pytest.mark.parametrize("tokens", [1, 65, 200, 1000])
def test_float32(tokens, drop_window):
    exact = problem(tokens, kv_heads=1)
    tensors = tuple(t.float() for t in exact)
    compare(
        functools.partial(transfer_loss, window_size=64, drop_window=drop_window),
        tensors, MAPS[:2] if drop_window else MAPS, loss_tolerance=ALL_32, gradient_tolerance=ALL_32,
        truth_tensors=tuple(t.double() for t in tensors),
    )  # fmt: skip


@pytest.mark.parametrize("tokens", [1, 64, 129, 200])
@pytest.mark.parametrize("map_heads", [4, 2])
def test_student_with_adapters(tokens, map_heads):
    q, k, v, *maps = problem(tokens, batch=2, heads=4, kv_heads=2, map_heads=map_heads)
    teacher = problem(tokens, batch=2, heads=4, kv_heads=2, seed=1)[:3]
    student = tuple(t + 0.2 * x for t, x in zip(teacher, (q, k, v), strict=True))
    compare(
        functools.partial(distill_loss, window_size=16),
        (*student, *teacher, *maps), STUDENT, loss_tolerance=LOSS_64, gradient_tolerance=GRADIENT_64,
    )  # fmt: skip


def test_analytic_gradient_is_the_derivative():
    q, k, v, *maps = problem(21, heads=1, head_dim=4, feature_dim=3)
    teacher = problem(21, heads=1, head_dim=4, seed=1)[:3]
    leaves = [t.requires_grad_() for t in (q, k, v, *maps)]

    def loss(q, k, v, w_q, w_k, factor):
        return distill_loss(q, k, v, *teacher, w_q, w_k, factor, window_size=4, backend="tiled").loss

    assert torch.autograd.gradcheck(loss, leaves)


def test_repeated_keys_equal_grouped_queries():
    q, k, v, *maps = problem(130, heads=4, kv_heads=2)
    grouped = transfer_loss(q, k, v, *maps, window_size=16)
    repeated = transfer_loss(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), *maps, window_size=16)
    assert torch.equal(grouped.loss, repeated.loss)


@pytest.mark.parametrize("backend", ["naive", "tiled"])
def test_the_frozen_teacher_gets_no_gradient(backend):
    tensors = [t.requires_grad_() for t in problem(40)]
    result = transfer_loss(*tensors, window_size=16, backend=backend)
    result.loss.backward()
    assert [t.grad is not None for t in tensors] == [False] * 3 + [True] * 3
    assert not result.output.requires_grad


@pytest.mark.parametrize("backend", ["naive", "tiled"])
def test_extreme_scores_stay_finite(backend):
    q, k, v, *maps = problem(150, dtype=torch.float32)
    q[:, :, ::3] *= 1e4
    result, gradients = with_gradients(
        functools.partial(transfer_loss, window_size=16, backend=backend), (q, k, v, *maps), MAPS
    )
    assert all(torch.isfinite(x).all() for x in (*result, *gradients.values()))


def test_weights_of_the_losses():
    tensors = problem(90)
    result = transfer_loss(*tensors, window_size=16, mse_weight=3.0, xent_weight=0.5)
    assert result.loss.item() == pytest.approx(3.0 * result.mse.item() + 0.5 * result.xent.item())


def test_output_is_softmax_attention():
    q, k, v, *maps = problem(90, heads=4, kv_heads=2)
    output = transfer_loss(q, k, v, *maps, window_size=16).output
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(output, expected)


def test_wrong_shapes_are_named():
    q, k, v, w_q, w_k, factor = problem(10)
    with pytest.raises(ValueError, match="w_q must be"):
        transfer_loss(q, k, v, w_q[:1], w_k, factor, window_size=16)
    with pytest.raises(ValueError, match="window_factor"):
        transfer_loss(q, k, v, w_q, w_k, factor[:1], window_size=16)
    with pytest.raises(ValueError, match="does not match"):
        transfer_loss(q, k[:, :, :5], v[:, :, :5], w_q, w_k, factor, window_size=16)
    with pytest.raises(ValueError, match="backend must be"):
        transfer_loss(q, k, v, w_q, w_k, factor, window_size=16, backend="magic")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_triton_without_a_gpu_falls_back_with_one_warning(caplog, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backends._warn_once.cache_clear()
    tensors = problem(20)
    with caplog.at_level(logging.WARNING):
        first = transfer_loss(*tensors, window_size=16, backend="triton")
        transfer_loss(*tensors, window_size=16, backend="triton")
    assert [record.message for record in caplog.records if "falls back" in record.message] != []
    assert len(caplog.records) == 1
    assert torch.equal(first.loss, transfer_loss(*tensors, window_size=16, backend="tiled").loss)


@pytest.mark.parametrize("learns", ["maps", "everything"])
def test_what_is_kept_for_backward_changes_no_bit(monkeypatch, learns):
    """Of 100 tokens there are 7 blocks of 16 rows."""
    computed, compute = [], tiled._Weights.of.__func__

    def of(cls, *arguments):
        computed.append(arguments)
        return compute(cls, *arguments)

    monkeypatch.setattr(tiled._Weights, "of", classmethod(of))
    student = problem(100, heads=4, kv_heads=2, dtype=torch.float32)
    teacher = problem(100, heads=4, kv_heads=2, dtype=torch.float32, seed=1)[:3]
    if learns == "maps":
        function, tensors, wanted = transfer_loss, student, MAPS
    else:
        function, tensors, wanted = distill_loss, (*student[:3], *teacher, *student[3:]), STUDENT
    function = functools.partial(function, window_size=16, backend="tiled")
    kept, its_gradients = with_gradients(function, tensors, wanted)
    assert len(computed) == 7
    monkeypatch.setattr(tiled, "KEPT_BYTES", 4 * 100 * 100 * 4 - 1)
    again, gradients = with_gradients(function, tensors, wanted)
    assert len(computed) == 3 * 7
    for name in ("mse", "xent", "output"):
        assert torch.equal(getattr(kept, name), getattr(again, name)), name
    for name in wanted:
        assert torch.equal(its_gradients[name], gradients[name]), name


def test_heads_may_lie_in_memory_as_projections_leave_them():
    tensors = problem(70, batch=2, heads=4, kv_heads=2)
    as_left = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors[:3]] + list(tensors[3:])
    loss = functools.partial(transfer_loss, window_size=16, backend="tiled")
    expected, gradients = with_gradients(loss, tensors, MAPS)
    found, own_gradients = with_gradients(loss, as_left, MAPS)
    torch.testing.assert_close(found.output, expected.output)
    torch.testing.assert_close(found.loss, expected.loss)
    for name in MAPS:
        torch.testing.assert_close(own_gradients[name], gradients[name])
