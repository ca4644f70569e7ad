"""The Triton kernels on a real GPU, against `naive` in float64."""

import functools
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "trainer" / "students" / "lolcats"))
import attention_problems
import kernel_checks
from attention_problems import transfer_loss
from trenchcoat_trainer.students.lolcats.attention import HybridAttention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: this machine has none"),
]

TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-4}
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])


@pytest.fixture(autouse=True)
def on_the_gpu(monkeypatch):
    """Build every problem on the GPU; compare with products in full precision."""
    monkeypatch.setattr(
        kernel_checks, "problem", functools.partial(attention_problems.problem, device="cuda")
    )
    products = torch.backends.cuda.matmul
    before, products.allow_tf32 = products.allow_tf32, False
    yield
    products.allow_tf32 = before


def shape(tokens, head_dim=128, feature_dim=64, heads=4, kv_heads=2, batch=1):
    return {
        "tokens": tokens, "head_dim": head_dim, "feature_dim": feature_dim, "heads": heads,
        "kv_heads": kv_heads, "batch": batch,
    }  # fmt: skip


SHAPES = [
    *[(64, shape(tokens)) for tokens in (1, 7, 63, 64, 65, 127, 129, 200, 1000, 1031)],
    *[(window, shape(333, head_dim=64)) for window in (16, 32, 48, 128)],
    *[(64, shape(333, head_dim=d, feature_dim=f)) for d in (64, 128) for f in (32, 48, 96, 128)],
    (64, shape(520, heads=8, kv_heads=8, batch=2)),
]


@DTYPES
@pytest.mark.parametrize(("window_size", "shape"), SHAPES)
def test_transfer_loss(window_size, shape, dtype):
    check(kernel_checks.transfer_errors(window_size, dtype, **shape), dtype)


@DTYPES
@pytest.mark.parametrize("map_heads", [4, 2])
@pytest.mark.parametrize("tokens", [2, 63, 64, 129, 200, 1000, 1031])
def test_a_dropped_window(tokens, map_heads, dtype):
    check(
        kernel_checks.transfer_errors(64, dtype, drop_window=True, map_heads=map_heads, **shape(tokens)),
        dtype,
    )


@DTYPES
@pytest.mark.parametrize("map_heads", [4, 2])
def test_a_dropped_window_over_one_token_teaches_nothing(map_heads, dtype):
    """The truth is zero; what rounding leaves is measured against the gradients of two tokens."""
    one, two = (
        kernel_checks.losses(
            functools.partial(transfer_loss, window_size=64, drop_window=True),
            kernel_checks.as_given(
                attention_problems.problem(**shape(tokens), map_heads=map_heads, device="cuda"), dtype
            ),
            kernel_checks.MAPS,
            "triton",
        )
        for tokens in (1, 2)
    )
    left = {name: float(one[name].norm() / two[name].norm()) for name in ("w_q", "w_k")}
    assert max(left.values()) < 1e-3, left


@DTYPES
@pytest.mark.parametrize(("window_size", "shape"), SHAPES)
def test_key_maps_by_key_value_head(window_size, shape, dtype):
    shape = {**shape, "map_heads": shape["kv_heads"]}
    check(kernel_checks.transfer_errors(window_size, dtype, **shape), dtype)


@DTYPES
@pytest.mark.parametrize(("window_size", "shape"), SHAPES)
def test_distill_loss(window_size, shape, dtype):
    check(kernel_checks.distill_errors(window_size, dtype, **shape), dtype)


@DTYPES
@pytest.mark.parametrize(("window_size", "shape"), SHAPES)
def test_hybrid_attention(window_size, shape, dtype):
    check(kernel_checks.hybrid_errors(window_size, dtype, **shape), dtype)


@pytest.mark.parametrize("map_heads", [4, 2])
@pytest.mark.parametrize("window_size", [16, 64, 128])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("tokens", [2, 64, 129, 200, 1031])
def test_a_prompt(tokens, head_dim, window_size, map_heads):
    sizes = shape(tokens, head_dim) | {"map_heads": map_heads}
    check(kernel_checks.prompt_errors(window_size, torch.bfloat16, **sizes), torch.bfloat16)


@pytest.mark.parametrize("feature_dim", [24, 128])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_prompts_of_unequal_length(head_dim, feature_dim):
    sizes = shape(1031, head_dim, feature_dim, batch=5)
    errors = kernel_checks.prompt_errors(64, torch.bfloat16, lengths=[1031, 1, 64, 128, 1000], **sizes)
    check(errors, torch.bfloat16)


@pytest.mark.parametrize("where", ["left", "right", None])
@torch.no_grad()
def test_a_padded_prompt_is_decoded_as_on_the_cpu(where):
    sizes = shape(300, 64, batch=3)
    *heads, w_q, w_k, factor = attention_problems.problem(**sizes, dtype=torch.float32, device="cuda")
    parameters = {"w_q": w_q, "w_k": w_k, "window_factor": factor}
    heads = [x.bfloat16() for x in heads]
    visible = torch.ones(3, 300, dtype=torch.bool, device="cuda")
    if where:
        visible[1, slice(0, 170) if where == "left" else slice(130, None)] = False
    layer, outputs = HybridAttention(4, 2, 4, 64, 64, 64), []
    for device, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float64)):
        state, rows = layer.new_state(), []
        own = {name: x.to(device) for name, x in parameters.items()}
        for part in (slice(0, 270), *(slice(n, n + 1) for n in range(270, 300))):
            seen = visible[:, part].to(device)
            padding = {} if bool(seen.all()) else {"visible": seen}
            some = [x[:, :, part].to(device, dtype) for x in heads]
            rows.append(layer.decode(state, some, own, **padding))
        outputs.append(torch.cat(rows, 2).cpu() * visible.cpu()[:, None, :, None])
    assert attention_problems.relative(*outputs) < 1e-2


def check(errors, dtype):
    assert {name: error for name, error in errors.items() if not error < TOLERANCE[dtype]} == {}


@DTYPES
def test_extreme_scores_stay_finite(dtype):
    q, k, v, *maps = attention_problems.problem(
        300, heads=2, head_dim=64, feature_dim=32, dtype=torch.float32
    )
    q[:, :, ::3] *= 1e4
    tensors = [t.to("cuda", dtype if t.ndim == 4 else torch.float32) for t in (q, k, v, *maps)]
    result, gradients = attention_problems.with_gradients(
        functools.partial(transfer_loss, window_size=64, backend="triton"), tensors, kernel_checks.MAPS
    )
    assert all(torch.isfinite(x).all() for x in (*result, *gradients.values()))


def test_the_same_bits_every_time():
    tensors = attention_problems.problem(
        700, heads=8, kv_heads=2, head_dim=128, feature_dim=64, device="cuda"
    )
    tensors = kernel_checks.as_given(tensors, torch.bfloat16)
    function = functools.partial(transfer_loss, window_size=64)
    first, second = (kernel_checks.losses(function, tensors, kernel_checks.MAPS, "triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_memory_quadratic_in_tokens():
    peaks = []
    for tokens in (4096, 16384):
        tensors = attention_problems.problem(tokens, heads=2, head_dim=64, feature_dim=32, device="cuda")
        tensors = kernel_checks.as_given(tensors, torch.bfloat16)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kernel_checks.losses(
            functools.partial(transfer_loss, window_size=64), tensors, kernel_checks.MAPS, "triton"
        )
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 4.5 * peaks[0]
