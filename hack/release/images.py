"""The images as OCI archives, and what is in them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from local_cluster import images

from release import sbom

NAMES = ("operator", "trainer", "viewer")


def make(name: str, version: str, folder: Path) -> list[Path]:
    """Build an image; leave it as an archive that docker, podman and skopeo read, and its bill of materials.

    Args:
        name: One of `NAMES`.
        version: Its tag.
        folder: Where both go.

    Raises:
        Failure: it cannot be built.
        ReleaseError: its bill of materials cannot be made.
    """
    image = f"trenchcoat-{name}"
    archive = folder / f"{image}-{version}.oci.tar"
    full_name = images.build_for_release(name, version)
    with tempfile.NamedTemporaryFile("r") as digest:
        push = ("push", "--quiet", "--digestfile", digest.name)
        images.buildah(*push, full_name, f"oci-archive:{archive}:{image}:{version}")
        return [archive, sbom.of_image(image, version, full_name, digest.read().strip(), folder)]
