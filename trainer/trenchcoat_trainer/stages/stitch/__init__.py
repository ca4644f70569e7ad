"""The stages stitch and adapt: adapters over the whole student, or the teacher, end to end.

The loss is that of language modelling.

DeepSpeed ZeRO-3 partitions the weights over all ranks. What is trained does not depend on how many there are:
a step takes the same sequences, in micro-batches that the ranks share out. Leaves ``adapters.safetensors``.
"""

import logging
import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from trenchcoat_api.artifacts import Facts
from trenchcoat_api.recall import RecallFacts

from trenchcoat_trainer.errors import DivergedError, OutOfMemoryError, PreemptedError
from trenchcoat_trainer.models.adapters import inject_adapters
from trenchcoat_trainer.models.artifacts import ADAPTERS
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.devices import choose_device
from trenchcoat_trainer.runtime.progress import format_loss
from trenchcoat_trainer.runtime.training import CHECKPOINT_SECONDS, Cursor
from trenchcoat_trainer.seeds import derived_seed
from trenchcoat_trainer.stages.stitch.batches import PHASE, StepBatch, StitchData
from trenchcoat_trainer.stages.stitch.memory import Held, choose
from trenchcoat_trainer.stages.stitch.recall import IGNORED, RecallCounts
from trenchcoat_trainer.stages.stitch.subject import Subject
from trenchcoat_trainer.stages.stitch.zero import (
    Masters,
    accumulation_steps,
    build_student,
    import_deepspeed,
    process_group,
    zero_config,
)

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
    device = choose_device(context)
    deepspeed = import_deepspeed(device)
    try:
        with process_group(deepspeed, context, device):
            train(deepspeed, context, device)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{context.artifact.name} does not fit into the GPUs' memory over {context.world_size} ranks: "
            "raise spec.stitch.nodes or spec.stitch.gpusPerNode, or set spec.stitch.microBatchSize to 1"
        ) from error


def train(deepspeed: Any, context: StageContext, device: torch.device) -> None:
    """Set up, train from the last checkpoint on, save."""
    subject, long = Subject.of(context), context.spec.stitch.long_sequences
    engine, masters, cursor = set_up(deepspeed, context, device, subject=subject)
    data = StitchData(context, subject.config, epochs=subject.epochs)
    steps = subject.epochs * data.steps
    if long.are_on:
        length = long.multiple * context.spec.data.sequence_length
        logger.info("the last %d of %d steps read sequences of %d tokens", data.long_steps, steps, length)
    saved_at = time.monotonic()
    while cursor.epoch < subject.epochs:
        for batch in data.batches(cursor.epoch, start_step=cursor.step):
            due = context.rank == 0 and time.monotonic() - saved_at >= CHECKPOINT_SECONDS
            told = train_step(engine, context, batch, cursor, wishes=(due, context.stop.requested))
            loss, save, stop = told.tolist()  # the one wait for the device
            require_finite(loss, cursor.done, subject.name)
            cursor.note(loss)
            cursor.count(batch.recall)
            context.progress.update(
                subject.name,
                cursor.done,
                steps,
                fraction=cursor.done / steps,
                losses={subject.name: cursor.final or 0.0},
                tokens=batch.tokens,
            )
            if save or stop:
                save_checkpoint(context, masters, cursor)
                context.progress.saved()
                saved_at = time.monotonic()
            if stop:
                raise PreemptedError(
                    f"a rank was asked to stop: step {cursor.done} is saved, the next start goes on from it"
                )
        cursor.epoch, cursor.step = cursor.epoch + 1, 0

    result = masters.adapters()
    if context.rank == 0:
        context.writer.write_tensors(ADAPTERS, result)
        losses = {f"{subject.name}Initial": cursor.initial, subject.name: cursor.final} if cursor.done else {}
        context.writer.finish(
            Facts(
                losses={name: format_loss(loss) for name, loss in losses.items()},
                curve=context.progress.curve.formatted(),
                recall=RecallFacts(**cursor.recall) if float(context.spec.stitch.recall_share) else None,
            )
        )
    dist.barrier()


def set_up(
    deepspeed: Any,
    context: StageContext,
    device: torch.device,
    *,
    subject: Subject | None = None,
    held: Held | None = None,
    zero: dict[str, Any] | None = None,
) -> tuple[Any, Masters, StitchCursor]:
    """Build the subject with its adapters, as the last checkpoint has them.

    Args:
        deepspeed: the module, imported for this device.
        context: the stage's context.
        device: this rank's.
        subject: whose adapters are trained; None to take that of the stage.
        held: what stays in memory; None to decide by the device.
        zero: changes to DeepSpeed's settings of ZeRO, for benchmarks.

    Returns:
        DeepSpeed's engine, what reads and sets its adapters, and where training stands.
    """
    settings, subject = context.spec.stitch, subject or Subject.of(context)
    held = held or choose(context.spec, subject.config, context.world_size, device)
    logger.info("held in memory: %s", held)
    config = zero_config(context.spec, context.world_size, subject.config, held)
    config["zero_optimization"] |= zero or {}
    model = build_student(deepspeed, context, subject, config, device)
    adapters = inject_adapters(model, settings.lora, seed=context.spec.seed, purpose="stitch")
    start, cursor = {name: parameter.detach().clone() for name, parameter in adapters.items()}, StitchCursor()
    saved = context.checkpoint.load()
    if saved:
        start, cursor = saved[0], StitchCursor(**saved[1]["cursor"])
        logger.info("going on from step %d", cursor.done)
        context.progress.go_on(subject.name, saved[1]["curve"])
        for name, parameter in adapters.items():
            parameter.data.copy_(start[name])
    # The backward hook of a layer, which DeepSpeed relies on, needs an input with a gradient.
    model.enable_input_require_grads()
    optimizer = torch.optim.AdamW(adapters.values(), lr=float(settings.learning_rate), weight_decay=0.0)
    engine, zero_optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    masters = Masters(deepspeed, zero_optimizer, adapters)
    masters.set_adapters(start)  # unrounded
    if saved:
        masters.set_moments(saved[0], cursor.done)
    if not held.graph:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    engine.train()
    return engine, masters, cursor


def train_step(
    engine: Any,
    context: StageContext,
    batch: StepBatch,
    cursor: Cursor,
    *,
    wishes: tuple[bool, ...] = (),
) -> torch.Tensor:
    """Make one optimiser step on the same sequences whatever the number of ranks.

    Micro-batch i goes to rank i modulo their number; a rank that has none left runs its first once more with
    weight 0, because ZeRO-3 gathers weights from all ranks in every forward pass.

    Returns:
        The loss, a mean over predicted tokens in nats, and after it for each of `wishes` the number of
        ranks that had it; fp32, on the device, the same on all ranks.
    """
    rank, ranks = context.rank, context.world_size
    turns = -(-len(batch.micro_batches) // ranks)
    # DeepSpeed divides losses by the accumulation steps of its configuration, however many there are, and
    # averages over the ranks: undo both, the shares add up to 1.
    weight = accumulation_steps(context.spec.stitch, ranks) * ranks
    told = torch.tensor([0.0, *map(float, wishes)], dtype=torch.float64, device=engine.device)
    for turn in range(turns):
        index = turn * ranks + rank
        is_idle = index >= len(batch.micro_batches)
        micro = batch.micro_batches[0 if is_idle else index]
        share = 0.0 if is_idle else micro.share
        tokens, labels = (x.to(engine.device, non_blocking=True) for x in (micro.tokens, micro.labels))
        torch.manual_seed(derived_seed(context.spec.seed, PHASE, cursor.epoch, cursor.step, index))
        loss = next_token_loss(
            engine(input_ids=tokens, position_ids=micro.positions(engine.device), use_cache=False).logits,
            labels,
        )
        # By its own count it would wait for as many micro-batches in a step of longer sequences.
        engine.set_gradient_accumulation_boundary(turn == turns - 1)
        engine.backward(loss * share * weight)
        engine.step()
        told[0] += share * loss.detach().double()
    told = told.float()
    dist.all_reduce(told)
    return told


def next_token_loss(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Return the mean negative log-likelihood of every token but the first, in nats, fp32.

    Labels are the tokens; those that are `IGNORED` do not count.
    """
    logits, labels = logits_BTV[:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten()
    return F.cross_entropy(logits, labels, ignore_index=IGNORED)


def save_checkpoint(context: StageContext, masters: Masters, cursor: Cursor) -> None:
    """Write adapters, moments and the cursor; collective, rank 0 writes."""
    tensors = masters.adapters() | masters.moments()
    if context.rank == 0:
        context.checkpoint.save(tensors, {"cursor": vars(cursor), "curve": context.progress.curve.state()})
    dist.barrier()


def require_finite(loss: float, done: int, name: str) -> None:
    """Raise DivergedError if the loss is not a finite number."""
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss of {name} became {loss} at step {done + 1}: lower spec.stitch.learningRate or "
            "spec.stitch.clip"
        )
