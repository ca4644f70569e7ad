"""The same runs by arithmetic alone, over many more seeds than can be simulated: what a lost node costs whom.

    python benchmarks/simulate/reckoning.py      # prints results/reckoned.md

Nobody needs time to decide, and no tenants come. Stages take as long as the plan says; nodes vanish and come
back as in the simulation, each one on which the run is at work, or any of the run's.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass, field

from arms import ARGO, ARGO_RESUMES, NODE_GPUS, RIVAL, TRENCHCOAT
from disturbing import BACK_AFTER, losses
from durations import GANG_NODES, GPUS_PER_NODE, Durations
from playing import CHECKPOINT_SECONDS
from rival import ORDER
from trenchcoat_api.stages import INPUTS, Stage

SEEDS = 500
POOLS = (1, 4, 14, 24)


@dataclass
class Task:
    """A Job: how long, on how many pods of how many GPUs, after what."""

    seconds: float
    pool: str
    pods: int
    gpus: int
    after: list[str]
    done: float = 0.0
    """Seconds that need not be computed anew."""
    nodes: list[str] = field(default_factory=list)
    """Where it runs."""
    began: float = 0.0


def tasks(durations: Durations, kind: str) -> dict[str, Task]:
    """All of a run by name; in order, one stage after another, where plain Jobs are submitted so."""
    names = {stage: [stage.value] for stage in ORDER}
    names[Stage.CRIA] = [f"cria-{number:02d}" for number in range(durations.crias)]
    found = {}
    for place, stage in enumerate(ORDER):
        before = ORDER[:place][-1:] if kind == RIVAL else [item for item in INPUTS[stage] if item in names]
        for name in names[stage]:
            found[name] = Task(
                durations.seconds[stage],
                durations.pool(stage),
                durations.pods(stage),
                durations.gpus(stage),
                [other for item in before for other in names[item]],
            )
    return found


class Reckoned:
    """One run."""

    def __init__(self, durations: Durations, kind: str, gpus: int, *, spares_idle: bool = True) -> None:
        self.kind, self.bound, self.spares_idle = kind, durations.bound(gpus), spares_idle
        self.left = tasks(durations, kind)
        self.running: dict[str, Task] = {}
        self.free = {f"gang-{number}": GPUS_PER_NODE for number in range(GANG_NODES)}
        self.free |= {
            f"crias-{number}": min(NODE_GPUS, gpus - first)
            for number, first in enumerate(range(0, gpus, NODE_GPUS))
        }
        self.gone: list[tuple[float, str, int]] = []
        self.now = 0.0

    def seconds(self, when: list[float], chance: random.Random) -> float:
        """How long it takes, with nodes vanishing then (seconds); one at a time, and only where it works."""
        vanish = list(when)
        while self.left:
            self._start()
            ends = {name: task.began + task.seconds - task.done for name, task in self.running.items()}
            times = [*ends.values(), *(at for at, _, _ in self.gone)]
            if vanish and self.running and max(vanish[0], self.now) < min(times):
                self.now = max(vanish.pop(0), self.now)
                self._lose(chance)
                back = self.now + BACK_AFTER * self.bound
                vanish = [max(at, back) for at in vanish]
                continue
            self.now = min(times)
            for at, name, gpus in [item for item in self.gone if item[0] <= self.now]:
                self.gone.remove((at, name, gpus))
                self.free[name] = gpus
            for name in [name for name, at in ends.items() if at <= self.now]:
                self._release(self.running.pop(name))
                del self.left[name]
        return self.now

    def _start(self) -> None:
        for name, task in self.left.items():
            if name in self.running or any(other in self.left for other in task.after):
                continue
            room = dict(self.free)
            nodes = []
            for _ in range(task.pods):
                fits = [node for node in room if node.startswith(task.pool) and room[node] >= task.gpus]
                if not fits:
                    break
                nodes.append(min(fits, key=lambda node: room[node]))
                room[nodes[-1]] -= task.gpus
            if len(nodes) == task.pods:
                self.free, task.nodes, task.began = room, nodes, self.now
                self.running[name] = task

    def _release(self, task: Task) -> None:
        for node in task.nodes:
            self.free[node] += task.gpus

    def _lose(self, chance: random.Random) -> None:
        at_work = {node for task in self.running.values() for node in task.nodes}
        victim = chance.choice(sorted(at_work if self.spares_idle else self.free))
        for name in [name for name, task in self.running.items() if victim in task.nodes]:
            task = self.running.pop(name)
            self._release(task)
            if self.kind in (TRENCHCOAT, ARGO_RESUMES):
                ran = self.now - task.began
                task.done += ran // CHECKPOINT_SECONDS * CHECKPOINT_SECONDS
        self.gone.append((self.now + BACK_AFTER * self.bound, victim, self.free.pop(victim)))


def ratios(durations: Durations, kind: str, gpus: int, *, spares_idle: bool) -> list[float]:
    """How many times as long as this operator's run, seed by seed."""
    bound, found = durations.bound(gpus), []
    for seed in range(SEEDS):
        when = [at * bound for at in losses(gpus, bound, seed)]
        took = {
            one: Reckoned(durations, one, gpus, spares_idle=spares_idle).seconds(
                when, random.Random(f"victims {gpus} {seed}")
            )
            for one in (TRENCHCOAT, kind)
        }
        found.append(took[kind] / took[TRENCHCOAT])
    return found


def main() -> None:
    """Print the table."""
    durations = Durations.planned()
    head = ["nodes that vanish", "GPUs for Crias", "rival", "undisturbed", "mean", "lower quartile"]
    head += ["median", "upper quartile", "1.3 or more"]
    print("| " + " | ".join(head) + " |\n" + "|" + "---|" * len(head))
    for spares_idle in (True, False):
        for gpus in POOLS:
            for kind in (RIVAL, ARGO):
                calm = Reckoned(durations, kind, gpus).seconds([], random.Random()) / durations.bound(gpus)
                found = ratios(durations, kind, gpus, spares_idle=spares_idle)
                share = sum(ratio >= 1.3 for ratio in found) / len(found)
                numbers = [calm, statistics.mean(found), *statistics.quantiles(found, n=4)]
                cells = ["at work" if spares_idle else "any", f"{gpus}", kind]
                cells += [*(f"{number:.3f}" for number in numbers), f"{share:.0%}"]
                print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
