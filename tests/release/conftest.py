"""What `make release` makes, the smallest image alone, and bare environments for its wheel."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
sys.path[:0] = [str(TOP / "hack" / "cluster"), str(TOP / "hack")]


@dataclass(frozen=True)
class Environment:
    """An environment of Python, and a folder apart from the checkout to work in."""

    bin: Path
    work: Path

    def run(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one of its programs, with nothing of the checkout on any path."""
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {"COLUMNS": "120", "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(
            [self.bin / program, *words],
            cwd=self.work,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def packages(self) -> Path:
        """Where packages are installed."""
        (found,) = self.bin.parent.glob("lib/python*/site-packages")
        return found


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release") / "made"
    program = [sys.executable, TOP / "hack" / "release"]
    words = [*program, "--images", "operator", "--uncommitted", "--output", folder]
    done = subprocess.run(words, cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def new_environment(folder: Path) -> Environment:
    """An environment without packages, and copies of the examples beside it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    work = folder / "work"
    work.mkdir()
    (work / "examples").symlink_to(TOP / "examples")
    return Environment(folder / "env" / "bin", work)


def install(environment: Environment, *words: str | Path) -> None:
    """Install by uv, as pip would."""
    uv = Path(sys.executable).with_name("uv")
    command = [uv, "pip", "install", "--quiet", "--python", environment.bin / "python", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
