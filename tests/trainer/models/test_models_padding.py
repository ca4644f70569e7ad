"""Prompts of unequal length in one batch: every form gives each row what it gives it alone."""

import copy

import pytest
import torch
from trenchcoat_api.spec import Attention, Form, KeyMaps, Wide
from trenchcoat_trainer.models import TrenchcoatCache

from tests.trainer.helpers.tiny_student import make_student, make_teacher

WINDOW = Attention(form=Form.WINDOW, window=8, first_tokens=2)
LOLCATS = Attention(window=8, feature_dim=8)
STUDENTS = {
    "window": WINDOW,
    "window, one wide": WINDOW.model_copy(update={"wide": Wide(layers=[1], window=100)}),
    "window, one softmax": WINDOW.model_copy(update={"keep_softmax_layers": [1]}),
    "window, the first softmax": WINDOW.model_copy(update={"keep_softmax_layers": [0]}),
    "lolcats": LOLCATS,
    "lolcats, one softmax": LOLCATS.model_copy(update={"keep_softmax_layers": [1]}),
    "lolcats, shared key maps": LOLCATS.model_copy(update={"key_maps": KeyMaps.PER_KEY_VALUE_HEAD}),
}
RAGGED = [1, 7, 8, 9, 15, 16, 17, 21, 63, 64, 65, 127, 128, 129]
GREEDY = {"do_sample": False, "pad_token_id": 1, "eos_token_id": None}


@pytest.fixture(scope="module", params=STUDENTS.values(), ids=STUDENTS)
def student(request):
    return make_student(make_teacher(layers=3), request.param)


def tokens(batch, length):
    return torch.randint(3, 61, (batch, length), generator=torch.Generator().manual_seed(length))


def prompts_of(lengths):
    return [tokens(1, length)[0] for length in lengths]


def padded(prompts, side):
    """Token ids and mask, [B, longest], padded at one side by ones that no prompt has."""
    longest = max(map(len, prompts))
    ids, mask = torch.ones(len(prompts), longest, dtype=torch.long), torch.zeros(len(prompts), longest)
    for row, prompt in enumerate(prompts):
        place = slice(longest - len(prompt), None) if side == "left" else slice(0, len(prompt))
        ids[row, place], mask[row, place] = prompt, 1
    return ids, mask.long()


def alone(student, prompt, new_tokens):
    settings = GREEDY | {"max_new_tokens": new_tokens}
    mask = torch.ones(1, len(prompt), dtype=torch.long)
    return student.generate(prompt[None], attention_mask=mask, **settings)[0, len(prompt) :].tolist()


@torch.no_grad()
def test_a_batch_padded_at_the_left_says_what_each_says_alone(student):
    prompts = prompts_of(RAGGED)
    ids, mask = padded(prompts, "left")
    together = student.generate(ids, attention_mask=mask, max_new_tokens=20, **GREEDY)[:, ids.shape[1] :]
    assert together.tolist() == [alone(student, prompt, 20) for prompt in prompts]


@pytest.mark.parametrize("attention", [WINDOW, LOLCATS], ids=["window", "lolcats"])
@pytest.mark.parametrize("window", [8, 64])
@torch.no_grad()
def test_a_thousand_tokens_beside_one(attention, window):
    student = make_student(make_teacher(layers=2), attention.model_copy(update={"window": window}))
    prompts = prompts_of([1, 63, 64, 65, 127, 128, 129, 1000])
    ids, mask = padded(prompts, "left")
    together = student.generate(ids, attention_mask=mask, max_new_tokens=12, **GREEDY)[:, 1000:]
    assert together.tolist() == [alone(student, prompt, 12) for prompt in prompts]


@torch.no_grad()
def test_a_padded_prompt_may_come_in_chunks(student):
    prompts = prompts_of([5, 70, 33])
    ids, mask = padded(prompts, "left")
    chunked = student.generate(ids, attention_mask=mask, max_new_tokens=12, prefill_chunk_size=16, **GREEDY)
    assert chunked[:, 70:].tolist() == [alone(student, prompt, 12) for prompt in prompts]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("use_cache", [False, True])
@torch.no_grad()
def test_logits_are_those_of_each_sequence_alone(student, side, use_cache):
    # In float64: weights as large as these leave logits in float32 no better than 2e-5.
    student, prompts = copy.deepcopy(student).double(), prompts_of([3, 40, 17])
    ids, mask = padded(prompts, side)
    logits = student(ids, attention_mask=mask, use_cache=use_cache).logits
    for row, prompt in enumerate(prompts):
        own = student(prompt[None], use_cache=False).logits[0]
        torch.testing.assert_close(logits[row, mask[row].bool()], own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_cache_of_padded_prompts_goes_on_by_any_number_of_tokens(student, side):
    student, prompts = copy.deepcopy(student).double(), prompts_of([3, 40, 17])
    ids, mask = padded(prompts, side)
    cache, logits = TrenchcoatCache(student.config), []
    student(ids, attention_mask=mask, past_key_values=cache)
    more = tokens(3, 30)
    for piece in more.split([4, 1, 1, 9, 15], dim=1):
        mask = torch.cat([mask, torch.ones_like(piece)], 1)
        logits.append(student(piece, attention_mask=mask, past_key_values=cache).logits)
    logits = torch.cat(logits, 1)
    for row, prompt in enumerate(prompts):
        whole = torch.cat([prompt, more[row]])[None]
        own = student(whole, use_cache=False).logits[0, -30:]
        torch.testing.assert_close(logits[row], own, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3, "do_sample": False, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3, "top_k": 5},
    ],
    ids=["beams", "sampling"],
)
@torch.no_grad()
def test_more_than_one_answer_to_each_padded_prompt(student, settings):
    ids, mask = padded(prompts_of([5, 30]), "left")
    answers = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        answers.append(
            student.generate(
                ids, attention_mask=mask, use_cache=use_cache, max_new_tokens=10, pad_token_id=1, **settings
            )
        )
    assert answers[0].shape[0] == 2 * settings["num_return_sequences"]
    assert answers[0].tolist() == answers[1].tolist()


@torch.no_grad()
def test_assisted_generation_is_refused_with_a_reason(student):
    ids = tokens(1, 4).repeat(1, 5)  # repeated, so that the prompt itself has guesses
    with pytest.raises((ValueError, NotImplementedError), match="cannot forget tokens"):
        student.generate(ids, prompt_lookup_num_tokens=3, max_new_tokens=12, **GREEDY)
    with pytest.raises((ValueError, NotImplementedError), match="cannot forget tokens"):
        student.generate(ids, assistant_model=student, max_new_tokens=12, **GREEDY)
