#!/usr/bin/env bash
# minio 7.2.20 (the Python client of S3), with urllib3 2.8.0, and no http_client given
#
# A multipart upload ends when CompleteMultipartUpload, a POST, is answered once with 503 SlowDown, which S3 tells
# clients to send again. The client's own pool is made with urllib3.Retry(total=5, status_forcelist=[500, 502, 503,
# 504]), from which one would expect five more tries; but urllib3 repeats on a status only what its allowed_methods
# name, which POST is not by default, so that POST is sent once, while a PUT of the same answer is sent again. And after
# the last try of a PUT it raises urllib3's MaxRetryError, which is no MinioException: the code that the store gave
# (SlowDown) is nowhere in it.
#
# Output seen:
#   503 once at the completion: S3Error SlowDown after 1 POST of it
#   503 always at a PUT: MaxRetryError, is a MinioException: False, names SlowDown: False, after 6 PUTs
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q minio==7.2.20 urllib3==2.8.0
cat > "$folder/show.py" <<'PY'
import http.server
import io
import threading

from minio import Minio
from minio.error import MinioException, S3Error

asked = []
always = False


class Store(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked.append((self.command, self.path))
        completes = self.command == "POST" and "uploadId" in self.path
        busy = always or (completes and sum(m == "POST" and "uploadId" in p for m, p in asked) == 1)
        body = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
        if not busy:
            body = b"<R><Bucket>b</Bucket><Key>x</Key><UploadId>1</UploadId><ETag>e</ETag></R>"
        self.send_response(503 if busy else 200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("ETag", '"e"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_POST = do_DELETE = do_GET = answer

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = Minio(f"127.0.0.1:{server.server_port}", "key", "secret", secure=False, region="us-east-1")
try:
    client.put_object("bucket", "x", io.BytesIO(bytes(11 << 20)), 11 << 20, part_size=5 << 20)
except S3Error as error:
    count = sum(m == "POST" and "uploadId" in p for m, p in asked)
    print(f"503 once at the completion: S3Error {error.code} after {count} POST of it")
always = True
asked.clear()
try:
    client.put_object("bucket", "x", io.BytesIO(b"x"), 1)
except Exception as error:
    print(
        f"503 always at a PUT: {type(error).__name__}, is a MinioException: {isinstance(error, MinioException)}, "
        f"names SlowDown: {'SlowDown' in str(error)}, after {len(asked)} PUTs"
    )
PY
"$folder/venv/bin/python" "$folder/show.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
503 once at the completion: S3Error SlowDown after 1 POST of it
503 always at a PUT: MaxRetryError, is a MinioException: False, names SlowDown: False, after 6 PUTs
SEEN
