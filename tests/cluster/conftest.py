"""A real cluster for the tests, made once and removed at the end, as a user would have it."""

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
sys.path[:0] = [str(REPO / "hack"), str(REPO / "hack" / "cluster")]

from demo.environment import DemoError, Environment, local, remove
from demo.inputs import make_teacher, upload
from demo.install import RELEASE_NAMESPACE, install_operator

from tests.cluster.security import enforce_restricted

NAME = os.environ.get("TRENCHCOAT_TEST_CLUSTER", "trenchcoat-test")
NAMESPACE = "team-a"
# All nodes share a machine's few cores: threads that wait for one another keep these from others, and so
# does a drawing at the end of each, which test_linearize.py has for all.
SPARING = {"OMP_NUM_THREADS": "1", "TRENCHCOAT_REPORT": "never"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Beside a failure stands how things were: the cluster is gone by the time that somebody asks."""
    report = yield
    made = getattr(item, "funcargs", {}).get("environment")
    if report.failed and isinstance(made, Environment):
        where = ("-n", RELEASE_NAMESPACE, "-l", "app.kubernetes.io/name=trenchcoat")
        for title, words in (
            ("nodes, Trenchcoats and pods", ("get", "nodes,trenchcoats,pods", "-n", NAMESPACE, "-o", "wide")),
            ("the latest events", ("events", "-n", NAMESPACE)),
            ("the operator's log", ("logs", *where, "--tail=60")),
        ):
            try:
                said = made.command("kubectl", *words)
            except DemoError as error:
                said = f"cannot be read: {error}"
            report.sections.append((title, "\n".join(said.splitlines()[-60:])))
    return report


@pytest.fixture(scope="session")
def environment() -> Iterator[Environment]:
    """The cluster with MinIO, the training operator and ours; TRENCHCOAT_KEEP_CLUSTER=1 leaves it there."""
    keep = os.environ.get("TRENCHCOAT_KEEP_CLUSTER") == "1"
    try:
        made = local(NAMESPACE, name=NAME)
        for namespace in (NAMESPACE, RELEASE_NAMESPACE):
            enforce_restricted(made, namespace)
        # What is logged at all must hold no credentials. Pods of a lost node are waited for as long as the
        # grace period, and nothing else is.
        variables = [
            f"trainer.env[{number}].{field}"
            for number, (name, value) in enumerate(SPARING.items())
            for field in (f"name={name}", f"value={value}")
        ]
        settings = ("operator.logLevel=DEBUG", "trainer.graceSeconds=40")
        install_operator(made, settings=settings, strings=tuple(variables))
        yield made
    finally:
        if not keep:
            remove(NAME)


@pytest.fixture(scope="session")
def store(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The same, with the tiny teacher and its text in the bucket."""
    folder = tmp_path_factory.mktemp("store")
    make_teacher(folder)
    upload(environment, folder, fresh_prefix=False)
    return environment


@pytest.fixture
def alone(environment: Environment) -> Iterator[None]:
    """No other operator at work."""
    where = ("-n", "trenchcoat-system")
    selector = ("-l", "app.kubernetes.io/name=trenchcoat")
    environment.command("kubectl", *where, "scale", "--replicas=0", "deployment", *selector)
    environment.command("kubectl", *where, "wait", "--for=delete", "--timeout=120s", "pods", *selector)
    yield
    environment.command("kubectl", *where, "scale", "--replicas=1", "deployment", *selector)
    environment.command("kubectl", *where, "rollout", "status", "--timeout=300s", "deployment", *selector)
