"""What tests of this folder start shares a busy machine: it is waited for longer than on a cluster."""

from dataclasses import replace

import pytest
from trenchcoat_operator.kubernetes import informer
from trenchcoat_operator.storage import bucket

PATIENCE_SECONDS = 120.0


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a store that does not answer, and of a first list: no test is about how soon either is given up."""
    longer = replace(bucket._PATIENCE, connect_seconds=PATIENCE_SECONDS, read_seconds=PATIENCE_SECONDS)
    monkeypatch.setattr(bucket, "_PATIENCE", longer)
    monkeypatch.setattr(informer, "_FIRST_SYNC_SECONDS", PATIENCE_SECONDS)
