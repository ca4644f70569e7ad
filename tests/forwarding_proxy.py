"""A forwarding proxy as a program of its own: it tunnels (CONNECT), passes plain requests on, and may refuse.

    python forwarding_proxy.py [--login USER:PASSWORD] [--refuse]

It prints its port, then a line for each request: method and target.
"""

import argparse
import base64
import http.client
import http.server
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO
from urllib.parse import urlsplit

REFUSAL = b"<html><head><title>ERR_ACCESS_DENIED</title></head><body>Ask your network team.</body></html>"
PATIENCE_SECONDS = 300.0
"""For either side, on a machine that may stand still for a while; who leaves is noticed at once."""
_HOP = {"connection", "proxy-connection", "proxy-authorization", "keep-alive", "transfer-encoding"}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    login = ""
    refuse = False

    def do_CONNECT(self) -> None:
        if not self._allowed():
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port)), PATIENCE_SECONDS) as there:
            self.send_response(200, "Connection established")
            self.end_headers()
            self._tunnel(there)
        self.close_connection = True

    def _tunnel(self, there: socket.socket) -> None:
        here = self.connection
        while True:
            for ready in select.select([here, there], [], [], PATIENCE_SECONDS)[0] or [None]:
                data = ready.recv(65536) if ready is not None else b""
                if not data:
                    return
                (there if ready is here else here).sendall(data)

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._allowed():
            return
        target = urlsplit(self.path)
        headers = {name: text for name, text in self.headers.items() if name.lower() not in _HOP}
        there = http.client.HTTPConnection(target.hostname or "", target.port or 80, timeout=PATIENCE_SECONDS)
        query = f"?{target.query}" if target.query else ""
        there.request(self.command, target.path + query, body, headers)
        answer = there.getresponse()
        data = answer.read()
        self.send_response(answer.status)
        for name, text in answer.getheaders():
            if name.lower() not in _HOP | {"content-length"}:
                self.send_header(name, text)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(data)
        there.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

    def _allowed(self) -> bool:
        print(self.command, self.path, flush=True)
        wanted = f"Basic {base64.b64encode(self.login.encode()).decode()}"
        status = 407 if self.login and self.headers.get("Proxy-Authorization") != wanted else 403
        if status == 403 and not self.refuse:
            return True
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(REFUSAL)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(REFUSAL)
        self.close_connection = True
        return False

    def log_message(self, *arguments: object) -> None:
        pass


@dataclass
class ForwardingProxy:
    """Where it listens, and what it was asked for."""

    address: str
    """HOST:PORT."""
    asked: list[str] = field(default_factory=list)


@contextmanager
def forwarding(*, login: str = "", refuse: bool = False) -> Iterator[ForwardingProxy]:
    """Such a proxy, as a process of its own."""
    command = [sys.executable, __file__, *(["--login", login] if login else []), *["--refuse"] * refuse]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        proxy = ForwardingProxy(f"127.0.0.1:{int(process.stdout.readline())}")
        reader = threading.Thread(target=_collect, args=(process.stdout, proxy.asked))
        reader.start()
        try:
            yield proxy
        finally:
            process.terminate()
            process.wait(120)
            reader.join()


def _collect(lines: IO[str], into: list[str]) -> None:
    for line in iter(lines.readline, ""):
        into.append(line.rstrip("\n"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--login", default="")
    parser.add_argument("--refuse", action="store_true")
    options = parser.parse_args()
    Handler.login, Handler.refuse = options.login, options.refuse
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
