"""What is read from the logs of a run: what a stage told of the time left, and what then came."""

import importlib.util
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
def progress_fixture():
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


def test_a_stage_that_told_nothing_is_left_out(progress, tmp_path: Path) -> None:
    (tmp_path / "shard.log").write_text("12:00:00 INFO shard: making it\n12:00:01 INFO shard: complete\n")
    assert progress.read(tmp_path / "shard.log") is None


def test_a_stage_that_goes_on_is_left_out(progress, tmp_path: Path) -> None:
    (tmp_path / "cria-00.log").write_text(LOG.rpartition("00:00:30")[0])
    assert progress.read(tmp_path / "cria-00.log") is None
