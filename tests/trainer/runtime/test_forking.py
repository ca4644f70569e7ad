"""A fork server: what its processes find loaded, are given, print and leave, and what becomes of them."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from trenchcoat_trainer.runtime.forking import ForkedProcess, ForkServer, wait_for_any

from tests.waiting import until

PROGRAMS = """
import os, signal, sys, time

loaded_in = os.getpid()

def tell(arguments):
    print(*arguments, os.environ.get("GIVEN"), os.environ.get("KEPT"), loaded_in == os.getppid(), flush=True)
    print("on stderr", os.getsid(0) == os.getpid(), os.getcwd(), file=sys.stderr)
    return 66

def wait(arguments):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print("waits", flush=True)
    while True:  # a signal just before a sleep is heard after it
        time.sleep(0.01)

def save(arguments):
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    print("waits", flush=True)
    while not stopped:
        time.sleep(0.01)
    print("saved", flush=True)

def fail(arguments):
    raise ValueError("as asked")

def crash(arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def collects(arguments):
    import gc
    print(gc.isenabled(), gc.get_freeze_count() > 0, flush=True)
    return 0

class Told:
    def __del__(self, write=os.write):
        write(1, b"taken apart")

def leaves(arguments):
    import atexit, threading
    sys.told = Told()
    sys.stdout.write("buffered ")
    atexit.register(lambda: sys.stdout.write("at exit"))
    threading.Thread(target=lambda: time.sleep(0.2) or sys.stdout.write("a thread ")).start()
    return 7

def threads(arguments):
    import torch
    print(torch.get_num_threads(), flush=True)
    return 0
"""

ASKER = """
import sys, time
from pathlib import Path
from trenchcoat_trainer.runtime.forking import ForkServer

folder = Path(sys.argv[1])
with ForkServer(["forked_programs"], folder / "server.log") as server, (folder / "out").open("wb") as output:
    process = server.start("forked_programs:save", [], environment={}, output=output)
    print(server.pid, process.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "forked_programs.py").write_text(textwrap.dedent(PROGRAMS))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    monkeypatch.setenv("KEPT", "no")  # the server's own, which no process is given
    return "forked_programs"


@pytest.fixture
def server(programs: str, tmp_path: Path) -> Iterator[ForkServer]:
    with ForkServer([programs], tmp_path / "server.log") as server:
        yield server


class Started:
    """A process of a program, and the file that it prints to."""

    def __init__(
        self, server: ForkServer, name: str, folder: Path, *modules: str, **environment: str
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.file = folder / f"{name}.out"
        with self.file.open("wb") as output:
            self.process: ForkedProcess = server.start(
                f"forked_programs:{name}",
                ["a", "b c"],
                modules=["forked_programs", *modules],
                environment=environment,
                output=output,
            )

    @property
    def told(self) -> list[str]:
        return self.file.read_text().splitlines()


def is_gone(pid: int) -> bool:
    """Whether a process that nobody may have waited for has ended."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    return True


def test_the_end_of_any_process_is_heard_at_once(server: ForkServer, tmp_path: Path) -> None:
    waits, ends = Started(server, "wait", tmp_path).process, Started(server, "leaves", tmp_path).process
    began = time.monotonic()
    while ends.poll() is None:
        wait_for_any([waits, ends], 60)
    assert time.monotonic() - began < 30
    wait_for_any([waits, ends], 0.1)  # of what has ended nothing more is heard
    assert waits.poll() is None
    waits.kill()
    wait_for_any([waits], 60)
    assert waits.poll() == -signal.SIGKILL


def test_a_process_leaves_with_all_that_is_due_but_without_taking_modules_apart(
    server: ForkServer, tmp_path: Path
) -> None:
    started = Started(server, "leaves", tmp_path)
    assert started.process.wait() == 7
    assert started.told == ["buffered a thread at exit"]


def test_a_process_has_what_the_server_loaded_and_is_one_of_its_own(
    server: ForkServer, tmp_path: Path
) -> None:
    started = Started(server, "tell", tmp_path, GIVEN="yes")
    assert started.process.wait() == 66
    assert started.told == ["a b c yes None True", f"on stderr True {Path.cwd()}"]
    assert started.process.poll() == 66


def test_what_a_program_raises_ends_it_alone(server: ForkServer, tmp_path: Path) -> None:
    started = Started(server, "fail", tmp_path)
    assert started.process.wait() == 1
    assert started.told[-1] == "ValueError: as asked"
    assert Started(server, "crash", tmp_path).process.wait() == -signal.SIGKILL
    assert Started(server, "tell", tmp_path).process.wait() == 66


def test_signals_reach_it(server: ForkServer, tmp_path: Path) -> None:
    asked, killed = Started(server, "wait", tmp_path), Started(server, "wait", tmp_path / "again")
    for started in (asked, killed):
        until(lambda started=started: started.told == ["waits"], 120, "both wait")
        assert started.process.poll() is None
    asked.process.send_signal(signal.SIGTERM)
    assert asked.process.wait() == 75
    killed.process.kill()
    assert killed.process.wait() == -signal.SIGKILL
    killed.process.send_signal(signal.SIGTERM)  # nobody is there any more


def test_it_collects_garbage_but_not_what_the_server_loaded(server: ForkServer, tmp_path: Path) -> None:
    started = Started(server, "collects", tmp_path)
    assert started.process.wait() == 0
    assert started.told == ["True True"]


def test_torch_is_told_of_its_threads(server: ForkServer, tmp_path: Path) -> None:
    for threads in ("1", "2"):
        started = Started(server, "threads", tmp_path, "torch", OMP_NUM_THREADS=threads)
        assert started.process.wait() == 0
        assert started.told == [threads]


def test_a_server_that_dies_is_started_anew_and_takes_its_processes_with_it(
    server: ForkServer, tmp_path: Path
) -> None:
    orphan = Started(server, "wait", tmp_path)
    until(lambda: orphan.told == ["waits"], 120, "it waits")
    killed = server.pid
    os.kill(killed, signal.SIGKILL)
    assert orphan.process.wait() == -signal.SIGKILL
    until(lambda: is_gone(orphan.process.pid), 120, "it ends with its server")
    # Its channels close a moment before it is dead, and till then it would be asked again.
    until(lambda: is_gone(killed), 120, "the server is dead")
    assert Started(server, "tell", tmp_path).process.wait() == 66


def test_processes_are_asked_to_end_when_the_server_ends(programs: str, tmp_path: Path) -> None:
    with ForkServer([programs], tmp_path / "server.log") as server:
        started = Started(server, "save", tmp_path)
        until(lambda: started.told == ["waits"], 120, "it waits")
    until(lambda: started.told == ["waits", "saved"], 120, "it ends as one that was asked to")


def test_nothing_goes_on_when_who_asked_is_killed(programs: str, tmp_path: Path) -> None:
    """As by the kernel for want of memory: it cannot end its server and what that has made."""
    asker = subprocess.Popen([sys.executable, "-c", ASKER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert asker.stdout is not None
    server, process = map(int, asker.stdout.readline().split())
    until(lambda: (tmp_path / "out").read_text() == "waits\n", 120, "it waits")
    asker.kill()
    asker.wait()
    until(lambda: is_gone(process) and is_gone(server), 120, "both end")
    assert (tmp_path / "out").read_text() == "waits\nsaved\n"


def test_a_module_that_cannot_be_imported_fails_the_program_that_needs_it(
    programs: str, tmp_path: Path
) -> None:
    with ForkServer(["no_such_module"], tmp_path / "server.log") as server:
        with (tmp_path / "out").open("wb") as output:
            process = server.start("no_such_module:run", [], environment={}, output=output)
        assert process.wait() == 1
        assert "No module named 'no_such_module'" in (tmp_path / "out").read_text()
        assert Started(server, "tell", tmp_path).process.wait() == 66
    assert "no_such_module cannot be imported" in (tmp_path / "server.log").read_text()
