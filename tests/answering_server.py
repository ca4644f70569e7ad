"""A server that answers as a test says: for what a real store does only when something is wrong with it."""

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """Status, body and its type."""

    status: int = 200
    body: str = ""
    kind: str = "application/xml"
    headers: dict[str, str] = field(default_factory=dict)


Script = Callable[[str, str], Answer]
"""Method and path with query, to an answer."""


def error(status: int, code: str, message: str = "so it is") -> Answer:
    """An error as S3 answers it."""
    return Answer(status, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>")


def listing(*names: str) -> Answer:
    """A bucket's objects, all of them."""
    items = "".join(f"<Contents><Key>{name}</Key><Size>1</Size></Contents>" for name in names)
    return Answer(
        body=f"<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated>{items}</ListBucketResult>"
    )


@contextmanager
def answering(script: Script) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The address of such a server, and the requests that it was sent."""
    asked: list[tuple[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append((self.command, self.path))
            answer = script(self.command, self.path)
            body = answer.body.encode() if self.command != "HEAD" else b""
            self.send_response(answer.status)
            for name, value in ({"Content-Type": answer.kind} | answer.headers).items():
                self.send_header(name, value)
            if answer.status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
