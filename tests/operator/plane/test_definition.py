"""The operator without the definition of Trenchcoats: it waits, says so, follows them once served."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import urllib3
from trenchcoat_trainer.runtime.ports import free_port

from tests.control_plane import ControlPlane, control_plane
from tests.operator.simulation import BASE
from tests.waiting import until

pytestmark = pytest.mark.slow

NAMESPACE = "ml"
SOON = 120
"""Seconds; the resync alone would take ten minutes."""


class Operator:
    """The operator's program."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log
        self._http = urllib3.PoolManager(retries=False, timeout=60.0)

    def answer(self, path: str) -> tuple[int, str]:
        try:
            answer = self._http.request("GET", f"http://127.0.0.1:{self.port}{path}")
        except urllib3.exceptions.HTTPError:
            return 0, ""
        return answer.status, answer.data.decode()

    def healthy(self) -> bool:
        return self.answer("/healthz")[0] == 200

    def ends_well(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(120) == 0, self.log.read_text()[-3000:]


@contextmanager
def operator(plane: ControlPlane, log: Path, *, program: str = "", namespace: str = "") -> Iterator[Operator]:
    port = free_port()
    variables = {
        "KUBECONFIG": str(plane.kubeconfig),
        "TRENCHCOAT_HEALTH_PORT": str(port),
        "TRENCHCOAT_METRICS_PORT": "0",
        "TRENCHCOAT_NAMESPACES": namespace,
        "TRENCHCOAT_RESYNC_SECONDS": "600",
    }
    with log.open("wb") as out:
        words = ["-c", program] if program else ["-m", "trenchcoat_operator"]
        command = [sys.executable, "-W", "ignore", *words]
        process = subprocess.Popen(command, env=os.environ | variables, stdout=out, stderr=out)
    try:
        yield Operator(process, port, log)
    except AssertionError as error:
        error.add_note(log.read_text()[-4000:])
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane that knows no Trenchcoats, until the last test here that has it defines them."""
    with control_plane(tmp_path_factory.mktemp("bare")) as made:
        made.namespace(NAMESPACE)
        yield made


def is_looked_at(plane: ControlPlane, name: str) -> bool:
    return bool(plane.read(name, NAMESPACE).get("status", {}).get("conditions"))


def body(name: str) -> dict[str, object]:
    return {**BASE, "metadata": {"name": name}}


def test_it_ends_when_told_while_it_waits(bare: ControlPlane, tmp_path: Path) -> None:
    with operator(bare, tmp_path / "operator.log") as running:
        until(lambda: running.answer("/healthz")[0] == 503, 120, "it waits")
        running.ends_well()


def test_it_is_not_ready_until_trenchcoats_are_served_and_follows_them_then(
    bare: ControlPlane, tmp_path: Path
) -> None:
    with operator(bare, tmp_path / "operator.log") as running:
        status, said = until(
            lambda: (seen := running.answer("/healthz"))[0] and seen, 120, "it answers probes"
        )
        assert status == 503
        assert "serves no trenchcoats of trenchcoat.dev/v1alpha1: install" in said
        assert running.answer("/livez")[0] == 200, "a restart would mend nothing"

        bare.define()
        until(running.healthy, SOON, "it is ready")
        bare.apply(body("early"), NAMESPACE)
        until(lambda: is_looked_at(bare, "early"), SOON, "it is followed")

        bare.withdraw()
        until(lambda: running.answer("/healthz")[0] == 503, SOON, "it is not ready")
        assert running.process.poll() is None, running.log.read_text()[-3000:]
        assert running.answer("/livez")[0] == 200

        bare.define()
        until(running.healthy, SOON, "it is ready again")
        bare.apply(body("late"), NAMESPACE)
        until(lambda: is_looked_at(bare, "late"), SOON, "it is followed again")
        bare.apply(body("early"), NAMESPACE)
        until(lambda: is_looked_at(bare, "early"), SOON, "one of a name that was there before, too")
        running.ends_well()


TOLD_MEANWHILE = """
import signal, sys
from trenchcoat_operator import health, __main__ as program
from trenchcoat_operator.loop.worker import Worker

def then_told(owner, name):
    call = getattr(owner, name)
    def called(*arguments):
        answer = call(*arguments)
        signal.raise_signal(signal.SIGTERM)
        return answer
    setattr(owner, name, called)

then_told(*{{"answers probes": (health, "serve"), "starts": (Worker, "start")}}["{when}"])
sys.exit(program.main())
"""


@pytest.mark.parametrize("when", ["answers probes", "starts"])
def test_it_ends_when_told_before_kopf_would_hear_of_it(
    plane: ControlPlane, tmp_path: Path, when: str
) -> None:
    """A signal that nobody looks for would have it killed, when its pod's grace period is over."""
    program = TOLD_MEANWHILE.format(when=when)
    with operator(plane, tmp_path / "operator.log", program=program, namespace="nobodys") as running:
        assert running.process.wait(120) == 0
