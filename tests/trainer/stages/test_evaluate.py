"""Evaluation: what it reports is what the whole models give, computed in one piece."""

import json
import math

import pytest
import torch
from transformers import LlamaForCausalLM
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints.shards import load_rest_weights
from trenchcoat_trainer.data import TokenData
from trenchcoat_trainer.models import TrenchcoatLlamaForCausalLM
from trenchcoat_trainer.models.artifacts import (
    cria_adapters,
    layer_weights,
    load_student_config,
    stitch_adapters,
    trained_parameters,
)
from trenchcoat_trainer.stages import evaluate
from trenchcoat_trainer.stages.evaluate import states
from trenchcoat_trainer.stages.stitch import next_token_loss


@torch.no_grad()
def perplexity(model, context) -> float:
    (tokens,) = TokenData(context, "held_out").batches(epoch=0, batch_size=10**6, shuffle=False)
    return math.exp(next_token_loss(model(tokens, use_cache=False).logits, tokens))


def stitched_student(context) -> TrenchcoatLlamaForCausalLM:
    """The whole student after stitching, in memory."""
    state = load_rest_weights(context)
    for cria in context.crias:
        adapters = (cria_adapters(context, cria), stitch_adapters(context))
        for layer in cria.layers:
            state |= layer_weights(context, cria, layer, *adapters)
        for name, tensor in trained_parameters(context, cria).items():
            layer, part = name.rsplit(".", 1)
            state[f"model.{layer}.self_attn.{part}"] = tensor
    model = TrenchcoatLlamaForCausalLM(load_student_config(context)).eval()
    model.load_state_dict(state)
    return model


@pytest.fixture
def context(open_training, training_spec):
    return open_training(training_spec, Stage.EVALUATE, trained="stitched_store")


def test_it_reports_the_perplexities_of_the_whole_models(context, teacher_folder):
    evaluate.run(context)
    rows = context.manifest(context.artifact).facts.perplexities
    assert [row.name for row in rows] == ["teacher", "untrained", "transfer", "criaLora", "stitched"]
    measured = {row.name: float(row.perplexity) for row in rows}
    teacher = LlamaForCausalLM.from_pretrained(teacher_folder)
    assert measured["teacher"] == pytest.approx(perplexity(teacher, context), rel=1e-4)
    student = stitched_student(context)
    assert measured["stitched"] == pytest.approx(perplexity(student, context), rel=1e-4)
    assert len(set(measured.values())) == 5

    report = json.loads(context.read_object(context.artifact, evaluate.REPORT))
    for layer in student.model.layers:
        layer.self_attn.keep_parts = "window"
    assert report["parts"]["withoutLinear"] == pytest.approx(perplexity(student, context), rel=1e-4)
    assert report["parts"]["withoutWindow"] != report["parts"]["withoutLinear"]
    assert sorted(report["linearShareByLayer"]) == ["0", "1", "2", "3", "4"]
    assert all(0 < share < 1 for share in report["linearShareByLayer"].values())


def test_states_in_files_give_the_same(context, open_training, training_spec, monkeypatch):
    evaluate.run(context)
    monkeypatch.setattr(states, "IN_MEMORY_BYTES", 0)
    again = open_training(training_spec, Stage.EVALUATE, store="files", trained="stitched_store")
    evaluate.run(again)
    expected = context.manifest(context.artifact).facts
    assert again.manifest(again.artifact).facts == expected
