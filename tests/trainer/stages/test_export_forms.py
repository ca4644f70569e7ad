"""An export beside the teacher's own files, or without its weights: the same student as the merged one."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.models.adapters import combine_adapters, merge_adapters
from trenchcoat_trainer.stages import export
from trenchcoat_trainer.stages.export.card import model_card
from trenchcoat_trainer.stages.export.lineage import told_spec, version_of

from tests.trainer.stages.evaluate.test_evaluate import stitched_student
from tests.trainer.stages.test_export import load_student_config

IDS = torch.arange(2, 72).unsqueeze(0)


@pytest.fixture
def exported(open_training, training_spec, change):
    """Exports in a form; returns the context and the folder."""

    def make(form, **settings):
        spec = change(training_spec, export={"form": form, **settings})
        context = open_training(spec, Stage.EXPORT, trained="stitched_store")
        export.run(context)
        return context, context.folder / "trenchcoat" / context.artifact.prefix

    return make


@torch.no_grad()
def logits(model):
    return model(IDS, use_cache=False).logits


def test_the_teachers_files_are_in_a_delta_byte_for_byte(exported, teacher_folder):
    _, folder = exported("delta")
    copies = {path.name.removeprefix("base-"): path for path in folder.glob("base-*")}
    assert len(copies) > 1
    for name, path in copies.items():
        assert path.read_bytes() == (teacher_folder / name).read_bytes()


def test_a_delta_loads_as_it_is_and_is_the_student(exported):
    context, folder = exported("delta")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    torch.testing.assert_close(logits(model), logits(stitched_student(context)), rtol=0, atol=1e-5)


def test_a_delta_has_beside_them_only_what_differs(exported, teacher_folder):
    _, folder = exported("delta")
    (file,) = folder.glob("student-*.safetensors")
    own, teacher = load_file(file), {}
    for path in teacher_folder.glob("*.safetensors"):
        teacher |= load_file(path)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert {name for name, where in index.items() if where == file.name} == own.keys()
    assert all(name not in teacher or not torch.equal(own[name], teacher[name]) for name in own)
    assert {name.rsplit(".", 2)[1] for name in own if name.endswith("weight")} == {
        "q_proj", "k_proj", "v_proj", "o_proj",
    }  # fmt: skip


def test_a_teacher_that_has_changed_is_no_part_of_a_delta(exported, teacher_folder, tmp_path, monkeypatch):
    changed = tmp_path / "teacher"
    shutil.copytree(teacher_folder, changed)
    index = json.loads((changed / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.3.input_layernorm.weight"
    tensors = load_file(changed / index[name])
    save_file(tensors | {name: tensors[name] + 0.5}, changed / index[name], {"format": "pt"})
    original = export.weights.open_teacher
    monkeypatch.setattr(
        export.weights,
        "open_teacher",
        lambda spec, store: original(
            spec.model_copy(update={"model": spec.model.model_copy(update={"source": changed.as_uri()})}),
            store,
        ),
    )
    with pytest.raises(BadInputError, match=rf"has another {name} than when it was sharded: .* form merged"):
        exported("delta")


LOAD = """
import sys
for name in ("trenchcoat_trainer", "trenchcoat_api", "peft"):
    sys.modules[name] = None  # as on a machine without them
import torch
from safetensors.torch import save_file
{lines}
with torch.no_grad():
    logits = model(torch.arange(2, 72).unsqueeze(0), use_cache=False).logits
save_file({{"logits": logits}}, "out.safetensors")
"""


@pytest.mark.slow
def test_the_cards_own_lines_put_adapters_onto_the_teacher(exported, teacher_folder, tmp_path):
    context, folder = exported("adapters")
    assert [path.name for path in folder.glob("*.safetensors*")] == ["adapters.safetensors"]
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("\ntokenizer =")[0]
    lines = code.replace('folder = "."', f"folder = {str(folder)!r}")
    lines = lines.replace("from_adapters(folder)", f"from_adapters(folder, teacher={str(teacher_folder)!r})")
    ended = subprocess.run(
        [sys.executable, "-c", LOAD.format(lines=lines)],
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    expected = logits(stitched_student(context))
    torch.testing.assert_close(load_file(tmp_path / "out.safetensors")["logits"], expected, rtol=0, atol=1e-5)


def test_adapters_alone_say_where_the_teacher_is_or_ask_for_it(exported):
    context, folder = exported("adapters")
    student = get_class_from_dynamic_module("modeling_trenchcoat.TrenchcoatLlamaForCausalLM", str(folder))
    with pytest.raises(ValueError, match="names no teacher that could be fetched: pass teacher=FOLDER"):
        student.from_adapters(str(folder))
    model = context.spec.model.model_copy(update={"source": "hf://me/llama", "revision": "v2"})
    fields = json.loads(
        export.config_json(load_student_config(context), context.spec.model_copy(update={"model": model}))
    )
    assert (fields["teacher"], fields["teacher_revision"]) == ("me/llama", "v2")


def test_several_adapters_of_a_projection_are_one(training_spec):
    first, second = training_spec.cria_lora.lora, training_spec.stitch.lora.model_copy(update={"rank": 3})
    generator = torch.Generator().manual_seed(0)
    stem, sets = "base_model.model.model.layers.{}.self_attn.q_proj", []
    for lora in (first, second):
        sets.append(
            (
                {
                    f"{stem.format(layer)}.lora_{part}.weight": torch.randn(*shape, generator=generator)
                    for layer in (1, 11)
                    for part, shape in (("A", (lora.rank, 6)), ("B", (5, lora.rank)))
                },
                lora,
            )
        )
    name = "model.layers.1.self_attn.q_proj"
    combined = combine_adapters(sets, {1})
    assert combined.keys() == {f"{name}.lora_A", f"{name}.lora_B"}
    merged = {f"{name}.weight": torch.randn(5, 6, generator=generator)}
    expected = merged[f"{name}.weight"] + combined[f"{name}.lora_B"] @ combined[f"{name}.lora_A"]
    for adapters, lora in sets:
        merge_adapters(merged, adapters, lora)
    torch.testing.assert_close(merged[f"{name}.weight"], expected, rtol=0, atol=1e-5)


def test_the_card_tells_what_it_was_made_of(exported):
    context, folder = exported("merged")
    card = (folder / "README.md").read_text()
    shard = context.artifacts.shard
    assert f"| shard {shard.key} | {context.manifest(shard).digest} |" in card
    for cria in context.crias:
        assert f"| {context.artifacts.cria(cria).name} {context.artifacts.cria(cria).key} | sha256:" in card
    assert f"| text | {context.spec.data.source} |" in card
    assert "layersPerCria: 2" in card.partition("```yaml\n")[2]


def test_the_card_names_no_place_and_no_secret_of_the_cluster(training_spec, change):
    secret = {"name": "the-secret", "key": "the-key"}
    spec = change(
        training_spec,
        model={"source": "hf://me/llama", "tokenSecretRef": secret},
        export={"destination": "hf://me/student", "tokenSecretRef": secret},
        pods={"cria": {"env": [{"name": "A", "value": "the-value"}]}},
    )
    told = told_spec(spec)
    assert "hf://me/llama" in told and "rank" in told
    words = ("the-secret", "the-key", "the-value", "9000", "bucket", "SecretRef")
    assert not [word for word in words if word in told]


@pytest.mark.parametrize("form", ["merged", "delta", "adapters"])
def test_the_card_says_how_to_load_each_form(exported, training_spec, change, form):
    spec = change(training_spec, export={"form": form})
    context, _ = exported(form)
    card = model_card(spec, load_student_config(context), None)
    assert ("from_adapters" in card) is (form == "adapters")
    assert ("base-*" in card) is (form == "delta")
    assert ("vllm serve" in card) is (form != "adapters")


def test_a_card_tells_of_code_that_is_not_installed() -> None:
    assert "not installed" in version_of("no-such-package-of-ours")
    assert version_of("torch") == importlib.metadata.version("torch")
