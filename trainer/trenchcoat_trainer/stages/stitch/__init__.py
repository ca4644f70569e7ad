"""The stages stitch and adapt: adapters over the whole student, or the teacher, end to end.

The loss is that of language modelling.

Several ranks partition the weights (`zero`), one rank needs none of that (`alone`). What is trained does not
depend on how many there are: a step takes the same sequences, in micro-batches that the ranks share out.
Leaves ``adapters.safetensors``.
"""

import logging
import math
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field

import torch
from trenchcoat_api.artifacts import Facts
from trenchcoat_api.recall import RecallFacts

from trenchcoat_trainer.errors import DivergedError, OutOfMemoryError, PreemptedError
from trenchcoat_trainer.models.artifacts import ADAPTERS, Tensors
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.devices import choose_device
from trenchcoat_trainer.runtime.progress import format_loss
from trenchcoat_trainer.runtime.training import CHECKPOINT_SECONDS, Cursor
from trenchcoat_trainer.stages.stitch.batches import StitchData
from trenchcoat_trainer.stages.stitch.course import Course
from trenchcoat_trainer.stages.stitch.engine import MOMENTS, Engine
from trenchcoat_trainer.stages.stitch.memory import choose
from trenchcoat_trainer.stages.stitch.recall import RecallCounts
from trenchcoat_trainer.stages.stitch.schedule import learning_rate
from trenchcoat_trainer.stages.stitch.subject import Subject

logger = logging.getLogger(__name__)


@dataclass
class StitchCursor(Cursor):
    """Where the stitch stands."""

    recall: dict[str, int] = field(default_factory=dict)
    """What was put into the text so far to be recalled, by the names of `RecallCounts`."""

    def count(self, recall: RecallCounts) -> None:
        """Count a step's recall in."""
        counts = RecallCounts(**self.recall)
        counts.add(recall)
        self.recall = asdict(counts)


def run(context: StageContext) -> None:
    """Train the adapters and write the artifact.

    Raises:
        OutOfMemoryError: a GPU's memory does not suffice; the message says what to change.
    """
    device, subject = choose_device(context), Subject.of(context)
    tensors, saved = context.checkpoint.load() or ({}, None)
    cursor = StitchCursor(**saved["cursor"]) if saved else StitchCursor()
    start = {name: tensor for name, tensor in tensors.items() if not name.startswith(MOMENTS)}
    try:
        with open_engine(context, subject, device, start) as engine:
            if saved:
                logger.info("going on from step %d", cursor.done)
                context.progress.go_on(subject.name, saved["curve"])
                engine.set_moments(tensors, cursor.done)
            train(engine, context, subject, cursor)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{context.artifact.name} does not fit into the GPUs' memory over {context.world_size} ranks: "
            "raise spec.stitch.nodes or spec.stitch.gpusPerNode, or set spec.stitch.microBatchSize to 1"
        ) from error


def open_engine(
    context: StageContext, subject: Subject, device: torch.device, start: Tensors
) -> AbstractContextManager[Engine]:
    """Build what trains on as many ranks as there are; `start` has the adapters, or is empty at first."""
    if context.world_size > 1:
        from trenchcoat_trainer.stages.stitch import zero  # DeepSpeed's import takes seconds

        return zero.open_engine(context, subject, None, device, start)
    from trenchcoat_trainer.stages.stitch import alone

    held = choose(context.spec, subject.config, device)
    return alone.open_engine(context, subject, held, device, start)


def train(engine: Engine, context: StageContext, subject: Subject, cursor: StitchCursor) -> None:
    """Train from `cursor` on, save."""
    long = context.spec.stitch.long_sequences
    data = StitchData(context, subject.config, epochs=subject.epochs)
    steps = subject.epochs * data.steps
    if data.multiple > 1:
        length = data.multiple * context.spec.data.sequence_length
        logger.info("the last %d of %d steps read sequences of %d tokens", data.long_steps, steps, length)
    if long.are_on and data.multiple < long.multiple:
        logger.warning(
            "spec.stitch.longSequences.multiple is %d, which is past the positions that the teacher has: %s",
            long.multiple,
            f"it is taken as {data.multiple}" if data.multiple > 1 else "no sequence is longer",
        )
    on_gpu = choose_device(context).type == "cuda"
    course = Course.of(context, data, subject.epochs, on_gpu=on_gpu)
    saved_at = time.monotonic()
    while cursor.epoch < subject.epochs:
        for batch in data.batches(cursor.epoch, start_step=cursor.step):
            due = context.rank == 0 and time.monotonic() - saved_at >= CHECKPOINT_SECONDS
            rate = learning_rate(context.spec.stitch, cursor.done, steps)
            told = engine.step(batch, cursor, rate=rate, wishes=(due, context.stop.requested))
            loss, save, stop = told.tolist()  # the one wait for the device
            require_finite(loss, cursor.done, subject.name)
            cursor.note(loss)
            cursor.count(batch.recall)
            context.progress.update(
                subject.name,
                cursor.done,
                steps,
                fraction=course.share(cursor.done),
                losses={subject.name: cursor.final or 0.0},
                tokens=batch.tokens,
            )
            if save or stop:
                save_checkpoint(context, engine, cursor)
                context.progress.saved()
                saved_at = time.monotonic()
            if stop:
                raise PreemptedError(
                    f"a rank was asked to stop: step {cursor.done} is saved, the next start goes on from it"
                )
        cursor.epoch, cursor.step = cursor.epoch + 1, 0

    result = engine.adapters()
    if context.rank == 0:
        context.writer.write_tensors(ADAPTERS, result)
        losses = {f"{subject.name}Initial": cursor.initial, subject.name: cursor.final} if cursor.done else {}
        context.writer.finish(
            Facts(
                losses={name: format_loss(loss) for name, loss in losses.items()},
                curve=context.progress.curve.formatted(),
                recall=RecallFacts(**cursor.recall) if context.spec.stitch.has_recall else None,
            )
        )
    engine.wait()


def save_checkpoint(context: StageContext, engine: Engine, cursor: Cursor) -> None:
    """Write adapters, moments and the cursor; collective, rank 0 writes."""
    tensors = engine.adapters() | engine.moments()
    if context.rank == 0:
        context.checkpoint.save(tensors, {"cursor": vars(cursor), "curve": context.progress.curve.state()})
    engine.wait()


def require_finite(loss: float, done: int, name: str) -> None:
    """Raise DivergedError if the loss is not a finite number."""
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss of {name} became {loss} at step {done + 1}: lower spec.stitch.learningRate or "
            "spec.stitch.clip"
        )
