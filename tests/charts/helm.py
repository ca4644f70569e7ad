"""Running helm on the chart."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

TOP = Path(__file__).parents[2]
CHART = TOP / "charts" / "trenchcoat"
KUBERNETES = "1.34.0"


@cache
def helm() -> str:
    found = shutil.which("helm")
    if found:
        return found
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    for built in sorted((cache_home / "trenchcoat" / "components").glob("helm-*/helm")):
        return str(built)
    pytest.skip("no helm: `hack/cluster/cluster build helm` makes one")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm(), *arguments], capture_output=True, text=True, check=False, timeout=60)


def render(*options: str, chart: Path = CHART) -> subprocess.CompletedProcess[str]:
    words = ("--namespace", "ops", "--kube-version", KUBERNETES, *options)
    return run("template", "tc", str(chart), *words)


def template(*settings: str) -> list[dict[str, Any]]:
    made = render(*(word for setting in settings for word in ("--set", setting)))
    assert made.returncode == 0, made.stderr
    return [document for document in yaml.safe_load_all(made.stdout) if document]


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]
