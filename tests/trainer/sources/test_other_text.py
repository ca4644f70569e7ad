"""The second held-out text: read in order, cut into sequences, refused by the name of its own field."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer
from trenchcoat_api.spec import OtherText
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.sources import other_text
from trenchcoat_trainer.sources.encoding import Encoder
from trenchcoat_trainer.sources.other_text import open_other_text, other_sequences
from trenchcoat_trainer.store import FolderStore


@pytest.fixture
def encoder(teacher_folder):
    return Encoder((teacher_folder / "tokenizer.json").read_text(), 1)


@pytest.fixture
def store(tmp_path):
    return FolderStore(tmp_path)


def write(folder, name, *documents):
    (folder / name).write_text("".join(json.dumps({"body": text}) + "\n" for text in documents))


def asked(folder, pattern="*.jsonl", **fields):
    return OtherText(source=f"{folder.as_uri()}/{pattern}", **({"textField": "body"} | fields))


def test_documents_are_read_in_order_end_to_end(tmp_path, store, encoder, monkeypatch):
    write(tmp_path, "b.jsonl", "the fox " * 20)
    write(tmp_path, "a.jsonl", "the dog " * 20, "brown")
    tokenizer = Tokenizer.from_str(encoder.tokenizer)
    texts = ("the dog " * 20, "brown", "the fox " * 20)
    stream = [token for text in texts for token in [*tokenizer.encode(text).ids, 1]]
    expected = np.array(stream[: len(stream) // 16 * 16]).reshape(-1, 16)
    found = other_sequences(asked(tmp_path), store, encoder, 16)
    assert found.dtype == np.int32 and np.array_equal(found, expected)
    monkeypatch.setattr(other_text, "BATCH_CHARACTERS", 7)
    assert np.array_equal(other_sequences(asked(tmp_path), store, encoder, 16), expected)


def test_no_more_is_read_than_is_asked_for(tmp_path, store, encoder):
    write(tmp_path, "a.jsonl", "the quick brown fox " * 50)
    few = other_sequences(asked(tmp_path, tokens=40), store, encoder, 16)
    assert few.shape == (2, 16)
    whole = other_sequences(asked(tmp_path), store, encoder, 16)
    assert len(whole) > 4 and np.array_equal(whole[:2], few)


def test_a_wrong_text_is_told_by_its_own_field(tmp_path, store, encoder):
    with pytest.raises(BadInputError, match=r"^spec\.evaluate\.otherText\.source .* matches no text file"):
        open_other_text(asked(tmp_path, "nothing.jsonl"), store)
    write(tmp_path, "a.jsonl", "fox")
    with pytest.raises(BadInputError, match=r"otherText\.source .* less than a sequence of 64"):
        other_sequences(asked(tmp_path), store, encoder, 64)
