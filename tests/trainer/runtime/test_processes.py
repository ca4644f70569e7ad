"""Ranks as processes: how they find each other, and what is told when they end."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_trainer.runtime import processes
from trenchcoat_trainer.runtime.processes import RankProcesses, run_ranks, start_ranks
from trenchcoat_trainer.runtime.stop import StopRequest

from tests.waiting import until

# What listens says so by a file of this name, for a signal that comes earlier ends it.
DEAF = "import pathlib, signal, time; signal.signal(signal.SIGTERM, lambda *_: None); "
DEAF += "pathlib.Path('deaf').touch(); [time.sleep(0.05) for _ in range(12000)]"


def python(program: str, folder: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-S", "-c", program], cwd=folder)


def end(ranks: RankProcesses, seconds: float = 300) -> int:
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            if (code := ranks.poll()) is not None:
                return code
            time.sleep(0.01)
    finally:
        ranks.kill()
    pytest.fail(f"they do not end within {seconds} s")


def leave(code: int) -> str:
    if code < 0:
        return f"import os; os.kill(os.getpid(), {-code})"
    return f"raise SystemExit({code})"


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        ((0, 0), 0),
        ((0, 1), 1),
        ((1, 66), 66),
        ((75, 0), 75),
        ((75, 65), 65),
        ((1, -9), -9),
        ((-15, 1), 1),
        ((-15, 75), 75),
        ((0, -15), -15),
    ],
)
def test_of_several_exit_codes_the_one_that_tells_most_counts(codes, told, tmp_path: Path) -> None:
    ended = [python(leave(code), tmp_path) for code in codes]
    for process in ended:
        process.wait()
    assert end(RankProcesses(ended)) == told


def test_when_one_fails_the_others_are_told_to_end(tmp_path: Path) -> None:
    ranks = RankProcesses([python(leave(66), tmp_path), python("import time; time.sleep(600)", tmp_path)])
    assert end(ranks, seconds=300) == 66


def test_who_waits_for_one_that_failed_is_killed_and_not_the_one_to_be_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "AFTER_FAILURE_SECONDS", 0.3)
    deaf = python(DEAF, tmp_path)
    until((tmp_path / "deaf").exists, 120, "it ignores signals")
    assert end(RankProcesses([python(leave(1), tmp_path), deaf]), seconds=300) == 1
    assert deaf.returncode == -signal.SIGKILL


def test_who_still_saves_when_another_has_is_let_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long that may take is for the pod's grace period to say."""
    monkeypatch.setattr(processes, "AFTER_FAILURE_SECONDS", 0.1)
    slow = python(DEAF.replace("12000", "20"), tmp_path)
    until((tmp_path / "deaf").exists, 120, "it ignores signals")
    assert end(RankProcesses([python(leave(75), tmp_path), slow])) == 75
    assert slow.returncode == 0


TELL = """
import json, os, sys
told = {name: os.environ.get(name) for name in sys.argv[2:]}
with open(os.path.join(sys.argv[1], f"{os.environ.get('RANK')}.json"), "w") as file:
    json.dump(told, file)
"""
NAMES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OMP_NUM_THREADS",
)


def tell(folder: Path) -> list[str]:
    return [sys.executable, "-S", "-c", TELL, str(folder), *NAMES]


def told(folder: Path) -> dict[str, dict[str, str]]:
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.iterdir())}


def test_ranks_of_one_machine_meet_on_its_loopback_interface(tmp_path: Path) -> None:
    assert end(start_ranks(tell(tmp_path), 3, environment={})) == 0
    found = told(tmp_path)
    assert list(found) == ["0", "1", "2"]
    assert [item["LOCAL_RANK"] for item in found.values()] == ["0", "1", "2"]
    assert {(item["WORLD_SIZE"], item["LOCAL_WORLD_SIZE"]) for item in found.values()} == {("3", "3")}
    assert {item["MASTER_ADDR"] for item in found.values()} == {"127.0.0.1"}
    assert len({item["MASTER_PORT"] for item in found.values()}) == 1


def test_one_alone_is_no_rank(tmp_path: Path) -> None:
    assert end(start_ranks(tell(tmp_path), 1, environment={})) == 0
    assert told(tmp_path) == {"None": dict.fromkeys(NAMES)}


def test_ranks_of_a_pod_among_several_count_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variables that the training-operator gives the second of three pods of two processes each."""
    given = {
        "PET_NODE_RANK": "1",
        "PET_NNODES": "3",
        "PET_NPROC_PER_NODE": "2",
        "RANK": "1",
        "WORLD_SIZE": "6",
    }
    for name, value in (given | {"MASTER_ADDR": "tiny-master-0", "MASTER_PORT": "23456"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(9)))
    assert run_ranks(tell(tmp_path), 2, stop=StopRequest()) == 0
    found = told(tmp_path)
    assert {item["OMP_NUM_THREADS"] for item in found.values()} == {"4"}
    assert list(found) == ["2", "3"]
    assert [item["LOCAL_RANK"] for item in found.values()] == ["0", "1"]
    assert {item["WORLD_SIZE"] for item in found.values()} == {"6"}
    assert {(item["MASTER_ADDR"], item["MASTER_PORT"]) for item in found.values()} == {
        ("tiny-master-0", "23456")
    }


def test_a_rank_that_a_signal_ended_is_told_as_a_shell_does() -> None:
    command = [sys.executable, "-S", "-c", leave(-signal.SIGKILL)]
    assert run_ranks(command, 2, stop=StopRequest()) == 137


def test_a_wish_to_stop_ends_ranks_that_have_just_begun() -> None:
    stop = StopRequest()
    stop.requested = True
    command = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    assert run_ranks(command, 2, stop=stop) == ExitCode.TERMINATED
