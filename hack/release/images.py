"""The images as OCI archives."""

from __future__ import annotations

from pathlib import Path

from local_cluster import images

NAMES = ("operator", "trainer", "viewer")


def make(name: str, version: str, folder: Path) -> Path:
    """Build an image and leave it as an archive that docker, podman and skopeo read.

    Args:
        name: One of `NAMES`.
        version: Its tag.
        folder: Where the archive goes.
    """
    image = f"trenchcoat-{name}"
    archive = folder / f"{image}-{version}.oci.tar"
    full_name = images.build_for_release(name, version)
    images.buildah("push", "--quiet", full_name, f"oci-archive:{archive}:{image}:{version}")
    return archive
