"""What is in each image and what each distribution needs, as CycloneDX documents."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from local_cluster import images
from local_cluster.layout import cache
from local_cluster.shell import locked

from release.programs import ReleaseError, committed_at, run
from release.versions import REPO

ENVIRONMENT = REPO / ".venv-release"
"""What `hack/python-env release` makes: Syft, CycloneDX for Python and its validator."""
LOCKS = {
    "trenchcoat": ("operator", "trainer", "report"),
    "trenchcoat-vllm": ("serving",),
}
"""The locks below requirements/ that hold what a distribution and its extras were tested with."""
SUFFIX = ".cdx.json"
VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())
sys.exit(f"{sys.argv[1]}: {fault}" if fault else 0)
"""


def of_image(name: str, version: str, full_name: str, digest: str, folder: Path) -> Path:
    """Write what an image holds: Debian's packages and Python's.

    Args:
        name: Its name for people, such as trenchcoat-operator.
        version: Its tag.
        full_name: Its name in buildah's store.
        digest: sha256:... of its manifest, as a registry names it.
        folder: Where the document goes.

    Raises:
        ReleaseError: a program failed, or the document breaks the schema.
    """
    file = folder / f"{name}-{version}{SUFFIX}"
    with _mounted(full_name) as root:
        words: list[str | Path] = [
            program("syft"),
            "scan",
            f"dir:{root}",
            "--quiet",
            "--output",
            f"cyclonedx-json@1.6={file}",
        ]
        # It would ask its makers' server for a newer version.
        run(words, {"SYFT_CHECK_FOR_APP_UPDATE": "false"})
    described = {
        "type": "container",
        "name": name,
        "version": version,
        "purl": f"pkg:oci/{name}@{digest.replace(':', '%3A')}?tag={version}",
        "hashes": [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}],
    }
    return _finish(file, described)


def of_distribution(wheel: Path, project: Path, folder: Path) -> Path:
    """Write what a wheel needs with all that an image would have, in the versions that it was tested with.

    Raises:
        ReleaseError: a program failed, or the document breaks the schema.
    """
    name, version = wheel.name.split("-")[:2]
    name = name.replace("_", "-")
    file = folder / f"{name}-{version}{SUFFIX}"
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write(
            merged((REPO / "requirements" / f"{lock}.txt").read_text() for lock in LOCKS[name])
        )
        requirements.flush()
        words: list[str | Path] = [
            program("cyclonedx-py"),
            "requirements",
            "--pyproject",
            project / "pyproject.toml",
        ]
        words += ["--mc-type", "library", "--output-reproducible", "--output-file", file, requirements.name]
        run(words, {"SOURCE_DATE_EPOCH": committed_at()})
    return _finish(file, {"purl": f"pkg:pypi/{name}@{version}"})


def merged(locks: Iterable[str]) -> str:
    """Lock files as one: what several pin alike stands there once."""
    entries = [entry for lock in locks for entry in re.split(r"^(?=[^\s#-])", lock, flags=re.MULTILINE)]
    return "".join(dict.fromkeys(entry for entry in entries if "==" in entry))


def program(name: str) -> Path:
    """A program of the environment.

    Raises:
        ReleaseError: it is not there.
    """
    found = ENVIRONMENT / "bin" / name
    if not found.exists():
        raise ReleaseError(f"{found} is not there: hack/python-env release installs it")
    return found


@contextmanager
def _mounted(full_name: str) -> Iterator[str]:
    """An image's files as a folder; nobody builds meanwhile, for who does removes every container."""
    with locked(cache() / "images.lock"):
        container = images.buildah("from", "--pull=never", full_name).strip()
        try:
            yield images.buildah("mount", container).strip()
        finally:
            images.buildah("umount", container)
            images.buildah("rm", container)


def _finish(file: Path, described: dict[str, Any]) -> Path:
    """Say of what a document is, and have it checked."""
    document = json.loads(file.read_text())
    document["metadata"]["component"] |= described
    file.write_text(json.dumps(document, indent=1) + "\n")
    run([program("python"), "-c", VALIDATE, file])
    return file
