"""`kubectl trenchcoat report` against a real API server, by the real kubectl."""

import os
from pathlib import Path

import pytest
from kubernetes import client, config
from trenchcoat_kubectl import cli, reporting

from tests.components import built_or_skip
from tests.control_plane import ControlPlane, control_plane
from tests.reports import samples

NAMESPACE = "research"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> ControlPlane:
    with control_plane(tmp_path_factory.mktemp("plane")) as made:
        made.define()
        made.namespace(NAMESPACE)
        for name, complete, changes in (
            ("llama-405b", False, {}),
            ("former", True, {"attention": {"window": 32}}),
            ("other-model", True, {"model": {"source": "hf://meta-llama/Llama-3.1-70B"}}),
        ):
            body = samples.large(complete=complete, name=name, **changes).trenchcoat.to_object()
            del body["metadata"]
            body["metadata"] = {"name": name}
            made.apply(body, NAMESPACE)
            told = {"status": body["status"]}
            made.trenchcoats.patch_namespaced_custom_object_status(
                "trenchcoat.dev", "v1alpha1", NAMESPACE, "trenchcoats", name, told
            )
        yield made


@pytest.fixture
def flags(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Flags of the command, run in an empty folder with the kubectl that was built."""
    folder = Path(built_or_skip("kubernetes", "kubectl")).parent
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return [f"--kubeconfig={plane.kubeconfig}", "-n", NAMESPACE]


def test_it_tells_who_waits_beside_former_runs_of_the_same_model(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", "llama-405b", *flags]) == 0
    assert "llama-405b-report.html" in capsys.readouterr().out
    page = (tmp_path / "llama-405b-report.html").read_text()
    assert (
        "waits for GPUs since 2026-01-01T13:42:00Z: 0 of 6 nodes have a free nvidia.com/gpu; ends when "
        in page
    )
    assert "former, " in page and "spec.attention.window" in page and "other-model" not in page
    assert f"kubectl trenchcoat suspend llama-405b -n {NAMESPACE}" in page
    assert "hush" not in page


def test_who_may_read_one_alone_gets_its_report_without_others(
    plane: ControlPlane, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rights = client.RbacAuthorizationV1Api(plane.api)
    rule = {"apiGroups": ["trenchcoat.dev"], "resources": ["trenchcoats"], "verbs": ["get"]}
    rights.create_namespaced_role(
        NAMESPACE, {"metadata": {"name": "one"}, "rules": [rule | {"resourceNames": ["former"]}]}
    )
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "one"}
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": NAMESPACE}
    rights.create_namespaced_role_binding(
        NAMESPACE, {"metadata": {"name": "one"}, "roleRef": reference, "subjects": [subject]}
    )
    token = plane.core.create_namespaced_service_account_token(
        "default", NAMESPACE, {"spec": {"audiences": [], "expirationSeconds": 600}}
    ).status.token
    _, active = config.list_kube_config_contexts(str(plane.kubeconfig))
    own = tmp_path / "kubeconfig"
    text = plane.kubeconfig.read_text().replace("pki/", f"{plane.kubeconfig.parent}/pki/")
    admin = (plane.kubeconfig.parent / "tokens").read_text().partition(",")[0]
    assert active and admin in text
    own.write_text(text.replace(admin, token))
    output = tmp_path / "out" / "page.html"
    words = [f"--kubeconfig={own}", "-n", NAMESPACE, "--output", str(output)]
    assert cli.main(["report", "former", *words]) == 0
    assert "without former runs: " in capsys.readouterr().out
    assert "This page is final." in output.read_text() and "Beside former runs" not in output.read_text()
    assert cli.main(["report", "llama-405b", *words]) == 1


def test_without_what_draws_it_says_what_to_install(
    flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "_NEEDED", ("no_such_module",))
    assert cli.main(["report", "former", *flags]) == 1
    said = capsys.readouterr().err
    assert "not installed: no_such_module" in said and "pip install 'trenchcoat[report]'" in said
