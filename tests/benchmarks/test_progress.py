"""What is read from the logs of a run: what a stage told of the time left, and what then came."""

import importlib.util
import json
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "progress" / "__main__.py"
LOG = """\
23:59:40 INFO cria-00: making trenchcoat/artifacts/cria/00/
23:59:50 INFO cria-00: transfer 1 of 160, 0%, transfer 882.504
23:59:55 INFO cria-00: transfer 15 of 160, 9%, transfer 851.2, 3,720 tokens/s, 248 s left
00:00:00 INFO cria-00: transfer 20 of 160, 12%, transfer 703.665, 4,179 tokens/s, 45 s left
00:00:30 INFO cria-00: lora 80 of 80, 100%, lora 72.8, 5,434 tokens/s, 0 s left
00:00:30 INFO cria-00: complete
"""


@pytest.fixture(name="progress")
def progress_fixture(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(FILE.parent)
    spec = importlib.util.spec_from_file_location("progress_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_first_after_a_tenth_is_compared_with_what_came(progress, tmp_path: Path) -> None:
    (tmp_path / "cria-00.log").write_text(LOG)
    told = progress.read(tmp_path / "cria-00.log")
    assert (told.name, told.took, told.share, told.told, told.was) == ("cria-00", 50, 0.12, 45.0, 30)
    assert progress.table([told]).endswith("| cria-00 | 50 | 12% | 45 | 30 | +50% |\n")


def test_what_a_pod_prints_after_its_stage_does_not_count(progress, tmp_path: Path) -> None:
    (tmp_path / "cria-00.log").write_text(LOG + "00:00:59 INFO generated new fontManager\n")
    told = progress.read(tmp_path / "cria-00.log")
    assert (told.took, told.was) == (50, 30)


def test_of_a_cluster_each_row_of_the_status_is_compared(progress, tmp_path: Path) -> None:
    def status(second: int, **row: str) -> str:
        time = f"2026-01-01T12:00:{second:02d}Z"
        managed = [{"time": "2026-01-01T13:00:00Z"}, {"time": time, "subresource": "status"}]
        told = {"stages": [{"name": "cria", **row}, {"name": "stitch", "state": "Blocked"}]}
        return json.dumps({"metadata": {"managedFields": managed}, "status": told}, indent=4)

    looks = [
        status(0, state="Waiting"),
        status(5, state="Running", progress="9%", eta="3m"),
        status(10, state="Running", progress="12%", eta="1m04s"),
        status(20, state="Running", progress="60%", eta="9s"),
        status(50, state="Succeeded", progress="100%"),
        status(55, state="Succeeded", progress="100%")[:-30],  # the watch was ended within it
    ]
    (tmp_path / "watched.json").write_text("\n".join(looks))
    (told,) = progress.of_status(tmp_path / "watched.json")
    assert (told.name, told.took, told.share, told.told, told.was) == ("cria", 50, 0.12, 64.0, 40)


def test_a_stage_that_told_nothing_is_left_out(progress, tmp_path: Path) -> None:
    (tmp_path / "shard.log").write_text("12:00:00 INFO shard: making it\n12:00:01 INFO shard: complete\n")
    assert progress.read(tmp_path / "shard.log") is None


def test_a_stage_that_goes_on_is_left_out(progress, tmp_path: Path) -> None:
    (tmp_path / "cria-00.log").write_text(LOG.rpartition("00:00:30")[0])
    assert progress.read(tmp_path / "cria-00.log") is None
