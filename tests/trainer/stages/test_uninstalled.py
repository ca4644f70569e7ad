"""A run by packages that lie on a path and are not installed, as a benchmark or a mounted folder has them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from trenchcoat_api.artifacts import Artifacts
from trenchcoat_api.crias import cria_ranges

from tests.trainer.helpers.killing import write_spec
from tests.trainer.stages.conftest import change

pytestmark = pytest.mark.slow

TOP = Path(__file__).parents[3]
FOLDERS = ("api", "s3", "reports", "trainer")


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """One that has what .venv has, but for this project."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    own = next(Path(folder) for folder in sys.path if (Path(folder) / "_locked.pth").exists())
    shutil.copy(own / "_locked.pth", packages)
    return tmp_path / "env" / "bin" / "python"


def test_a_run_ends_with_its_export(
    python: Path, training_spec, stitched_store: Path, tmp_path: Path
) -> None:
    spec = change(training_spec, evaluate={"enabled": False})
    shutil.copytree(stitched_store, tmp_path / "store")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(TOP / name) for name in FOLDERS),
        "PYTHONSAFEPATH": "1",
    }
    asked = "import importlib.metadata as m; print([d.name for d in m.distributions(name='trenchcoat')])"
    found = subprocess.run([python, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"

    words = ["-m", "trenchcoat_trainer", "run", write_spec(spec, tmp_path), "--store", tmp_path / "store"]
    done = subprocess.run([python, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    made = Artifacts(spec).all(cria_ranges(5, 2))[-1]
    card = tmp_path / "store" / "trenchcoat" / made.prefix / "README.md"
    assert made.stage == "export" and "trenchcoat of no version, not installed" in card.read_text()
    assert "The report:" in done.stdout
