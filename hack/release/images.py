"""Both images as OCI archives, and what is in each as a software bill of materials."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from release.programs import run
from release.versions import REPO

sys.path.insert(0, str(REPO / "hack" / "cluster"))

from local_cluster import components, images

NAMES = ("operator", "trainer")


def make(name: str, version: str, folder: Path) -> list[Path]:
    """Build an image; leave it as an archive that docker, podman and skopeo read, with bills of materials.

    Args:
        name: `operator` or `trainer`.
        version: Its tag.
        folder: Where the files go.

    Returns:
        The archive, and what is in it in the forms of CycloneDX and SPDX.
    """
    image = f"trenchcoat-{name}"
    archive = folder / f"{image}-{version}.oci.tar"
    bills = {form: folder / f"{image}-{version}.{form}.json" for form in ("cyclonedx", "spdx")}
    full_name = images.build_for_release(name, version)
    archive.unlink(missing_ok=True)  # buildah adds to one that is there
    images.buildah("push", "--quiet", full_name, f"oci-archive:{archive}:{image}:{version}")
    with root_of(full_name) as root:
        outputs = [f"{form}-json={file}" for form, file in bills.items()]
        run(
            [
                components.binary("syft", "syft"),
                "scan",
                f"dir:{root}",
                "--quiet",
                *(word for output in outputs for word in ("--output", output)),
                *("--base-path", root, "--source-name", image, "--source-version", version),
                # What is installed, as of an image; of a folder it would look for what might be.
                *("--override-default-catalogers", "image"),
            ],
            {"SYFT_CHECK_FOR_APP_UPDATE": "false"},
        )
    return [archive, *bills.values()]


@contextmanager
def root_of(full_name: str) -> Iterator[Path]:
    """An image's files, while the context lasts."""
    container = images.buildah("from", full_name).strip()
    try:
        yield Path(images.buildah("mount", container).strip())
        images.buildah("umount", container)
    finally:
        images.buildah("rm", container)
