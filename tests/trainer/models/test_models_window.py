"""A student of the form window as a whole model: its cache, its configuration, its file."""

import copy

import pytest
import torch
from trenchcoat_api.spec import Attention, Form, Wide
from trenchcoat_trainer.models import TrenchcoatCache

from tests.trainer.helpers.tiny_student import make_student, make_teacher

ATTENTION = Attention(form=Form.WINDOW, window=8, first_tokens=2)
KINDS = {
    "alike": {},
    "a wide window": {"wide": Wide(layers=[1], window=100)},
    "a softmax layer": {"keep_softmax_layers": [1]},
    "a first softmax layer": {"keep_softmax_layers": [0]},
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def student(request):
    return make_student(make_teacher(layers=3), ATTENTION.model_copy(update=request.param))


def tokens(batch, length):
    return torch.randint(3, 61, (batch, length), generator=torch.Generator().manual_seed(1))


def test_windows_by_layer_stand_in_the_configuration():
    attention = ATTENTION.model_copy(update={"wide": Wide(layers=[2], window=99), "keep_softmax_layers": [0]})
    config = make_student(make_teacher(layers=3), attention).config
    assert (config.student_form, config.windows, config.first_tokens) == ("window", [None, 8, 99], 2)
    assert config.keep_softmax_layers == [0]


@pytest.mark.parametrize("prompt", [1, 8, 29])
@torch.no_grad()
def test_decode_gives_the_logits_of_the_full_forward(student, prompt):
    # In float64: weights as large as these leave logits in float32 no better than 2e-5.
    student, ids = copy.deepcopy(student).double(), tokens(2, 43)
    full = student(ids, use_cache=False).logits
    outputs = [student(ids[:, :prompt], use_cache=True)]
    cache = outputs[0].past_key_values
    for position in range(prompt, 43):
        outputs.append(student(ids[:, position : position + 1], past_key_values=cache))
    decoded = torch.cat([output.logits for output in outputs], dim=1)
    torch.testing.assert_close(decoded, full, rtol=0, atol=1e-5)
    cache = TrenchcoatCache(student.config)
    pieces = [student(piece, past_key_values=cache).logits for piece in ids.split([5, 20, 1, 17], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), full, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_cache_is_as_large_as_its_windows():
    student = make_student(make_teacher(layers=2), ATTENTION)
    cache = student(tokens(1, 300), use_cache=True).past_key_values
    assert [tuple(layer.state.keys.shape) for layer in cache.layers] == [(1, 2, 2 + 8, 8)] * 2


def test_a_layer_without_parameters_is_saved_and_loaded(tmp_path):
    student = make_student(make_teacher(layers=2), ATTENTION)
    student.save_pretrained(tmp_path)
    loaded, told = type(student).from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    with torch.no_grad():
        ids = tokens(1, 30)
        assert torch.equal(loaded(ids, use_cache=False).logits, student(ids, use_cache=False).logits)
