"""Samples: what each form goes on with is what it goes on with by itself, and large models are left out."""

import json

import pytest
import torch
from transformers import LlamaForCausalLM
from trenchcoat_api.artifacts import ModelFacts
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints.stored_tokenizer import stored_tokenizer
from trenchcoat_trainer.data import TokenData
from trenchcoat_trainer.errors import PreemptedError
from trenchcoat_trainer.stages.evaluate.samples import (
    MOST_BYTES,
    NEW_TOKENS,
    printable,
    take_samples,
    why_no_samples,
)

from tests.trainer.helpers.trainer_samples import StopAfter
from tests.trainer.stages.evaluate.test_evaluate import stitched_student

CPU = torch.device("cpu")


@pytest.fixture
def context(open_training, training_spec, change):
    spec = change(training_spec, evaluate={"samples": 3})
    return open_training(spec, Stage.EVALUATE, trained="stitched_store")


@torch.no_grad()
def greedy(model, ids: torch.Tensor) -> torch.Tensor:
    """What the model goes on with, without a cache."""
    start = ids.shape[1]
    for _ in range(NEW_TOKENS):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids[:, start:]


def test_they_are_what_both_go_on_with(context, teacher_folder):
    samples = take_samples(context, CPU)
    data, tokenizer = TokenData(context, "held_out"), stored_tokenizer(context)
    assert len(samples) == min(3, data.sequences) > 0
    row = data.read(0, 1).long()
    begin = data.sequence_length // 2
    assert samples[0].prompt == printable(tokenizer.decode(row[0, :begin]))
    assert samples[0].text == printable(tokenizer.decode(row[0, begin : begin + NEW_TOKENS]))
    teacher = LlamaForCausalLM.from_pretrained(teacher_folder)
    models = {"teacher": teacher, "stitched": stitched_student(context)}
    assert list(samples[0].continuations) == list(models)
    for name, model in models.items():
        told = printable(tokenizer.decode(greedy(model, row[:, :begin])[0]))
        assert samples[0].continuations[name] == told
    assert len(set(samples[0].continuations.values())) == 2
    assert take_samples(context, CPU) == samples


def test_none_are_taken_where_none_are_wanted(training_spec, open_training, change):
    spec = change(training_spec, evaluate={"samples": 0})
    context = open_training(spec, Stage.EVALUATE, trained="stitched_store")
    assert take_samples(context, CPU) == []
    large = facts(10**12)
    assert why_no_samples(context.spec, large, CPU) == ""


def facts(parameters: int) -> ModelFacts:
    return ModelFacts.model_construct(parameters=parameters)


def test_a_large_model_is_left_out_and_said_to_be(context):
    most = MOST_BYTES["cpu"] // 4  # of fp32
    assert why_no_samples(context.spec, facts(most), CPU) == ""
    assert why_no_samples(context.spec, facts(most + 1), CPU) == (
        "samples: they take the whole model, whose weights are 1.0 GB; here it may have 1.0 GB"
    )


def test_a_wish_to_stop_is_heard_between_two_models(context):
    context.stop = StopAfter(1)
    with pytest.raises(PreemptedError):
        take_samples(context, CPU)


def test_what_no_page_can_show_is_replaced():
    assert printable("a\x00b\x1b[0m\n\tc\ud800é") == "a�b�[0m\n\tc�é"
    assert json.loads(json.dumps(printable("\x07"))) == "�"
