"""The Go toolchain: the one on the PATH where it is new enough, else a pinned one from the module proxy."""

from __future__ import annotations

import json
import platform
import re
import shutil
from functools import lru_cache
from pathlib import Path

from . import debian
from .layout import cache
from .shell import Failure, locked, run, step

MINIMUM = (1, 26)  # What the components' go.mod files ask for.
PINNED = "go1.26.8"
SUMS = {  # As the checksum database has them, of module golang.org/toolchain.
    "amd64": "h1:ZOmGe1OnfREDMIdb1Qi4G9JSuDPBLGExZMQ4nis1RXM=",
    "arm64": "h1:sYL/O6MqS68ML0kjsQ36WoYIpJqkw60TxizWUYUKQMc=",
}
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def new_enough(version: str) -> bool:
    """Whether what `go env GOVERSION` printed names a release that can build the components."""
    match = re.match(r"go(\d+)\.(\d+)", version)
    return bool(match) and (int(match[1]), int(match[2])) >= MINIMUM


@lru_cache(maxsize=1)
def program() -> str:
    """The `go` to use, installed first if this machine lacks one."""
    found = shutil.which("go")
    if found and new_enough(version(found)):
        return found
    target = cache() / "go" / PINNED
    with locked(cache() / "go.lock"):
        if not (target / ".complete").exists():
            _install(target)
    return str(target / "bin" / "go")


@lru_cache
def version(go: str) -> str:
    """What a `go` calls itself, such as go1.26.8."""
    return run([go, "env", "GOVERSION"]).strip()


def _install(target: Path) -> None:
    """Have Debian's Go, too old to build with but able to download modules, fetch the toolchain's module."""
    architecture = ARCHITECTURES.get(platform.machine())
    if not architecture:
        raise Failure(f"no Go toolchain is pinned for {platform.machine()}: put Go 1.25 or newer on the PATH")
    log = cache() / "logs" / "go.log"
    with step(f"install {PINNED}"):
        if not shutil.which("go"):
            debian.install(["golang-go"], log)
        module = f"golang.org/toolchain@v0.0.1-{PINNED}.linux-{architecture}"
        modules = target.parent / "modules"
        # Not the user's module cache: the toolchain is moved out of it, and files there are read-only.
        download = ["go", "mod", "download", "-modcacherw", "-json", module]
        got = json.loads(run(download, env={"GOMODCACHE": str(modules)}))
        if got["Sum"] != SUMS[architecture]:
            raise Failure(f"{module} has checksum {got['Sum']}, not {SUMS[architecture]}: see golang.py")
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(got["Dir"], target)
        shutil.rmtree(modules)
        # Modules carry no execute bits.
        for file in (*target.glob("bin/*"), *target.glob("pkg/tool/*/*")):
            file.chmod(0o755)
        (target / ".complete").touch()
