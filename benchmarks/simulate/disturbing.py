"""What happens to every arm alike: spot nodes vanish, and other tenants come and go."""

from __future__ import annotations

import math
import random
import threading
import time

from arms import NODE_GPUS, job
from cluster import Cluster
from durations import GANG_NODES, GPUS_PER_NODE
from kubernetes import client
from playing import Player, Script

DAY = 24 * 3600
LOST_A_DAY = 0.2
"""Share of the nodes."""
BACK_AFTER = 0.02
"""When another takes a lost node's place, in parts of the bound."""
TENANTS_LOAD = 0.35
"""GPUs that tenants ask for at once, in parts of a pool's."""
TENANTS_HOLD = 0.1
"""How long one stays at the mean, in parts of the bound."""
LONGEST = 2.5
"""Until when there are losses and tenants, in parts of the bound."""


def losses(gpus: int, bound: float, seed: int) -> list[float]:
    """When nodes vanish, in parts of the bound: a fifth of them a day, at least one a run, evenly spread."""
    nodes = GANG_NODES + math.ceil(gpus / NODE_GPUS)
    a_run = max(1, round(LOST_A_DAY * nodes * bound / DAY))
    chance = random.Random(f"losses {gpus} {seed}")
    count = math.ceil(a_run * LONGEST)
    return [(number + chance.random()) / a_run for number in range(count)]


def tenants(gpus: int, seed: int) -> list[tuple[float, str, int, float]]:
    """When tenants come, to which pool, with how many GPUs and for how long, in parts of the bound."""
    chance = random.Random(f"tenants {gpus} {seed}")
    coming = []
    pools = {"gang": (GANG_NODES * GPUS_PER_NODE, GPUS_PER_NODE), "crias": (gpus, min(NODE_GPUS, gpus))}
    for pool, (size, most) in pools.items():
        at, rate = 0.0, TENANTS_LOAD * size / TENANTS_HOLD / ((1 + most) / 2 if pool == "crias" else most)
        while (at := at + chance.expovariate(rate)) < LONGEST:
            wanted = most if pool == "gang" else chance.randint(1, most)
            coming.append((at, pool, wanted, chance.expovariate(1 / TENANTS_HOLD)))
    return sorted(coming)


class Disturber:
    """Disturbs one arm from its start to its end."""

    def __init__(self, made: Cluster, player: Player, script: Script, seed: int) -> None:
        self._made, self._player, self._script, self._arm = made, player, script, script.arm
        self._seed = seed
        self._stopped = threading.Event()
        self.taken: list[tuple[float, str]] = []
        """When a node vanished, in seconds since the start, and which."""
        self.fault: BaseException | None = None
        self._began = time.monotonic()
        for target in (self._lose, self._let_tenants):
            threading.Thread(target=self._guarded, args=(target,), daemon=True).start()

    def stop(self) -> None:
        """Let nothing more happen."""
        self._stopped.set()

    def _guarded(self, target: object) -> None:
        try:
            target()  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001  (the thread's end is the benchmark's)
            if not self._stopped.is_set():
                self.fault = error

    def _wait_until(self, share: float) -> bool:
        """Whether the arm still runs then."""
        left = self._began + share * self._arm.seconds - time.monotonic()
        return not self._stopped.wait(max(0.0, left))

    def _lose(self) -> None:
        arm, chance = self._arm, random.Random(f"victims {self._arm.gpus} {self._seed}")
        for number, at in enumerate(losses(arm.gpus, arm.bound, self._seed)):
            if not self._wait_until(at):
                return
            while not (busy := self._player.nodes_at_work(arm)):
                if self._stopped.wait(0.1):
                    return
            victim = chance.choice(busy)
            pool, gpus = arm.nodes.pop(victim)
            self._player.take_node(arm, victim)
            self.taken.append((time.monotonic() - self._began, victim))
            if self._stopped.wait(BACK_AFTER * arm.seconds):
                return
            arm.add_node(self._made, f"{arm.name}-{pool}-again-{number}", pool, gpus)

    def _let_tenants(self) -> None:
        batch = client.BatchV1Api(self._made.plane.api)
        for number, (at, pool, gpus, hold) in enumerate(tenants(self._arm.gpus, self._seed)):
            if not self._wait_until(at):
                return
            name = f"tenant-{number}"
            self._script.tenants[name] = (hold * self._arm.seconds, gpus, pool)
            batch.create_namespaced_job(self._arm.name, job(self._arm, name, pool, gpus, queue="tenants"))
