"""How long GPUs wait for the next Cria, as the kubelets and the scheduler wrote it down."""

import statistics
from datetime import datetime
from typing import Any

from demo.environment import Environment
from demo.watch import condition


def turnover_seconds(pods: list[dict[str, Any]], gpus: int) -> list[float]:
    """Seconds from the end of a Cria's container until the next Cria's pod is bound in its place.

    Args:
        pods: Pods of single-GPU Crias that all ended; times are whole seconds.
        gpus: How many ran at once: the first so many waited for nobody.
    """
    bound = sorted(_bound(pod) for pod in pods)
    ended = sorted(_ended(pod) for pod in pods)
    return [(start - end).total_seconds() for start, end in zip(bound[gpus:], ended[:-gpus], strict=True)]


def describe_turnover(environment: Environment, name: str, gpus: int) -> str:
    """The same of a Trenchcoat that has succeeded, in a line; empty where no Cria waited for another."""
    selector = f"trenchcoat.dev/name={name},trenchcoat.dev/stage=cria"
    pods = environment.get("pods", "-l", selector, "--field-selector=status.phase=Succeeded")["items"]
    if not 0 < gpus < len(pods):
        return ""
    seconds = turnover_seconds(pods, gpus)
    return (
        f"From a Cria's end until the next one had its GPU: median {statistics.median(seconds):.0f} s, "
        f"longest {max(seconds):.0f} s (from pods' own times, in whole seconds)"
    )


def _bound(pod: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(condition(pod, "PodScheduled")["lastTransitionTime"])


def _ended(pod: dict[str, Any]) -> datetime:
    states = [item["state"]["terminated"] for item in pod["status"]["containerStatuses"]]
    return max(datetime.fromisoformat(state["finishedAt"]) for state in states)
