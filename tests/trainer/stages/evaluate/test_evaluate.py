"""Evaluation: what it reports is what the whole models give, computed in one piece."""

import importlib.util
import json
import math
import shutil
import weakref

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM
from trenchcoat_api import evaluation_states
from trenchcoat_api.artifacts import Facts
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints.pod_weights import PodWeights
from trenchcoat_trainer.checkpoints.shards import load_rest_weights
from trenchcoat_trainer.data import TokenData
from trenchcoat_trainer.errors import BadInputError, PreemptedError
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
from trenchcoat_trainer.stages.evaluate import crossing, states
from trenchcoat_trainer.stages.stitch.engine import next_token_loss

from tests.trainer.helpers.trainer_samples import StopAfter
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


def evaluate_without_training(spec, folder) -> Facts:
    """What is found of a student whose Crias train nothing, with random adapters of the stitch."""
    for index in range(3):
        training.run(open_context(spec, Stage.CRIA, cria=index, folder=folder, place=Place()))
    write_random_stitch(spec, folder)
    context = open_context(spec, Stage.EVALUATE, folder=folder, place=Place())
    evaluate.run(context)
    return context.manifest(context.artifact).facts


@pytest.fixture
def context(open_training, training_spec):
    return open_training(training_spec, Stage.EVALUATE, trained="stitched_store")


@pytest.fixture(scope="module")
def evaluated(stitched_store, training_spec, tmp_path_factory):
    """The context of an evaluation that is complete, for what only reads its results."""
    folder = shutil.copytree(stitched_store, tmp_path_factory.mktemp("evaluated") / "store")
    context = open_context(training_spec, Stage.EVALUATE, folder=folder, place=Place())
    evaluate.run(context)
    return context


def test_it_reports_the_perplexities_of_the_whole_models(evaluated, teacher_folder):
    rows = evaluated.manifest(evaluated.artifact).facts.perplexities
    names = ["teacher", "windowedTeacher", "untrained", "transfer", "criaLora", "stitched"]
    assert [row.name for row in rows] == names
    measured = {row.name: float(row.perplexity) for row in rows}
    teacher = LlamaForCausalLM.from_pretrained(teacher_folder)
    assert measured["teacher"] == pytest.approx(perplexity(teacher, evaluated), rel=1e-4)
    student = stitched_student(evaluated)
    assert measured["stitched"] == pytest.approx(perplexity(student, evaluated), rel=1e-4)
    assert len(set(measured.values())) == 6

    longer = {row.name: {length: float(value) for length, value in row.longer.items()} for row in rows}
    for length, multiple in (("128", 2), ("256", 4)):
        assert longer["teacher"][length] == pytest.approx(perplexity(teacher, evaluated, multiple), rel=1e-4)
        assert longer["stitched"][length] == pytest.approx(perplexity(student, evaluated, multiple), rel=1e-4)

    report = json.loads(evaluated.read_object(evaluated.artifact, evaluate.REPORT))
    for layer in student.model.layers:
        layer.self_attn.keep_parts = "window"
    assert report["parts"]["withoutLinear"] == pytest.approx(perplexity(student, evaluated), rel=1e-4)
    assert report["parts"]["withoutWindow"] != report["parts"]["withoutLinear"]
    assert sorted(report["shareOutsideWindowByLayer"]) == ["0", "1", "2", "3", "4"]
    assert all(0 < share < 1 for share in report["shareOutsideWindowByLayer"].values())


def test_the_windowed_teacher_sees_its_window_and_the_first_token(evaluated, teacher_folder):
    facts = evaluated.manifest(evaluated.artifact).facts
    window = facts.evaluation.decode.equal_window
    place = torch.arange(128)
    seen = (place[:, None] - place < window) | (place == 0)
    mask = torch.where(seen & (place[:, None] >= place), 0.0, -torch.inf)[None, None]
    teacher = LlamaForCausalLM.from_pretrained(teacher_folder, attn_implementation="eager")
    (tokens,) = TokenData(evaluated, "held_out").batches(epoch=0, batch_size=10**6, shuffle=False)
    tokens = tokens[: len(tokens) // 2 * 2].reshape(-1, 128)
    with torch.no_grad():
        logits = teacher(tokens, attention_mask=mask.expand(len(tokens), 1, -1, -1), use_cache=False).logits
    measured = {row.name: float(row.longer["128"]) for row in facts.perplexities}
    expected = math.exp(next_token_loss(logits, tokens))
    assert measured["windowedTeacher"] == pytest.approx(expected, rel=1e-4)
    assert measured["windowedTeacher"] != pytest.approx(measured["teacher"], rel=1e-4)


def test_recall_is_measured_of_teacher_rival_and_student(evaluated):
    recall = evaluated.manifest(evaluated.artifact).facts.evaluation.recall
    assert [(item.probe, item.distance, item.samples) for item in recall] == [
        ("copy", 40, 4),
        ("association", 64, 4),
        ("induction", 64, 4),
    ]
    for item in recall:
        assert set(item.shares) == {"teacher", "windowedTeacher", "stitched"}
        assert all(0 <= float(share) <= 1 for share in item.shares.values())
        assert item.errors.keys() == item.shares.keys()
        assert all(0 < float(error) < 0.3 for error in item.errors.values())


@torch.no_grad()
def test_student_and_teacher_are_compared_sequence_by_sequence(evaluated, teacher_folder):
    found = evaluated.manifest(evaluated.artifact).facts
    (row,) = found.evaluation.comparisons
    (tokens,) = TokenData(evaluated, "held_out").batches(epoch=0, batch_size=10**6, shuffle=False)
    second = slice(tokens.shape[1] // 2, None)
    losses = []
    for model in (stitched_student(evaluated), LlamaForCausalLM.from_pretrained(teacher_folder)):
        logits = model(tokens, use_cache=False).logits[:, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits.mT, tokens[:, 1:], reduction="none"))
    more = losses[0] - losses[1]
    gain = -more[:, slice(second.start - 1, None)].mean(1)
    assert (row.teacher, row.continuations) == ("teacher", len(tokens))
    assert float(row.wins) == pytest.approx((gain > 0.01).float().mean().item())
    assert float(row.ties) == pytest.approx((gain.abs() <= 0.01).float().mean().item())
    assert float(row.ratio) == pytest.approx(more.mean().exp().item(), rel=1e-4)
    error = more.mean(1).std() / len(tokens) ** 0.5 * more.mean().exp()
    assert float(row.ratio_error) == pytest.approx(error.item(), rel=0.06)
    own = losses[0].mean(1).std() / len(tokens) ** 0.5 * losses[0].mean().exp()
    assert float(found.perplexities[-1].error) == pytest.approx(own.item(), rel=0.06)


@torch.no_grad()
def test_perplexity_by_position_is_that_of_the_longest_sequences(evaluated, teacher_folder):
    ranges = evaluated.manifest(evaluated.artifact).facts.evaluation.positions
    assert [(item.first, item.last) for item in ranges] == [(n, n + 31) for n in range(0, 256, 32)]
    (tokens,) = TokenData(evaluated, "held_out").batches(epoch=0, batch_size=10**6, shuffle=False)
    tokens = tokens[: len(tokens) // 4 * 4].reshape(-1, 256)
    teacher = LlamaForCausalLM.from_pretrained(teacher_folder)
    logits = teacher(tokens, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.mT, tokens[:, 1:], reduction="none")
    for item in ranges:
        expected = losses[:, max(item.first - 1, 0) : item.last].mean().exp().item()
        assert float(item.perplexities["teacher"]) == pytest.approx(expected, rel=1e-4)
    assert set(ranges[0].perplexities) == {"teacher", "windowedTeacher", "stitched"}


def test_shares_of_attention_are_those_at_the_training_length(context, open_training, training_spec, change):
    def shares(context):
        evaluate.run(context)
        return json.loads(context.read_object(context.artifact, evaluate.REPORT))["shareOutsideWindowByLayer"]

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
    facts = evaluate_without_training(spec, shutil.copytree(collected_store, tmp_path / "store"))
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
    of_each, made = crossing.cria_of_each, []

    def noting_forms(*args):
        for variant, model in of_each(*args):
            made.append(variant.name)
            yield variant, model

    with monkeypatch.context() as patched:
        patched.setattr(crossing, "cria_of_each", noting_forms)
        evaluate.run(again)
    assert set(measured) == {"text-256", "copy-40", "association-64", "induction-64"}
    # Parts of the student's attention are measured on the first set alone, and are not made for others.
    assert {"teacher", "stitched"} < set(made) and not any(name.startswith("without") for name in made)
    undisturbed = open_training(training_spec, Stage.EVALUATE, store="other", trained="stitched_store")
    evaluate.run(undisturbed)
    assert again.manifest(again.artifact).facts == undisturbed.manifest(undisturbed.artifact).facts


def in_the_store_alone(monkeypatch) -> None:
    monkeypatch.setattr(states, "IN_MEMORY_BYTES", 0)


def test_states_in_the_store_give_the_same(context, open_training, training_spec, monkeypatch):
    evaluate.run(context)
    in_the_store_alone(monkeypatch)
    again = open_training(training_spec, Stage.EVALUATE, store="stored", trained="stitched_store")
    evaluate.run(again)
    assert again.manifest(again.artifact).facts == context.manifest(context.artifact).facts


def test_few_states_in_the_store_are_in_memory_at_a_time(open_training, training_spec, monkeypatch):
    """Those that are read ahead, the one that is computed, and those that wait to be written."""
    in_the_store_alone(monkeypatch)
    context = open_training(training_spec, Stage.EVALUATE, trained="stitched_store")
    most, held, read = 0, weakref.WeakSet(), states.Stored._read

    def reading(own, batch):
        nonlocal most
        hidden = read(own, batch)
        held.add(hidden)
        most = max(most, sum(1 for _ in held))
        return hidden

    monkeypatch.setattr(states.Stored, "_read", reading)
    evaluate.run(context)
    assert 1 < most <= evaluation_states.AHEAD + evaluation_states.PENDING + 1


def test_the_weights_of_one_cria_are_held_at_a_time(context, monkeypatch):
    held, most, read = [], [], PodWeights.cria

    def reading(own, cria, ahead):
        most.append(sum(1 for array in held if array() is not None))
        arrays = {name: tensor.numpy().copy() for name, tensor in read(own, cria, ahead).items()}
        held.extend(weakref.ref(array) for array in arrays.values())
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    monkeypatch.setattr(PodWeights, "cria", reading)
    evaluate.run(context)
    assert len(most) > 3 and not any(most)


@pytest.mark.parametrize("crias", [1, 2])
def test_stopped_with_states_in_the_store_it_goes_on_with_none_computed_twice(
    context, open_training, training_spec, monkeypatch, crias
):
    evaluate.run(context)
    in_the_store_alone(monkeypatch)
    updated: list[tuple[str, int]] = []
    update = states.Stored.update

    def noting(own, batch, hidden, state):
        update(own, batch, hidden, state)
        updated.append((own._name, batch, state["passed"]))

    monkeypatch.setattr(states.Stored, "update", noting)
    stop = StopAfter(7 * crias)
    with pytest.raises(PreemptedError):
        evaluate.run(
            open_training(training_spec, Stage.EVALUATE, store="stored", trained="stitched_store", stop=stop)
        )
    assert updated
    again = open_training(training_spec, Stage.EVALUATE, store="stored", trained="stitched_store")
    evaluate.run(again)
    assert len(updated) == len(set(updated))
    assert again.manifest(again.artifact).facts == context.manifest(context.artifact).facts


def test_other_text_is_measured_beside_the_held_out_one(
    open_training, training_spec, change, teacher_folder, tmp_path
):
    words = "the lazy dog jumps over lines of text and quick brown foxes " * 30
    (tmp_path / "other.txt").write_text(words)
    other = {"source": (tmp_path / "other.txt").as_uri(), "tokens": 200}
    spec = change(training_spec, evaluate={"lengthMultiples": [], "recallSamples": 0, "otherText": other})
    context = open_training(spec, Stage.EVALUATE, trained="stitched_store")
    evaluate.run(context)
    facts = context.manifest(context.artifact).facts
    rows = {row.name: row for row in facts.perplexities if row.other is not None}
    assert set(rows) == {"teacher", "windowedTeacher", "stitched"}
    tokens = AutoTokenizer.from_pretrained(teacher_folder).encode(words, return_tensors="pt")[:, :192]
    teacher = LlamaForCausalLM.from_pretrained(teacher_folder)
    with torch.no_grad():
        logits = teacher(tokens.view(3, 64), use_cache=False).logits
    expected = math.exp(next_token_loss(logits, tokens.view(3, 64)))
    assert float(rows["teacher"].other) == pytest.approx(expected, rel=1e-4)
    assert float(rows["teacher"].other_error) > 0
    report = json.loads(context.read_object(context.artifact, evaluate.REPORT))
    assert [item["name"].partition("-")[0] for item in report["sets"]] == ["text", "other"]


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-evaluation-harness is there")
def test_without_the_harness_tasks_are_refused_before_anything_is_computed(
    open_training, training_spec, change, tmp_path
):
    tasks = {"source": tmp_path.as_uri(), "names": ["colours"]}
    context = open_training(
        change(training_spec, evaluate={"tasks": tasks}), Stage.EVALUATE, trained="stitched_store"
    )
    with pytest.raises(BadInputError, match=r"needs lm-evaluation-harness.* trainer/tasks\.Dockerfile"):
        evaluate.run(context)
    assert context.checkpoint.names() == []


def test_wide_layers_are_a_part_that_can_be_taken_away(training_spec, collected_store, change, tmp_path):
    measured = {}
    for name, wide in (
        ("wide", {"layers": [1, 3]}),
        ("longer", {"layers": [1, 3], "window": 24}),
        ("none", None),
    ):
        attention = {"form": "window", "window": 8, "firstTokens": 2} | ({"wide": wide} if wide else {})
        spec = change(
            training_spec,
            attention=attention,
            criaLora={"epochs": 0},
            evaluate={"lengthMultiples": [], "recallSamples": 0},
        )
        facts = evaluate_without_training(spec, shutil.copytree(collected_store, tmp_path / name))
        measured[name] = {row.name: row.perplexity for row in facts.perplexities} | facts.evaluation.parts
    narrow = measured["none"]
    assert "withoutWideLayers" not in narrow
    for name in ("wide", "longer"):
        assert measured[name]["withoutWideLayers"] == narrow["stitched"] != measured[name]["stitched"]
        assert (
            len({measured[name][part] for part in ("withoutWindow", "withoutFirstTokens", "stitched")}) == 3
        )
