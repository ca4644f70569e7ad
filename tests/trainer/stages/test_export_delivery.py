"""An export in a repository of the hub: huggingface_hub against a server that takes uploads like it."""

import json
import logging

import pytest
from huggingface_hub import constants
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.errors import BadInputError, StageError
from trenchcoat_trainer.stages import export
from trenchcoat_trainer.store.credentials import redact

from tests.trainer.helpers.hub_uploads import PART_BYTES, hub_for_uploads

TOKEN = "hf_0123456789abcdefghijklmnopqrstuvwx"


@pytest.fixture
def hub(monkeypatch):
    with hub_for_uploads(TOKEN) as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        monkeypatch.setenv("TRENCHCOAT_HF_EXPORT_TOKEN", f"{TOKEN}\n")
        monkeypatch.setenv("HF_TOKEN", "hf_thatMayOnlyReadAndNothingElse0000")
        yield made


@pytest.fixture
def context(open_training, training_spec, change):
    def open_it(**settings):
        settings = {"destination": "hf://me/student", "maxShardBytes": 1_000_000, **settings}
        return open_training(change(training_spec, export=settings), Stage.EXPORT, trained="stitched_store")

    return open_it


def files_of(context):
    return {
        item.path: context.store.read(context.artifact.prefix + item.path)
        for item in context.manifest(context.artifact).objects
    }


def test_the_repository_holds_what_the_artifact_holds(hub, context):
    made = context()
    export.run(made)
    files = files_of(made)
    receipt = json.loads(files.pop("delivery.json"))
    assert receipt == {"destination": "hf://me/student", "commit": f"{1:040x}"}
    assert hub.repositories["me/student"] == files | {".gitattributes": b""}
    assert max(map(len, hub.blobs.values())) > 2 * PART_BYTES  # in several parts
    assert hub.private == {"me/student": True}
    assert len(hub.commits) == 1


def test_a_repository_is_public_where_it_is_wanted(hub, context):
    export.run(context(private=False))
    assert hub.private == {"me/student": False}


def test_an_upload_that_broke_off_goes_on_with_what_the_hub_lacks(hub, context):
    first = context(form="delta")
    hub.fails = 1
    with pytest.raises(StageError, match=r"hf://me/student.*tried again"):
        export.run(first)
    assert not hub.commits and not first.store.exists(first.artifact.manifest_path)
    first.writer.save_journal()
    hub.received = 0
    again = context(form="delta")
    export.run(again)
    assert len(hub.commits) == 1
    weights = [data for name, data in files_of(again).items() if name.endswith(".safetensors")]
    assert hub.received == sum(map(len, weights))
    hub.received = 0
    third = context(form="delta", private=False)  # another key, the same files
    export.run(third)
    assert hub.received == 0


def test_weights_of_an_export_before_go_and_other_files_stay(hub, context):
    hub.repositories["me/student"] = {
        "model.safetensors": b"old",
        "model-00001-of-00009.safetensors": b"old",
        "notes.txt": b"mine",
        "more/model.safetensors": b"mine",
    }
    made = context()
    export.run(made)
    files = files_of(made)
    del files["delivery.json"]
    kept = {"notes.txt": b"mine", "more/model.safetensors": b"mine"}
    assert hub.repositories["me/student"] == files | kept


def test_a_token_that_may_not_write_is_told_once(hub, context, monkeypatch):
    monkeypatch.setenv("TRENCHCOAT_HF_EXPORT_TOKEN", "hf_thatMayNot0000000000000000000000")
    with pytest.raises(
        BadInputError, match=r"refuses to write to .*destination hf://me/student.*tokenSecretRef"
    ):
        export.run(context())


def test_without_a_token_of_its_own_it_is_the_models(hub, context, monkeypatch):
    monkeypatch.delenv("TRENCHCOAT_HF_EXPORT_TOKEN")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    export.run(context())
    assert hub.commits


def test_the_token_goes_to_the_hub_alone_and_is_shown_nowhere(hub, context, caplog, capfd, tmp_path):
    made = context()
    with caplog.at_level(logging.DEBUG):
        hub.fails = 1
        with pytest.raises(StageError) as failure:
            export.run(made)
        export.run(made)
    assert set(hub.tokens) <= {f"Bearer {TOKEN}", None}
    assert f"Bearer {TOKEN}" in hub.tokens
    assert set(hub.network_tokens) == {None}
    causes = [failure.value]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    told = [*map(str, causes), *map(repr, causes), caplog.text, *capfd.readouterr()]
    assert not [text for text in told if TOKEN in text]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    assert not [name for name, data in hub.repositories["me/student"].items() if TOKEN.encode() in data]
    assert TOKEN not in redact(f"Authorization: {TOKEN}")
