"""The operator's program: `python -m trenchcoat_operator`."""

import logging
import os
import sys

import kopf
from prometheus_client import start_http_server

from trenchcoat_operator import handlers
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.loop.queue import WorkQueue
from trenchcoat_operator.loop.reconciler import Reconciler
from trenchcoat_operator.loop.worker import Worker
from trenchcoat_operator.metrics.recorder import Metrics
from trenchcoat_operator.settings import Settings, SettingsError


def main() -> int:
    """Run until SIGTERM."""
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        sys.stderr.write(f"trenchcoat-operator: {error}\n")
        return 2
    kopf.configure(log_format=kopf.LogFormat.JSON if not sys.stderr.isatty() else kopf.LogFormat.PLAIN)
    logging.getLogger().setLevel(settings.log_level)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)  # a line for each probe, otherwise
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # what it retries in vain is told by who asked
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # an info line for each event, otherwise
    metrics = Metrics()
    queue = WorkQueue()
    metrics.watch_queue(queue.depth)
    cluster = Cluster.connect(metrics.requested)
    reconciler = Reconciler(cluster, settings, metrics, queue.add)
    worker = Worker(queue, reconciler, settings, metrics)
    if settings.metrics_port:
        start_http_server(settings.metrics_port, registry=metrics.registry)
    registry = kopf.OperatorRegistry()
    handlers.register(registry, queue, worker)
    kopf.run(
        registry=registry,
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        liveness_endpoint=f"http://0.0.0.0:{settings.health_port}/healthz",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
