"""Showing how a Trenchcoat goes until it ends."""

import time
from typing import Any

from rich.console import Console

from demo.environment import DemoError, Environment

POLL_SECONDS = 2.0
SHOW_SECONDS = 10.0
TIMEOUT_SECONDS = 40 * 60


def condition(body: dict[str, Any], kind: str) -> dict[str, Any]:
    """One condition of an object; empty when it has none of this type."""
    conditions = body.get("status", {}).get("conditions", [])
    return next((item for item in conditions if item["type"] == kind), {})


def follow(
    environment: Environment, name: str, console: Console, *, timeout: float = TIMEOUT_SECONDS
) -> None:
    """Print `kubectl get trenchcoats` and every stage's progress as they change, until it succeeds.

    Raises:
        DemoError: it stalled, or the time is over.
    """
    deadline = time.monotonic() + timeout
    columns, rows, shown = "", "", 0.0
    while time.monotonic() < deadline:
        body = environment.get("trenchcoat", name)
        table = environment.kubectl("get", "trenchcoats").rstrip()
        described = describe(body.get("status", {}))
        key = (body.get("status", {}).get("stage"), body.get("status", {}).get("criasDone"))
        if str(key) != columns or (described != rows and time.monotonic() - shown > SHOW_SECONDS):
            console.print(f"$ kubectl get trenchcoats\n{table}", markup=False)
            console.print(described, markup=False)
            columns, rows, shown = str(key), described, time.monotonic()
        if condition(body, "Succeeded").get("status") == "True":
            return
        if condition(body, "Stalled").get("status") == "True":
            raise DemoError(f"trenchcoat {name} stalled: {condition(body, 'Stalled').get('message')}")
        time.sleep(POLL_SECONDS)
    raise DemoError(f"trenchcoat {name} has not ended after {timeout / 60:.0f} minutes")


def describe(status: dict[str, Any]) -> str:
    """One line for each stage or Cria that is at work or waits with a reason."""
    lines = []
    rows = [(row["name"], row) for row in status.get("stages", []) if row["name"] != "cria"]
    rows += [(f"cria {row['index']} ({row['layers']})", row) for row in status.get("crias", [])]
    for label, row in rows:
        if row["state"] not in ("Running", "Starting", "Waiting", "Failed"):
            continue
        steps = (
            f"{row.get('phase', '')} {row.get('step', 0)}/{row.get('steps', 0)}" if row.get("steps") else ""
        )
        loss = f"loss {row['loss']}" if row.get("loss") else ""
        parts = (
            f"    {label:<14}",
            f"{row['state']:<9}",
            row.get("progress", ""),
            steps,
            loss,
            row.get("message", ""),
        )
        lines.append(" ".join(part for part in parts if part))
    return "\n".join(lines)
