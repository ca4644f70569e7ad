"""shard: cut the teacher's checkpoint into one shard per Cria, and one for what stands outside the layers.

No model is made, and torch is not even loaded: the headers of the safetensors files say where each tensor's
bytes are, and those are copied in pieces. Every object is one decoder layer, so that a stage that is started
again repeats one at most.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from trenchcoat_trainer.checkpoints.shard_layout import EMBEDDINGS, HEAD, TEACHER, layer_path
from trenchcoat_trainer.checkpoints.teacher import EMBEDDING, KEPT_FILES, Teacher, open_teacher
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.store.parts import Span
from trenchcoat_trainer.tensors.headers import build_header

logger = logging.getLogger(__name__)

PHASE = "shard"
PARALLEL = 3
"""Objects that the store copies at one time; each is one long request after another."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One object to make, and the tensors in it."""

    path: str
    names: list[str]


def run(context: StageContext) -> None:
    """Copy every tensor of the teacher into its object.

    Raises:
        BadInputError: the checkpoint lacks a tensor.
        PreemptedError: a stop was requested; objects that are done stay.
    """
    teacher = open_teacher(context.spec, context.store)
    teacher.check()
    plans = make_plans(context, teacher)
    missing = [plan for plan in plans if context.writer.recorded(plan.path) is None]
    pool = ThreadPoolExecutor(PARALLEL if context.writer.can_copy(teacher.store) else 1)
    try:
        made = pool.map(partial(copy_tensors, context, teacher), missing)
        for done, _ in enumerate(made, start=len(plans) - len(missing) + 1):
            context.progress.update(PHASE, done, len(plans), fraction=done / len(plans))
    finally:
        pool.shutdown(cancel_futures=True)  # waits for those that have begun
        context.writer.save_journal()
    for name in KEPT_FILES:
        if name in teacher.files and context.writer.recorded(TEACHER + name) is None:
            context.writer.write(TEACHER + name, teacher.store.read(teacher.prefix + name))
    context.writer.finish()


def make_plans(context: StageContext, teacher: Teacher) -> list[Plan]:
    """All objects with tensors, in the order of the model."""
    layers = [
        Plan(layer_path(cria, layer), teacher.layer_names(layer))
        for cria in context.crias
        for layer in cria.layers
    ]
    return [Plan(EMBEDDINGS, [EMBEDDING]), *layers, Plan(HEAD, teacher.head_names())]


def copy_tensors(context: StageContext, teacher: Teacher, plan: Plan) -> None:
    """Make one object from the bytes of its tensors.

    The store copies them on its own side where they are in it already. Else a few pieces of them are in
    memory at a time.
    """
    context.stop.check()
    found = {name: teacher.find(name) for name in plan.names}
    header = build_header({name: stored.place for name, stored in found.items()})
    spans = [
        Span(teacher.prefix + stored.file, stored.place.offset, stored.place.length)
        for stored in found.values()
    ]
    if context.writer.copy_spans(plan.path, [header, *spans], teacher.store) is not None:
        return

    def pieces() -> Iterator[bytes]:
        yield header
        for span in spans:
            for piece in teacher.store.stream(span.path, span.offset, span.length):
                context.stop.check()
                yield piece

    context.writer.write_stream(plan.path, pieces(), len(header) + sum(span.length for span in spans))
