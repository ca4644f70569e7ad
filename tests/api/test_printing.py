"""What a command prints where standard output takes nothing more."""

import subprocess
import sys
from pathlib import Path

import pytest

PRINTS = """
from trenchcoat_api.printing import OutputError, Printer
try:
    Printer().{}("text")
except OutputError as error:
    raise SystemExit(str(error))
"""


@pytest.mark.parametrize("method", ["print", "out"])
def test_a_full_disk_is_told_once_and_not_again_at_the_end(method: str) -> None:
    command = [sys.executable, "-c", PRINTS.format(method)]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr == (
        "standard output cannot be written to (No space left on device): give it a file on a disk that has "
        "free space, or /dev/null\n"
    )
