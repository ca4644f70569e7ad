"""tokenize: check the model and the text, and pack the text into sequences of token ids.

The first stage, and the one that meets bad input: it needs no GPU.
"""

import hashlib
import logging
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trenchcoat_api.artifacts import DataFacts, Facts
from trenchcoat_api.crias import cria_ranges

from trenchcoat_trainer.data.layout import token_path
from trenchcoat_trainer.data.packing import Packer
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.sources.teacher import CONFIG, TOKENIZER_FILES, Teacher, open_teacher
from trenchcoat_trainer.sources.text import open_text
from trenchcoat_trainer.stages.context import StageContext

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
    text = open_text(context.spec, context.store)
    tokenizer = Tokenizer(teacher)
    packers = {split: _make_packer(context, split) for split in SPLITS}
    skip = _restore(context, packers)
    _pack(context, text.documents(), tokenizer, packers, skip)
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

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each document, with the marks at its begin and end that the tokenizer has.

        Raises:
            BadInputError: an id has no row in the teacher's embedding.
        """
        documents: list[list[int]] = self._tokenizer(
            texts, add_special_tokens=True, return_attention_mask=False, verbose=False
        )["input_ids"]
        end = self._tokenizer.eos_token_id
        for ids in documents:
            if end is not None and (not ids or ids[-1] != end):
                ids.append(end)
        highest = max((max(ids) for ids in documents if ids), default=0)
        if highest >= self._vocabulary:
            raise BadInputError(
                f"the tokenizer of {self._source} makes the id {highest}, but its embedding has "
                f"{self._vocabulary} rows: the tokenizer belongs to another model"
            )
        return documents


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
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise BadInputError(
                f"the tokenizer of {teacher.source} cannot be loaded ({error}): give it a valid "
                "tokenizer.json"
            ) from error
    return tokenizer


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
    documents: Iterator[str],
    tokenizer: Tokenizer,
    packers: dict[str, Packer],
    skip: int,
) -> None:
    data = context.spec.data
    read = skip
    saved_at = time.monotonic()
    for batch in _batches(islice(documents, skip, None)):
        split = ["held_out" if is_held_out(text, data.held_out_percent) else "train" for text in batch]
        wanted = [(name, text) for name, text in zip(split, batch, strict=True) if not packers[name].is_full]
        before = packers["train"].cut
        encoded = tokenizer.encode([text for _, text in wanted]) if wanted else []
        for (name, _), ids in zip(wanted, encoded, strict=True):
            packers[name].add(ids)
        read += len(batch)
        _report(context, packers["train"], before)
        if all(packer.is_full for packer in packers.values()):
            return
        if context.stop.requested or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            _save(context, packers, read)
            saved_at = time.monotonic()
            context.stop.check()


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _report(context: StageContext, packer: Packer, before: int) -> None:
    data = context.spec.data
    steps = max(1, data.tokens // data.sequence_length)
    tokens = (packer.cut - before) * data.sequence_length
    context.progress.update(PHASE, packer.cut, steps, fraction=packer.cut / steps, tokens=tokens)


def _save(context: StageContext, packers: dict[str, Packer], read: int) -> None:
    tensors: dict[str, torch.Tensor] = {}
    state: dict[str, Any] = {"read": read}
    for split, packer in packers.items():
        own, state[split] = packer.state()
        tensors |= {f"{split}.{name}": tensor for name, tensor in own.items()}
    # In this order: a checkpoint counts on its objects, and whoever goes on from it must know of them.
    context.writer.save_journal()
    context.checkpoint.save(tensors, state)


def _restore(context: StageContext, packers: dict[str, Packer]) -> int:
    """Bring the packers to where the last attempt stopped, and return the documents it had read."""
    saved = context.checkpoint.load()
    if saved is None:
        return 0
    tensors, state = saved
    for split, packer in packers.items():
        own = {
            name.removeprefix(f"{split}."): t for name, t in tensors.items() if name.startswith(f"{split}.")
        }
        packer.restore(own, state[split])
    read = int(state["read"])
    logger.info("going on after %d documents", read)
    return read


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
