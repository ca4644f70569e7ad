"""Operator and viewer as programs, where they cannot begin: one line says what to set."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from trenchcoat_api.environment import SettingsError
from trenchcoat_viewer.settings import Settings

PROGRAMS = {"trenchcoat_operator": "TRENCHCOAT_METRICS_PORT", "trenchcoat_viewer": "TRENCHCOAT_VIEWER_PORT"}
KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: a, user: {}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
current-context: a
"""


def run(program: str, kubeconfig: Path, **variables: str) -> str:
    """Its only line of errors."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("KUBERNETES_")}
    done = subprocess.run(
        [sys.executable, "-m", program],
        env=outside | variables | {"KUBECONFIG": str(kubeconfig)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(("program", "kubeconfig"), [*zip(PROGRAMS, ("none", "broken"), strict=True)])
def test_without_a_cluster(program: str, kubeconfig: str, tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("[")
    told = run(program, tmp_path / kubeconfig)
    assert "no API server can be found" in told and told.endswith("set KUBECONFIG\n")


@pytest.mark.parametrize(("program", "variable"), [*PROGRAMS.items()])
def test_a_port_that_is_taken(program: str, variable: str, tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = run(program, tmp_path / "kubeconfig", **{variable: port})
    assert f"{variable} is {port}, which cannot be had" in told


def test_a_level_that_the_viewers_log_does_not_know() -> None:
    with pytest.raises(SettingsError, match="TRENCHCOAT_LOG_LEVEL is 'loud': set it to DEBUG"):
        Settings.from_environment({"TRENCHCOAT_LOG_LEVEL": "loud"})
