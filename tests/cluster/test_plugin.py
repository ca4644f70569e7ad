"""`kubectl trenchcoat`, as kubectl itself runs it, on the real cluster."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from demo.environment import Environment
from demo.watch import condition
from trenchcoat_api.resource import Trenchcoat

from tests.cluster.held import held
from tests.cluster.objects import apply, delete, even_if_stalled, example, pods, row, wait


def plugin(environment: Environment, *words: str, fails: bool = False) -> str:
    """What it prints; with `fails`, what it complains of."""
    path = os.pathsep.join((str(Path(sys.executable).parent), environment.path))
    done = subprocess.run(
        ["kubectl", "trenchcoat", "-n", environment.namespace, *words],
        env={**os.environ, "KUBECONFIG": str(environment.kubeconfig), "PATH": path, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == (1 if fails else 0), done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def tokenize_is(*states: str):
    return lambda body: row(body, "tokenize").get("state") in states


def is_suspended(body) -> bool:
    return condition(body, "Succeeded").get("reason") == "Suspended"


def one_of_its_own(name: str, tokens: int, **changes):
    """A Trenchcoat whose tokenize stage no other test has in the store."""
    return example(name, data__tokens=tokens, **changes)


@pytest.fixture(scope="module")
def steered(store: Environment):
    """One that reads its text, however slowly; then it is suspended once, and goes on without delay."""
    with held(store) as settings:
        apply(store, one_of_its_own("steered", 81_920, pods={"tokenize": settings}))
        wait(store, "steered", tokenize_is("Running"), timeout=120)
        yield store
        delete(store, "steered")


def test_suspend_stops_and_resume_goes_on(steered: Environment):
    assert plugin(steered, "suspend", "steered") == "trenchcoat/steered suspended\n"
    wait(steered, "steered", lambda body: not pods(steered, "steered"), timeout=120)
    wait(steered, "steered", is_suspended, timeout=120)
    assert "Suspended" in plugin(steered, "status", "steered")
    assert plugin(steered, "suspend", "steered") == "trenchcoat/steered is suspended already\n"
    steered.kubectl("patch", "trenchcoat", "steered", "--type=merge", "-p", '{"spec":{"pods":null}}')
    assert plugin(steered, "resume", "steered") == "trenchcoat/steered resumed\n"
    body = wait(steered, "steered", tokenize_is("Succeeded"), timeout=180)
    assert row(body, "tokenize")["source"] == "Computed"


def test_logs_are_those_of_the_stage(steered: Environment):
    said = plugin(steered, "logs", "steered", "tokenize", "--tail=5")
    assert "pod/steered-tokenize-" in said
    assert "complete" in said
    assert "no pod has logs" in plugin(steered, "logs", "steered", "stitch", fails=True)


def test_status_is_a_table_of_stages(steered: Environment):
    table = plugin(steered, "status", "steered")
    assert "✔ tokenize" in table
    assert "12 layers · 6 Crias" in table
    assert "steered" in plugin(steered, "status")


def test_plan_knows_the_model_and_what_is_complete(steered: Environment, tmp_path: Path):
    file = tmp_path / "next.yaml"
    file.write_text(yaml.safe_dump(one_of_its_own("next", 81_920, stitch__learningRate="1e-3")))
    Trenchcoat.from_yaml(file)
    told = plugin(steered, "plan", str(file))
    assert "6 Jobs" in told
    assert "Complete already, and reused: tokenize" in told


def test_what_is_not_there_is_an_error(store: Environment):
    assert '"nobody" not found' in plugin(store, "status", "nobody", fails=True)


def test_retry_starts_a_failed_stage_again(store: Environment):
    name = "retried"
    # An image without the program: its container cannot start.
    body = one_of_its_own(name, 92_160, scheduling__maxAttempts=1)
    body["spec"]["pods"] = {"tokenize": {"image": store.operator_image}}
    apply(store, body)
    try:
        even_if_stalled(store, name, tokenize_is("Failed"), timeout=180)
        change = [{"op": "remove", "path": "/spec/pods"}]
        store.kubectl("patch", "trenchcoat", name, "--type=json", "-p", json.dumps(change))
        assert "✘ tokenize" in plugin(store, "status", name)
        told = plugin(store, "retry", name, "tokenize")
        assert told.startswith(f"trenchcoat/{name}: tokenize starts again; deleted {name}-tokenize-")
        even_if_stalled(store, name, tokenize_is("Succeeded"), timeout=180)
        assert "is Succeeded: only what Failed" in plugin(store, "retry", name, "tokenize", fails=True)
    finally:
        delete(store, name)
