"""Evaluation: what it reports is what the whole models give, computed in one piece."""

import json
import math
import shutil

import pytest
import torch
from transformers import LlamaForCausalLM
from trenchcoat_api import evaluation_states
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
from trenchcoat_trainer.runtime.context import Place
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.stages import cria as training
from trenchcoat_trainer.stages import evaluate
from trenchcoat_trainer.stages.evaluate import states
from trenchcoat_trainer.stages.stitch import next_token_loss

from tests.trainer.stages.conftest import write_random_stitch


@torch.no_grad()
def perplexity(model, context, multiple: int = 1) -> float:
    """Of the held-out sequences, so many joined to one."""
    (tokens,) = TokenData(context, "held_out").batches(epoch=0, batch_size=10**6, shuffle=False)
    whole = len(tokens) // multiple * multiple
    tokens = tokens[:whole].reshape(-1, multiple * tokens.shape[1])
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
    names = ["teacher", "windowedTeacher", "untrained", "transfer", "criaLora", "stitched"]
    assert [row.name for row in rows] == names
    measured = {row.name: float(row.perplexity) for row in rows}
    teacher = LlamaForCausalLM.from_pretrained(teacher_folder)
    assert measured["teacher"] == pytest.approx(perplexity(teacher, context), rel=1e-4)
    student = stitched_student(context)
    assert measured["stitched"] == pytest.approx(perplexity(student, context), rel=1e-4)
    assert len(set(measured.values())) == 6

    longer = {row.name: {length: float(value) for length, value in row.longer.items()} for row in rows}
    for length, multiple in (("128", 2), ("256", 4)):
        assert longer["teacher"][length] == pytest.approx(perplexity(teacher, context, multiple), rel=1e-4)
        assert longer["stitched"][length] == pytest.approx(perplexity(student, context, multiple), rel=1e-4)

    report = json.loads(context.read_object(context.artifact, evaluate.REPORT))
    for layer in student.model.layers:
        layer.self_attn.keep_parts = "window"
    assert report["parts"]["withoutLinear"] == pytest.approx(perplexity(student, context), rel=1e-4)
    assert report["parts"]["withoutWindow"] != report["parts"]["withoutLinear"]
    assert sorted(report["linearShareByLayer"]) == ["0", "1", "2", "3", "4"]
    assert all(0 < share < 1 for share in report["linearShareByLayer"].values())


def test_the_windowed_teacher_sees_its_window_and_the_first_token(context, teacher_folder):
    evaluate.run(context)
    facts = context.manifest(context.artifact).facts
    window = facts.evaluation.decode.equal_window
    place = torch.arange(128)
    seen = (place[:, None] - place < window) | (place == 0)
    mask = torch.where(seen & (place[:, None] >= place), 0.0, -torch.inf)[None, None]
    teacher = LlamaForCausalLM.from_pretrained(teacher_folder, attn_implementation="eager")
    (tokens,) = TokenData(context, "held_out").batches(epoch=0, batch_size=10**6, shuffle=False)
    tokens = tokens[: len(tokens) // 2 * 2].reshape(-1, 128)
    with torch.no_grad():
        logits = teacher(tokens, attention_mask=mask.expand(len(tokens), 1, -1, -1), use_cache=False).logits
    measured = {row.name: float(row.longer["128"]) for row in facts.perplexities}
    expected = math.exp(next_token_loss(logits, tokens))
    assert measured["windowedTeacher"] == pytest.approx(expected, rel=1e-4)
    assert measured["windowedTeacher"] != pytest.approx(measured["teacher"], rel=1e-4)


def test_recall_is_measured_of_teacher_rival_and_student(context):
    evaluate.run(context)
    recall = context.manifest(context.artifact).facts.evaluation.recall
    assert [(item.probe, item.distance, item.samples) for item in recall] == [("copy", 40, 4)]
    assert set(recall[0].shares) == {"teacher", "windowedTeacher", "stitched"}
    assert all(0 <= float(share) <= 1 for share in recall[0].shares.values())


def test_shares_of_attention_are_those_at_the_training_length(context, open_training, training_spec, change):
    def shares(context):
        evaluate.run(context)
        return json.loads(context.read_object(context.artifact, evaluate.REPORT))["linearShareByLayer"]

    spec = change(training_spec, evaluate={"lengthMultiples": [], "recallSamples": 0})
    alone = open_training(spec, Stage.EVALUATE, store="alone", trained="stitched_store")
    assert shares(context) == shares(alone)


def test_a_form_with_nothing_to_train_has_no_row_after_attention_transfer(
    training_spec, collected_store, change, tmp_path
):
    spec = change(
        training_spec,
        attention={"form": "window", "window": 8},
        criaLora={"epochs": 0},
        evaluate={"lengthMultiples": [], "recallSamples": 0},
    )
    folder = shutil.copytree(collected_store, tmp_path / "store")
    for index in range(3):
        training.run(open_context(spec, Stage.CRIA, cria=index, folder=folder, place=Place()))
    write_random_stitch(spec, folder)
    context = open_context(spec, Stage.EVALUATE, folder=folder, place=Place())
    evaluate.run(context)
    facts = context.manifest(context.artifact).facts
    names = ["teacher", "windowedTeacher", "untrained", "criaLora", "stitched"]
    assert [row.name for row in facts.perplexities] == names
    told = [sentence for sentence in facts.evaluation.left_out if "attention transfer" in sentence]
    assert len(told) == 1 and "nothing to train" in told[0]


def test_what_cannot_be_measured_is_told(open_training, training_spec, change):
    spec = change(training_spec, evaluate={"lengthMultiples": [2, 8], "recallSamples": 0})
    context = open_training(spec, Stage.EVALUATE, trained="stitched_store")
    evaluate.run(context)
    facts = context.manifest(context.artifact).facts
    assert facts.evaluation.recall == []
    assert facts.evaluation.left_out == [
        "perplexity at 512 tokens: the teacher has 256 positions",
        "the adapted teacher: spec.evaluate.adaptedTeacher is never, or training it failed",
        "recall: spec.evaluate.recallSamples is 0",
    ]
    assert all(list(row.longer) == ["128"] for row in facts.perplexities)


def test_passes_that_were_finished_are_not_run_again(context, open_training, training_spec, monkeypatch):
    score, measured = evaluate.score, []

    def failing(states, item, *args):
        measured.append(item.name)
        if item.name == "text-256":
            raise InterruptedError
        return score(states, item, *args)

    def noting(states, item, *args):
        measured.append(item.name)
        return score(states, item, *args)

    monkeypatch.setattr(evaluate, "score", failing)
    with pytest.raises(InterruptedError):
        evaluate.run(context)
    assert set(measured) == {"text-64", "text-128", "text-256"}
    again = open_training(training_spec, Stage.EVALUATE, trained="stitched_store")
    measured.clear()
    monkeypatch.setattr(evaluate, "score", noting)
    evaluate.run(again)
    assert set(measured) == {"text-256", "copy-40"}
    undisturbed = open_training(training_spec, Stage.EVALUATE, store="other", trained="stitched_store")
    evaluate.run(undisturbed)
    assert again.manifest(again.artifact).facts == undisturbed.manifest(undisturbed.artifact).facts


def test_states_in_files_give_the_same(context, open_training, training_spec, monkeypatch):
    evaluate.run(context)
    monkeypatch.setattr(states, "IN_MEMORY_BYTES", 0)
    held: list[int] = []
    most = 0
    kept, closed = evaluate.HiddenStates.__init__, evaluate.HiddenStates.close

    def keep(own, shape, dtype):
        nonlocal most
        kept(own, shape, dtype)
        held.append(own._states.numel() * own._states.itemsize)
        most = max(most, sum(held))

    monkeypatch.setattr(evaluate.HiddenStates, "__init__", keep)
    monkeypatch.setattr(evaluate.HiddenStates, "close", lambda own: (held.pop(), closed(own)))
    again = open_training(training_spec, Stage.EVALUATE, store="files", trained="stitched_store")
    evaluate.run(again)
    expected = context.manifest(context.artifact).facts
    assert again.manifest(again.artifact).facts == expected
    found = again.manifest(again.artifacts.tokenize).facts
    asked = evaluation_states.pass_bytes(again.spec, found.model, found.data)
    assert asked / 2 < most <= asked, "the operator asks nodes for as much disk"
