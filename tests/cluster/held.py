"""Pods whose Python a test sets up before the program's first line: held back, slow, or with other clocks.

What is done to a program that is held back is done in time, always, however fast or busy the machine.
"""

import contextlib
from collections.abc import Iterator

from demo.environment import Environment

from tests.cluster.objects import Body, apply, pods

FOLDER = "/held"
GO = "/tmp/go"
UNTIL_GO = f"""
import os, time
while not os.path.exists("{GO}"):
    time.sleep(0.1)
"""
"""The program begins once a test lets it."""
SLOWLY = f"""
import os, time
from trenchcoat_trainer.runtime.progress import ProgressReporter
update = ProgressReporter.update
def slowly(*arguments, **options):
    update(*arguments, **options)
    if not os.path.exists("{GO}"):
        time.sleep(1)
ProgressReporter.update = slowly
"""
"""Each step takes a second more, until a test lets it go."""


@contextlib.contextmanager
def prepared(environment: Environment, name: str, source: str) -> Iterator[Body]:
    """Pod settings, for `spec.pods`, with which Python runs `source` before anything of ours."""
    data = {"sitecustomize.py": source}
    apply(environment, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
    try:
        yield {
            "env": [{"name": "PYTHONPATH", "value": FOLDER}],
            "volumes": [{"name": name, "configMap": {"name": name}}],
            "volumeMounts": [{"name": name, "mountPath": FOLDER}],
        }
    finally:
        environment.kubectl("delete", "configmap", name)


@contextlib.contextmanager
def held(environment: Environment) -> Iterator[Body]:
    """The same, with a program that does not come to its start for as long as any test takes.

    An import from a slow disk would take its time so.
    """
    with prepared(environment, "held", "import time; time.sleep(600)") as settings:
        yield settings


class Gate:
    """Lets those pods of a Trenchcoat go that run, whenever it is asked to look at them."""

    def __init__(self, environment: Environment, name: str, *selectors: str) -> None:
        self._environment, self._name, self._selectors = environment, name, selectors
        self._gone: set[str] = set()

    def __call__(self, body: Body) -> None:
        for pod in pods(self._environment, self._name, *self._selectors):
            name, at_work = pod["metadata"]["name"], pod["status"]["phase"] == "Running"
            if name not in self._gone and at_work and "deletionTimestamp" not in pod["metadata"]:
                words = ("exec", name, "--", "sh", "-c", f"touch {GO} && echo gone")
                if "gone" in self._environment.kubectl(*words, check=False):
                    self._gone.add(name)
