"""The cluster, through the kubectl that runs this plugin: contexts, logins and proxies are kubectl's."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

Object = dict[str, Any]


class PluginError(Exception):
    """What the user asked for cannot be done; the message says why and what to do."""


class Kubectl:
    """kubectl with the flags that choose cluster and namespace."""

    def __init__(self, flags: Sequence[str] = ()) -> None:
        """Find kubectl.

        Raises:
            PluginError: it is not on the PATH.
        """
        program = shutil.which("kubectl")
        if program is None:
            raise PluginError("kubectl is not on the PATH: install it")
        self._command = [program, *flags]

    def run(self, *words: str) -> str:
        """Run a command and return what it prints.

        Raises:
            PluginError: it failed; the message is kubectl's.
        """
        done = subprocess.run([*self._command, *words], capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise PluginError(_said(done.stderr) or f"kubectl {words[0]} failed with {done.returncode}")
        return done.stdout

    def get(self, *words: str) -> Object:
        """Read an object, or a list of them.

        Raises:
            PluginError: it cannot be read.
        """
        found: Object = json.loads(self.run("get", *words, "-o", "json"))
        return found

    def show(self, *words: str) -> int:
        """Run a command whose output goes to the terminal as it is; returns its exit code."""
        return subprocess.run([*self._command, *words], check=False).returncode  # noqa: S603

    def watch(self, *words: str) -> Iterator[Object]:
        """Yield an object each time that it changes, until kubectl's watch ends.

        Raises:
            PluginError: it cannot be read.
        """
        command = [*self._command, "get", *words, "-o", "json", "--watch"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:  # noqa: S603
            assert watch.stdout is not None and watch.stderr is not None  # noqa: S101  (both are pipes)
            try:
                yield from _documents(watch.stdout)
                error = watch.stderr.read()
            finally:
                watch.terminate()
        if watch.returncode > 0:
            raise PluginError(_said(error))


def _documents(lines: Iterator[str] | Any) -> Iterator[Object]:
    """Split a stream of indented JSON objects: only an object's own brace stands at the start of a line."""
    gathered: list[str] = []
    for line in lines:
        gathered.append(line)
        if line.startswith("}"):
            yield json.loads("".join(gathered))
            gathered = []


def _said(text: str) -> str:
    """What kubectl says to people: lines of its log go, unless there are no others."""
    lines = text.strip().splitlines()
    plain = [line for line in lines if not re.match(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.", line)]
    return "\n".join(plain or lines).removeprefix("error: ")
