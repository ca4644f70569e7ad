"""The import rules of pyproject.toml, over the product as it is and with one import too many."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PACKAGES = {
    "api": "trenchcoat_api",
    "operator": "trenchcoat_operator",
    "plugin": "trenchcoat_kubectl",
    "reports": "trenchcoat_report",
    "s3": "trenchcoat_s3",
    "trainer": "trenchcoat_trainer",
    "viewer": "trenchcoat_viewer",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the product's code, with its rules."""
    for folder in PACKAGES:
        shutil.copytree(
            TOP / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    shutil.copy(TOP / "pyproject.toml", tmp_path)
    return tmp_path


def check(tree: Path) -> tuple[int, str]:
    """Exit code and output of the linter there."""
    path = os.pathsep.join(str(tree / folder) for folder in PACKAGES)
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache", "--no-logo"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_product_keeps_them(tree: Path) -> None:
    code, told = check(tree)
    assert code == 0, told


@pytest.mark.parametrize(
    ("file", "line", "rule"),
    [
        ("api/trenchcoat_api/stages.py", "import trenchcoat_operator", "The API stands on nothing"),
        ("api/trenchcoat_api/stages.py", "import torch", "The API stands on nothing"),
        (
            "operator/trenchcoat_operator/settings.py",
            "import trenchcoat_trainer",
            "The operator needs neither",
        ),
        ("s3/trenchcoat_s3/faults.py", "import trenchcoat_api", "What both know of S3"),
        ("plugin/trenchcoat_kubectl/cli.py", "import trenchcoat_operator", "The plugin for kubectl"),
        ("trainer/trenchcoat_trainer/errors.py", "import kopf", "The trainer needs neither"),
        ("viewer/trenchcoat_viewer/runs.py", "import trenchcoat_operator.storage.access", "The viewer shows"),
        (
            "operator/trenchcoat_operator/model/plan.py",
            "import trenchcoat_operator.observe.observer",
            "The operator's floors",
        ),
        (
            "operator/trenchcoat_operator/reconcile/look.py",
            "import trenchcoat_operator.reconcile.telling.status",
            "A decision's floors",
        ),
        ("operator/trenchcoat_operator/gpus/sharing.py", "import minio", "Decisions are pure"),
        (
            "trainer/trenchcoat_trainer/stages/shard.py",
            "import trenchcoat_trainer.stages.tokenize",
            "A stage knows no other",
        ),
        ("trainer/trenchcoat_trainer/store/base.py", "import torch", "The store holds bytes"),
        (
            "trainer/trenchcoat_trainer/runtime/stop.py",
            "import trenchcoat_trainer.stages.shard",
            "The trainer's floors",
        ),
    ],
)
def test_an_import_too_many_breaks_it(tree: Path, file: str, line: str, rule: str) -> None:
    with (tree / file).open("a") as code:
        code.write(f"\n{line}\n")
    exit_code, told = check(tree)
    assert exit_code == 1, told
    broken = [text for text in told.splitlines() if text.endswith("BROKEN")]
    assert any(text.startswith(rule) for text in broken), told


@pytest.mark.parametrize("package", ["operator/trenchcoat_operator", "trainer/trenchcoat_trainer"])
def test_a_new_room_needs_its_floor(tree: Path, package: str) -> None:
    (tree / package / "attic.py").write_text("")
    exit_code, told = check(tree)
    assert exit_code == 1
    assert "attic" in told
