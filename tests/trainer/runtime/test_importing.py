"""Importing what stays: what becomes of the collection of garbage."""

import gc
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from trenchcoat_trainer.runtime.importing import importing

MODULE = "imported_to_stay"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    frozen = gc.get_freeze_count()
    yield
    gc.enable()
    if not frozen:
        gc.unfreeze()
    sys.modules.pop(MODULE, None)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / f"{MODULE}.py").write_text("import gc\nENABLED = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    return MODULE


def test_what_is_imported_is_not_searched(module: str) -> None:
    before = gc.get_freeze_count()
    with importing():
        imported = importlib.import_module(module)
    assert not imported.ENABLED
    assert gc.isenabled()
    assert gc.get_freeze_count() > before


def test_where_nothing_is_imported_nothing_is_kept() -> None:
    before = gc.get_freeze_count()
    with importing():
        importlib.import_module("gc")
    assert gc.isenabled()
    assert gc.get_freeze_count() <= before


def test_what_was_off_stays_off_and_a_failure_is_passed_on() -> None:
    gc.disable()
    with pytest.raises(ModuleNotFoundError), importing():
        importlib.import_module("there_is_no_such_module")
    assert not gc.isenabled()
    gc.enable()
    with pytest.raises(ModuleNotFoundError), importing():
        importlib.import_module("there_is_no_such_module")
    assert gc.isenabled()
