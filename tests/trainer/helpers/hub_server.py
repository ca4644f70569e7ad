"""What servers that answer as the Hugging Face hub does have in common."""

import http.server
import json
from urllib.parse import unquote


class HubHandler(http.server.BaseHTTPRequestHandler):
    """Answers in the hub's form; what is asked for is the business of each test's own."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def _asked_for(self) -> list[str]:
        """The paths that a POST names, as a form or as JSON."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if body.startswith("{"):
            paths: list[str] = json.loads(body)["paths"]
            return paths
        return [unquote(item.partition("=")[2]) for item in body.split("&") if item.startswith("paths=")]

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
