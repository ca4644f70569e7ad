"""The command without the extra `trainer`: it says what brings what is missing."""

import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import IO

import pytest
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_trainer import cli

from tests.waiting import until

WITHOUT = """
import sys
sys.modules[sys.argv.pop(1)] = None
from trenchcoat_trainer.cli import main
sys.exit(main())
"""


def without(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, module, *words], capture_output=True, text=True, check=False
    )


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert not ended.value.code
    assert capsys.readouterr().out == f"trenchcoat {version('trenchcoat')}\n"


@pytest.mark.parametrize("command", ["plan", "rates", "run"])
def test_a_file_that_is_not_there_is_told_without_numbers(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "not-there.yaml"
    assert cli.main([command, str(file)]) == ExitCode.BAD_INPUT
    told = capsys.readouterr().err
    assert told.startswith(f"error: {file}") and told.endswith(": No such file or directory\n")


def test_what_is_missing_is_told_with_what_brings_it() -> None:
    done = without("numpy", "run", "examples/tiny.yaml", "--store", "nowhere")
    assert "numpy is not installed" in done.stderr
    assert "pip install 'trenchcoat[trainer,report]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == ExitCode.BAD_INPUT


def test_a_run_looks_for_torch_before_it_starts_anything(tmp_path: Path) -> None:
    done = without("torch", "run", "examples/tiny.yaml", "--store", str(tmp_path))
    assert "torch is not installed" in done.stderr
    assert done.returncode == ExitCode.BAD_INPUT


def test_where_a_report_stands_can_be_told_without_any_of_it() -> None:
    done = without("numpy", "report", "tiny", "--store", "nowhere")
    assert "has no report of a Trenchcoat tiny" in done.stderr
    assert done.returncode == ExitCode.BAD_INPUT


def test_a_module_of_ours_that_is_missing_is_no_missing_extra() -> None:
    done = without("trenchcoat_trainer.local.run", "run", "examples/tiny.yaml")
    assert done.returncode == 1 and "Traceback" in done.stderr


def write_end(pipe: Path) -> IO[str] | None:
    """The end of a named pipe to write to, once somebody reads from it."""
    try:
        return os.fdopen(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK), "w")
    except OSError:
        return None


def test_ctrl_c_leaves_no_traceback(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "spec.yaml")  # which it waits for
    with subprocess.Popen(
        [sys.executable, "-m", "trenchcoat_trainer", "plan", str(tmp_path / "spec.yaml")],
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        # Closed before its end is waited for: a signal that comes just before Python starts to read is
        # noted, but wakes no read; Python looks for it when the read has ended.
        with until(lambda: write_end(tmp_path / "spec.yaml"), 120, "it reads"):
            command.send_signal(signal.SIGINT)
        _, told = command.communicate(timeout=120)
    assert command.returncode == 128 + signal.SIGINT
    assert "Traceback" not in told and "ended at once" in told


def test_ranks_are_told_to_do_without_the_adapted_teacher_as_the_command_was(monkeypatch) -> None:
    """Else they would look for its adapters, which are not there."""
    started: list[tuple[list[str], int]] = []
    monkeypatch.setattr(cli, "run_ranks", lambda command, count, **_: started.append((command, count)) or 0)
    words = ["evaluate", "--spec", "a.yaml", "--processes", "2"]
    for more in ([], ["--without-adapted-teacher"]):
        assert cli.main([*words, *more]) == ExitCode.OK
        command, count = started.pop()
        parsed = cli.build_parser().parse_args(command[command.index("evaluate") :])
        assert (count, parsed.processes, parsed.without_adapted_teacher) == (2, 1, bool(more))


def test_several_processes_for_what_leaves_one_cria_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["collect", "--spec", "a.yaml", "--cria", "1", "--processes", "2"]
    assert cli.main(words) == ExitCode.BAD_INPUT
    assert "--processes cannot be used with --cria" in capfd.readouterr().err
