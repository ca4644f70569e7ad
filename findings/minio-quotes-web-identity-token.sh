#!/usr/bin/env bash
# minio 7.2.20 (the Python client of S3), with urllib3 2.8.0
#
# WebIdentityProvider sends the token of whoever asks in the query of the URL, and where the STS answers with anything
# but 200 it raises a ValueError that quotes the URL, token and all; so does urllib3's MaxRetryError where the STS cannot
# be reached. The token is still good then: whoever reads the log may use it. The same function takes LDAPPassword out of
# the URL before it quotes it, from which one would expect as much for WebIdentityToken.
#
# Output seen:
#   refused: ValueError, quotes the token: True
#   not reached: MaxRetryError, quotes the token: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q minio==7.2.20 urllib3==2.8.0
cat > "$folder/show.py" <<'PY'
import http.server
import threading

import urllib3
from minio.credentials import WebIdentityProvider

TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzb21lYm9keSJ9.c2lnbmVk"


class Sts(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = b"<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sts)
threading.Thread(target=server.serve_forever, daemon=True).start()
for what, port in (("refused", server.server_port), ("not reached", 9)):
    provider = WebIdentityProvider(
        jwt_provider_func=lambda: {"access_token": TOKEN, "expires_in": "0"},
        sts_endpoint=f"http://127.0.0.1:{port}",
        http_client=urllib3.PoolManager(retries=0),
    )
    try:
        provider.retrieve()
    except Exception as error:
        print(f"{what}: {type(error).__name__}, quotes the token: {TOKEN in str(error)}")
PY
"$folder/venv/bin/python" "$folder/show.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
refused: ValueError, quotes the token: True
not reached: MaxRetryError, quotes the token: True
SEEN
