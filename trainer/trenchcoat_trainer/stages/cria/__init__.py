"""The cria stage: attention transfer, then LoRA, of one Cria on one device.

Leaves ``feature_maps.safetensors`` and ``adapters.safetensors``; a phase of 0 epochs leaves initial values.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from trenchcoat_api.artifacts import Facts
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.phases import reads_boundaries, rolls
from trenchcoat_api.spec import Objective, TeacherProducts
from trenchcoat_api.stages import Stage

from trenchcoat_trainer.checkpoints.finite import require_finite
from trenchcoat_trainer.checkpoints.shards import load_cria_weights, load_embeddings
from trenchcoat_trainer.data import CriaData, Starts
from trenchcoat_trainer.errors import OutOfMemoryError
from trenchcoat_trainer.models.adapters import inject_adapters
from trenchcoat_trainer.models.artifacts import (
    ADAPTERS,
    FEATURE_MAPS,
    layer_weights,
    load_student_config,
    untrained_parameters,
    weight_dtype,
)
from trenchcoat_trainer.models.cria import CriaModel
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.devices import choose_device
from trenchcoat_trainer.runtime.progress import format_loss
from trenchcoat_trainer.stages.cria.boundary import NextBoundary, RollingTransfer
from trenchcoat_trainer.stages.cria.error import layer_errors
from trenchcoat_trainer.stages.cria.fused import (
    FusedCria,
    fuse_for_gpu,
    require_float8,
    with_float8_teacher,
)
from trenchcoat_trainer.stages.cria.loop import Loop
from trenchcoat_trainer.stages.cria.lora import LoraPhase, block_step, layerwise_step
from trenchcoat_trainer.stages.cria.transfer import TransferPhase, transfer_step, transfer_through

logger = logging.getLogger(__name__)


def run(context: StageContext) -> None:
    """Train one Cria and write its artifact; where collection is rolling, the next one's inputs before.

    Raises:
        OutOfMemoryError: the GPU's memory does not suffice; the message says what to change.
    """
    try:
        train(context)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"Cria {context.cria.index} (layers {context.cria}) does not fit into the GPU's memory: set "
            "spec.transfer.microBatchSize and spec.criaLora.microBatchSize to 1, or lower spec.layersPerCria"
        ) from error


def train(context: StageContext) -> None:
    """Set up, run both phases from the last checkpoint on, save; of a boundary alone, make that."""
    config, spec = load_student_config(context), context.spec
    with torch.device("meta"):
        shape = CriaModel(config, context.cria)
    is_whole = context.artifact.stage is Stage.CRIA
    trains = is_whole and any(shape.student_layers()) and reads_boundaries(spec)
    if not trains and not leaves_boundary(context):
        leave_as_it_is(context, shape)
        return
    if trains and spec.transfer.teacher_products is TeacherProducts.FLOAT8:
        require_float8(config, choose_device(context))
    model = load_cria(context, context.cria)
    positions = Starts.of(spec, config).below + spec.data.sequence_length
    fused = fuse_for_gpu(model, positions) if any(shape.student_layers()) else None
    data = open_data(context)
    with next_boundary(context, model, data, fused) as boundary:
        if trains:
            run_phases(context, model, data, fused, boundary)
        elif boundary is not None:
            boundary.complete()
    if is_whole and not trains:
        leave_as_it_is(context, shape)


def leaves_boundary(context: StageContext) -> bool:
    """Whether this Cria's Job makes the inputs of the next one."""
    return rolls(context.spec) and context.cria != context.crias[-1]


def next_boundary(
    context: StageContext, model: CriaModel, data: CriaData, fused: FusedCria | None
) -> AbstractContextManager[NextBoundary | None]:
    """The next Cria's inputs, where this Cria's Job makes them; within the context they are written."""
    if not leaves_boundary(context):
        return nullcontext()
    return NextBoundary(context, model, data, fused.transfer_through if fused else transfer_through)


def run_phases(
    context: StageContext,
    model: CriaModel,
    data: CriaData,
    fused: FusedCria | None,
    boundary: NextBoundary | None,
) -> None:
    """Run both phases from the last checkpoint on, and save."""
    loop = Loop(
        context,
        data,
        next(model.parameters()).device,
        transfer_epochs=context.spec.transfer.epochs if model.form_parameters() else 0,
    )
    starts = Starts.of(context.spec, model.config)
    length, objective = context.spec.data.sequence_length, context.spec.cria_lora.objective

    if loop.maps is None:
        loop.maps = train_maps(context, model, loop, fused, starts, boundary)
    else:  # an earlier attempt has trained them
        model.set_form_parameters(loop.maps)
        model.requires_grad_(False)
    if boundary is not None:
        boundary.complete()  # where attention transfer has not

    runner = fused.runner(starts, length, whole=objective is Objective.BLOCK) if fused else None
    lora = LoraPhase(
        model,
        context.spec,
        fused.layerwise_step if fused else layerwise_step,
        fused.block_step if fused else block_step,
        starts,
        runner,
    )
    cursor = loop.run(lora)
    if runner:
        runner.close()
    if lora.epochs:
        loop.losses.update(loraInitial=cursor.initial, lora=cursor.final)

    context.writer.write_tensors(FEATURE_MAPS, loop.maps)
    context.writer.write_tensors(ADAPTERS, {name: p.detach() for name, p in lora.adapters.items()})
    context.writer.finish(facts_of(context, loop))


def train_maps(
    context: StageContext,
    model: CriaModel,
    loop: Loop,
    fused: FusedCria | None,
    starts: Starts,
    boundary: NextBoundary | None = None,
) -> dict[str, torch.Tensor]:
    """Run attention transfer; returns the best maps, which are in place, and notes how good they are.

    Where there is nothing to train it is the attention as it is whose error is noted.
    """
    settings = context.spec.transfer
    if not model.form_parameters():
        logger.info("the form %s has nothing to train in attention transfer", context.spec.attention.form)
    steps = settings.epochs * loop.data.steps(settings.batch_size)
    length = context.spec.data.sequence_length
    if settings.teacher_products is TeacherProducts.FLOAT8:
        fused = with_float8_teacher(model, fused, starts.below + length)
    runner = fused.runner(starts, length, whole=False) if fused else None
    step = fused.transfer_step if fused else transfer_step
    if boundary is None:
        transfer = TransferPhase(model, context.spec, steps, step, starts, runner)
    else:
        transfer = RollingTransfer(boundary, model, context.spec, steps, step, starts, runner)
    cursor = loop.run(transfer)
    if fused and runner:
        runner.close()
        fused.drop_quantised()
    maps, best = transfer.finish()
    if cursor.initial is not None:
        loop.losses.update(transferInitial=cursor.initial, transfer=best)
        loop.facts["layerLosses"] = transfer.layer_losses()
    batches = loop.data.batches(
        epoch=settings.epochs, batch_size=settings.micro_batch_size, with_targets=False
    )
    loop.facts["layerErrors"] = layer_errors(model, batches)
    return maps


def facts_of(context: StageContext, loop: Loop) -> Facts:
    """Losses of both phases, the curve of the last, and the maps' errors, as the manifest wants them."""
    # A checkpoint of an earlier version has no errors.
    errors = loop.facts.get("layerErrors", {})
    return Facts(
        losses={name: format_loss(loss) for name, loss in loop.losses.items()},
        curve=context.progress.curve.formatted(),
        layer_errors={name: format_loss(error) for name, error in errors.items()},
        layer_losses={
            name: [format_loss(loss) for loss in both]
            for name, both in loop.facts.get("layerLosses", {}).items()
        },
    )


def leave_as_it_is(context: StageContext, model: CriaModel) -> None:
    """Finish a Cria all of whose layers keep softmax attention, or none of whose phases trains.

    Its weights are looked at, for nobody may have done so yet, a layer at a time and without a GPU.

    Args:
        context: the stage's context.
        model: the Cria on the device `meta`.

    Raises:
        BadInputError: a weight is not finite.
    """
    cria, spec = context.cria, context.spec
    logger.info("Cria %d has nothing to train: its attention stays as it is", cria.index)
    for layer in cria.layers:
        require_finite(layer_weights(context, cria, layer), spec.model.source)
    maps = untrained_parameters(context, model.config, cria)
    adapters = inject_adapters(model, spec.cria_lora.lora, seed=spec.seed, purpose="cria")
    context.writer.write_tensors(FEATURE_MAPS, {name: maps[name].float() for name in model.form_parameters()})
    context.writer.write_tensors(ADAPTERS, {name: p.detach() for name, p in adapters.items()})
    context.writer.finish(Facts())


def load_cria(context: StageContext, cria: CriaRange) -> CriaModel:
    """Load the Cria's frozen weights, and its attention as it is before training, onto the device."""
    config, device = load_student_config(context), choose_device(context)
    weights = load_cria_weights(context, cria, device)
    require_finite(weights, context.spec.model.source)
    return CriaModel.build(
        config,
        cria,
        weights,
        untrained_parameters(context, config, cria),
        dtype=weight_dtype(context),
        device=device,
    )


def open_data(context: StageContext) -> CriaData:
    """Open the Cria's inputs, and the next boundary where the objective compares with it."""
    with_targets = context.spec.cria_lora.objective == "block"
    return CriaData(context, context.cria, embedding(context, context.cria), with_targets=with_targets)


def embedding(context: StageContext, cria: CriaRange) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function that embeds token ids: [batch, tokens] to [batch, tokens, hidden], on the CPU."""
    if cria.index > 0:
        return _embed_nothing
    return partial(F.embedding, weight=load_embeddings(context))


def _embed_nothing(tokens: torch.Tensor) -> torch.Tensor:
    raise AssertionError("only the first Cria starts from token ids")
