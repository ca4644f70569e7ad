"""tokenize: check the model and the text, and pack the text into sequences of token ids.

The first stage, and the one that meets bad input: it needs no GPU.
"""

import hashlib
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trenchcoat_api.artifacts import DataFacts, Facts
from trenchcoat_api.crias import cria_ranges

from trenchcoat_trainer.checkpoints.teacher import CONFIG, TOKENIZER_FILES, Teacher, open_teacher
from trenchcoat_trainer.data.layout import token_path
from trenchcoat_trainer.data.packing import Packer
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.sources.encoding import Batch, Encoder, Piece, cut, encode_batches, usable_processes
from trenchcoat_trainer.sources.text import Text, open_text

logger = logging.getLogger(__name__)

PHASE = "tokenize"
BATCH_CHARACTERS = 1_000_000
"""Text that the tokenizer's threads are given at a time."""
BATCH_DOCUMENTS = 1024
CHECKPOINT_SECONDS = 30.0
SPLITS = ("train", "held_out")


def run(context: StageContext) -> None:
    """Make the token objects of both splits, with the facts of model and text.

    Raises:
        BadInputError: the model is not a Llama, is incomplete, has no tokenizer or fewer layers than
            spec.layersPerCria; or the text is missing, damaged or shorter than one sequence.
    """
    teacher = open_teacher(context.spec, context.store)
    check_teacher(teacher, context.spec.layers_per_cria)
    packers = {split: _make_packer(context, split) for split in SPLITS}
    position, version = _restore(context, packers)
    text = open_text(context.spec, context.store, version)
    _pack(context, text, Tokenizer(teacher), packers, position)
    data = _finish(context, packers)
    context.writer.finish(Facts(model=teacher.facts(), data=data))


def check_teacher(teacher: Teacher, layers_per_cria: int) -> None:
    """Raise BadInputError unless the teacher is a complete Llama that can be cut into such Crias."""
    try:
        cria_ranges(teacher.layers, layers_per_cria)
    except ValueError as error:
        raise BadInputError(str(error)) from error
    teacher.check()


def is_held_out(text: str, percent: int) -> bool:
    """Whether a document is held out: decided by its text alone, so that copies fall on the same side."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return number % 100 < percent


class Tokenizer:
    """The teacher's tokenizer, for whole documents."""

    def __init__(self, teacher: Teacher) -> None:
        """Raises BadInputError when the teacher has none, or one that cannot be loaded."""
        self._source = teacher.source
        self._vocabulary = teacher.config.vocab_size
        if not {"tokenizer.json", "tokenizer.model"} & teacher.files.keys():
            raise BadInputError(
                f"spec.model.source {teacher.source} has no tokenizer (tokenizer.json): put it beside its "
                "weights"
            )
        self._tokenizer = _load_tokenizer(teacher)

    def encoder(self) -> Encoder:
        """What encodes documents, with the marks at their begin and end that the tokenizer has."""
        return Encoder(self._tokenizer.backend_tokenizer.to_str(), self._tokenizer.eos_token_id)

    def check(self, ids: list[np.ndarray]) -> None:
        """Raise BadInputError if an id has no row in the teacher's embedding."""
        highest = max((int(own.max()) for own in ids if len(own)), default=0)
        if highest >= self._vocabulary:
            raise BadInputError(
                f"the tokenizer of {self._source} makes the id {highest}, but its embedding has "
                f"{self._vocabulary} rows: the tokenizer belongs to another model"
            )


def _load_tokenizer(teacher: Teacher) -> PreTrainedTokenizerBase:
    with tempfile.TemporaryDirectory() as folder:
        for name in (CONFIG, *TOKENIZER_FILES):
            if name in teacher.files:
                teacher_file = teacher.store.read(teacher.prefix + name)
                Path(folder, name).write_bytes(teacher_file)
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the library raises whatever it meets, bare Exceptions among it
            raise BadInputError(
                f"the tokenizer of {teacher.source} cannot be loaded ({' '.join(str(error).split())}): give "
                "it a tokenizer.json that this version of the tokenizers library knows"
            ) from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise BadInputError(
            f"the tokenizer of {teacher.source} has no tokenizer.json and none can be made of it: convert it"
        )
    return tokenizer


def _make_packer(context: StageContext, split: str) -> Packer:
    data = context.spec.data
    tokens = data.tokens if split == "train" else data.held_out_tokens
    # A text that holds fewer tokens than were asked for is used up; one sequence must be held out.
    limit = max(1, tokens // data.sequence_length)

    def write(index: int, tensors: dict[str, torch.Tensor]) -> None:
        context.writer.write_tensors(token_path(split, index), tensors)

    return Packer(data.sequence_length, limit, write, shuffle=split == "train")


@dataclass(frozen=True, slots=True)
class Position:
    """Where in the text reading goes on: so much of it has been packed."""

    part: int = 0
    document: int = 0
    """Documents of the part that are done."""
    piece: int = 0
    """Pieces of the next document that are done."""


@dataclass(frozen=True, slots=True)
class Read:
    """What is known of a batch before it is encoded."""

    splits: list[str]
    """The split of each piece."""
    after: Position


def _pack(
    context: StageContext,
    text: Text,
    tokenizer: Tokenizer,
    packers: dict[str, Packer],
    start: Position,
) -> None:
    saved_at = time.monotonic()
    batches = _batches(text, context.spec.data.held_out_percent, packers, start)
    with closing(encode_batches(tokenizer.encoder(), batches, usable_processes())) as encoded:
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


def _batches(
    text: Text, held_out_percent: int, packers: dict[str, Packer], start: Position
) -> Iterator[Batch[Read]]:
    """Read the text from `start` on, without what its split is known not to want any more."""
    pieces: list[Piece] = []
    splits: list[str] = []
    size = read = 0
    after = start
    for after, split, piece in _pieces(text, held_out_percent, start):
        read += 1
        size += len(piece.text)
        if not packers[split].is_full:
            pieces.append(piece)
            splits.append(split)
        if size >= BATCH_CHARACTERS or read >= BATCH_DOCUMENTS:
            yield Batch(pieces, Read(splits, after))
            pieces, splits, size, read = [], [], 0, 0
    if read:
        yield Batch(pieces, Read(splits, after))


def _pieces(text: Text, held_out_percent: int, start: Position) -> Iterator[tuple[Position, str, Piece]]:
    """Every piece of the text from `start` on, with its split and where the next one stands."""
    for part in range(start.part, text.parts):
        done = start.document if part == start.part else 0
        for number, document in enumerate(islice(text.part(part), done, None), done):
            split = "held_out" if is_held_out(document, held_out_percent) else "train"
            skip = start.piece if (part, number) == (start.part, start.document) else 0
            for index, piece in enumerate(islice(cut(document), skip, None), skip + 1):
                after = Position(part, number + 1) if piece.ends else Position(part, number, index)
                yield after, split, piece


def _report(context: StageContext, packer: Packer, before: int) -> None:
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
    _check_length(
        context,
        packers["held_out"],
        "held-out",
        "give more text, raise spec.data.heldOutPercent, or lower spec.data.sequenceLength",
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
