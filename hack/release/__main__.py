"""Everything that a release consists of, into build/release/VERSION.

make release                         wheels, sdists, chart, images, bills of materials, checksums
make release IMAGES=                 all but the images
make version VERSION=0.3.0           another version, everywhere
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "hack"))
sys.path.insert(0, str(REPO / "hack" / "cluster"))

from local_cluster import components  # noqa: E402
from local_cluster.shell import Failure, step  # noqa: E402

from release import images, packages, versions  # noqa: E402
from release.programs import ReleaseError, uncommitted  # noqa: E402

SUMS = "SHA256SUMS"


def main() -> int:
    """Do what the command line says and return the exit code."""
    arguments = parse()
    try:
        if arguments.set_version:
            versions.change(arguments.set_version)
        else:
            make(arguments.output, arguments.images, may_differ=arguments.uncommitted)
    except (ReleaseError, versions.VersionError, Failure) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="release", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--set-version", metavar="VERSION", help="write this version everywhere, and nothing else"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: build/release/VERSION")
    parser.add_argument("--images", nargs="*", choices=images.NAMES, default=list(images.NAMES))
    parser.add_argument("--uncommitted", action="store_true", help="though files differ from the last commit")
    return parser.parse_args()


def make(output: Path | None, wanted_images: list[str], *, may_differ: bool) -> None:
    """Make a release and tell what is in it.

    Raises:
        ReleaseError: something differs from the last commit, or a program failed.
        VersionError: places disagree on the version, or CHANGELOG.md does not tell of it.
    """
    if (changed := uncommitted()) and not may_differ:
        raise ReleaseError(f"not committed: {', '.join(line[3:] for line in changed)}; commit it first")
    if wrong := versions.disagreeing():
        raise ReleaseError(f"{'; '.join(wrong)}: run `make version VERSION={versions.current()}`")
    version = versions.current()
    told = versions.notes(version)
    folder = output or REPO / "build" / "release" / version
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    components.build(["helm"])
    with step("wheels, sdists and what they need", 25):
        packages.distributions(folder)
    with step("chart"):
        packages.chart(folder, components.binary("helm", "helm"))
    for name in wanted_images:
        with step(f"image {name}"):
            images.make(name, version, folder)
    (folder / "NOTES.md").write_text(told + "\n")
    write_sums(folder)
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size:>13,}  {file.name}")
    print(f"in {folder}; check a copy with: sha256sum --check {SUMS}")


def write_sums(folder: Path) -> None:
    """Write what `sha256sum --check` reads, of every file."""
    lines = []
    for file in sorted(folder.iterdir()):
        with file.open("rb") as content:
            lines.append(f"{hashlib.file_digest(content, 'sha256').hexdigest()}  {file.name}\n")
    (folder / SUMS).write_text("".join(lines))


if __name__ == "__main__":
    sys.exit(main())
