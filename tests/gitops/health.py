"""What Flux and Argo CD conclude from objects, by their own code: hack/cluster/components/health."""

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.components import built_or_skip

TOP = Path(__file__).parents[2]
PATCH = TOP / "manifests" / "argo-cd" / "health.yaml"


def health(objects: list[dict[str, Any]], folder: Path) -> list[dict[str, dict[str, str]]]:
    """For each object what kstatus says, and what Argo CD does with our script."""
    ((key, script),) = yaml.safe_load(PATCH.read_text())["data"].items()
    assert key == "resource.customizations.health.trenchcoat.dev_Trenchcoat"
    (folder / "health.lua").write_text(script)
    done = subprocess.run(
        [built_or_skip("health"), str(folder / "health.lua")],
        input=json.dumps(objects),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, dict[str, str]]] = json.loads(done.stdout)
    return answers
