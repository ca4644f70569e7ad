"""Decoding with fixed shapes says what decoding says, as one graph; checkpointed gradients are the same."""

import pytest
import torch
from trenchcoat_api.spec import Attention, Form, KeyMaps, Wide
from trenchcoat_trainer.models.decoding_trenchcoat import (
    PIECE,
    FixedDecoder,
    attend_from_one,
    attend_in_pieces,
)

from tests.trainer.helpers.tiny_student import ATTENTION, make_student, make_teacher

WINDOW = Attention(form=Form.WINDOW, window=8, first_tokens=2)
STUDENTS = {
    "lolcats": ATTENTION,
    "lolcats, shared key maps, one softmax layer": ATTENTION.model_copy(
        update={"key_maps": KeyMaps.PER_KEY_VALUE_HEAD, "keep_softmax_layers": [0]}
    ),
    "window": WINDOW,
    "window, one wide and one softmax layer": WINDOW.model_copy(
        update={"wide": Wide(layers=[0], window=20), "keep_softmax_layers": [1]}
    ),
}
STEPS = 30  # three folds and more of every terrace


@pytest.fixture(scope="module", params=STUDENTS)
def student(request):
    return make_student(make_teacher(layers=3), STUDENTS[request.param])


def prompt(lengths):
    """Random tokens, padded at the left, and their mask."""
    longest = max(lengths)
    ids = torch.randint(3, 61, (len(lengths), longest), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[0] * (longest - length) + [1] * length for length in lengths])
    return ids, mask


# In the first block, just before a terrace is full, behind folds; and all of it in one batch.
LENGTHS = [[3, 3], [15, 15], [16], [40, 40, 40], [1, 7, 8, 15, 16, 17, 33]]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@torch.no_grad()
def test_it_says_what_decoding_says(student, lengths):
    ids, mask = prompt(lengths)
    kept = student(ids, attention_mask=mask, use_cache=True)
    taken = student(ids, attention_mask=mask, use_cache=True)
    decoder = FixedDecoder(student, taken.past_key_values, mask, max_new_tokens=STEPS)
    token = kept.logits[:, -1:].argmax(-1)
    for _ in range(STEPS):
        mask = torch.cat([mask, torch.ones(len(lengths), 1, dtype=mask.dtype)], 1)
        expected = student(token, attention_mask=mask, past_key_values=kept.past_key_values).logits[:, -1]
        torch.testing.assert_close(decoder.advance(token), expected, rtol=0, atol=2e-5)
        token = expected.argmax(-1, keepdim=True)


@torch.no_grad()
def test_without_a_mask_no_prompt_is_padded(student):
    ids, _ = prompt([21, 21])
    settings = {"max_new_tokens": 25, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = student.generate(ids, attention_mask=torch.ones_like(ids), **settings)[:, 21:]
    outputs = student(ids, use_cache=True)
    decoder = FixedDecoder(student, outputs.past_key_values, max_new_tokens=25)
    assert torch.equal(decoder.generate(outputs.logits[:, -1:].argmax(-1), 25), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STUDENTS if "softmax" in name])
@torch.no_grad()
def test_a_step_is_one_graph_and_is_compiled_once(name):
    student = make_student(make_teacher(layers=3), STUDENTS[name])
    ids, mask = prompt([5, 14, 16])
    outputs = [student(ids, attention_mask=mask, use_cache=True) for _ in range(2)]
    plain, compiled = (FixedDecoder(student, item.past_key_values, mask, STEPS) for item in outputs)
    torch._dynamo.reset()
    compiled.compile()  # as one graph, or it raises
    token = outputs[0].logits[:, -1:].argmax(-1)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(STEPS):
            expected = plain.advance(token)
            torch.testing.assert_close(compiled.advance(token), expected, rtol=0, atol=2e-5)
            token = expected.argmax(-1, keepdim=True)


@torch.no_grad()
def test_tensors_stay_where_they_are(student):
    """Or no CUDA graph could be replayed."""
    ids, mask = prompt([5, 14, 16])
    decoder = FixedDecoder(student, student(ids, attention_mask=mask, use_cache=True).past_key_values, mask)

    def addresses():
        held = [vars(state).values() for state in decoder.states] + [[decoder.positions]]
        return [x.data_ptr() for values in held for x in values if isinstance(x, torch.Tensor)]

    before = addresses()
    decoder.generate(ids[:, -1:], STEPS)
    assert addresses() == before


def test_no_room_for_another_token_is_told():
    kept = make_student(make_teacher(layers=2), ATTENTION.model_copy(update={"keep_softmax_layers": [0]}))
    constant = make_student(make_teacher(layers=2))
    for student, is_bounded in ((kept, True), (constant, False)):
        ids, _ = prompt([5])
        decoder = FixedDecoder(student, student(ids, use_cache=True).past_key_values, max_new_tokens=2)
        for _ in range(2):
            decoder.advance(ids[:, :1])
        if is_bounded:
            with pytest.raises(ValueError, match="room for 2 tokens: raise max_new_tokens"):
                decoder.advance(ids[:, :1])
        else:
            decoder.advance(ids[:, :1])


def test_a_form_without_such_steps_is_told(student, monkeypatch):
    ids, _ = prompt([5])
    cache = student(ids, use_cache=True).past_key_values
    for layer in student.model.layers:
        monkeypatch.setattr(layer.self_attn, "student", object())
    with pytest.raises(ValueError, match=r"has no steps of fixed shapes: use generate\(\)"):
        FixedDecoder(student, cache)


def test_checkpointed_gradients_are_the_same():
    ids, mask = prompt([40, 23])
    found = {}
    for attention in STUDENTS.values():
        for checkpointed in (False, True):
            model = make_student(make_teacher(layers=2), attention.model_copy(update={"wide": None})).train()
            if checkpointed:
                model.gradient_checkpointing_enable()
            calls = []
            model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
            labels = ids.masked_fill(mask == 0, -100)
            model(ids, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
            assert len(calls) == 1 + checkpointed  # computed again for the backward pass
            found[checkpointed] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert found[False].keys() == found[True].keys() and len(found[True]) > 10
        for name, gradient in found[False].items():
            torch.testing.assert_close(found[True][name], gradient, rtol=0, atol=1e-6)


def test_attending_in_pieces_is_attending():
    """What a GPU does in half precision, by products in double precision; tests/gpu has the real."""
    draws = torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(2, 3, count, 16, generator=draws, dtype=torch.float64)
        for count in (4, 3 * PIECE, 3 * PIECE)
    )
    seen = torch.rand(2, 3 * PIECE, generator=draws) < 0.5
    y = attend_in_pieces(q, k, v, seen[:, None, None], lambda a, b, out_dtype: torch.bmm(a, b))
    torch.testing.assert_close(y, attend_from_one(q, k, v, seen), rtol=0, atol=1e-12)
