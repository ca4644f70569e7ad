"""Wheels, sdists, what they need, and the chart."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from release import sbom
from release.programs import committed_at, run
from release.versions import REPO, current, helm_version

CHART = REPO / "charts" / "trenchcoat"
PROJECTS = (".", "serving")


def distributions(folder: Path) -> list[Path]:
    """A wheel, built of its sdist, that sdist, and the bill of materials of each distribution.

    Raises:
        ReleaseError: the build failed, or the bill of materials breaks its schema.
    """
    uv = Path(sys.executable).with_name("uv")
    before = set(folder.glob("*"))
    with tempfile.TemporaryDirectory() as copy:
        copy_files(Path(copy))
        for project in PROJECTS:
            words = [uv, "build", "--quiet", "--out-dir", folder, Path(copy) / project]
            known = set(folder.glob("*.whl"))
            run(words, {"SOURCE_DATE_EPOCH": committed_at()})
            (wheel,) = set(folder.glob("*.whl")) - known
            sbom.of_distribution(wheel, Path(copy) / project, folder)
    (folder / ".gitignore").unlink(missing_ok=True)  # uv's own
    return sorted(set(folder.glob("*")) - before)


def copy_files(target: Path) -> None:
    """Copy what git knows of, or would: a build leaves files beside sources, and takes what lies there."""
    for name in run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]).split("\0"):
        if name and (REPO / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, target / name)


def chart(folder: Path, helm: Path) -> Path:
    """The packaged chart.

    Raises:
        ReleaseError: Helm found fault with it.
    """
    run([helm, "lint", "--strict", CHART])
    run([helm, "package", CHART, "--destination", folder])
    return folder / f"trenchcoat-{helm_version(current())}.tgz"
