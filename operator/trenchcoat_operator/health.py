"""Health over HTTP: whether to restart the operator, and whether it is ready.

A server of its own, apart from kopf's: that one is there only while kopf runs, and has one answer for both.
"""

import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LIVE, READY = "/livez", "/healthz"
Check = Callable[[], str]
"""What is wrong; empty when all is well."""


def serve(port: int, checks: Mapping[str, Check]) -> ThreadingHTTPServer:
    """Answer probes, in threads: 200 when all is well, else 503 with what is wrong.

    Args:
        port: Where; 0 finds a free one. All addresses of the machine, those of IPv6 among them.
        checks: By path.

    Raises:
        OSError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0

        def do_GET(self) -> None:
            check = checks.get(self.path.partition("?")[0])
            fault = "there is no such path" if check is None else check()
            body = (fault or "well").encode() + b"\n"
            self.send_response(404 if check is None else 503 if fault else 200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """No line for each probe."""

    server = _Server(("", port), Handler)
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()
