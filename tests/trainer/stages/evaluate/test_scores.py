"""Scores: against transformers' own logits, token by token."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from trenchcoat_trainer.stages.evaluate import scores
from trenchcoat_trainer.stages.evaluate.scores import score
from trenchcoat_trainer.stages.evaluate.sets import Metric, text_set
from trenchcoat_trainer.stages.stitch.engine import next_token_loss

from tests.trainer.helpers.tiny_student import make_teacher
from tests.trainer.helpers.waits import Waits


@pytest.fixture(scope="module")
def measured():
    """A teacher, text, its states, and its logits by transformers."""
    teacher = make_teacher(layers=2)
    text = text_set(torch.randint(61, (5, 12), generator=torch.Generator().manual_seed(0)).int(), 1, [])
    with torch.no_grad():
        out = teacher(text.tokens.long(), output_hidden_states=True)
        last = []
        handle = teacher.model.norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
        teacher(text.tokens.long())
        handle.remove()
    (hidden,) = last
    head = {
        "model.norm.weight": teacher.model.norm.weight.data,
        "lm_head.weight": teacher.lm_head.weight.data,
    }

    def states(size):
        batches = hidden.split(size)
        return SimpleNamespace(numbers=range(len(batches)), batches=lambda: batches)

    return teacher, text, states, head, out.logits


def test_perplexity_is_that_of_the_loss(measured):
    teacher, text, states, head, logits = measured
    found = score(states(2), text, head, teacher.config, size=2)
    expected = next_token_loss(logits, text.tokens.long()).exp().item()
    assert found.value(Metric.PERPLEXITY) == pytest.approx(expected, rel=1e-5)


def test_the_host_waits_as_often_however_many_batches_there_are(measured, monkeypatch):
    teacher, text, states, head, _ = measured
    found = []
    for size, logits in (
        (5, scores.LOGITS),
        (1, 61 * 3),
    ):  # batches of a sequence, logits of 3 tokens at a time
        monkeypatch.setattr(scores, "LOGITS", logits)
        with Waits() as waits:
            result = score(states(size), text, head, teacher.config, size=size)
        found.append((len(waits.found), result.right.tolist(), pytest.approx(result.nats.sum().item())))
    assert found[0] == found[1]


def test_shares_are_counted_over_what_counts(measured):
    teacher, text, states, head, logits = measured
    best = logits[:, :-1].argmax(-1)
    tokens = text.tokens.clone()
    counts = torch.zeros_like(text.counts)
    counts[:, 3:7] = True
    tokens[:, 3:7] = best[:, 2:6]  # as if the model foretold them, given the text
    tokens[1, 4] = (tokens[1, 4] + 1) % 61
    changed = dataclasses.replace(text, tokens=tokens, counts=counts)
    found = score(states(2), changed, head, teacher.config, size=2)
    assert found.tokens.sum(1).tolist() == [4] * 5
    assert found.right.tolist() == [4, 3, 4, 4, 4]
    assert found.value(Metric.RIGHT) == pytest.approx(0.95)
    assert found.value(Metric.EXACT) == pytest.approx(0.8)
