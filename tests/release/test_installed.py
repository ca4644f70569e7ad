"""The built wheel where nothing else is: the README's commands, run from it."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.release.conftest import TOP, Environment, install, new_environment

PLAN = ("plan", "examples/llama-3.1-405b.yaml", "--config", "examples/models/llama-3.1-405b.json")


def wheel(made: Path) -> Path:
    (found,) = made.glob("trenchcoat-*.whl")
    return found


@pytest.fixture(scope="module")
def bare(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`pip install trenchcoat`, without extras."""
    environment = new_environment(tmp_path_factory.mktemp("bare"))
    install(environment, "--compile-bytecode", wheel(made))  # as pip does, and uv does not
    return environment


@pytest.fixture(scope="module")
def whole(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`pip install 'trenchcoat[trainer,report]'`; the gigabytes are those that .venv has."""
    environment = new_environment(tmp_path_factory.mktemp("whole"))
    locked = next(TOP.glob(".venv/lib/python*/site-packages/_locked.pth"))
    (environment.packages / "_locked.pth").write_text(locked.read_text())
    install(environment, "--no-deps", wheel(made))
    return environment


def megabytes(folder: Path) -> float:
    done = subprocess.run(["du", "-sm", folder], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[0])


def test_without_extras_it_is_small_and_has_no_torch(bare: Environment) -> None:
    assert not (bare.packages / "torch").exists() and not (bare.packages / "numpy").exists()
    print(f"without extras: {megabytes(bare.packages):.0f} MB")
    assert megabytes(bare.packages) < 65  # docs/installing.md says 54


def test_without_extras_it_plans(bare: Environment) -> None:
    done = bare.run("trenchcoat", *PLAN, "-o", "json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["crias"]) == 14


def test_without_extras_the_plugin_is_there(bare: Environment) -> None:
    done = bare.run("kubectl-trenchcoat", "plan", "examples/tiny.yaml", "--help")
    assert done.returncode == 0 and "usage: kubectl trenchcoat plan" in done.stdout


@pytest.mark.parametrize(
    "words",
    [("run", "examples/tiny.yaml"), ("cria", "--spec", "examples/tiny.yaml", "--cria", "0", "--store", "s")],
)
def test_without_extras_a_stage_says_what_it_needs(bare: Environment, words: tuple[str, ...]) -> None:
    done = bare.run("trenchcoat", *words)
    assert done.returncode == 64
    assert "pip install 'trenchcoat[trainer,report]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_whole_run_as_the_readme_has_it(whole: Environment) -> None:
    teacher = whole.run("python", "examples/tiny_teacher.py", "--store", "build/store")
    assert teacher.returncode == 0, teacher.stderr
    run = whole.run("trenchcoat", "run", "examples/tiny.yaml", "--store", "build/store")
    assert run.returncode == 0, run.stderr
    assert "after stitching" in run.stdout
    student, report = (Path(line) for line in told_paths(run.stdout))
    assert (whole.work / student / "model.safetensors.index.json").exists() or list(
        (whole.work / student).glob("*.safetensors")
    )
    assert "<h1" in (whole.work / report).read_text()
    again = whole.run("trenchcoat", "run", "examples/tiny.yaml", "--store", "build/store")
    assert "complete already" in again.stdout
    asked = whole.run("trenchcoat", "report", "tiny", "--store", "build/store")
    assert asked.returncode == 0 and report.name in asked.stdout


def told_paths(text: str) -> list[str]:
    """What stands indented below `The student, for ...:` and `The report:`."""
    lines = text.splitlines()
    return [
        lines[number + 1].strip()
        for number, line in enumerate(lines)
        if line.startswith(("The student, for", "The report:"))
    ]


def test_nothing_of_the_checkout_was_used(whole: Environment) -> None:
    done = whole.run("python", "-c", "import trenchcoat_trainer as t; print(t.__file__)")
    assert Path(done.stdout.strip()).is_relative_to(whole.bin.parent)


def test_the_packaged_chart_is_the_folder(made: Path) -> None:
    from tests.charts.helm import CHART, render

    (package,) = (file for file in made.glob("*.tgz"))
    packaged, folder = render(chart=package), render(chart=CHART)
    assert packaged.returncode == 0, packaged.stderr
    assert packaged.stdout == folder.stdout


def test_the_sdist_holds_what_the_wheel_was_built_of(made: Path, tmp_path: Path) -> None:
    (sdist,) = made.glob("trenchcoat-*.tar.gz")
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "build", "--quiet", "--wheel", "--out-dir", tmp_path, sdist], check=True)
    (again,) = tmp_path.glob("*.whl")
    names = [set(zipfile.ZipFile(file).namelist()) for file in (again, wheel(made))]
    assert names[0] == names[1] and "trenchcoat_api/planning/rates.yaml" in names[0]
