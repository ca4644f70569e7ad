"""One version: pyproject.toml has it, and the other places where it must stand are written from there."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
SOURCE = "pyproject.toml"
VERSION = re.compile(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?")
"""What Python takes for a version; Helm does as well, but for pre-releases, which `helm_version` writes."""


class VersionError(Exception):
    """A version that cannot be released; the message says which and why."""


@dataclass(frozen=True)
class Place:
    """A line that holds the version."""

    file: str
    line: str
    """Pattern of what stands before and after it, with VERSION between."""
    for_helm: bool = False

    def find(self, repo: Path) -> re.Match[str]:
        """The version in its file.

        Raises:
            VersionError: the file has no such line.
        """
        before, after = self.line.split("VERSION")
        found = re.search(rf"^({before})([^\s\"]+)({after})$", (repo / self.file).read_text(), re.MULTILINE)
        if found is None:
            raise VersionError(f"{self.file} has no line {self.line!r}: mend it, or hack/release/versions.py")
        return found


PLACES = (
    Place("serving/pyproject.toml", 'version = "VERSION"'),
    Place("charts/trenchcoat/Chart.yaml", "version: VERSION", for_helm=True),
    Place("charts/trenchcoat/Chart.yaml", 'appVersion: "VERSION"', for_helm=True),
    Place("CITATION.cff", "version: VERSION"),
)


def current(repo: Path = REPO) -> str:
    """The version of pyproject.toml."""
    return str(tomllib.loads((repo / SOURCE).read_text())["project"]["version"])


def helm_version(version: str) -> str:
    """A version as SemVer has it: 1.2.0-rc.1 for 1.2.0rc1."""
    return re.sub(r"(a|b|rc)(\d+)$", r"-\1.\2", version)


def wanted(place: Place, version: str) -> str:
    """What must stand in a place."""
    return helm_version(version) if place.for_helm else version


def disagreeing(repo: Path = REPO) -> list[str]:
    """Places that name another version than pyproject.toml, each in words."""
    version = current(repo)
    found = [(place, place.find(repo)[2]) for place in PLACES]
    return [
        f"{place.file} says {there} and {SOURCE} {version}"
        for place, there in found
        if there != wanted(place, version)
    ]


def change(version: str, repo: Path = REPO) -> None:
    """Write a version into pyproject.toml and everywhere else.

    Raises:
        VersionError: it is none, or a file lacks its line.
    """
    if not VERSION.fullmatch(version):
        raise VersionError(f"{version} is no version: write it as 1.2.3 or 1.2.3rc1")
    for place in (Place(SOURCE, 'version = "VERSION"'), *PLACES):
        found, file = place.find(repo), repo / place.file
        text = file.read_text()
        file.write_text(text[: found.start(2)] + wanted(place, version) + text[found.end(2) :])


def notes(version: str, repo: Path = REPO) -> str:
    """What CHANGELOG.md tells of a version.

    Raises:
        VersionError: it tells nothing.
    """
    text = (repo / "CHANGELOG.md").read_text()
    part = re.search(
        rf"^## {re.escape(version)}(?![\w.])[^\n]*$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    if part is None or not part[1].strip():
        raise VersionError(f"CHANGELOG.md has no section `## {version}`: tell there what is new")
    return part[1].strip()
