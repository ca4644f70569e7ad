"""Export: anyone can load it, without this package, and it is the student to the last bit."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints.shards import load_config
from trenchcoat_trainer.models.artifacts import load_student_config
from trenchcoat_trainer.models.configuration_trenchcoat import TRIED, check_version, with_old_rope_names
from trenchcoat_trainer.models.student import student_config
from trenchcoat_trainer.stages import evaluate, export
from trenchcoat_trainer.stages.export import weights
from trenchcoat_trainer.stages.export.card import model_card
from trenchcoat_trainer.stages.export.files import plan_files

from tests.trainer.helpers.trainer_samples import ROPE
from tests.trainer.stages.evaluate.test_evaluate import stitched_student

MAX_BYTES = 200_000
LOAD = """
import sys
for name in ("trenchcoat_trainer", "trenchcoat_api"):
    sys.modules[name] = None  # as on a machine without this package
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = torch.arange(2, 72).unsqueeze(0)
with torch.no_grad():
    logits = model(ids).logits
prompt = tokenizer("the quick brown fox", return_tensors="pt", return_token_type_ids=False)
text = model.generate(**prompt, max_new_tokens=40, do_sample=False)
save_file({"logits": logits, "text": text}, out)
print(tokenizer.decode(text[0]))
"""


@pytest.fixture
def context(open_training, training_spec):
    # Smaller than the API allows, so that the tiny model has several files.
    settings = training_spec.export.model_copy(update={"max_shard_bytes": MAX_BYTES})
    spec = training_spec.model_copy(update={"export": settings})
    return open_training(spec, Stage.EXPORT, trained="stitched_store")


@pytest.mark.slow
def test_a_fresh_process_loads_it_without_this_package(context, tmp_path):
    export.run(context)
    folder = context.folder / "trenchcoat" / context.artifact.prefix
    index = json.loads((folder / weights.INDEX).read_text())["weight_map"]
    assert len(set(index.values())) > 1
    out = tmp_path / "out.safetensors"
    process = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), str(out)],
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    student = stitched_student(context)
    result = load_file(out)
    with torch.no_grad():
        expected = student(torch.arange(2, 72).unsqueeze(0), use_cache=False).logits
    torch.testing.assert_close(result["logits"], expected, rtol=0, atol=1e-5)
    assert result["text"].shape[1] > 40


def test_the_cards_tokenizer_loads_without_a_question(context, open_training, monkeypatch):
    """Also where the teacher has no settings of its tokenizer; one that asks would make a script wait."""
    original = export.teacher_files
    monkeypatch.setattr(
        export, "teacher_files", lambda context: [p for p in original(context) if "tokenizer_config" not in p]
    )
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    export.run(context)
    folder = context.folder / "trenchcoat" / context.artifact.prefix
    (line,) = [line for line in (folder / "README.md").read_text().splitlines() if "tokenizer = " in line]
    names = {"folder": folder, "AutoTokenizer": AutoTokenizer}
    exec(line, names)
    teacher = AutoTokenizer.from_pretrained(context.spec.model.source.removeprefix("file://"))
    text = "the quick brown fox — ü"
    assert names["tokenizer"](text)["input_ids"] == teacher(text)["input_ids"]
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "LlamaTokenizer"


def test_old_and_new_transformers_find_rope_where_they_look(context):
    export.run(context)
    fields = json.loads(context.read_object(context.artifact, "config.json"))
    assert fields["rope_parameters"] == ROPE
    assert fields["rope_theta"] == ROPE["rope_theta"]
    assert "rope_scaling" not in fields  # beside rope_theta, AutoTokenizer of transformers 5 fails on it
    scaling = {name: ROPE[name] for name in ROPE if name != "rope_theta"}
    assert with_old_rope_names(fields) == fields | {"rope_scaling": scaling}
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}
    assert with_old_rope_names(plain) == plain | {"rope_theta": 5.0}


@pytest.mark.parametrize("version", ["4.55.4", "3.9.1", "6.0.0"])
def test_a_transformers_of_another_time_is_refused_by_name(version):
    with pytest.raises(ImportError, match=rf"transformers {version} cannot run.*from 4\.56 on, before 6"):
        check_version(version)


@pytest.mark.parametrize("version", [*TRIED, "5.24.0.dev0", "5.30.1"])
def test_a_transformers_of_its_time_is_not_refused(version):
    check_version(version)


def test_what_only_transformers_5_says_of_a_tokenizer_is_put_in_words_that_4_knows():
    teachers = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<|x|>"], "bos_token": "<s>"}
    written = json.loads(export.tokenizer_config(json.dumps(teachers).encode()))
    assert written == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<|x|>"],
        "bos_token": "<s>",
    }
    old = b'{"tokenizer_class": "LlamaTokenizer", "extra_special_tokens": {"image": "<i>"}}'
    assert export.tokenizer_config(old) == old


def test_the_card_shows_the_perplexities_once_they_are_measured(context, open_training, training_spec):
    assert export.measured(context) is None
    measuring = open_training(training_spec, Stage.EVALUATE)
    evaluate.run(measuring)
    export.run(context)
    card = context.read_object(context.artifact, "README.md").decode()
    measured = measuring.manifest(measuring.artifact).facts.perplexities[-1]
    numbers = " | ".join(f"{float(value):.2f}" for value in (measured.perplexity, *measured.longer.values()))
    assert f"|   after stitching | {numbers} |" in card
    assert "Recall by distance" in card and "Decoding one sequence holds" in card


@pytest.mark.parametrize(("kept", "is_constant"), [([], True), ([1, 3], False)])
def test_the_card_promises_constant_memory_only_where_no_layer_keeps_its_cache(
    context, training_spec, change, kept, is_constant
):
    spec = change(training_spec, attention={"keepSoftmaxLayers": kept})
    card = model_card(spec, student_config(load_config(context), spec.attention), None)
    assert ("Decoding needs constant memory." in card) is is_constant
    assert ("grows with every token" in card) is not is_constant


def test_the_card_tells_how_long_the_sequences_were(context, training_spec, change):
    def lengths(**stitch):
        spec = change(training_spec, stitch=stitch)
        card = model_card(spec, student_config(load_config(context), spec.attention), None)
        return [line for line in card.splitlines() if "tokens in a training sequence" in line]

    long = {"share": "0.25", "multiple": 4}
    told = "| tokens in a training sequence | 64, 256 in the last 0.25 of the stitch |"
    assert lengths(longSequences=long) == [told]
    assert lengths(longSequences=long, epochs=0) == lengths() == []
    # The teacher has 256 positions.
    assert lengths(batchSize=8, longSequences=long | {"multiple": 8}) == [told]


def test_a_second_attempt_makes_only_what_is_missing(context, open_training, monkeypatch):
    weights.write_weights(context, files(context))
    context.writer.save_journal()
    again = open_training(context.spec, Stage.EXPORT)
    gone = files(again)[1].name
    again.store.delete(again.artifact.prefix + gone)
    again.writer.refresh()
    written = []
    monkeypatch.setattr(again.writer, "write", lambda path, data: written.append(path))
    weights.write_weights(again, files(again))
    assert written == [gone]


def files(context):
    return plan_files(weights.shapes(load_student_config(context)), MAX_BYTES)


def test_files_hold_what_fits_and_a_large_tensor_stands_alone():
    sizes = {"a": 2, "b": 3, "c": 9, "d": 1}
    tensors = {name: torch.empty(size, device="meta") for name, size in sizes.items()}
    planned = plan_files(tensors, max_bytes=20)
    assert [list(file.sizes) for file in planned] == [["a", "b"], ["c"], ["d"]]
    assert planned[1].name == "model-00002-of-00003.safetensors"
