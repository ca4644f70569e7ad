"""Running the teacher over all sequences, each rank its own layers.

Rank 0 embeds; hidden states travel from rank to rank, and weights never do. The layers after the last inner
boundary are not needed and not read. Objects that an earlier attempt has left are not computed again.
"""

import logging
from dataclasses import dataclass

import torch
from torch.nn import functional
from trenchcoat_api.packing import collected_at_once

from trenchcoat_trainer.checkpoints.finite import require_finite
from trenchcoat_trainer.checkpoints.finite_watch import FiniteWatch
from trenchcoat_trainer.checkpoints.shards import TORCH_DTYPES
from trenchcoat_trainer.checkpoints.teacher import EMBEDDING, Teacher, open_teacher
from trenchcoat_trainer.checkpoints.teacher_layers import TeacherLayers
from trenchcoat_trainer.data import TokenData
from trenchcoat_trainer.data.layout import HIDDEN, boundary_path, sequences_per_hidden_object
from trenchcoat_trainer.data.order import Order
from trenchcoat_trainer.errors import PreemptedError
from trenchcoat_trainer.layers.teacher import open_layers
from trenchcoat_trainer.runtime.background import BackgroundWriter
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.devices import choose_device
from trenchcoat_trainer.runtime.ranks import joined
from trenchcoat_trainer.stages.collect.copying import Hidden, Noted, copy_stream
from trenchcoat_trainer.stages.collect.pipeline import Pipeline, split_layers
from trenchcoat_trainer.stages.collect.through import Through

logger = logging.getLogger(__name__)

PHASE = "collect"


def run(context: StageContext) -> None:
    """Make the objects of every inner boundary.

    Raises:
        BadInputError: the checkpoint lacks a tensor, or weights or hidden states are not finite.
        PreemptedError: a stop was requested on any rank; objects that are done stay.
    """
    device = choose_device(context)
    with joined(context.rank, context.world_size, device, context.stop), torch.inference_mode():
        _collect(context, device)


def _collect(context: StageContext, device: torch.device) -> None:
    boundaries = {cria.first - 1: cria.index for cria in context.crias[1:]}
    tokens = TokenData(context)
    teacher = open_teacher(context.spec, context.store)
    order = Order(tokens.sequences, _object_size(context, teacher), context.spec.seed)
    pipeline = Pipeline(context, device)
    groups = pipeline.agree([g for g in range(order.groups) if not _is_done(context, boundaries, g)])
    if groups or not boundaries:
        _check_unused(context, teacher, max(boundaries, default=-1) + 1, device)
    if boundaries and groups:
        worker = Worker(context, teacher, tokens, pipeline, boundaries, device)
        worker.run(order, groups)
    pipeline.barrier()
    if context.rank == 0:
        context.writer.finish()
    pipeline.barrier()


def _check_unused(context: StageContext, teacher: Teacher, first: int, device: torch.device) -> None:
    """Look at the weights that collection does not run, each rank a share: Crias would find out only later.

    Args:
        context: the stage's context.
        teacher: the checkpoint.
        first: the first layer that is not run.
        device: where to look.

    Raises:
        BadInputError: one is not finite.
    """
    names = [name for layer in range(first, teacher.layers) for name in teacher.layer_names(layer)]
    names += [*teacher.head_names(), *([EMBEDDING] if first == 0 else [])]
    for name in names[context.rank :: context.world_size]:
        weight = teacher.read_tensor(name, TORCH_DTYPES[context.spec.dtype]).to(device)
        require_finite({name: weight}, teacher.source)


def _object_size(context: StageContext, teacher: Teacher) -> int:
    spec = context.spec
    return sequences_per_hidden_object(spec.data.sequence_length, teacher.config.hidden_size, spec.dtype)


def _is_done(context: StageContext, boundaries: dict[int, int], group: int) -> bool:
    paths = (boundary_path(boundary, group) for boundary in boundaries.values())
    return all(context.writer.recorded(path) is not None for path in paths)


@dataclass(frozen=True)
class _Part:
    """What one rank holds of the teacher."""

    layers: TeacherLayers
    embedding: torch.Tensor | None
    """[vocabulary, hidden size]; on the first rank alone."""


class Worker:
    """One rank's share of the work."""

    def __init__(
        self,
        context: StageContext,
        teacher: Teacher,
        tokens: TokenData,
        pipeline: Pipeline,
        boundaries: dict[int, int],
        device: torch.device,
    ) -> None:
        self._context = context
        self._tokens = tokens
        self._pipeline = pipeline
        self._boundaries = boundaries
        self._device = device
        self._dtype = TORCH_DTYPES[context.spec.dtype]
        self._hidden_size = teacher.config.hidden_size
        self._sequences = self._passed = 0
        """Sequences of the whole text, and those that are computed."""
        self._at_once = 1
        own = split_layers(max(boundaries) + 1, context.world_size)[context.rank]
        self._watch = FiniteWatch(list(own), device)
        self._noted: Noted | None = None
        """Of the last batch."""
        self._copies = copy_stream(device)
        self._part = _load_part(teacher, own, self._dtype, device, with_embedding=context.rank == 0)
        wanted = {*boundaries, *own[-1:]}  # the last is what the next rank gets
        self._through = Through(self._part.layers, self._watch, wanted, whole=device.type == "cuda")

    def run(self, order: Order, groups: list[int]) -> None:
        """Compute these groups of sequences, in order."""
        context = self._context
        self._sequences = sum(map(order.length, range(order.groups)))
        self._passed = self._sequences - sum(map(order.length, groups))  # by an earlier attempt
        size, length = context.spec.collect.batch_size, context.spec.data.sequence_length
        on_gpu = self._device.type == "cuda"
        self._at_once = collected_at_once(size, length, order.group_size, on_gpu=on_gpu)
        with BackgroundWriter(context.writer) as writer:
            for done, group in enumerate(groups):
                first = group * order.group_size
                states = self._group(first, first + order.length(group), done, len(groups))
                if states is None:
                    break
                for boundary, hidden in states.items():
                    path = boundary_path(boundary, group)
                    if context.writer.recorded(path) is None:
                        writer.submit(path, {HIDDEN: hidden.states}, hidden.check)
        self._watch.check()
        context.writer.save_journal()
        if self._pipeline.stopped:
            # No rank may leave while another waits for what it has sent.
            self._pipeline.barrier()
            raise PreemptedError(
                "collection stopped on request; boundaries that are done stay, and the next start goes on"
            )

    def _group(self, first: int, last: int, done: int, groups: int) -> dict[int, Hidden] | None:
        """Hidden states of the sequences first, ..., last - 1 at this rank's boundaries, on their way."""
        size, length = self._at_once, self._context.spec.data.sequence_length
        states: dict[int, Hidden] = {}
        for start in range(first, last, size):
            stop = min(start + size, last)
            hidden = self._receive(start, stop)
            if hidden is None:
                return None
            for layer, state in self._through(hidden):
                hidden = state
                if layer in self._boundaries:
                    boundary = self._boundaries[layer]
                    if boundary not in states:
                        states[boundary] = Hidden(self._watch, self._copies, last - first, hidden)
                    states[boundary].put(start - first, hidden)
            self._pipeline.send(hidden)
            # Of the batch before, and behind its copies, so that states of two batches are held at most: the
            # device goes on with this one while the host makes the next one ready.
            before, self._noted = self._noted, Noted(self._watch, self._copies)
            if before is not None:
                before.check()
            self._passed += stop - start
            fraction = self._passed / self._sequences  # of groups the last is smaller
            tokens = (stop - start) * length
            self._context.progress.update(PHASE, done, groups, fraction=fraction, tokens=tokens)
        return states

    def _receive(self, start: int, stop: int) -> torch.Tensor | None:
        """What enters this rank's layers for a batch, or none after a stop."""
        if not self._pipeline.go_on():
            return None
        if self._part.embedding is not None:
            ids = self._tokens.read(start, stop).long()
            if self._device.type == "cuda":
                ids = ids.pin_memory()  # or the host would wait for what the device has begun
            ids = ids.to(self._device, non_blocking=True)
            return functional.embedding(ids, self._part.embedding)
        shape = (stop - start, self._context.spec.data.sequence_length, self._hidden_size)
        return self._pipeline.receive(shape, self._dtype)


def _load_part(
    teacher: Teacher, layers: range, dtype: torch.dtype, device: torch.device, *, with_embedding: bool
) -> _Part:
    part = open_layers(teacher.config, layers, dtype, device)
    for index in layers:
        part.read_layer(teacher, index)
        logger.info("layer %d of %d-%d is loaded", index, layers[0], layers[-1])
    embedding = None
    if with_embedding:
        embedding = teacher.read_tensor(EMBEDDING, dtype).to(device)
        require_finite({EMBEDDING: embedding}, teacher.source)
    return _Part(part, embedding)
