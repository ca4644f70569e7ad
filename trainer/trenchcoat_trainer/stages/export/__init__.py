"""The export stage: the student as a Hugging Face checkpoint that anyone can load.

Adapters are merged into the weights layer by layer, so memory holds one layer and one file of the checkpoint.
Besides the weights it leaves the tokenizer, the configuration, the model's code and a model card.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from trenchcoat_api.artifacts import Artifacts, Facts
from trenchcoat_api.phases import without_adapted_teacher

from trenchcoat_trainer.checkpoints.shards import TEACHER, load_rest_weights, teacher_files
from trenchcoat_trainer.errors import MissingInputError
from trenchcoat_trainer.models import configuration_trenchcoat, modeling_trenchcoat
from trenchcoat_trainer.models.artifacts import (
    Tensors,
    cria_adapters,
    layer_weights,
    load_student_config,
    stitch_adapters,
    trained_parameters,
)
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.models.modeling_trenchcoat import TrenchcoatLlamaForCausalLM
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.stages.export.card import model_card
from trenchcoat_trainer.stages.export.eval_results import eval_results
from trenchcoat_trainer.stages.export.files import File, plan_files
from trenchcoat_trainer.students import form_of
from trenchcoat_trainer.tensors.serialization import pack

INDEX = "model.safetensors.index.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
AUTO_MAP = {
    "AutoConfig": "configuration_trenchcoat.TrenchcoatLlamaConfig",
    "AutoModelForCausalLM": "modeling_trenchcoat.TrenchcoatLlamaForCausalLM",
}


def run(context: StageContext) -> None:
    """Write the checkpoint; files that an earlier attempt wrote are not made again."""
    config = load_student_config(context)
    files = plan_files(shapes(config), context.spec.export.max_shard_bytes)
    write_weights(context, files)
    weight_map = {name: file.name for file in files for name in file.sizes}
    total = sum(size for file in files for size in file.sizes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    context.writer.write(INDEX, json.dumps(index, indent=1).encode())

    kept = {path.removeprefix(TEACHER): path for path in teacher_files(context)}
    for name, path in kept.items():
        if name not in ("config.json", TOKENIZER_CONFIG):
            context.writer.write(name, context.read_object(context.artifacts.shard, path))
    settings = kept.get(TOKENIZER_CONFIG)
    context.writer.write(
        TOKENIZER_CONFIG,
        tokenizer_config(context.read_object(context.artifacts.shard, settings) if settings else b"{}"),
    )
    context.writer.write("config.json", config_json(config))
    for name, text in code(config).items():
        context.writer.write(name, text)
    context.writer.write("README.md", model_card(context.spec, config, measured(context)).encode())
    for name, text in eval_results(measured(context)).items():
        context.writer.write(name, text)
    context.writer.finish()


def shapes(config: TrenchcoatLlamaConfig) -> Tensors:
    """Return tensors without memory that have the checkpoint's names, shapes and dtypes, in its order."""
    with torch.device("meta"):
        model = TrenchcoatLlamaForCausalLM(config).to(config.dtype)
    tensors = model.state_dict()
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    kept = {
        f"model.layers.{number}.self_attn.{name}"
        for number, layer in enumerate(model.model.layers)
        for name in layer.self_attn.student_parameters()
    }
    return {name: tensor.float() if name in kept else tensor for name, tensor in tensors.items()}


def write_weights(context: StageContext, files: list[File]) -> None:
    """Write every file of weights that is not there yet."""
    missing = [file for file in files if context.writer.recorded(file.name) is None]
    wanted = {name: file for file in missing for name in file.sizes}
    pending: dict[str, Tensors] = {file.name: {} for file in missing}
    done = len(files) - len(missing)
    for tensors in parts(context, set(wanted)):
        for name, tensor in tensors.items():
            if name not in wanted:
                continue
            file = wanted[name]
            held = pending[file.name]
            held[name] = tensor
            if len(held) == len(file.sizes):
                context.stop.check()
                context.writer.write(file.name, pack(held, {"format": "pt"}))
                del pending[file.name]
                done += 1
                context.progress.update("export", done, len(files), fraction=done / len(files))
    if pending:
        absent = sorted(set(wanted) - {name for held in pending.values() for name in held})
        raise MissingInputError(f"the teacher's checkpoint lacks {absent[0]}: it is no complete Llama")


def parts(context: StageContext, wanted: set[str]) -> Iterator[Tensors]:
    """Yield the student's tensors layer by layer, then the rest; Crias that nobody wants are not read."""
    stitch = stitch_adapters(context)
    for cria in context.crias:
        if not any(name.startswith(tuple(f"model.layers.{n}." for n in cria.layers)) for name in wanted):
            continue
        adapters, trained = cria_adapters(context, cria), trained_parameters(context, cria)
        for layer in cria.layers:
            weights = layer_weights(context, cria, layer, adapters, stitch)
            prefix = f"layers.{layer}."
            for name, tensor in trained.items():
                if name.startswith(prefix):
                    weights[f"model.{prefix}self_attn.{name.removeprefix(prefix)}"] = tensor
            yield weights
    yield load_rest_weights(context)


def code(config: TrenchcoatLlamaConfig) -> dict[str, bytes]:
    """Return the files of the exported model's code; they import each other, torch and transformers alone."""
    form = form_of(config)
    modules = (configuration_trenchcoat, modeling_trenchcoat, *form.companions)
    files = {Path(module.__file__).name: Path(module.__file__).read_bytes() for module in modules}
    for module in form.companions:
        # Older transformers fetch the files that the model's names, and not those that these name.
        line = f"from .{Path(module.__file__).stem} import __name__ as _fetched  # noqa: F401\n"
        files["modeling_trenchcoat.py"] += line.encode()
    return {**files, "student_attention.py": Path(form.code.__file__).read_bytes()}


def tokenizer_config(teachers: bytes) -> bytes:
    """Return tokenizer_config.json: the teacher's, with a class, which only a Llama's own type stands for.

    What transformers 5 writes and 4 does not know is put in the words that both read.
    """
    fields = json.loads(teachers)
    known = {name: value for name, value in fields.items() if name != "extra_special_tokens"}
    named = fields.get("tokenizer_class") or "LlamaTokenizer"
    known["tokenizer_class"] = "PreTrainedTokenizerFast" if named == "TokenizersBackend" else named
    extra = fields.get("extra_special_tokens")
    if extra:
        known["additional_special_tokens" if isinstance(extra, list) else "extra_special_tokens"] = extra
    return teachers if known == fields else json.dumps(known, indent=2).encode()


def config_json(config: TrenchcoatLlamaConfig) -> bytes:
    """Return config.json: the student's configuration, and where its code is found."""
    fields = json.loads(config.to_json_string(use_diff=False))
    # For readers of transformers 4's names. Not rope_scaling: where both are, AutoTokenizer of transformers 5
    # fails, which reads this file without its code. Under 4 the configuration's own code makes it.
    fields["rope_theta"] = fields["rope_parameters"]["rope_theta"]
    fields |= {"architectures": ["TrenchcoatLlamaForCausalLM"], "auto_map": AUTO_MAP}
    return json.dumps(fields, indent=2, sort_keys=True).encode()


def measured(context: StageContext) -> Facts | None:
    """Return what the evaluation measured if it is complete; export does not wait for it."""
    # Where the adapted teacher could not be trained, the evaluation is that of a spec without it.
    for artifacts in (context.artifacts, Artifacts(without_adapted_teacher(context.spec))):
        try:
            return context.manifest(artifacts.evaluate(context.crias)).facts
        except MissingInputError:
            continue
    return None
