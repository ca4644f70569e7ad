"""The window on a real GPU, against the materialised map in float64: training, and decoding by its ring."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from trenchcoat_api.spec import Attention, Form, Wide

sys.path.insert(0, str(Path(__file__).parents[1] / "trainer" / "students" / "window"))
from trenchcoat_trainer.models.decoding_trenchcoat import PIECE, attend_from_one
from trenchcoat_trainer.students import Heads
from window_checks import (
    attend_errors,
    decode,
    decode_error,
    kernel_error,
    make_heads,
    make_layer,
    make_visible,
    relative,
)

from tests.trainer.helpers.tiny_student import make_student, make_teacher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: this machine has none"),
]

TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-4}
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
SIZES = [(128, 4), (64, 0), (1, 4), (1088, 4), (5, 130)]  # window, first tokens


@pytest.fixture(autouse=True)
def in_full_precision():
    products = torch.backends.cuda.matmul
    before, products.allow_tf32 = products.allow_tf32, False
    yield
    products.allow_tf32 = before


@DTYPES
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("tokens", [1, 63, 128, 133, 1300])
@pytest.mark.parametrize(("window", "first_tokens"), SIZES)
def test_forward_and_gradients(window, first_tokens, tokens, head_dim, dtype):
    layer, heads = (
        make_layer(window, first_tokens, head_dim),
        make_heads(tokens, "cuda", dtype, head_dim=head_dim),
    )
    errors = attend_errors(layer, heads)
    assert {name: error for name, error in errors.items() if not error < TOLERANCE[dtype]} == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("head_dim", [16, 64, 128, 256])
@pytest.mark.parametrize("tokens", [2, 133, 1300])
@pytest.mark.parametrize(("window", "first_tokens"), SIZES)
def test_a_prompt_by_a_kernel(window, first_tokens, tokens, head_dim, dtype):
    assert kernel_error(window, first_tokens, tokens, head_dim, "cuda", dtype)["y"] < 1e-2


@DTYPES
@pytest.mark.parametrize("where", [None, "left", "right"])
@pytest.mark.parametrize("lengths", [(), (1,), (300, 1, 7), (5, 200, 1, 1, 70)])
@pytest.mark.parametrize(("window", "first_tokens"), [(128, 4), (64, 0), (1, 4), (400, 4)])
def test_decoding_gives_the_rows_of_the_full_forward(window, first_tokens, lengths, where, dtype):
    heads = make_heads(350, "cuda", dtype)
    assert decode_error(make_layer(window, first_tokens), heads, lengths, where) < TOLERANCE[dtype]


@pytest.mark.parametrize("where", [None, "left", "right"])
def test_nothing_waits_for_the_gpu(where):
    layer, heads = make_layer(128, 4), make_heads(600, "cuda", torch.bfloat16)
    visible = None if where is None else make_visible(600, where, "cuda")
    leaves = Heads(*(x.clone().requires_grad_() for x in heads))

    def work():
        layer.attend(leaves, {}, visible=visible).sum().backward()
        decode(layer, heads, (400, 1, 150), visible)

    work()  # the first call sets things up
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_no_memory_quadratic_in_tokens():
    peaks = []
    for tokens in (4096, 16384):
        heads = Heads(*(x.requires_grad_() for x in make_heads(tokens, "cuda", torch.bfloat16, batch=1)))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        make_layer(128, 4).attend(heads, {}).sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 4.5 * peaks[0]


def test_the_same_bits_every_time():
    layer, heads = make_layer(128, 4), make_heads(700, "cuda", torch.bfloat16)
    first, second = (layer.attend(heads, {}) for _ in range(2))
    assert torch.equal(first, second)


@pytest.fixture(scope="module")
def student():
    """Two windows and a layer that keeps softmax attention, in fp32 on the CPU."""
    attention = Attention(
        form=Form.WINDOW, window=8, first_tokens=2, wide=Wide(layers=[1], window=100), keep_softmax_layers=[2]
    )
    return make_student(make_teacher(layers=4), attention)


def make_ids(batch, length):
    return torch.randint(3, 61, (batch, length), generator=torch.Generator().manual_seed(1))


@DTYPES
@torch.no_grad()
def test_a_model_decodes_what_its_full_forward_says(student, dtype):
    """Weights as large as these leave logits in float32 no better than 2e-5, in bf16 no better than 0.1."""
    ids = make_ids(2, 150)
    truth = copy.deepcopy(student).double()(ids, use_cache=False).logits
    model, ids = copy.deepcopy(student).to("cuda", dtype), ids.cuda()
    full = model(ids, use_cache=False).logits
    outputs = [model(ids[:, :120], use_cache=True)]
    cache = outputs[0].past_key_values
    outputs += [model(ids[:, n : n + 1], past_key_values=cache) for n in range(120, 150)]
    decoded = torch.cat([output.logits for output in outputs], 1)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-1
    assert max(relative(full, truth), relative(decoded, truth)) < tolerance


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_prompts_have_the_logits_of_each_alone(student, side):
    model = copy.deepcopy(student).to("cuda")
    lengths = (3, 130, 17)
    ids, mask = torch.ones(3, 130, dtype=torch.long), torch.zeros(3, 130, dtype=torch.long)
    for row, length in enumerate(lengths):
        place = slice(130 - length, None) if side == "left" else slice(0, length)
        ids[row, place], mask[row, place] = make_ids(1, length)[0], 1
    for use_cache in (False, True):
        logits = model(ids.cuda(), attention_mask=mask.cuda(), use_cache=use_cache).logits
        for row, length in enumerate(lengths):
            alone = student(make_ids(1, length), use_cache=False).logits[0]
            assert relative(logits[row, mask[row].bool().cuda()], alone) < 1e-4
    if side == "left":
        settings = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
        said = model.generate(ids.cuda(), attention_mask=mask.cuda(), **settings)[:, 130:].tolist()
        for row, length in enumerate(lengths):
            alone = model.generate(make_ids(1, length).cuda(), **settings)[0, length:].tolist()
            assert said[row] == alone


@pytest.mark.parametrize("batch", [1, 16])
def test_attending_in_pieces_is_attending(batch):
    q, k, v = (torch.randn(batch, 3, count, 64, device="cuda") for count in (4, 8 * PIECE, 8 * PIECE))
    q, k, v = (4 * q).bfloat16(), k.bfloat16(), v.bfloat16()
    seen = torch.rand(batch, 8 * PIECE, device="cuda") < 0.5
    truth = attend_from_one(*(x.double().cpu() for x in (q, k, v)), seen.cpu())
    assert relative(attend_from_one(q, k, v, seen), truth) < 1e-2
