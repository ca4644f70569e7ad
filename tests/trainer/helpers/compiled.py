"""Kernels compiled for a GPU that is not there, by the product's own host code: nothing is launched.

    python -m tests.trainer.helpers.compiled MODULE FUNCTION

calls a function that launches kernels, and prints their machine code (SASS), by Triton's own nvdisasm.
"""

import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

HOPPER = GPUTarget("cuda", 90, 32)
NVDISASM = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"


class Absent:
    """What the compiler asks of a driver."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, *_):
        return 0

    def get_current_target(self):
        return HOPPER


def compiled(function):
    """Call `function`; returns the machine code of every kernel that it would launch, by name and hash.

    For a process of its own: no kernel is ever launched in it.
    """
    found, launch = {}, JITFunction.run

    def only_compile(self, *arguments, grid, warmup, **options):
        kernel = launch(self, *arguments, grid=grid, warmup=True, **options)
        found[f"{self.__name__} {kernel.hash[:8]}"] = disassembled(kernel.asm["cubin"])
        return kernel

    driver.set_active(Absent())
    JITFunction.run = only_compile
    function()
    return found


def disassembled(cubin):
    """Return the instructions of a program, a line each."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([NVDISASM, "-c", file.name], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    module, name = sys.argv[1:]
    print(json.dumps(compiled(getattr(importlib.import_module(module), name))))
