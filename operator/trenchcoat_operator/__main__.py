"""The operator's program: `python -m trenchcoat_operator`."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import kopf
from trenchcoat_api.environment import SettingsError

from trenchcoat_operator import handlers, health
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.kubernetes.errors import NoClusterError
from trenchcoat_operator.loop.queue import WorkQueue
from trenchcoat_operator.loop.reconciler import Reconciler
from trenchcoat_operator.loop.worker import Worker
from trenchcoat_operator.metrics import endpoint
from trenchcoat_operator.metrics.recorder import Metrics
from trenchcoat_operator.settings import Settings
from trenchcoat_operator.watching import Watching


def main() -> int:
    """Run until SIGTERM, and return the exit code."""
    try:
        _run(Settings.from_environment(os.environ))
    except (SettingsError, NoClusterError) as error:
        sys.stderr.write(f"trenchcoat-operator: {error}\n")
        return 2
    return 0


def _run(settings: Settings) -> None:
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
        with _listening("TRENCHCOAT_METRICS_PORT", settings.metrics_port):
            endpoint.serve(settings.metrics_port, metrics.registry)
    registry = kopf.OperatorRegistry()
    handlers.register(registry, queue, worker)
    watching = Watching(cluster, settings, registry, worker)
    watching.listen()  # before anybody is answered, who may then tell it to end
    with _listening("TRENCHCOAT_HEALTH_PORT", settings.health_port):
        health.serve(settings.health_port, {health.LIVE: watching.live, health.READY: watching.ready})
    watching.run()


@contextmanager
def _listening(variable: str, port: int) -> Iterator[None]:
    """Raises SettingsError where a server cannot have its port."""
    try:
        yield
    except OSError as error:
        raise SettingsError(f"{variable} is {port}, which cannot be had ({error}): set another") from error


if __name__ == "__main__":
    sys.exit(main())
