"""The kopf handlers: an event only says that a Trenchcoat is worth a look."""

from typing import Any

import kopf
from trenchcoat_api import constants

from trenchcoat_operator.podwatch import PodWatch
from trenchcoat_operator.queue import Key, WorkQueue
from trenchcoat_operator.worker import Worker

STOP_SECONDS = 20.0


def register(registry: kopf.OperatorRegistry, queue: WorkQueue, worker: Worker, pods: PodWatch) -> None:
    """Register all handlers.

    Pods have a watch of their own: kopf would receive those of the whole cluster.
    """

    @kopf.on.login(registry=registry)
    def login(**arguments: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_via_client(**arguments)  # as client.Cluster does: service account or kubeconfig

    @kopf.on.startup(registry=registry)
    def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        _configure(settings)
        worker.start()
        pods.start()

    @kopf.on.cleanup(registry=registry)
    def stop(**_: Any) -> None:
        pods.stop()
        worker.stop(STOP_SECONDS)

    @kopf.on.probe(registry=registry, id="worker")
    def healthy(**_: Any) -> str:
        fault = worker.fault()
        if fault:
            raise kopf.PermanentError(fault)  # any other error would leave the probe green
        return "well"

    @kopf.on.event(constants.GROUP, constants.VERSION, constants.PLURAL, registry=registry)
    def trenchcoat(name: str | None, namespace: str | None, **_: Any) -> None:
        if name and namespace:
            queue.add(Key(namespace, name))

    managed = {constants.LABEL_MANAGED_BY: constants.MANAGED_BY}

    @kopf.on.event("batch", "v1", "jobs", registry=registry, labels=managed)
    @kopf.on.event("kubeflow.org", "v1", "pytorchjobs", registry=registry, labels=managed)
    def child(labels: kopf.Labels, namespace: str | None, **_: Any) -> None:
        owner = labels.get(constants.LABEL_NAME)
        if owner and namespace:
            queue.add(Key(namespace, owner))


def _configure(settings: kopf.OperatorSettings) -> None:
    settings.posting.enabled = False  # this operator's own events tell the story
    settings.scanning.disabled = True  # needs no right to list CustomResourceDefinitions and namespaces
    settings.watching.server_timeout = 300
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 60
