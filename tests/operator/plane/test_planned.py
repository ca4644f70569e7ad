"""What cannot fit by the plan, on a real API server: nodes tell by labels how large their GPUs are."""

import json
from pathlib import Path

import pytest
import yaml
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_kubectl import cli

from tests.components import built_or_skip
from tests.control_plane import ControlPlane, node
from tests.minio_server import MinioServer
from tests.operator.plane.runs import Run, condition, crias, namespace, operator

pytestmark = pytest.mark.slow

GPU = "nvidia.com/gpu"


def tell_memory(plane: ControlPlane, name: str, mebibytes: int) -> None:
    """Label a node as GPU feature discovery does."""
    plane.core.patch_node(name, {"metadata": {"labels": {f"{GPU}.memory": str(mebibytes)}}})


def plan_of(plane: ControlPlane, run: Run, folder: Path) -> int:
    """`kubectl trenchcoat plan` of a run's own file; it finds the model in the status, and the nodes."""
    file = folder / "spec.yaml"
    file.write_text(yaml.safe_dump(run.body))
    where = [f"--kubeconfig={plane.kubeconfig}", "-n", run.namespace]
    return cli.main([*where, "plan", str(file), "-o", "json"])


def test_nothing_starts_that_cannot_fit_until_it_is_forced_or_larger_gpus_come(
    plane: ControlPlane,
    server: MinioServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(Path(built_or_skip("kubernetes", "kubectl")).parent))
    node(plane, "small-1", {GPU: "4"})
    tell_memory(plane, "small-1", 256)
    alone = {"distributed": "IndexedJob"}  # no training operator is here
    waiting = Run(plane, server, namespace(plane, "planned"), "waiting", scheduling=alone)
    forced = Run(plane, server, "planned", "forced", plan={"force": True}, scheduling=alone)
    try:
        with operator(plane) as loop:
            waiting.begin(done=("tokenize",))
            seen = loop.until(
                waiting,
                lambda status: condition(status, "Accepted").get("status") == "False" and status,
                120,
                "refused",
            )
            accepted = condition(seen, "Accepted")
            assert accepted["reason"] == "DoesNotFit" and "take larger GPUs" in accepted["message"]
            assert condition(seen, "Stalled")["status"] == "True"
            assert {row["name"] for row in seen["stages"] if row.get("waitingReason") == "Plan"} >= {"shard"}
            assert waiting.jobs() == []
            assert int(seen["estimate"]["peakStoredBytes"]) > 0

            assert plan_of(plane, waiting, tmp_path) == ExitCode.BAD_INPUT
            told = capsys.readouterr()
            assert "cria needs" in told.err and json.loads(told.out)["gpuMemoryBytes"] == 256 * 1024**2

            forced.begin()
            loop.until(
                forced, lambda status: ("Starting", "") in crias(status), 120, "one starts all the same"
            )
            assert condition(forced.status(), "Accepted").get("status") == "True"

            tell_memory(plane, "small-1", 81559)
            loop.until(
                waiting,
                lambda status: condition(status, "Accepted").get("status") == "True",
                120,
                "GPUs are larger now",
            )
            loop.until(waiting, lambda status: bool(waiting.jobs()), 120, "its Jobs are made")
            assert plan_of(plane, waiting, tmp_path) == ExitCode.OK
            rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["stages"]}
            assert (rows["tokenize"]["complete"], rows["export"]["complete"]) == (1, 0)
    finally:
        plane.core.delete_node("small-1")
    for run in (waiting, forced):
        plane.delete(run.name, run.namespace)
