"""The student's weights as files of a checkpoint, layer by layer: merged, or beside the teacher's own."""

import json
from collections.abc import Callable, Collection, Iterator

import torch
from trenchcoat_api.spec import ExportForm

from trenchcoat_trainer.checkpoints.shards import load_rest_weights
from trenchcoat_trainer.checkpoints.teacher import Teacher, open_teacher
from trenchcoat_trainer.errors import BadInputError, MissingInputError
from trenchcoat_trainer.models.adapters import combine_adapters
from trenchcoat_trainer.models.artifacts import (
    Tensors,
    cria_adapters,
    layer_weights,
    stitch_adapters,
    trained_parameters,
)
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.models.modeling_trenchcoat import ADAPTERS, TrenchcoatLlamaForCausalLM
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.stages.export.files import File, plan_files
from trenchcoat_trainer.store.parts import Span
from trenchcoat_trainer.tensors.serialization import pack

INDEX = "model.safetensors.index.json"
TEACHERS = "base-"
"""Begins the names of the teacher's files in a delta."""
STUDENTS = "student"
"""Begins the names of the others, which come after: where two files have a tensor, the later one holds."""
FORMAT = {"format": "pt"}


def write_merged(context: StageContext, config: TrenchcoatLlamaConfig) -> None:
    """Write every weight, with the adapters merged in, and the index."""
    tensors = shapes(config)
    files = plan_files(tensors, context.spec.export.max_shard_bytes)
    write_weights(context, files)
    _write_index(context, {name: file.name for file in files for name in file.sizes}, tensors)


def write_delta(context: StageContext, config: TrenchcoatLlamaConfig) -> None:
    """Copy the teacher's files as they are, write what takes the place of some of it, and the index of both.

    The store copies by itself what is in it already.

    Raises:
        BadInputError: the teacher's checkpoint is not the one that this student was made of any more.
    """
    teacher, tensors = open_teacher(context.spec, context.store), shapes(config)
    changed = {name: tensor for name, tensor in tensors.items() if name in changed_names(context, config)}
    files = plan_files(changed, context.spec.export.max_shard_bytes, STUDENTS)
    write_weights(context, files, lambda weights: _check_same(context, teacher, weights))
    weight_map = {name: TEACHERS + teacher.find(name).file for name in tensors if name not in changed}
    weight_map |= {name: file.name for file in files for name in file.sizes}
    for name in sorted({name.removeprefix(TEACHERS) for name in weight_map.values()} & teacher.files.keys()):
        _copy(context, teacher, name)
    _write_index(context, weight_map, tensors)


def write_adapters(context: StageContext, config: TrenchcoatLlamaConfig) -> None:
    """Write what was trained as one file: the form's parameters, and all adapters of a projection as one.

    Names are those of the checkpoint; an adapter's matrices have ``.lora_A`` and ``.lora_B`` in place of
    ``.weight``, scaled so that the student's weight is W + B A.
    """
    stitch, tensors = stitch_adapters(context), {}
    for number, cria in enumerate(context.crias):
        context.stop.check()
        tensors |= combine_adapters([cria_adapters(context, cria), stitch], set(cria.layers))
        tensors |= _by_checkpoint_names(trained_parameters(context, cria))
        done = (number + 1) / len(context.crias)
        context.progress.update("export", number + 1, len(context.crias), fraction=done)
    context.writer.write(ADAPTERS, pack(tensors, FORMAT))


WRITERS: dict[ExportForm, Callable[[StageContext, TrenchcoatLlamaConfig], None]] = {
    ExportForm.MERGED: write_merged,
    ExportForm.DELTA: write_delta,
    ExportForm.ADAPTERS: write_adapters,
}
"""What writes the weights in each form."""


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


def changed_names(context: StageContext, config: TrenchcoatLlamaConfig) -> Collection[str]:
    """Return the names of all that differs from the teacher, or may: adapted projections, the form's own."""
    spec = context.spec
    adapted = {*spec.cria_lora.lora.target_modules, *spec.stitch.lora.target_modules}
    layers = range(config.num_hidden_layers)
    names = {f"model.layers.{layer}.self_attn.{module}.weight" for layer in layers for module in adapted}
    for cria in context.crias:
        names |= _by_checkpoint_names(trained_parameters(context, cria)).keys()
    return names


def write_weights(
    context: StageContext, files: list[File], check: Callable[[Tensors], None] = lambda weights: None
) -> None:
    """Write every file of weights that is not there yet.

    Args:
        context: the stage's.
        files: which tensors go into which.
        check: is shown every layer's weights that are read.
    """
    missing = [file for file in files if context.writer.recorded(file.name) is None]
    wanted = {name: file for file in missing for name in file.sizes}
    pending: dict[str, Tensors] = {file.name: {} for file in missing}
    done = len(files) - len(missing)
    for tensors in parts(context, set(wanted)):
        check(tensors)
        for name, tensor in tensors.items():
            if name not in wanted:
                continue
            file = wanted[name]
            held = pending[file.name]
            held[name] = tensor
            if len(held) == len(file.sizes):
                context.stop.check()
                context.writer.write(file.name, pack(held, FORMAT))
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
            own = {name: tensor for name, tensor in trained.items() if name.startswith(f"layers.{layer}.")}
            yield weights | _by_checkpoint_names(own)
    yield load_rest_weights(context)


def _by_checkpoint_names(trained: Tensors) -> Tensors:
    """Return what attention transfer trained, ``layers.N.NAME``, by the names of the checkpoint."""
    named = {}
    for name, tensor in trained.items():
        layer, parameter = name.rsplit(".", 1)
        named[f"model.{layer}.self_attn.{parameter}"] = tensor
    return named


def _check_same(context: StageContext, teacher: Teacher, weights: Tensors) -> None:
    """Compare what nothing adapts with the teacher's checkpoint, which may have changed meanwhile."""
    for name in weights:
        if name.endswith("layernorm.weight") and not torch.equal(
            weights[name], teacher.read_tensor(name, weights[name].dtype)
        ):
            raise BadInputError(
                f"spec.model.source {teacher.source} has another {name} than when it was sharded: export in "
                "form merged, or name the revision that the student was made of"
            )


def _copy(context: StageContext, teacher: Teacher, name: str) -> None:
    context.stop.check()
    if context.writer.recorded(TEACHERS + name) is not None:
        return
    path, size = teacher.prefix + name, teacher.files[name]
    if context.writer.copy_spans(TEACHERS + name, [Span(path, 0, size)], teacher.store) is not None:
        return

    def pieces() -> Iterator[bytes]:
        for piece in teacher.store.stream(path):
            context.stop.check()
            yield piece

    context.writer.write_stream(TEACHERS + name, pieces(), size)


def _write_index(context: StageContext, weight_map: dict[str, str], tensors: Tensors) -> None:
    total = sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    context.writer.write(INDEX, json.dumps(index, indent=1).encode())
