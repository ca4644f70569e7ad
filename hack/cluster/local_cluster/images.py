"""Build images with buildah, and hand them to the nodes without copying a byte.

A node's containerd unpacks a layer into a folder, and so does buildah: both give overlayfs the same kind of
folder. Both lie in the cache, so a layer is imported by hard-linking buildah's folder into a snapshot of
containerd's; what remains to import is the manifest, a few kilobytes. The trainer's image is gigabytes: this
saves minutes and disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import components
from .layout import HACK, REPO, Node, cache
from .shell import Failure, locked, run, step, succeeds

PREFIX = "localhost/trenchcoat"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# Passed on to the build where a machine has them set; they stay in no image.
BUILD_ENVIRONMENT = ("UV_DEFAULT_INDEX", "PIP_INDEX_URL")

BUILD_ARGUMENTS = {"trainer": ("DEVICE=cpu",)}
"""The nodes claim GPUs that they do not have."""

BASE_SUITE = "bookworm"
BASE_PACKAGES = ("ca-certificates", "python3", "python3-venv", "python3-dev")
DEPENDENCIES_SECONDS = {"trainer": 300}
"""What installing an image's dependencies took on two idle cores; the code over them takes seconds."""
OPTIONAL = ("kueue", "viewer")  # Built when they are deployed, or by name.


@dataclass(frozen=True)
class Image:
    """An image, and the files that decide what is in it."""

    name: str
    inputs: tuple[Path, ...]
    needs: tuple[str, ...] = ()
    dependencies: tuple[Path, ...] = ()
    """Inputs of its heavy lower layers, if it has a build stage of its own for them."""
    recipe: str = ""
    """What decides it besides files."""


_OF_VIEWER = ("bootstrap", "operator", "report")


def _python_image(name: str) -> Image:
    requirements = REPO / "requirements"
    heavy = (REPO / name / "Dockerfile", requirements / "bootstrap.txt", requirements / f"{name}.txt")
    code = (REPO / "pyproject.toml", REPO / "api", REPO / "s3", REPO / name)
    if name == "trainer":  # the report's few megabytes lie above the heavy layers
        code = (*code, requirements / "report.txt", REPO / "reports")
    if name == "viewer":  # it asks the API server by the operator's client, and draws by the report
        heavy = (REPO / name / "Dockerfile", *(requirements / f"{part}.txt" for part in _OF_VIEWER))
        code = (*code, REPO / "operator", REPO / "reports")
    recipe = " ".join(BUILD_ARGUMENTS.get(name, ()))
    return Image(name, (*heavy, *code), needs=("base",), dependencies=heavy, recipe=recipe)


def catalogue() -> dict[str, Image]:
    """Every image by name; what an image needs stands before it."""
    recipes = {name: HACK / "images" / f"{name}.Dockerfile" for name in components.names()}
    programs = {name: recipe for name, recipe in recipes.items() if recipe.exists()}
    images = [
        Image("base", (), recipe=" ".join((BASE_SUITE, *BASE_PACKAGES))),
        Image("busybox", (HACK / "images" / "busybox.Dockerfile",)),
        *(Image(name, (recipe, components.COMPONENTS / name)) for name, recipe in programs.items()),
        _python_image("operator"),
        _python_image("trainer"),
        _python_image("viewer"),
    ]
    return {image.name: image for image in images}


def content_hash(paths: Iterable[Path], *more: str) -> str:
    """A short hash of files and folders: names and contents, but not what Python leaves beside them."""
    digest = hashlib.sha256("\0".join(more).encode())
    for top in paths:
        files = sorted(top.rglob("*")) if top.is_dir() else [top]
        for path in files:
            if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path):
                digest.update(f"\0{path.relative_to(top.parent)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def tag(name: str) -> str:
    """An image's full name; it changes with what goes into the image, and so never names two things."""
    image = catalogue()[name]
    needs = [tag(other) for other in image.needs]
    return f"{PREFIX}/{name}:{content_hash(image.inputs, image.recipe, *needs)}"


def tags() -> dict[str, str]:
    """Full names of all images but the base."""
    return {name: tag(name) for name in catalogue() if name != "base"}


def usual() -> list[str]:
    """Names of the images that every cluster needs."""
    return [name for name in tags() if name not in OPTIONAL]


def buildah(*arguments: str | Path, log: Path | None = None) -> str:
    """Run buildah on the store in the cache and return what it printed."""
    root = cache() / "images"
    run_root = f"/run/trenchcoat-images-{hashlib.sha256(bytes(root)).hexdigest()[:8]}"
    store: list[str | Path] = ["--root", root, "--runroot", run_root, "--storage-driver", "overlay"]
    # By default the store is a mount of its own: it would stay behind, and nothing hard-links across mounts.
    store += ["--storage-opt", "overlay.skip_mount_home=true"]
    return run(["buildah", *store, *arguments], env={"BUILDAH_ISOLATION": "chroot"}, log=log)


def built() -> set[str]:
    """Full names in buildah's store."""
    for is_last in (False, False, True):
        try:
            listing = buildah("images", "--format", "{{.Name}}:{{.Tag}}").split()
        except Failure as failure:
            # Another process, at work on another image, has removed one between buildah's list and its look.
            if is_last or "image not known" not in str(failure):
                raise
        else:
            break
    return {name for name in listing if name.startswith(PREFIX)}


def build(wanted: Iterable[str]) -> None:
    """Build those images that are not in the store yet, and drop older ones of the same name."""
    names = _with_needs(wanted)
    if {tag(name) for name in names} <= built():
        return
    with locked(cache() / "images.lock"):
        buildah("rm", "--all")  # What a killed build left: nobody else builds while the lock is held.
        have = built()
        for name in [name for name in names if tag(name) not in have]:
            log = cache() / "logs" / f"image-{name}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("")
            with step(f"image {tag(name)}", _usual_seconds(name, have)):
                _build(name, log)
            _drop(f"{PREFIX}/{name}", have)


def _usual_seconds(name: str, have: set[str]) -> float | None:
    """How long a build takes where its heavy layers are not there yet; None where nobody has to wait long."""
    image = catalogue()[name]
    if image.dependencies and _dependencies(name) not in have:
        return DEPENDENCIES_SECONDS.get(name)
    return None


def _dependencies(name: str) -> str:
    """Full name of an image's heavy lower layers."""
    return f"{PREFIX}/{name}-dependencies:{content_hash(catalogue()[name].dependencies, tag('base'))}"


def build_over(name: str, context: Path) -> str:
    """Build an image over one that is built, from a folder with a Dockerfile; return its full name.

    Its name has the one's that it is built over in it, so that several can be made of one folder.
    """
    repository = f"{PREFIX}/{context.name}-{name}"
    full_name = f"{repository}:{content_hash([context], tag(name))}"
    with locked(cache() / "images.lock"):
        have = built()
        if full_name not in have:
            log = cache() / "logs" / f"image-{context.name}-{name}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            with step(f"image {full_name}"):
                buildah("build", "--build-arg", f"BASE={tag(name)}", "--tag", full_name, context, log=log)
            # They would keep the gigabytes of the images that they were built over.
            _drop(repository, have)
    return full_name


def build_for_release(name: str, version: str) -> str:
    """Build an image of ours for nodes that have the GPUs that they claim; return its full name.

    It shares the heavy layers with the one that the local cluster runs.
    """
    build(["base"])
    full_name = f"{PREFIX}/release-{name}:{version}"
    labels = {"version": version, "title": f"trenchcoat-{name}", "licenses": "Apache-2.0"}
    options = [f"--label=org.opencontainers.image.{key}={value}" for key, value in labels.items()]
    log = cache() / "logs" / f"image-release-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    with locked(cache() / "images.lock"):
        _drop(f"{PREFIX}/release-{name}", built())
        _project(name, full_name, log, *options, arguments=())
    return full_name


def _drop(repository: str, names: Iterable[str]) -> None:
    """Remove those of the names that are a repository's."""
    if old := [name for name in names if name.startswith(f"{repository}:")]:
        buildah("rmi", "--force", *old)


def _with_needs(wanted: Iterable[str]) -> list[str]:
    known, result = catalogue(), []
    for name in wanted:
        if name not in known:
            raise Failure(f"no image {name}; there are {', '.join(known)}")
        result += [other for other in (*known[name].needs, name) if other not in result]
    return result


def _build(name: str, log: Path) -> None:
    image = catalogue()[name]
    if name == "base":
        _build_base(log)
    elif name == "busybox":
        _dockerfile(name, Path(run(["sh", "-c", "command -v busybox"]).strip()).resolve().parent, log)
    elif image.dependencies:
        heavy = _dependencies(name)
        stale = {other for other in built() if other.startswith(f"{PREFIX}/{name}-dependencies:")} - {heavy}
        _project(name, heavy, log, "--target", "dependencies")
        _project(name, tag(name), log)
        if stale:
            # Gigabytes: drop the old layers together with the build cache that refers to them.
            buildah("rmi", "--force", *stale)
            buildah("rmi", "--prune", "--force")
    else:
        components.build([name])
        _dockerfile(name, components.folder_of(name), log)


def _dockerfile(name: str, context: Path, log: Path) -> None:
    file = HACK / "images" / f"{name}.Dockerfile"
    buildah("build", "--file", file, "--tag", tag(name), context, log=log)


def _project(
    name: str, full_name: str, log: Path, *more: str, arguments: tuple[str, ...] | None = None
) -> None:
    options: list[str | Path] = [
        "--layers",
        "--ignorefile",
        REPO / ".dockerignore",
        "--file",
        REPO / name / "Dockerfile",
    ]
    if CERTIFICATES.exists():
        options += ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"]
    for key in BUILD_ENVIRONMENT:
        if key in os.environ:
            options += ["--build-arg", f"{key}={os.environ[key]}"]
    if arguments is None:
        arguments = BUILD_ARGUMENTS.get(name, ())
    for argument in (f"BASE={tag('base')}", *arguments):
        options += ["--build-arg", argument]
    options += ["--tag", full_name]
    buildah("build", *options, *more, REPO, log=log)


def _build_base(log: Path) -> None:
    """Debian with Python, as docker.io's python:3.11-slim-bookworm would be, where that cannot be fetched."""
    container = buildah("from", "scratch").strip()
    try:
        root = Path(buildah("mount", container).strip())
        include = f"--include={','.join(BASE_PACKAGES)}"
        run(["debootstrap", "--variant=minbase", include, BASE_SUITE, root], log=log)
        for pattern in ("dev/*", "var/cache/apt/archives/*.deb", "var/lib/apt/lists/*", "var/log/*"):
            for path in root.glob(pattern):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        buildah("umount", container)
        buildah("commit", container, tag("base"), log=log)
    finally:
        buildah("rm", container)


@dataclass(frozen=True)
class Layer:
    """One unpacked layer in buildah's store."""

    digest: str
    folder: Path


def chain_ids(digests: Iterable[str]) -> list[str]:
    """The name of each layer together with all below it, as the OCI image specification defines it."""
    chain: list[str] = []
    for digest in digests:
        whole = f"{chain[-1]} {digest}".encode() if chain else b""
        chain.append("sha256:" + hashlib.sha256(whole).hexdigest() if chain else digest)
    return chain


def layers_of(full_name: str, store: Path) -> list[Layer]:
    """An image's layers, lowest first."""
    images = json.loads((store / "overlay-images" / "images.json").read_text())
    layers = json.loads((store / "overlay-layers" / "layers.json").read_text())
    image = next((entry for entry in images if full_name in entry.get("names", [])), None)
    if image is None:
        raise Failure(f"{full_name} is gone: another checkout built over it; build it again")
    known = {entry["id"]: entry for entry in layers}
    found, at = [], image.get("layer")
    while at:
        found.append(Layer(known[at]["diff-digest"], store / "overlay" / at / "diff"))
        at = known[at].get("parent")
    return found[::-1]


def archive(full_name: str, manifest: bytes, config: bytes) -> bytes:
    """An OCI archive of an image less its layers."""

    def digest(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    described = {
        "mediaType": json.loads(manifest).get("mediaType", "application/vnd.oci.image.manifest.v1+json"),
        "digest": f"sha256:{digest(manifest)}",
        "size": len(manifest),
        "annotations": {"io.containerd.image.name": full_name},
    }
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        f"blobs/sha256/{digest(config)}": config,
        f"blobs/sha256/{digest(manifest)}": manifest,
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [described]}).encode(),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def load(names: Iterable[str], node: Node) -> int:
    """Import images into a node that runs; return how many it lacked."""
    return load_full_names(map(tag, names), node)


def load_full_names(full_names: Iterable[str], node: Node) -> int:
    """The same for images of the store that are not in the catalogue."""
    ctr = ["ctr", "--address", str(node.socket), "--namespace", "k8s.io"]
    have = set(run([*ctr, "images", "ls", "-q"]).split())
    lacking = [full_name for full_name in full_names if full_name not in have]
    for full_name in lacking:
        _import(full_name, ctr)
    return len(lacking)


def prune(node: Node) -> None:
    """Take images out of a node that this checkout would build differently now."""
    ctr = ["ctr", "--address", str(node.socket), "--namespace", "k8s.io"]
    current = set(tags().values())
    images = [name for name in run([*ctr, "images", "ls", "-q"]).split() if name.startswith(PREFIX)]
    if stale := [name for name in images if name not in current]:
        run([*ctr, "images", "rm", *stale])


def _import(full_name: str, ctr: list[str]) -> None:
    layers = layers_of(full_name, cache() / "images")
    snapshots = [*ctr, "snapshots", "--snapshotter", "overlayfs"]
    made = []
    below: list[str] = []
    for layer, chain in zip(layers, chain_ids(layer.digest for layer in layers), strict=True):
        if not succeeds([*snapshots, "info", chain]):
            draft = f"import-{chain}"
            if succeeds([*snapshots, "info", draft]):
                run([*snapshots, "rm", draft])  # An import was killed here.
            run([*snapshots, "prepare", draft, *below])
            target = writable_folder(run([*snapshots, "mounts", "/nowhere", draft]))
            run(["cp", "--archive", "--link", f"{layer.folder}/.", target])
            run([*snapshots, "commit", chain, draft])
            made.append(chain)
        below = [chain]
    described = json.loads(buildah("inspect", "--type", "image", full_name))
    data = archive(full_name, described["Manifest"].encode(), described["Config"].encode())
    run([*ctr, "images", "import", "-"], stdin=data)
    for chain in made:
        # From here on the image keeps its layers; `ctr` would keep them for ever.
        run([*snapshots, "label", chain, "containerd.io/gc.root="])


def writable_folder(mounts: str) -> str:
    """The folder that a new snapshot's content goes to, out of the mount command that `ctr` prints for it."""
    match = re.search(r"upperdir=([^\s,]+)", mounts) or re.search(r"(/\S+/snapshots/\d+/fs)\s", mounts)
    if not match:
        raise Failure(f"cannot tell where containerd put a snapshot: {mounts}")
    return match[1]
