"""What probes are answered, over both families of addresses."""

import socket

import pytest
import urllib3
from trenchcoat_operator import health

HOSTS = ["127.0.0.1", "[::1]"] if socket.has_dualstack_ipv6() else ["127.0.0.1"]


@pytest.mark.parametrize("host", HOSTS)
def test_each_path_has_its_own_answer(host: str) -> None:
    faults = {"/livez": "", "/healthz": "the definition is missing"}
    server = health.serve(0, {path: lambda path=path: faults[path] for path in faults})
    try:
        http = urllib3.PoolManager(retries=False, timeout=60.0)

        def ask(path: str) -> tuple[int, str]:
            answer = http.request("GET", f"http://{host}:{server.server_port}{path}")
            return answer.status, answer.data.decode().strip()

        assert ask("/livez?verbose") == (200, "well")
        assert ask("/healthz") == (503, "the definition is missing")
        faults["/healthz"] = ""
        assert ask("/healthz") == (200, "well")
        assert ask("/metrics")[0] == 404
    finally:
        server.shutdown()
        server.server_close()
