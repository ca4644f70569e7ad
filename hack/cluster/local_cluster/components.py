"""Go programs built from their modules: one folder under components/, with go.mod and go.sum, for each."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from pathlib import Path

from . import golang
from .layout import HACK, cache
from .shell import locked, run, step

COMPONENTS = HACK / "components"
SECONDS = {
    "kubernetes": 320,
    "minio": 130,
    "helm": 95,
    "training-operator": 80,
    "coredns": 65,
    "etcd": 25,
    "kueue": 180,
}
"""What building took on two idle cores, sources and all."""


def names() -> list[str]:
    """Every component, the one that all need first."""
    found = sorted(path.parent.name for path in COMPONENTS.glob("*/go.mod"))
    return sorted(found, key=lambda name: name != "kubernetes")


def pinned_version(go_mod: str, module: str) -> str:
    """The version of `module` that a go.mod requires."""
    match = re.search(rf"^\s*(?:require\s+)?{re.escape(module)} (v\S+)", go_mod, re.MULTILINE)
    if not match:
        raise ValueError(f"go.mod does not require {module}")
    return match[1]


def linker_flags(go_mod: str) -> str:
    """No debug tables; and Kubernetes learns its version from the linker, as in its own release build."""
    flags = "-s -w"
    if "k8s.io/kubernetes v" in go_mod:
        version = pinned_version(go_mod, "k8s.io/kubernetes")
        major, minor, _ = version.lstrip("v").split(".", 2)
        stamps = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
        flags += "".join(f" -X k8s.io/component-base/version.{key}={value}" for key, value in stamps.items())
    return flags


def cache_key(folder: Path, go_version: str) -> str:
    """What a component's binaries depend on: its pins, its own code if it has any, and the compiler."""
    digest = hashlib.sha256(go_version.encode())
    for path in (folder / "go.mod", folder / "go.sum", folder / "keep.json", *sorted(folder.glob("*.go"))):
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()[:12]


def folder_of(name: str) -> Path:
    """Where a component's binaries are, or will be."""
    compiler = golang.version(golang.program())
    return cache() / "components" / f"{name}-{cache_key(COMPONENTS / name, compiler)}"


def binary(component: str, program: str) -> Path:
    """A built program."""
    return folder_of(component) / program


def build(wanted: list[str]) -> None:
    """Build what the cache lacks, one after another: each build alone fills two cores."""
    if _missing(wanted):  # or else nobody waits for another one's build
        with locked(cache() / "components.lock"):
            _build(_missing(wanted))


def wait(wanted: list[str]) -> None:
    """Wait until another process has built them, for as long as it takes."""
    while _missing(wanted):
        time.sleep(1)


def _missing(wanted: list[str]) -> list[str]:
    return [name for name in wanted if not (folder_of(name) / ".complete").exists()]


def _build(missing: list[str]) -> None:
    build_cache = cache() / "go-build"
    for name in missing:
        source, target = COMPONENTS / name, folder_of(name)
        log = cache() / "logs" / f"build-{name}.log"
        flags = linker_flags((source / "go.mod").read_text())
        env = {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false -trimpath", "GOCACHE": str(build_cache)}
        # A fifth less time: compilers live for seconds and need not collect garbage, but for the largest.
        env |= {"GOGC": "off", "GOMEMLIMIT": "3GiB"}
        with step(f"build {name}, once", SECONDS.get(name)):
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            env["GOBIN"] = str(target)
            install = [golang.program(), "install", "-p", "2", "-ldflags", flags, "tool"]
            run(install, cwd=source, env=env, log=log)
            _keep_files(source, target)
            (target / ".complete").touch()
            for old in target.parent.glob(f"{name}-*"):
                if old != target and re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{12}}", old.name):
                    shutil.rmtree(old)
    if missing:
        # 6 GB that only another build of the same pins would use again.
        shutil.rmtree(build_cache, ignore_errors=True)


def _keep_files(source: Path, target: Path) -> None:
    """Copy the folders of a module that keep.json names, such as its Kubernetes manifests."""
    wanted = source / "keep.json"
    if not wanted.exists():
        return
    for module, folders in json.loads(wanted.read_text()).items():
        root = Path(run([golang.program(), "list", "-m", "-f", "{{.Dir}}", module], cwd=source).strip())
        for folder in folders:
            shutil.copytree(root / folder, target / folder)
            run(["chmod", "-R", "u+w", target / folder])  # The module cache is read-only.
