"""A store that lets nothing be deleted: real API server, real MinIO with a key that lacks the right."""

import base64

import pytest
from trenchcoat_operator.loop import refusals

from tests.control_plane import Body, ControlPlane
from tests.minio_server import MinioServer
from tests.operator.plane.runs import Run, namespace, operator
from tests.waiting import until

pytestmark = pytest.mark.slow

WORDS = r"cannot be deleted (AccessDenied): put a key that may delete objects into Secret 'minio'"


def condition(status: Body, kind: str) -> Body | None:
    return next((item for item in status.get("conditions", []) if item["type"] == kind), None)


def test_the_run_goes_on_and_the_status_says_so(
    plane: ControlPlane, server: MinioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = namespace(plane, "undeletable")
    run = Run(plane, server, where, "kept", retention="DeleteIntermediate")
    keys = server.allow("keeper", f"{where}-kept", "GetObject", "PutObject")
    data = {"accessKey": keys["access_key"], "secretKey": keys["secret_key"]}
    secret = {name: base64.b64encode(text.encode()).decode() for name, text in data.items()}
    plane.core.patch_namespaced_secret("minio", where, {"data": secret})
    run.begin(done=tuple(name for name in run.artifacts if name != "export"))
    with operator(plane) as loop:
        told = loop.until(run, lambda status: condition(status, "CleanedUp"), 120, "the refusal is told")
        assert told["status"] == "False" and told["reason"] == "StoreAccessDenied"
        assert WORDS in told["message"]
        loop.until(run, lambda _: run.jobs(), 120, "the export is begun")
        status = loop.until(run, lambda now: now if now.get("stage") == "export" else None, 120, "it is told")
        assert condition(status, "Stalled")["status"] == "False"
        # With the right, and once it is time to ask again, what nobody reads goes.
        server.allow("keeper", f"{where}-kept", "GetObject", "PutObject", "DeleteObject")
        monkeypatch.setattr(refusals, "DELETE_RETRY_SECONDS", 0.0)
        loop.until(run, lambda status: not condition(status, "CleanedUp"), 120, "it is deleted")
        collect = run.artifacts["collect"]
        until(lambda: not server.store().exists(collect.manifest_path), 120, "collect's manifest is gone")
        loop.until(run, lambda _: not server.store().exists(collect.prefix + "data"), 120, "its objects go")
