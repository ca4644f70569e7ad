"""Kernels under Triton's interpreter, in a process of its own: it is chosen when they are imported."""

import contextlib
import json
import os
import subprocess
import sys

import pytest

ANSWER = """
import importlib, json, sys
sys.path[:0] = json.loads(sys.argv[2])
import torch
torch.set_num_threads(1)
checks = importlib.import_module(sys.argv[1])
for line in sys.stdin:
    check, arguments = json.loads(line)
    print(json.dumps(getattr(checks, check)(**arguments)), flush=True)
"""


@contextlib.contextmanager
def interpreted(module):
    """Yield what tells a case's errors when it is asked: ``ask((function of the module, arguments))``."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", ANSWER, module, json.dumps(sys.path)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def ask(case):
            process.stdin.write(json.dumps(case) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline() or pytest.fail("it died, and said why on stderr"))

        yield ask
