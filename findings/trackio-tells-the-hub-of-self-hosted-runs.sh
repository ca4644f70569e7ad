#!/usr/bin/env bash
# trackio 0.43.0
#
# trackio.init(server_url=...) tells a server that one runs oneself, which its documentation offers as an alternative to a
# Space of the Hugging Face hub. Where the environment has a token of the hub, as it does for a private model, trackio sends
# it to the hub all the same, to ask who holds it, and leaves that name in the run's configuration on the server. One would
# expect a run that has nothing to do with the hub not to go there; without a network that is also a wait. The hub is played
# here, by HF_ENDPOINT.
#
# Output seen:
#   the hub was asked /api/whoami-v2 with Bearer hf_private
#   the run on one's own server is somebody's
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-deps \
  annotated-types==0.8.0 anyio==4.16.0 brotli==1.2.1 certifi==2026.10.19.post1 \
  charset-normalizer==3.5.3 click==8.5.1 distro==1.9.0 filelock==4.3.1 fsspec==2026.9.0 \
  gradio-client==2.7.2 h11==0.16.0 hf-xet==1.8.0 httpcore==1.0.9 httpcore2==2.16.2 httptools==0.9.0 \
  httpx==0.28.1 httpx2==2.16.2 huggingface-hub==2.4.0 idna==3.20 numpy==2.4.6 orjson==3.13.0 \
  packaging==26.4 pillow==12.3.0 pydantic==2.14.4 pydantic-core==2.50.5 python-dotenv==1.2.4 \
  python-multipart==0.0.34 pyyaml==6.0.4 sniffio==1.3.1 starlette==1.10.0 tqdm==4.70.1 \
  trackio==0.43.0 truststore==0.10.5 typing-extensions==4.16.0 typing-inspection==0.4.5 \
  urllib3==2.8.0 uvicorn==0.54.0 uvloop==0.23.0 watchfiles==1.3.0 websockets==17.4 xxhash==4.1.0
cat > "$folder/show.py" <<'PY'
import http.server
import json
import os
import sys
import threading

WHO = {"type": "user", "name": "somebody", "orgs": [], "auth": {"accessToken": {"role": "read", "displayName": "x"}}}


class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if "whoami" in self.path:
            print(f"SEEN the hub was asked {self.path} with {self.headers['Authorization']}")
        body = json.dumps(WHO).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


hub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=hub.serve_forever, daemon=True).start()
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_TOKEN": "hf_private", "HF_HOME": sys.argv[1]}
os.environ |= {"TRACKIO_DIR": sys.argv[1], "TRACKIO_WRITE_TOKEN": "token"}

import trackio  # reads the environment
from trackio.remote_client import RemoteClient

server = "http://127.0.0.1:17865"
trackio.show(host="127.0.0.1", server_port=17865, open_browser=False, block_thread=False)
run = trackio.init("project", name="run", server_url=server, embed=False)
run.log({"loss": 1.0})
run.finish()
told = RemoteClient(server).predict(api_name="/get_run_summary", project="project", run="run")
print(f"SEEN the run on one's own server is {told['config']['_Username']}'s")
PY
timeout 120 "$folder/venv/bin/python" "$folder/show.py" "$folder/data" 2> "$folder/log" | sed -n 's/^SEEN //p' | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
the hub was asked /api/whoami-v2 with Bearer hf_private
the run on one's own server is somebody's
SEEN
