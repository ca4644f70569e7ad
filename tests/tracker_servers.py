"""What reads what trackers were told: MLflow's own server, and TensorBoard's own reader."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import urllib3
from trenchcoat_trainer.runtime.processes import free_port

from tests.waiting import until

SERVERS = Path(__file__).parents[1] / ".venv-tracking-server" / "bin"
READ = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1]).Reload()
told = {tag: [(item.step, item.value) for item in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
print(json.dumps(told))
"""


@contextmanager
def mlflow_server(folder: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """MLflow's own server, on SQLite; its URL, at an address of this machine."""
    url = f"http://{host}:{(port := free_port())}"
    where = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder)]
    command = [SERVERS / "python", "-m", "mlflow", "server", *where, "--workers", "1"]
    command += ["--host", host, "--port", str(port)]
    with (folder / "mlflow.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def answers() -> bool:
        assert process.poll() is None, (folder / "mlflow.log").read_text()
        try:
            return urllib3.request("GET", f"{url}/health", retries=False, timeout=5).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    try:
        until(answers, 120, "MLflow answers")
        yield url
    finally:
        # Its workers, too; they would wait for clients that keep their connections.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def read_events(folder: Path) -> dict[str, Any]:
    """Steps and values of each metric, out of a folder of TensorBoard's files."""
    words = [SERVERS / "python", "-c", READ, folder]
    read = subprocess.run(words, capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    told: dict[str, Any] = json.loads(read.stdout)
    return told
