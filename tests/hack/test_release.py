"""hack/release: one version everywhere, and what is told of it."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from release import __main__ as program
from release import packages, sbom, versions

TOP = Path(__file__).parents[2]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for file in {versions.SOURCE, *(place.file for place in versions.PLACES)}:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TOP / file, tmp_path / file)
    return tmp_path


def test_all_places_name_the_version() -> None:
    assert versions.disagreeing() == []
    assert versions.notes(versions.current())


def test_a_version_is_written_everywhere(copy: Path) -> None:
    versions.change("7.8.9", copy)
    assert versions.current(copy) == "7.8.9"
    assert versions.disagreeing(copy) == []
    chart = yaml.safe_load((copy / "charts/trenchcoat/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == ("7.8.9", "7.8.9")
    # Nothing else of a file changes.
    for file in {versions.SOURCE, *(place.file for place in versions.PLACES)}:
        old, new = (TOP / file).read_text().splitlines(), (copy / file).read_text().splitlines()
        assert len([pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]]) in (1, 2)


def test_a_place_that_was_forgotten_is_named(copy: Path) -> None:
    file = copy / "serving" / "pyproject.toml"
    file.write_text(file.read_text().replace(versions.current(copy), "0.0.1"))
    assert versions.disagreeing(copy) == [
        f"serving/pyproject.toml says 0.0.1 and pyproject.toml {versions.current(copy)}"
    ]


def test_helm_writes_pre_releases_another_way(copy: Path) -> None:
    versions.change("1.2.0rc3", copy)
    assert (
        'version: 1.2.0-rc.3\nappVersion: "1.2.0-rc.3"' in (copy / "charts/trenchcoat/Chart.yaml").read_text()
    )
    assert 'version = "1.2.0rc3"' in (copy / "serving/pyproject.toml").read_text()
    assert versions.disagreeing(copy) == []


@pytest.mark.parametrize("version", ["", "1.2", "v1.2.3", "1.2.3 ", "1.2.3-rc1", "1.2.3\n"])
def test_what_is_no_version_is_refused(copy: Path, version: str) -> None:
    with pytest.raises(versions.VersionError, match="is no version"):
        versions.change(version, copy)
    assert versions.current(copy) == versions.current()


def test_a_version_that_nobody_tells_of_is_refused(tmp_path: Path) -> None:
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n\n## 1.0.0\n\n- One.\n\n## 0.9.0\n\n- Two.\n")
    assert versions.notes("1.0.0", tmp_path) == "- One."
    assert versions.notes("0.9.0", tmp_path) == "- Two."
    with pytest.raises(versions.VersionError, match=r"no section `## 1\.0"):
        versions.notes("1.0", tmp_path)


def test_checksums_are_those_that_sha256sum_takes(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"one")
    (tmp_path / "b.tgz").write_bytes(b"two")
    program.write_sums(tmp_path)
    words = ["sha256sum", "--check", "--strict", program.SUMS]
    assert subprocess.run(words, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    (tmp_path / "b.tgz").write_bytes(b"tampered")
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "b.tgz: FAILED" in done.stdout


def test_what_several_locks_pin_alike_stands_in_one_once() -> None:
    one, two = (
        "a==1 \\\n    --hash=x\nb==2 ; sys_platform == 'linux'\n",
        "# why\na==1 \\\n    --hash=x\nb==3\n",
    )
    assert sbom.merged([one, two]) == one + "b==3\n"
    every = {wanted for locks in sbom.LOCKS.values() for wanted in locks}
    assert all((TOP / "requirements" / f"{name}.txt").is_file() for name in every)


def test_a_build_sees_what_git_knows_alone(tmp_path: Path) -> None:
    packages.copy_files(tmp_path)
    assert (tmp_path / "serving" / "pyproject.toml").is_file()
    assert not (tmp_path / ".venv").exists() and not list(tmp_path.rglob("*.egg-info"))


def test_the_citation_has_what_its_format_asks_for() -> None:
    citation = yaml.safe_load((TOP / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= citation.keys()
