"""Products in FP8 on the CPU, by torch's own: each row's rounding, the product, and a layer as a whole."""

import pytest
import torch
from transformers import LlamaConfig
from trenchcoat_trainer.layers import LayerShape, LayerWeights, Rope, llama, teacher_forward
from trenchcoat_trainer.layers.float8 import LARGEST, SLAB, product, quantise_rows

CONFIG = LlamaConfig(
    hidden_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=64, intermediate_size=512,
    num_hidden_layers=3, vocab_size=16,
)  # fmt: skip


def draw(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).bfloat16()


def relative(x: torch.Tensor, truth: torch.Tensor) -> float:
    return float((x.double() - truth.double()).norm() / truth.double().norm())


def make_layers(count: int = 3) -> tuple[LayerShape, list[LayerWeights]]:
    shape, layers = LayerShape.from_config(CONFIG), []
    for number in range(count):
        layer = LayerWeights.empty(shape, torch.bfloat16, "cpu")
        for seed, part in enumerate(layer.parts(shape).values()):
            new = draw(*part.shape, seed=100 * number + seed)
            part.copy_(new * part.shape[-1] ** -0.5 if part.ndim == 2 else 1 + 0.1 * new)
        layers.append(layer)
    return shape, layers


def test_every_row_is_rounded_by_a_scale_of_its_own():
    x = draw(3, 4, 160) * torch.logspace(-4, 4, 12).view(3, 4, 1).bfloat16()
    x[1, 2] = 0
    rows = quantise_rows(x)
    assert rows.values.shape == x.shape and rows.scales.shape == (3, 4, 1)
    tops = rows.values.float().abs().amax(-1)
    assert tops[1, 2] == 0
    assert sorted(set(tops.flatten().tolist())) == [0, LARGEST]
    # Half of the last of 3 bits, or of the smallest number that there is.
    limit = torch.maximum(x.float().abs() / 16, rows.scales * 2**-10)
    assert ((rows.dequantised() - x.float()).abs() <= 1.001 * limit).all()


def test_large_matrices_are_quantised_in_pieces(monkeypatch: pytest.MonkeyPatch):
    x = draw(7, 160)
    whole = quantise_rows(x)
    assert x.numel() < SLAB
    monkeypatch.setattr("trenchcoat_trainer.layers.float8.SLAB", 320)
    pieces = quantise_rows(x)
    assert torch.equal(whole.dequantised(), pieces.dequantised())


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_a_product_is_that_of_what_the_rows_mean(rows):
    x, w = draw(rows, 256), draw(96, 256, seed=1)
    weight, truth = quantise_rows(w), x.double() @ w.double().t()
    y = product(x, weight)
    meant = quantise_rows(x).dequantised().double() @ weight.dequantised().double().t()
    assert y.dtype == torch.bfloat16
    assert relative(y, meant) < 3e-3  # bf16's own rounding
    assert 1e-2 < relative(y, truth) < 5e-2  # two roundings of 3 bits
    out = torch.empty_like(y)
    product(quantise_rows(x), weight, out=out)
    assert torch.equal(out, y)
    assert torch.equal(product(x.view(1, rows, 256), weight), y.view(1, rows, 96))


def test_what_is_not_finite_stays_so():
    """The stage looks at losses, and must see it."""
    weight = quantise_rows(draw(96, 256))
    for bad in (float("nan"), float("inf")):
        x = draw(2, 256)
        x[1, 3] = bad
        y = product(x, weight)
        assert y[0].isfinite().all() and y[1].isnan().all()


def test_a_teacher_in_float8_is_near_the_one_in_bfloat16(monkeypatch: pytest.MonkeyPatch):
    shape, layers = make_layers()
    hidden, rope = draw(2, 40, 256), Rope.from_config(CONFIG, 40, "cpu")
    quantised = [layer.in_float8() for layer in layers]
    assert all(layer.is_float8 for layer in quantised) and not layers[0].is_float8
    plain = teacher_forward(layers, hidden, rope, shape)
    with torch.no_grad():
        tested = teacher_forward(quantised, hidden, rope, shape)
        assert 5e-3 < relative(tested, plain) < 8e-2
        monkeypatch.setattr(llama, "MLP_ROWS", 32)
        assert torch.equal(teacher_forward(quantised, hidden, rope, shape), tested)


def test_weights_in_float8_take_half_the_memory():
    _, (layer,) = make_layers(1)
    held, quantised = (sum(x.nbytes for x in vars(one).values()) for one in (layer, layer.in_float8()))
    assert 0.5 < quantised / held < 0.52
