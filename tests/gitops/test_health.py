"""Flux and Argo CD read the health of a Trenchcoat in its status: every golden decision, by their own code.

Set UPDATE_GOLDEN=1 to write what they conclude now, and read the difference.
"""

import os
from pathlib import Path
from typing import Any

import yaml

from tests.gitops.health import health
from tests.operator import world
from tests.operator.reconcile.test_golden import CASES, DATA

FILE = Path(__file__).parent / "health.yaml"


def resource(case: str) -> dict[str, Any]:
    """The Trenchcoat of a golden decision with the status that was decided."""
    body = world.load(DATA / case).trenchcoat.to_object()
    return {**body, "status": yaml.safe_load((DATA / case / "plan.yaml").read_text())["status"]}


def test_what_flux_and_argo_cd_conclude(tmp_path: Path) -> None:
    answers = health([resource(case) for case in CASES], tmp_path)
    found = {
        case: {
            "flux": answer["kstatus"]["status"],
            "argoCD": f"{answer['argoCD']['status']}: {answer['argoCD']['message']}",
        }
        for case, answer in zip(CASES, answers, strict=True)
    }
    text = yaml.safe_dump(found, sort_keys=False, width=110)
    if os.environ.get("UPDATE_GOLDEN"):
        FILE.write_text(text)
    assert text == FILE.read_text()


def test_a_spec_that_the_operator_has_not_seen_is_in_progress(tmp_path: Path) -> None:
    changed = resource("complete")
    changed["metadata"]["generation"] += 1
    new = {key: value for key, value in resource("new").items() if key != "status"}
    for answer in health([changed, new], tmp_path):
        assert answer["argoCD"]["status"] == "Progressing"
    assert health([changed], tmp_path)[0]["kstatus"]["status"] == "InProgress"
