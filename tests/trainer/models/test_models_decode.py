"""Decoding with a cache of constant size gives what the full forward gives."""

import pytest
import torch
from trenchcoat_api.spec import KeyMaps
from trenchcoat_trainer.models import TrenchcoatCache

from tests.trainer.helpers.tiny_student import ATTENTION, make_student, make_teacher

TOKENS = 43  # five blocks of the window and a part of a sixth


SHARED = {"key_maps": KeyMaps.PER_KEY_VALUE_HEAD}


@pytest.fixture(
    scope="module",
    params=[{}, {"keep_softmax_layers": [1]}, SHARED],
    ids=["all hybrid", "one softmax layer", "a key map for every key/value head"],
)
def student(request):
    return make_student(make_teacher(layers=3), ATTENTION.model_copy(update=request.param))


def tokens(batch: int, length: int = TOKENS) -> torch.Tensor:
    return torch.randint(0, 61, (batch, length), generator=torch.Generator().manual_seed(1))


# Shorter than the window of 8, one less and more than a block, odd, at and across folds, all but one token.
@pytest.mark.parametrize("prompt", [1, 3, 7, 8, 9, 16, 17, 29, 42])
@torch.no_grad()
def test_decode_gives_the_logits_of_the_full_forward(student, prompt):
    ids = tokens(batch=2)
    full = student(ids, use_cache=False).logits
    outputs = [student(ids[:, :prompt], use_cache=True)]
    cache = outputs[0].past_key_values
    for position in range(prompt, TOKENS):
        outputs.append(student(ids[:, position : position + 1], past_key_values=cache))
    decoded = torch.cat([output.logits for output in outputs], dim=1)
    torch.testing.assert_close(decoded, full, rtol=0, atol=2e-5)


@torch.no_grad()
def test_a_prompt_may_come_in_pieces(student):
    ids = tokens(batch=1)
    cache = TrenchcoatCache(student.config)
    pieces = [student(piece, past_key_values=cache).logits for piece in ids.split([5, 20, 1, 17], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), student(ids, use_cache=False).logits, rtol=0, atol=2e-5)


@torch.no_grad()
def test_the_cache_stops_growing():
    student = make_student(make_teacher(layers=2))

    def held(length: int) -> int:
        cache = student(tokens(1, length), use_cache=True).past_key_values
        parts = [vars(layer.state)[name] for layer in cache.layers for name in ("keys", "values", "memory")]
        return sum(part.numel() for part in parts)

    assert held(16 * 8) == held(64 * 8)


@torch.no_grad()
def test_shared_key_maps_make_the_linear_state_smaller():
    def state(attention):
        student = make_student(make_teacher(layers=1), attention)
        cache = student(tokens(1, 40), use_cache=True).past_key_values
        return cache.layers[0].state

    own, shared = state(ATTENTION), state(ATTENTION.model_copy(update=SHARED))
    assert own.memory.shape == (1, 4, 16, 8)
    assert shared.memory.shape == (1, 2, 16, 8)
    assert shared.normalizer.shape == (1, 2, 16)


def test_unknown_key_maps_are_named():
    student = make_student(make_teacher(layers=1))
    student.config.key_maps = "perPair"
    with pytest.raises(ValueError, match="key_maps must be one of perQueryHead, perKeyValueHead"):
        type(student)(student.config)


@torch.no_grad()
def test_generate_with_and_without_cache_agree_and_beams_are_reordered(student):
    ids = tokens(batch=2, length=11)
    mask = torch.ones_like(ids)
    for beams in (1, 3):
        settings = {"max_new_tokens": 20, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
        cached = student.generate(ids, attention_mask=mask, **settings)
        plain = student.generate(ids, attention_mask=mask, use_cache=False, **settings)
        assert cached.tolist() == plain.tolist()


@torch.no_grad()
def test_softmax_layers_are_the_teachers():
    teacher = make_teacher(layers=2)
    student = make_student(teacher, ATTENTION.model_copy(update={"keep_softmax_layers": [0, 1]}))
    ids = tokens(batch=1)
    assert torch.equal(student(ids, use_cache=False).logits, teacher(ids, use_cache=False).logits)


@torch.no_grad()
def test_a_student_of_softmax_layers_alone_generates():
    teacher = make_teacher(layers=2)
    student = make_student(teacher, ATTENTION.model_copy(update={"keep_softmax_layers": [0, 1]}))
    ids, settings = tokens(batch=2, length=9), {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert student.generate(ids, **settings).tolist() == teacher.generate(ids, **settings).tolist()


def test_bf16_keeps_the_maps_in_fp32(tmp_path):
    student = make_student(make_teacher(layers=1))
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path, dtype=torch.bfloat16)
    attention = loaded.model.layers[0].self_attn
    assert attention.q_proj.weight.dtype == torch.bfloat16
    assert torch.equal(attention.w_q, student.model.layers[0].self_attn.w_q)


@torch.no_grad()
def test_positions_that_restart_are_refused(student):
    """Packed sequences: Llama itself does not look from one into the other."""
    ids = tokens(batch=1, length=40)
    packed = torch.cat([torch.arange(25), torch.arange(15)]).unsqueeze(0)
    teacher = make_teacher(layers=3)
    alone = teacher(ids[:, 25:]).logits
    heeded = teacher(ids, position_ids=packed, use_cache=False).logits[:, 25:]
    torch.testing.assert_close(heeded, alone, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"position_ids do not count on by one.* pass one sequence in a row"):
        student(ids, position_ids=packed, use_cache=False)


@torch.no_grad()
def test_positions_that_count_on_are_heeded(student):
    ids = tokens(batch=2, length=40)
    positions = torch.arange(40).expand(2, -1)
    expected = student(ids, use_cache=False).logits
    assert torch.equal(student(ids, position_ids=positions, use_cache=False).logits, expected)
    assert not torch.equal(student(ids, position_ids=positions + 3, use_cache=False).logits, expected)
    cache = TrenchcoatCache(student.config)
    pieces = [
        student(ids[:, part], position_ids=positions[:, part], past_key_values=cache).logits
        for part in (slice(0, 17), slice(17, 18), slice(18, 40))
    ]
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=0, atol=2e-5)
