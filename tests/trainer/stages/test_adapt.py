"""The adapted teacher: trained as a student whose layers are all softmax would be, and measured."""

import json
import math
import shutil

import pytest
import torch
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints.shards import load_rest_weights
from trenchcoat_trainer.cli import main
from trenchcoat_trainer.data import TokenData
from trenchcoat_trainer.errors import MissingInputError, PreemptedError
from trenchcoat_trainer.models import TrenchcoatLlamaForCausalLM
from trenchcoat_trainer.models.artifacts import (
    adapted_teacher_adapters,
    layer_weights,
    load_teacher_config,
    stitch_adapters,
)
from trenchcoat_trainer.runtime.context import Place
from trenchcoat_trainer.runtime.opening import check_inputs, open_context
from trenchcoat_trainer.stages import cria, evaluate, stitch
from trenchcoat_trainer.stages.stitch.engine import next_token_loss

from tests.trainer.helpers.killing import write_spec
from tests.trainer.helpers.trainer_samples import StopAfter
from tests.trainer.stages.conftest import write_random_stitch

ALWAYS = {"adaptedTeacher": "always"}
LONG = {"share": "0.3", "multiple": 2}
SETTINGS = {
    "batchSize": 8,
    "microBatchSize": 2,
    "recallShare": "0.3",
    "lora": {"dropout": "0.2"},
    "longSequences": LONG,
}


def opened(spec, stage, folder, **options):
    return open_context(spec, stage, folder=folder, place=Place(), **options)


@pytest.fixture
def folder(collected_store, tmp_path):
    return shutil.copytree(collected_store, tmp_path / "store")


@pytest.mark.slow
def test_its_numbers_are_those_of_a_student_all_of_whose_layers_are_softmax(spread_spec, change, folder):
    softmax = {"keepSoftmaxLayers": list(range(5))}
    student = change(spread_spec, attention=softmax, stitch=SETTINGS | {"epochs": 3})
    for index in range(3):
        cria.run(opened(student, Stage.CRIA, folder, cria=index))
    stitch.run(opened(student, Stage.STITCH, folder))

    # The student's adapters of another form see the text as often: twice by Cria, once end to end.
    other = change(spread_spec, criaLora={"epochs": 2}, stitch=SETTINGS | {"epochs": 1}, evaluate=ALWAYS)
    context = opened(other, Stage.ADAPT, folder)
    stitch.run(context)
    expected = stitch_adapters(opened(student, Stage.STITCH, folder))[0]
    adapters = adapted_teacher_adapters(context)[0]
    assert adapters.keys() == expected.keys()
    assert all(torch.equal(adapters[name], expected[name]) for name in expected)
    facts = context.manifest(context.artifact).facts
    losses = [float(facts.losses[name]) for name in ("adapt", "adaptInitial")]
    assert losses[0] < losses[1]
    assert facts.recall.sequences > 0


@pytest.mark.slow
def test_stopped_and_started_again_it_ends_with_the_same_adapters(spread_spec, change, folder, tmp_path):
    spec = change(spread_spec, stitch=SETTINGS, criaLora={"epochs": 1}, evaluate=ALWAYS)
    other = shutil.copytree(folder, tmp_path / "other")
    whole = opened(spec, Stage.ADAPT, folder)
    stitch.run(whole)
    with pytest.raises(PreemptedError):
        stitch.run(opened(spec, Stage.ADAPT, other, stop=StopAfter(2)))
    again = opened(spec, Stage.ADAPT, other)
    stitch.run(again)
    expected = adapted_teacher_adapters(whole)[0]
    assert all(torch.equal(t, expected[name]) for name, t in adapted_teacher_adapters(again)[0].items())


def write_random_adapters(spec, folder) -> None:
    """Complete the adapt stage with random adapters, which are none of the stitch's."""
    context = opened(spec, Stage.ADAPT, folder)
    generator = torch.Generator().manual_seed(1)
    adapters = {
        name: torch.randn(tensor.shape, generator=generator) / 8
        for name, tensor in stitch_adapters(opened(spec, Stage.EVALUATE, folder))[0].items()
    }
    context.writer.write_tensors("adapters.safetensors", adapters)
    context.writer.finish()


@torch.no_grad()
def test_it_is_measured_like_the_others_and_changes_none_of_them(
    training_spec, change, trained_store, tmp_path
):
    folder = shutil.copytree(trained_store, tmp_path / "store")
    spec = change(training_spec, evaluate=ALWAYS)
    write_random_stitch(spec, folder)
    context = opened(spec, Stage.EVALUATE, folder)
    with pytest.raises(MissingInputError, match="adapt"):
        check_inputs(context)
    write_random_adapters(spec, folder)
    check_inputs(context)
    evaluate.run(context)
    without = opened(training_spec, Stage.EVALUATE, folder)
    evaluate.run(without)

    facts, before = (item.manifest(item.artifact).facts for item in (context, without))
    rows = {row.name: row for row in facts.perplexities}
    assert list(rows)[:3] == ["teacher", "adaptedTeacher", "windowedTeacher"]
    adapted = rows.pop("adaptedTeacher")
    assert list(rows.values()) == before.perplexities
    for mine, theirs in zip(facts.evaluation.recall, before.evaluation.recall, strict=True):
        assert set(mine.shares) == {*theirs.shares, "adaptedTeacher"}
        assert {name: mine.shares[name] for name in theirs.shares} == theirs.shares
    told = [reason for reason in before.evaluation.left_out if "adapted teacher" in reason]
    assert told == ["the adapted teacher: spec.evaluate.adaptedTeacher is never, or training it failed"]
    assert not any("adapted teacher" in reason for reason in facts.evaluation.left_out)

    state = load_rest_weights(context)
    for part in context.crias:
        for layer in part.layers:
            state |= layer_weights(context, part, layer, adapted_teacher_adapters(context))
    model = TrenchcoatLlamaForCausalLM(load_teacher_config(context)).eval()
    model.load_state_dict(state)
    (tokens,) = TokenData(context, "held_out").batches(epoch=0, batch_size=10**6, shuffle=False)
    for told, multiple in ((adapted.perplexity, 1), (adapted.longer["128"], 2)):
        joined = tokens[: len(tokens) // multiple * multiple].reshape(-1, multiple * tokens.shape[1])
        expected = math.exp(next_token_loss(model(joined, use_cache=False).logits, joined))
        assert float(told) == pytest.approx(expected, rel=1e-4)
    assert float(adapted.perplexity) != pytest.approx(float(rows["teacher"].perplexity), rel=1e-3)


@pytest.mark.slow
def test_the_command_makes_it_by_the_stitchs_program(training_spec, change, folder, tmp_path):
    fields = {"criaLora": {"epochs": 0}, "evaluate": ALWAYS, "stitch": {"epochs": 1}}
    spec = change(training_spec, **fields)
    assert main(["adapt", "--spec", str(write_spec(spec, tmp_path)), "--store", str(folder)]) == ExitCode.OK
    context = opened(spec, Stage.ADAPT, folder)
    assert context.manifest(context.artifact).stage is Stage.ADAPT
    progress = json.loads(context.store.read(context.artifact.progress_path))
    assert (progress["phase"], progress["fraction"]) == ("adapt", 1)


def test_where_no_cria_trains_none_asks_for_boundaries(training_spec, change, collected_store, tmp_path):
    spec = change(training_spec, attention={"form": "window", "window": 8}, criaLora={"epochs": 0}, gates={})
    bounded = change(spec, gates={"maxCriaError": "9"})
    folder = shutil.copytree(collected_store, tmp_path / "store")
    shutil.rmtree(folder / "trenchcoat" / opened(spec, Stage.SHARD, folder).artifacts.collect.prefix)
    for index in range(3):
        context = opened(spec, Stage.CRIA, folder, cria=index)
        check_inputs(context)
        cria.run(context)
        assert not context.manifest(context.artifact).facts.layer_errors
        with pytest.raises(MissingInputError, match="collect"):
            check_inputs(opened(bounded, Stage.CRIA, folder, cria=index))
    write_random_stitch(spec, folder)
    evaluation = opened(spec, Stage.EVALUATE, folder)
    check_inputs(evaluation)
    evaluate.run(evaluation)


def test_a_cria_that_reads_no_boundaries_leaves_what_one_that_does_would(
    training_spec, change, collected_store, tmp_path
):
    still = change(training_spec, transfer={"epochs": 0}, criaLora={"epochs": 0})
    contexts = []
    for name, gates in (("without", {}), ("with", {"maxCriaError": "9"})):
        store = shutil.copytree(collected_store, tmp_path / name)
        context = opened(change(still, gates=gates), Stage.CRIA, store, cria=1)
        cria.run(context)
        contexts.append(context)
    for path in ("feature_maps.safetensors", "adapters.safetensors"):
        mine, theirs = (context.read_tensors(context.artifact, path) for context in contexts)
        assert mine.keys() == theirs.keys() and mine
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert contexts[0].artifact.key != contexts[1].artifact.key
