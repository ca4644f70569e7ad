"""tokenize: check the model and the text, and pack the text into sequences of token ids.

The first stage, and the one that meets bad input: it needs no GPU.
"""

import logging
import time
from contextlib import closing
from dataclasses import asdict
from typing import Any

import torch
from trenchcoat_api.artifacts import DataFacts, Facts
from trenchcoat_api.spec import Data

from trenchcoat_trainer.checkpoints.checks import check_teacher
from trenchcoat_trainer.checkpoints.teacher import open_teacher
from trenchcoat_trainer.data.layout import token_path
from trenchcoat_trainer.data.packing import Packer
from trenchcoat_trainer.data.starts import Starts
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.sources.encoding import encode_batches, usable_processes
from trenchcoat_trainer.sources.other_text import open_other_text
from trenchcoat_trainer.sources.task_files import find_task_files
from trenchcoat_trainer.sources.text import Text, open_text
from trenchcoat_trainer.stages.tokenize.reading import BATCH_CHARACTERS, Position, read_batches
from trenchcoat_trainer.stages.tokenize.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

PHASE = "tokenize"
CHECKPOINT_SECONDS = 30.0
CHARACTERS_A_TOKEN = 4
"""Of text, about: what tokenizers of Llamas make of it."""
SHORT_CHARACTERS = 64_000_000
"""A shorter text is encoded in one process, by its threads: some 40 seconds of one core."""
SPLITS = ("train", "held_out")


def run(context: StageContext) -> None:
    """Make the token objects of both splits, with the facts of model and text.

    Raises:
        BadInputError: the model is not a Llama, is incomplete, has no tokenizer or fewer layers than
            spec.layersPerCria or positions than spec.data.startPositions asks for; or the text is missing,
            damaged or shorter than one sequence.
    """
    teacher = open_teacher(context.spec, context.store)
    check_teacher(teacher, context.spec)
    Starts.of(context.spec, teacher.config)  # what training would refuse
    _check_evaluation(context)  # and what the evaluation would
    packers = {split: _make_packer(context, split) for split in SPLITS}
    position, version = _restore(context, packers)
    text = open_text(context.spec, context.store, version)
    _pack(context, text, Tokenizer(teacher), packers, position)
    data = _finish(context, packers)
    context.writer.finish(Facts(model=teacher.facts(), data=data))


def _check_evaluation(context: StageContext) -> None:
    """Raise BadInputError where files that the evaluation shall read are missing."""
    evaluate = context.spec.evaluate
    if evaluate.enabled and evaluate.other_text is not None:
        open_other_text(evaluate.other_text, context.store)
    if evaluate.enabled and evaluate.tasks is not None:
        find_task_files(evaluate.tasks, context.store)


def _make_packer(context: StageContext, split: str) -> Packer:
    data = context.spec.data
    tokens = data.tokens if split == "train" else data.held_out_tokens
    # A text that holds fewer tokens than were asked for is used up; one sequence must be held out.
    limit = max(1, tokens // data.sequence_length)

    def write(index: int, tensors: dict[str, torch.Tensor]) -> None:
        context.writer.write_tensors(token_path(split, index), tensors)

    return Packer(data.sequence_length, limit, write, shuffle=split == "train")


def _pack(
    context: StageContext,
    text: Text,
    tokenizer: Tokenizer,
    packers: dict[str, Packer],
    start: Position,
) -> None:
    saved_at = time.monotonic()
    batches = read_batches(text, context.spec.data.held_out_percent, packers, start)
    processes = usable_processes(useful_processes(context.spec.data))
    with closing(encode_batches(tokenizer.encoder(), batches, processes)) as encoded:
        for batch, ids in encoded:
            tokenizer.check(ids)
            before = packers["train"].cut
            for split, piece, own in zip(batch.tag.splits, batch.pieces, ids, strict=True):
                packers[split].add(own, begins=piece.begins)
            _report(context, packers["train"], before)
            if all(packer.is_full for packer in packers.values()):
                return
            if context.stop.requested or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                _save(context, packers, batch.tag.after, text.version)
                saved_at = time.monotonic()
                context.stop.check()


def useful_processes(data: Data) -> int:
    """How many processes have something to do: a short text is encoded before others have started.

    And each of them reads ahead, where what is read too far is thrown away.
    """
    characters = CHARACTERS_A_TOKEN * (data.tokens + data.held_out_tokens)
    return 1 if characters < SHORT_CHARACTERS else -(-characters // BATCH_CHARACTERS)


def _report(context: StageContext, packer: Packer, before: int) -> None:
    if packer.is_full and packer.cut == before:
        return  # what is done is told each time, and held-out text may be far from complete
    data = context.spec.data
    steps = max(1, data.tokens // data.sequence_length)
    tokens = (packer.cut - before) * data.sequence_length
    context.progress.update(PHASE, packer.cut, steps, fraction=packer.cut / steps, tokens=tokens)


def _save(context: StageContext, packers: dict[str, Packer], after: Position, version: str | None) -> None:
    tensors: dict[str, torch.Tensor] = {}
    state: dict[str, Any] = {"position": asdict(after), "version": version}
    for split, packer in packers.items():
        own, state[split] = packer.state()
        tensors |= {f"{split}.{name}": tensor for name, tensor in own.items()}
    # In this order: a checkpoint counts on its objects, and whoever goes on from it must know of them.
    context.writer.save_journal()
    context.checkpoint.save(tensors, state)
    context.progress.saved()


def _restore(context: StageContext, packers: dict[str, Packer]) -> tuple[Position, str | None]:
    """Bring the packers to where the last attempt stopped; returns where that was, in which version."""
    saved = context.checkpoint.load()
    if saved is None:
        return Position(), None
    tensors, state = saved
    for split, packer in packers.items():
        own = {
            name.removeprefix(f"{split}."): t for name, t in tensors.items() if name.startswith(f"{split}.")
        }
        packer.restore(own, state[split])
    position = Position(**state["position"])
    documents = sum(packer.documents for packer in packers.values())
    logger.info("going on after %d documents, in part %d of the text", documents, position.part)
    return position, state["version"]


def _finish(context: StageContext, packers: dict[str, Packer]) -> DataFacts:
    length = context.spec.data.sequence_length
    _check_length(context, packers["train"], "training", "give more text, or lower spec.data.sequenceLength")
    if context.spec.evaluate.enabled:  # nothing else reads it
        _check_length(
            context,
            packers["held_out"],
            "held-out",
            "give more text, raise spec.data.heldOutPercent, lower spec.data.sequenceLength, or set "
            "spec.evaluate.enabled to false",
        )
    sequences = {split: packer.finish() for split, packer in packers.items()}
    return DataFacts(
        documents=packers["train"].documents,
        sequences=sequences["train"],
        tokens=sequences["train"] * length,
        held_out_documents=packers["held_out"].documents,
        held_out_sequences=sequences["held_out"],
    )


def _check_length(context: StageContext, packer: Packer, name: str, remedy: str) -> None:
    data = context.spec.data
    if packer.cut == 0:
        raise BadInputError(
            f"the {name} text of spec.data.source {data.source} is shorter than one sequence of "
            f"{data.sequence_length} tokens ({packer.documents} documents): {remedy}"
        )
