"""Pods whose program does not come to its start: what is done to them meanwhile is done in time, always."""

import contextlib
from collections.abc import Iterator

from demo.environment import Environment

from tests.cluster.objects import Body, apply

NAME = "held"
# Python runs this before anything of ours, as an import from a slow disk would take its time.
SOURCE = {"sitecustomize.py": "import time; time.sleep(600)"}


@contextlib.contextmanager
def held(environment: Environment) -> Iterator[Body]:
    """Pod settings, for `spec.pods`, that hold Python back for as long as any test takes."""
    apply(environment, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}, "data": SOURCE})
    try:
        yield {
            "env": [{"name": "PYTHONPATH", "value": "/held"}],
            "volumes": [{"name": "held", "configMap": {"name": NAME}}],
            "volumeMounts": [{"name": "held", "mountPath": "/held"}],
        }
    finally:
        environment.kubectl("delete", "configmap", NAME)
