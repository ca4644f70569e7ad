"""Pods whose Python a test sets up before the program's first line: held back, or with clocks of its own."""

import contextlib
from collections.abc import Iterator

from demo.environment import Environment

from tests.cluster.objects import Body, apply

FOLDER = "/held"


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

    What is done to it meanwhile is done in time, always; an import from a slow disk would take its time so.
    """
    with prepared(environment, "held", "import time; time.sleep(600)") as settings:
        yield settings
