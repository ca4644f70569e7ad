"""Bills of materials: what images and wheels hold stands there, in a form that its own validator takes."""

import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from release.sbom import VALIDATE

from tests.release.conftest import TOP

PYTHON = TOP / ".venv-release" / "bin" / "python"


def document(made: Path, name: str) -> dict[str, Any]:
    (file,) = made.glob(f"{name}-[0-9]*.cdx.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def components(found: dict[str, Any]) -> set[str]:
    """Names and versions, as package URLs without qualifiers."""
    return {item["purl"].partition("?")[0] for item in found["components"] if "purl" in item}


def locked(name: str) -> set[str]:
    lines = (TOP / "requirements" / f"{name}.txt").read_text().splitlines()
    pinned = [line.split()[0].split("==") for line in lines if "==" in line.partition(";")[0]]
    return {f"pkg:pypi/{package}@{version}" for package, version in pinned}


@pytest.mark.parametrize(
    ("name", "locks"),
    [("trenchcoat", ("operator", "trainer", "report")), ("trenchcoat-vllm", ("serving",))],
)
def test_a_wheel_has_what_it_was_tested_with(made: Path, name: str, locks: tuple[str, ...]) -> None:
    found = document(made, name)
    wanted = set[str]().union(*map(locked, locks))
    assert components(found) == wanted
    root = found["metadata"]["component"]
    assert root["name"] == name and root["purl"] == f"pkg:pypi/{name}@{root['version']}"
    assert all(item["externalReferences"][0]["hashes"] for item in found["components"])


def test_an_image_has_the_packages_that_are_in_it(made: Path) -> None:
    found = document(made, "trenchcoat-operator")
    inside = components(found)
    assert any(purl.startswith("pkg:deb/debian/tini@") for purl in inside)
    assert {purl for purl in locked("operator") if "/kopf@" in purl or "/kubernetes@" in purl} <= inside
    root = found["metadata"]["component"]
    assert f"pkg:pypi/trenchcoat@{root['version']}" in inside
    # It tells of the very image that lies beside it.
    (archive,) = made.glob("trenchcoat-operator-*.oci.tar")
    with tarfile.open(archive) as tar:
        index = tar.extractfile("index.json")
        assert index is not None
        (manifest,) = json.load(index)["manifests"]
    assert f"sha256:{root['hashes'][0]['content']}" == manifest["digest"]


def test_no_bill_tells_of_the_machine_that_it_was_made_on(made: Path) -> None:
    for file in made.glob("*.cdx.json"):
        text = file.read_text()
        assert str(TOP) not in text and "/overlay/" not in text and str(made) not in text


def test_a_bill_that_breaks_the_schema_is_refused(made: Path, tmp_path: Path) -> None:
    broken = document(made, "trenchcoat")
    broken["components"][0]["type"] = "thing"
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    words = [PYTHON, "-c", VALIDATE, tmp_path / "broken.json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "thing" in done.stderr
