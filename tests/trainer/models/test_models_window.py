"""A student of the form window as a whole model: cache, beams, padding at either end."""

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


def padded(prompts, side):
    """Token ids and mask, [B, longest], padded at one side by ones that no prompt has."""
    longest = max(map(len, prompts))
    ids, mask = torch.ones(len(prompts), longest, dtype=torch.long), torch.zeros(len(prompts), longest)
    for row, prompt in enumerate(prompts):
        place = slice(longest - len(prompt), None) if side == "left" else slice(0, len(prompt))
        ids[row, place], mask[row, place] = prompt, 1
    return ids, mask.long()


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
def test_a_batch_of_prompts_padded_at_the_left_says_what_each_says_alone(student):
    lengths = [1, 7, 8, 9, 21, 63, 64, 65, 127, 128, 129]
    prompts = [tokens(1, length)[0] for length in lengths]
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    ids, mask = padded(prompts, "left")
    together = student.generate(ids, attention_mask=mask, **settings)[:, ids.shape[1] :]
    for row, prompt in enumerate(prompts):
        alone = student.generate(prompt[None], attention_mask=torch.ones(1, len(prompt)), **settings)
        assert together[row].tolist() == alone[0, len(prompt) :].tolist(), lengths[row]


@torch.no_grad()
def test_a_thousand_tokens_beside_one():
    student = make_student(make_teacher(layers=2), ATTENTION)
    prompts = [tokens(1, length)[0] for length in (1, 1000)]
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    ids, mask = padded(prompts, "left")
    together = student.generate(ids, attention_mask=mask, **settings)[:, 1000:]
    alone = [student.generate(prompt[None], **settings)[0, len(prompt) :].tolist() for prompt in prompts]
    assert together.tolist() == alone


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("use_cache", [False, True])
@torch.no_grad()
def test_logits_are_those_of_each_sequence_alone(student, side, use_cache):
    prompts = [tokens(1, length)[0] for length in (3, 40, 17)]
    ids, mask = padded(prompts, side)
    logits = student(ids, attention_mask=mask, use_cache=use_cache).logits
    for row, prompt in enumerate(prompts):
        alone = student(prompt[None], use_cache=False).logits[0]
        torch.testing.assert_close(logits[row, mask[row].bool()], alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_was_padded_at_the_right_goes_on(student):
    prompts = [tokens(1, length)[0] for length in (3, 40, 17)]
    ids, mask = padded(prompts, "right")
    cache = student(ids, attention_mask=mask, use_cache=True).past_key_values
    more = tokens(3, 4)
    both = torch.cat([mask, torch.ones_like(more)], 1)
    logits = student(more, attention_mask=both, past_key_values=cache).logits
    for row, prompt in enumerate(prompts):
        whole = torch.cat([prompt, more[row]])[None]
        alone = student(whole, use_cache=False).logits[0, -4:]
        torch.testing.assert_close(logits[row], alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_beams_of_padded_prompts_are_reordered(student):
    prompts = [tokens(1, length)[0] for length in (5, 30)]
    ids, mask = padded(prompts, "left")
    settings = {"max_new_tokens": 10, "num_beams": 3, "do_sample": False, "pad_token_id": 1}
    cached = student.generate(ids, attention_mask=mask, **settings)
    assert cached.tolist() == student.generate(ids, attention_mask=mask, use_cache=False, **settings).tolist()


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
