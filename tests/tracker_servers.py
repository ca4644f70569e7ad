"""What reads what trackers were told: MLflow's and trackio's own servers, and TensorBoard's own reader."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import urllib3
from trenchcoat_trainer.runtime.ports import free_port

from tests.waiting import until

SERVERS = Path(__file__).parents[1] / ".venv-tracking-server" / "bin"
READ = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1]).Reload()
told = {tag: [(item.step, item.value) for item in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
print(json.dumps(told))
"""


SHOW = """
import sys, trackio
trackio.show(host=sys.argv[1], server_port=int(sys.argv[2]), open_browser=False, block_thread=True)
"""


@contextmanager
def mlflow_server(folder: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """MLflow's own server, on SQLite; its URL, at an address of this machine."""
    url = f"http://{host}:{(port := free_port())}"
    where = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder)]
    command = [SERVERS / "python", "-m", "mlflow", "server", *where, "--workers", "1"]
    command += ["--host", host, "--port", str(port)]
    with _serving(command, dict(os.environ), folder / "mlflow.log", f"{url}/health"):
        yield url


@contextmanager
def trackio_server(folder: Path, token: str, host: str = "127.0.0.1") -> Iterator[str]:
    """trackio's own server, which keeps its files in a folder; its URL, at an address of this machine.

    It is in the same package as the client.
    """
    url = f"http://{host}:{(port := free_port())}"
    environment = os.environ | {
        "TRACKIO_DIR": str(folder / "trackio"),
        "TRACKIO_WRITE_TOKEN": token,
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", SHOW, host, str(port)]
    with _serving(command, environment, folder / "trackio.log", f"{url}/version"):
        yield url


@contextmanager
def _serving(command: list[Any], environment: dict[str, str], output: Path, asked: str) -> Iterator[None]:
    """Run a server, whose output goes to a file, and wait until it answers."""
    with output.open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def answers() -> bool:
        assert process.poll() is None, output.read_text()
        try:
            return urllib3.request("GET", asked, retries=False, timeout=5).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    try:
        until(answers, 120, f"{asked} answers")
        yield
    finally:
        # Its workers, too; they would wait for clients that keep their connections.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(120)


def read_events(folder: Path) -> dict[str, Any]:
    """Steps and values of each metric, out of a folder of TensorBoard's files."""
    words = [SERVERS / "python", "-c", READ, folder]
    read = subprocess.run(words, capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    told: dict[str, Any] = json.loads(read.stdout)
    return told
