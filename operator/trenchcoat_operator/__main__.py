"""The operator's program: `python -m trenchcoat_operator`."""

import logging
import os
import sys

import kopf

from trenchcoat_operator import handlers, health
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.loop.queue import WorkQueue
from trenchcoat_operator.loop.reconciler import Reconciler
from trenchcoat_operator.loop.worker import Worker
from trenchcoat_operator.metrics import endpoint
from trenchcoat_operator.metrics.recorder import Metrics
from trenchcoat_operator.settings import Settings, SettingsError
from trenchcoat_operator.watching import Watching


def main() -> int:
    """Run until SIGTERM."""
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        sys.stderr.write(f"trenchcoat-operator: {error}\n")
        return 2
    kopf.configure(log_format=kopf.LogFormat.JSON if not sys.stderr.isatty() else kopf.LogFormat.PLAIN)
    logging.getLogger().setLevel(settings.log_level)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # what it retries in vain is told by who asked
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # an info line for each event, otherwise
    metrics = Metrics()
    queue = WorkQueue()
    metrics.watch_queue(queue.depth)
    cluster = Cluster.connect(metrics.requested)
    reconciler = Reconciler(cluster, settings, metrics, queue.add)
    worker = Worker(queue, reconciler, settings, metrics)
    if settings.metrics_port:
        endpoint.serve(settings.metrics_port, metrics.registry)
    registry = kopf.OperatorRegistry()
    handlers.register(registry, queue, worker)
    watching = Watching(cluster, settings, registry, worker)
    health.serve(settings.health_port, {health.LIVE: watching.live, health.READY: watching.ready})
    watching.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
