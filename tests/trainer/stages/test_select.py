"""The select stage: the layer that carries recall is found, told, and made wide by the stages after it."""

import json
import shutil

import pytest
import torch
from transformers import LlamaForCausalLM
from trenchcoat_api.artifacts import Facts
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.errors import BadInputError, MissingInputError, PreemptedError
from trenchcoat_trainer.runtime.context import Place
from trenchcoat_trainer.runtime.opening import check_inputs, open_context
from trenchcoat_trainer.stages import collect, cria, export, select, shard, tokenize

from tests.trainer.helpers.trainer_samples import StopAfter, make_config, save_teacher
from tests.trainer.stages.conftest import write_random_stitch

CARRIES = 3
SHARE = {"share": "0.2"}  # one of five layers


@pytest.fixture(scope="module")
def one_layer_looks_back(tmp_path_factory):
    """A teacher of which all layers but one leave attention out of the residual stream."""
    folder = tmp_path_factory.mktemp("looks-back")
    save_teacher(folder, make_config())
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            if index != CARRIES:
                layer.self_attn.o_proj.weight.zero_()
    model.save_pretrained(folder, max_shard_size="100KB")
    return folder


@pytest.fixture
def spec(training_spec, change, one_layer_looks_back):
    return change(training_spec, model={"source": one_layer_looks_back.as_uri()}, attention={"wide": SHARE})


def select_in(spec, folder, **options):
    context = open_context(spec, Stage.SELECT, folder=folder, place=Place(), **options)
    select.run(context)
    return context


def test_the_layer_that_carries_recall_is_chosen(spec, change, tmp_path):
    folder = tmp_path / "store"
    tokenize.run(open_context(spec, Stage.TOKENIZE, folder=folder))
    context = select_in(spec, folder)
    told = json.loads(context.read_object(context.artifact, "selection.json"))
    assert told["layers"] == [CARRIES]
    assert [float(score) > 0 for score in told["scores"]] == [index == CARRIES for index in range(5)]
    assert told["settings"] == {
        "sequences": 24,
        "seed": 0,
        "run": 5,
        "lead": 4,
        "distances": [25, 50],
        "window": 16,
        "first_tokens": 4,
    }
    facts = context.manifest(context.artifact).facts
    assert facts == Facts(selection={"layers": [CARRIES], "scores": told["scores"]})

    kept = change(spec, attention={"keepSoftmaxLayers": [CARRIES], "wide": {"share": "0.5"}})
    chosen = select_in(kept, folder)
    assert json.loads(chosen.read_object(chosen.artifact, "selection.json"))["layers"] == [0, 1]


def test_the_same_seed_chooses_the_same(training_spec, collected_store, change, tmp_path):
    one, again, other = (
        select_in(
            change(training_spec, seed=seed, attention={"wide": SHARE}),
            shutil.copytree(collected_store, tmp_path / str(number)),
        )
        for number, seed in enumerate((0, 0, 1))
    )
    assert one.manifest(one.artifact).digest == again.manifest(again.artifact).digest
    assert one.manifest(one.artifact).facts != other.manifest(other.artifact).facts
    assert one.artifact.key != other.artifact.key


def test_a_stop_ends_it_and_it_begins_anew(training_spec, collected_store, change, tmp_path):
    spec = change(training_spec, attention={"wide": SHARE})
    folder = shutil.copytree(collected_store, tmp_path / "store")
    with pytest.raises(PreemptedError):
        select_in(spec, folder, stop=StopAfter(3))
    context = select_in(spec, folder)
    assert len(context.manifest(context.artifact).facts.selection.layers) == 1


def test_a_text_too_short_for_a_copy_is_told(training_spec, collected_store, change, tmp_path):
    spec = change(training_spec, attention={"window": 60, "wide": SHARE})
    with pytest.raises(BadInputError, match=r"sequenceLength is 64, too short .*window 60"):
        select_in(spec, shutil.copytree(collected_store, tmp_path / "store"))


def test_crias_wait_for_it_only_where_it_is_asked_for(training_spec, collected_store, change):
    check_inputs(open_context(training_spec, Stage.CRIA, cria=0, folder=collected_store))
    spec = change(training_spec, attention={"wide": SHARE})
    with pytest.raises(MissingInputError, match="select is not complete"):
        check_inputs(open_context(spec, Stage.CRIA, cria=0, folder=collected_store))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        ({"wide": SHARE}, {"student_form": "lolcats", "keep_softmax_layers": [CARRIES]}),
        (
            {"form": "window", "wide": SHARE | {"window": 48}},
            {"student_form": "window", "keep_softmax_layers": [], "windows": [16, 16, 16, 48, 16]},
        ),
    ],
    ids=["lolcats", "window"],
)
def test_the_chosen_layers_are_wide_in_the_exported_student(
    training_spec, one_layer_looks_back, change, tmp_path, attention, expected
):
    fields = {"window": 16, "featureDim": 8, "firstTokens": None, **attention}
    spec = change(training_spec, model={"source": one_layer_looks_back.as_uri()}, attention=fields)
    folder = tmp_path / "store"
    stages = {Stage.TOKENIZE: tokenize, Stage.COLLECT: collect, Stage.SHARD: shard, Stage.SELECT: select}
    for stage, module in stages.items():
        module.run(open_context(spec, stage, folder=folder, place=Place()))
    for index in range(3):
        cria.run(open_context(spec, Stage.CRIA, cria=index, folder=folder, place=Place()))
    write_random_stitch(spec, folder)
    context = open_context(spec, Stage.EXPORT, folder=folder, place=Place())
    export.run(context)
    config = json.loads(context.read_object(context.artifact, "config.json"))
    assert {name: config[name] for name in expected} == expected
