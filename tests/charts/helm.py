"""Running helm on the chart."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.components import built_or_skip

TOP = Path(__file__).parents[2]
CHART = TOP / "charts" / "trenchcoat"
KUBERNETES = "1.34.0"


@cache
def helm() -> str:
    return shutil.which("helm") or built_or_skip("helm")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm(), *arguments], capture_output=True, text=True, check=False, timeout=300)


def render(*options: str, chart: Path = CHART) -> subprocess.CompletedProcess[str]:
    words = ("--namespace", "ops", "--kube-version", KUBERNETES, *options)
    return run("template", "tc", str(chart), *words)


def template(*settings: str) -> list[dict[str, Any]]:
    made = render(*(word for setting in settings for word in ("--set", setting)))
    assert made.returncode == 0, made.stderr
    return [document for document in yaml.load_all(made.stdout, Loader=yaml.CSafeLoader) if document]


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]
