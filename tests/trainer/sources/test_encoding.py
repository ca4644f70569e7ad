"""Encoding documents: the ids of the tokenizer itself, whatever the pieces and the number of processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer
from trenchcoat_trainer.errors import StageError
from trenchcoat_trainer.sources import encoding
from trenchcoat_trainer.sources.encoding import (
    ENV_PROCESSES,
    Batch,
    Encoder,
    Piece,
    cut,
    encode_batches,
    usable_processes,
)

from tests.trainer.helpers.trainer_samples import make_documents
from tests.waiting import until


@pytest.fixture
def encoder(teacher_folder: Path) -> Encoder:
    return Encoder((teacher_folder / "tokenizer.json").read_text(), end=1)


def whole(documents: list[str]) -> list[Piece]:
    return [Piece(document) for document in documents]


def test_ids_are_those_of_the_tokenizer_with_an_end(encoder: Encoder, teacher_folder: Path) -> None:
    documents = [*make_documents(50), "", "one </s> in the middle", "wört — 文字"]
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    expected = [[*ids, 1] for ids in tokenizer(documents)["input_ids"]]
    found = encoder.encode(encoder.load(), whole(documents))
    assert [ids.tolist() for ids in found] == expected
    assert found[0].dtype == np.int32


@pytest.mark.parametrize("document", ["", "short", "words of text " * 50, "x" * 500, "line\n" * 90])
def test_pieces_are_bounded_and_lose_nothing(monkeypatch, document: str) -> None:
    monkeypatch.setattr(encoding, "PIECE_CHARACTERS", 60)
    pieces = list(cut(document))
    assert "".join(piece.text for piece in pieces) == document
    assert max(len(piece.text) for piece in pieces) <= 60
    assert [piece.begins for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    if " " in document:
        assert all(piece.text.startswith(" ") for piece in pieces[1:])


def test_pieces_have_the_ids_of_the_whole_and_its_marks_once(encoder: Encoder, monkeypatch) -> None:
    tokenizer = Tokenizer.from_str(encoder.tokenizer)
    marks = [("<s>", 0), ("</s>", 1)]
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    encoder = Encoder(tokenizer.to_str(), end=1)
    document = " ".join(make_documents(20))
    (expected,) = encoder.encode(encoder.load(), [Piece(document)])
    assert expected.tolist().count(0) == expected.tolist().count(1) == 1
    monkeypatch.setattr(encoding, "PIECE_CHARACTERS", 100)
    pieces = list(cut(document))
    assert len(pieces) > 20
    assert np.array_equal(np.concatenate(encoder.encode(encoder.load(), pieces)), expected)


def test_settings_of_the_file_cut_and_fill_nothing(encoder: Encoder) -> None:
    tokenizer = Tokenizer.from_str(encoder.tokenizer)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=100)
    documents = whole(make_documents(5))
    expected = encoder.encode(encoder.load(), documents)
    found = Encoder(tokenizer.to_str(), end=1)
    for ids, other in zip(found.encode(found.load(), documents), expected, strict=True):
        assert np.array_equal(ids, other)


def batches(count: int = 30) -> list[Batch[int]]:
    return [Batch(whole(make_documents(20, seed=number)), number) for number in range(count)]


def test_any_number_of_processes_gives_the_same_in_the_same_order(encoder: Encoder) -> None:
    alone = list(encode_batches(encoder, batches(), 1))
    together = list(encode_batches(encoder, batches(), 3))
    assert [batch.tag for batch, _ in together] == list(range(30))
    for (_, ids), (_, other) in zip(alone, together, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ids, other, strict=True))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(("processes", "ahead"), [(1, encoding.BATCHES + 1), (2, 2 * 2)])
def test_a_bounded_number_of_batches_is_read_ahead(encoder: Encoder, processes: int, ahead: int) -> None:
    taken = []
    source = (taken.append(batch.tag) or batch for batch in batches())
    results = encode_batches(encoder, source, processes)
    for _ in range(10):
        next(results)
    assert 10 < len(taken) <= 10 + ahead + 1
    results.close()
    assert multiprocessing.active_children() == []


def test_a_short_text_needs_no_processes(encoder: Encoder) -> None:
    results = encode_batches(encoder, batches(1), 8)
    next(results)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("processes", [1, 2])
def test_what_reading_raises_is_raised(encoder: Encoder, processes: int) -> None:
    def damaged():
        yield from batches(5)
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        list(encode_batches(encoder, damaged(), processes))
    assert multiprocessing.active_children() == []


def test_a_worker_that_is_killed_is_told_with_the_remedy(encoder: Encoder) -> None:
    results = encode_batches(encoder, batches(), 2)
    next(results)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(StageError, match=r"was killed.*resources\.memory"):
        list(results)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_the_terminal_tells_all_is_for_the_stage_to_decide(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """It reaches workers too, those that encode and one that has just been started."""
    told: set[int] = set()
    original = encoding.in_order

    def telling(submit, source, depth):
        def submitted(batch):
            future = submit(batch)
            for child in multiprocessing.active_children():
                os.kill(child.pid, number)
                told.add(child.pid)
            return future

        return original(submitted, source, depth)

    monkeypatch.setattr(encoding, "in_order", telling)
    assert [batch.tag for batch, _ in encode_batches(encoder, batches(8), 2)] == list(range(8))
    assert told


def test_the_environment_says_how_many(monkeypatch) -> None:
    monkeypatch.setenv(ENV_PROCESSES, "5")
    assert usable_processes() == usable_processes(1) == 5
    monkeypatch.delenv(ENV_PROCESSES)
    assert 1 <= usable_processes() <= min(16, os.cpu_count())
    assert usable_processes(1) == 1


ENDLESS = """
import itertools, multiprocessing, sys
from pathlib import Path
from trenchcoat_trainer.sources.encoding import Batch, Encoder, Piece, encode_batches
if __name__ == "__main__":
    encoder = Encoder(Path(sys.argv[1]).read_text(), end=1)
    source = (Batch([Piece("the quick brown fox")], number) for number in itertools.count())
    for batch, _ in encode_batches(encoder, source, 2):
        if batch.tag == 10:
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""


def test_workers_end_when_their_parent_is_killed(teacher_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    parent = subprocess.Popen(
        [sys.executable, script, teacher_folder / "tokenizer.json"], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert workers  # one, where it did all before another was needed
    parent.kill()
    parent.wait()
    until(lambda: not any(running(pid) for pid in workers), 120, "workers end with their parent")


def running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
