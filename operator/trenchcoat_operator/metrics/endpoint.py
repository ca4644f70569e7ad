"""Where Prometheus reads the numbers."""

import socket
import threading
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

EVERYWHERE = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104  (a pod's own addresses)
"""All addresses, of both families where the machine has both; by default the library takes those of IPv4."""


def serve(port: int, registry: CollectorRegistry) -> tuple[WSGIServer, threading.Thread]:
    """Answer Prometheus, in threads.

    Args:
        port: Where; 0 finds a free one.
        registry: The numbers.

    Raises:
        OSError: the port is taken.
    """
    return start_http_server(port, addr=EVERYWHERE, registry=registry)
