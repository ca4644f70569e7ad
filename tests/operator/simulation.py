"""A cluster and a store that do what plans say, in plain values: the world of property and crash tests.

What Trenchcoats see of one another goes through the operator's own code (`surroundings`); only the API
server, the scheduler, the pods and the store are played.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import yaml
from trenchcoat_api import constants
from trenchcoat_api.artifacts import Artifact, Deletion, DeletionPhase, Manifest
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import ConditionType
from trenchcoat_operator.model import plan as plans
from trenchcoat_operator.model import views
from trenchcoat_operator.model.capacity import BoundPod, Capacity, Demand, Node
from trenchcoat_operator.model.observed import Child, ChildKind, ChildPhase, Observed, Pod, StoreView
from trenchcoat_operator.model.plan import Plan
from trenchcoat_operator.observe import kept, peers, surroundings
from trenchcoat_operator.reconcile.decide import reconcile
from trenchcoat_operator.works import graph, superseded

from tests.operator import world

BASE = yaml.safe_load((world.Path(__file__).parent / "reconcile" / "data" / "trenchcoat.yaml").read_text())
GPU = "nvidia.com/gpu"


def trenchcoat(name: str = "tiny", *, minutes: int = 0, **spec: Any) -> Trenchcoat:
    """A Trenchcoat that was made some minutes after the base."""
    created = datetime.fromisoformat(BASE["metadata"]["creationTimestamp"]) + timedelta(minutes=minutes)
    metadata = {"name": name, "uid": f"uid-of-{name}", "creationTimestamp": created.isoformat()}
    return Trenchcoat.from_object(world.merged(BASE, {"metadata": metadata, "spec": spec}))


def takes_gpu(child: Child) -> bool:
    return child.stage in (Stage.SELECT, Stage.CRIA, Stage.EVALUATE)


@dataclass
class Cluster:
    """Some Trenchcoats, nodes with GPUs, Jobs, and one store."""

    tenants: dict[str, Trenchcoat]
    gpus: list[int]
    now: datetime = world.NOW
    children: dict[str, Child] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    """Trenchcoat of each child."""
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Pods of each child, and GPUs of each pod."""
    places: dict[str, list[int]] = field(default_factory=dict)
    """Nodes that pods of children are bound to."""
    config_maps: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    services: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    manifests: dict[str, Manifest] = field(default_factory=dict)
    deletions: dict[str, Deletion] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)
    """Content keys of artifacts that have objects."""
    made: list[str] = field(default_factory=list)
    """Content keys that Jobs were made for."""
    time_to_live: bool = False
    """Whether a policy has Jobs deleted as soon as they have ended."""
    quota: int | None = None
    """GPUs that the API server lets pods of all Trenchcoats have."""
    foreign: Counter[int] = field(default_factory=Counter)
    """GPUs that others' pods hold, by node."""
    told: list[str] = field(default_factory=list)
    """Identities of events."""
    asked: dict[str, Artifact] = field(default_factory=dict)
    """All artifacts that any spec ever asked for, by content key."""
    known: dict[int, tuple[TrenchcoatSpec, list[Artifact]]] = field(default_factory=dict, repr=False)
    """Each spec by its identity, and the artifacts that it can ask for, whose keys take long to compute."""

    @classmethod
    def one(cls, tenant: Trenchcoat, gpus: list[int]) -> Cluster:
        return cls({tenant.metadata.name: tenant}, gpus)

    @property
    def trenchcoat(self) -> Trenchcoat:
        (only,) = self.tenants.values()
        return only

    @trenchcoat.setter
    def trenchcoat(self, tenant: Trenchcoat) -> None:
        self.tenants = {tenant.metadata.name: tenant}

    @property
    def artifacts(self) -> dict[str, Artifact]:
        for tenant in self.tenants.values():
            self.asked |= {item.key: item for item in self._artifacts_of(tenant)}
        return self.asked

    def _artifacts_of(self, tenant: Trenchcoat) -> list[Artifact]:
        spec = tenant.spec
        if id(spec) not in self.known:
            # The spec is kept with them: another may not get its identity.
            self.known[id(spec)] = spec, list(world.artifacts_of(spec).values())
        return self.known[id(spec)][1]

    def change(self, name: str, **spec: Any) -> None:
        """Change a spec, as a user does."""
        tenant = self.tenants[name]
        assert self.artifacts
        body = world.merged(tenant.to_object(), {"spec": spec})
        body["metadata"]["generation"] = tenant.metadata.generation + 1
        self.tenants[name] = Trenchcoat.from_object(body)

    def delete(self, name: str) -> None:
        """Delete a Trenchcoat, as a user does; without finalizers it and its children are gone at once."""
        tenant = self.tenants[name]
        if tenant.metadata.finalizers:
            metadata = tenant.metadata.model_copy(update={"deletion_timestamp": self.now.isoformat()})
            self.tenants[name] = tenant.model_copy(update={"metadata": metadata})
        else:
            self._gone(name)

    def _gone(self, name: str) -> None:
        del self.tenants[name]
        for child in [child for child, owner in self.owners.items() if owner == name]:
            self._remove(child)

    def _remove(self, name: str) -> None:
        self.children.pop(name)
        self.owners.pop(name)
        self.places.pop(name, None)

    # What is seen

    def observed(self, name: str = "") -> Observed:
        tenant = self.tenants[name] if name else self.trenchcoat
        own = tenant.metadata.name
        store = self._store(tenant)
        jobs = [self._job(child) for child in self.children.values() if child.active]
        others = [kept.Tenant.of(other) for other in self.tenants.values() if other.metadata.name != own]
        return Observed(
            children=tuple(child for child in self.children.values() if self.owners[child.name] == own),
            config_maps=frozenset(self.config_maps[own]),
            services=frozenset(self.services[own]),
            store=store,
            capacity=self._capacity(others),
            peers=peers.peers(tenant, store.told, jobs, others),
        )

    def _store(self, tenant: Trenchcoat) -> StoreView:
        wanted = [graph.Work(artifact, ()) for artifact in self._artifacts_of(tenant)]
        former = superseded.works(tenant, graph.Graph(tuple(wanted)))
        keys = {work.key for work in (*wanted, *former)}
        manifests = {key: item for key, item in self.manifests.items() if key in keys}
        deletions = {
            key: item for key, item in self.deletions.items() if key in keys and key not in manifests
        }
        remains = frozenset(keys & (self.objects | set(self.deletions)))
        return StoreView(None, manifests, {}, deletions, remains)

    def _job(self, child: Child) -> kept.Job:
        owner = self.owners[child.name]
        return kept.Job(
            child=child,
            place=("ml", child.name),
            uid=f"uid-of-{child.name}",
            owner=("ml", owner),
            owners=frozenset({f"uid-of-{owner}"}),
            queued=False,
            over=0,
            templates=(),
        )

    def _capacity(self, others: list[kept.Tenant]) -> Capacity:
        bound, promised = [], []
        held: defaultdict[tuple[str, str], Counter[Stage]] = defaultdict(Counter)
        gpus: Counter[tuple[str, str]] = Counter()
        for child in self.children.values():
            pods, each = self.sizes[child.name]
            if not child.active or not each:
                continue
            places = self.places.get(child.name, [])
            bound += [BoundPod(f"n{node}", {GPU: each}, ours=True) for node in places]
            if pods > len(places):
                promised.append(Demand(GPU, pods - len(places), each, owner=f"ml/{child.name}"))
            held["ml", self.owners[child.name]][child.stage] += 1
            gpus["ml", self.owners[child.name]] += pods * each
        bound += [BoundPod(f"n{node}", {GPU: count}) for node, count in self.foreign.items()]
        return Capacity(
            nodes=tuple(Node(f"n{number}", {GPU: count}) for number, count in enumerate(self.gpus)),
            bound=tuple(bound),
            promised=tuple(promised),
            contenders=tuple(surroundings.contenders(others, held, gpus)),
        )

    # What is done

    def plan(self, name: str = "") -> Plan:
        tenant = self.tenants[name] if name else self.trenchcoat
        return reconcile(tenant, self.observed(name), world.SETTINGS, self.now)

    def carry_out(self, plan: Plan, name: str = "") -> None:
        for effect in self.effects(plan, name or self.trenchcoat.metadata.name):
            effect()

    def effects(self, plan: Plan, name: str) -> Iterator[Callable[[], None]]:
        """What the operator writes for a plan, one by one and in its order."""
        for action in plan.actions:
            yield lambda action=action: self._act(action, name)  # type: ignore[misc]
        for event in plan.events:
            if event.identity in self.told:
                continue  # the API server has it: a conflict writes nothing
            yield lambda event=event: self.told.append(event.identity)  # type: ignore[misc]
        if name in self.tenants and plan.status != self.tenants[name].status:
            yield lambda: self._write_status(plan, name)

    def _write_status(self, plan: Plan, name: str) -> None:
        if name in self.tenants:
            self.tenants[name] = self.tenants[name].model_copy(update={"status": plan.status})

    def _act(self, action: plans.Action, name: str) -> None:
        match action:
            case plans.Apply(manifest=body) if body["kind"] == "ConfigMap":
                self.config_maps[name].add(body["metadata"]["name"])
            case plans.Apply(manifest=body) if body["kind"] == "Service":
                self.services[name].add(body["metadata"]["name"])
            case plans.Apply(manifest=body):
                self._make(body, name)
            case plans.Delete(kind="ConfigMap", name=other):
                self.config_maps[name].discard(other)
            case plans.Delete(kind="Service", name=other):
                self.services[name].discard(other)
            case plans.Delete(name=child):
                self._remove(child)
            case plans.RecordOutcome(name=child, outcome=outcome, message=message, saved=saved):
                ended = self.children[child].phase
                assert ended is not ChildPhase.SUCCEEDED, f"{child} left a manifest: {message}"
                self.children[child] = replace(
                    self.children[child], outcome=outcome, outcome_message=message, saved=saved
                )
            case plans.Keep(name=child):
                self.children[child] = replace(self.children[child], expires=False, kept=True)
            case plans.Stop(name=child):
                self.children[child] = replace(
                    self.children[child], stopped=True, phase=ChildPhase.FAILED, pods=(), finished_at=self.now
                )
                self.places.pop(child, None)
            case plans.SetFinalizer(present=present):
                self._set_finalizer(name, present)
            case plans.Condemn(artifact=artifact, manifest=manifest):
                self._note(artifact, manifest, DeletionPhase.CONDEMNED)
                self.manifests.pop(artifact.key, None)
            case plans.Restore(artifact=artifact, manifest=manifest):
                if manifest is not None:
                    self.manifests[artifact.key] = manifest
                del self.deletions[artifact.key]
            case plans.Purge(artifact=artifact, manifest=manifest):
                self._purge(artifact, manifest)
            case plans.Forget(artifact=artifact):
                del self.deletions[artifact.key]
            case _:
                raise AssertionError(f"nothing here needs {action}")

    def _make(self, body: dict[str, Any], name: str) -> None:
        assert body["metadata"]["name"] not in self.children, "a name is used once"
        kind = ChildKind(body["kind"])
        child = views.child(kind, body, self.tenants[name].metadata.uid, ())
        assert child is not None
        at_work = [other for other in self.children.values() if other.active and other.key == child.key]
        assert not at_work, "an artifact is made by one Job at a time"
        assert child.key not in self.manifests, "nothing is made that is there"
        templates = views.templates(kind, body)
        pods = sum(count for count, _ in templates)
        self.sizes[child.name] = pods, views.extended_requests(templates[0][1]).get(GPU, 0)
        self.children[child.name] = replace(child, created_at=self.now, expires=self.time_to_live)
        self.owners[child.name] = name
        self.made.append(child.key)

    def _set_finalizer(self, name: str, present: bool) -> None:
        tenant = self.tenants[name]
        finalizers = [constants.FINALIZER] if present else []
        metadata = tenant.metadata.model_copy(update={"finalizers": finalizers})
        self.tenants[name] = tenant.model_copy(update={"metadata": metadata})
        if not present and metadata.deletion_timestamp:
            self._gone(name)

    def _note(self, artifact: Artifact, manifest: Manifest | None, phase: DeletionPhase) -> None:
        self.deletions[artifact.key] = Deletion(phase=phase, manifest=manifest, updated_at=self.now)

    def _purge(self, artifact: Artifact, manifest: Manifest | None) -> None:
        at_work = [child for child in self.children.values() if child.active and child.key == artifact.key]
        assert not at_work, "nothing is deleted that is being made"
        reading = [
            child
            for child in self.children.values()
            if child.active and artifact.key in (self.artifacts[child.key].inputs)
        ]
        assert not reading, "nothing is deleted that is being read"
        # Half of it at the first call, as a store with many objects would have it.
        if self.deletions[artifact.key].phase is DeletionPhase.CONDEMNED:
            self._note(artifact, manifest, DeletionPhase.PURGING)
        else:
            self.objects.discard(artifact.key)
            self._note(artifact, manifest, DeletionPhase.PURGED)

    # What happens by itself

    def schedule(self) -> None:
        """The scheduler: pods start one by one where GPUs are free; one without a place stays Pending."""
        left = [count - self.foreign[number] for number, count in enumerate(self.gpus)]
        for name, places in self.places.items():
            for node in places:
                left[node] -= self.sizes[name][1]
        for name in sorted(self.children):
            child = self.children[name]
            if not child.active or (child.running and not child.pods[-1].unschedulable):
                continue
            if self._refuses(child):
                continue
            pods, each = self.sizes[name]
            places = self.places.setdefault(name, []) if each else []
            for _ in range(pods - len(places) if each else 0):
                free = [number for number, count in enumerate(left) if count >= each]
                if not free:
                    # The scheduler may place pods of several GPUs otherwise than was thought; else what was
                    # made finds its place, unless it was made before this test, when there were more GPUs.
                    whole = all(size <= 1 for _, size in self.sizes.values())
                    expected = child.expects_nodes or not whole or child.key not in self.made
                    assert expected, f"no GPU is free for {name}"
                    self.leave_pending(name)
                    break
                node = min(free, key=lambda number: left[number])
                places.append(node)
                left[node] -= each
            if len(places) == pods or not each:
                node = places[0] if places else 0
                running = tuple(
                    Pod(
                        name=f"{name}-{number}",
                        phase="Running",
                        node=f"n{node}",
                        started_at=self.now,
                        extended={GPU: each} if each else {},
                    )
                    for number in range(pods)
                )
                self.children[name] = replace(child, pods=running)

    def _refuses(self, child: Child) -> bool:
        """Whether a quota lets a child's pods not be made; it says so to its controller."""
        held = sum(len(places) * self.sizes[name][1] for name, places in self.places.items())
        pods, each = self.sizes[child.name]
        refused = self.quota is not None and not child.pods and held + pods * each > self.quota
        said = "forbidden: exceeded quota: gpus" if refused else ""
        self.children[child.name] = replace(child, refusal=said)
        return refused

    def leave_pending(self, name: str) -> None:
        """Let the pods of a child that found no node say so; the others run."""
        pods, _ = self.sizes[name]
        placed = len(self.places.get(name, []))
        former = {pod.name: pod.unschedulable_since for pod in self.children[name].pods}
        self.children[name] = replace(
            self.children[name],
            pods=tuple(
                Pod(
                    name=f"{name}-{number}",
                    phase="Running",
                    node=f"n{self.places[name][number]}",
                    started_at=self.now,
                )
                if number < placed
                else Pod(
                    name=f"{name}-{number}",
                    phase="Pending",
                    unschedulable="0/2 nodes are available: 2 Insufficient nvidia.com/gpu.",
                    unschedulable_since=former.get(f"{name}-{number}") or self.now,
                )
                for number in range(pods)
            ),
        )

    def end(self, name: str, phase: ChildPhase, exit_code: int = 0) -> None:
        child = self.children[name]
        if phase is ChildPhase.SUCCEEDED:
            artifact = self.artifacts[child.key]
            for key in artifact.inputs:
                assert key in self.manifests, "a stage finds its inputs"
            self.manifests[child.key] = world.manifest(artifact)
        self.objects.add(child.key)
        pods = tuple(
            replace(pod, phase=phase.value, exit_code=exit_code, finished_at=self.now) for pod in child.pods
        )
        self.children[name] = replace(child, phase=phase, finished_at=self.now, pods=pods)
        if child.expires:
            del self.children[name]
        self.places.pop(name, None)

    def turn_away(self, name: str, reason: str, message: str) -> None:
        """Let the kubelet end or refuse a child's pods, in its words."""
        child = self.children[name]
        self.objects.add(child.key)
        pods = tuple(
            replace(pod, phase="Failed", reason=reason, message=message, started_at=None)
            for pod in child.pods
        )
        self.children[name] = replace(child, phase=ChildPhase.FAILED, finished_at=self.now, pods=pods)
        self.places.pop(name, None)

    def end_stage(self, name: str, exit_code: int = 0) -> None:
        """Let the stage's containers end in pods with a sidecar that goes on: the Job knows of no end."""
        child = self.children[name]
        if not exit_code:
            self.manifests[child.key] = world.manifest(self.artifacts[child.key])
        self.objects.add(child.key)
        pods = tuple(
            replace(pod, exit_code=exit_code, ended_at=self.now, beside=("proxy",)) for pod in child.pods
        )
        self.children[name] = replace(child, pods=pods)

    def active(self) -> list[str]:
        return sorted(name for name, child in self.children.items() if child.active)

    def running(self) -> list[str]:
        return [
            name
            for name in self.active()
            if self.children[name].running
            and not self.children[name].pods[-1].unschedulable
            and self.children[name].pods[-1].exit_code is None
        ]


TURNED_AWAY = (
    ("UnexpectedAdmissionError", "Allocate failed due to no healthy devices present"),
    ("OutOfcpu", "Node didn't have enough resource: cpu"),
    ("Evicted", "The node had condition: [DiskPressure]. "),
    ("Evicted", "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. "),
)
"""Reasons and messages of kubelets."""


def run(
    cluster: Cluster,
    luck: random.Random,
    fail: float = 0.0,
    rounds: int = 300,
    sidecars: float = 0.0,
    turned_away: float = 0.0,
) -> None:
    """Let the loop run until nothing more happens; Jobs end in any order.

    Args:
        cluster: The cluster.
        luck: Decides.
        fail: Share of the Jobs that fail.
        rounds: How often it may look.
        sidecars: Share of the Jobs whose stage ends and whose pods do not.
        turned_away: Share of the Jobs whose pods a kubelet evicts or refuses.
    """
    for _ in range(rounds):
        waits = [settle(cluster, name) for name in luck.sample(sorted(cluster.tenants), len(cluster.tenants))]
        cluster.schedule()
        running = cluster.running()
        if running:
            for name in luck.sample(running, luck.randint(1, len(running))):
                if luck.random() < sidecars:
                    cluster.end_stage(name, luck.choice([1, 75, 69]) if luck.random() < fail else 0)
                elif luck.random() < turned_away:
                    cluster.turn_away(name, *luck.choice(TURNED_AWAY))
                elif luck.random() < fail:
                    cluster.end(name, ChildPhase.FAILED, luck.choice([1, 75, 69]))
                else:
                    cluster.end(name, ChildPhase.SUCCEEDED)
        elif all(wait is None for wait in waits):
            return
        cluster.now += timedelta(seconds=30)
    raise AssertionError("it comes to no end")


def settle(cluster: Cluster, name: str) -> float | None:
    """Carry out plans of a Trenchcoat until one asks for nothing; returns when to look again."""
    for _ in range(12):
        if name not in cluster.tenants:
            return None
        deleting = cluster.tenants[name].metadata.deletion_timestamp
        plan = cluster.plan(name)
        cluster.carry_out(plan, name)
        # A store's steps follow one another, and what is taken away leaves room for what waited.
        goes_on = cluster.time_to_live or any(
            isinstance(action, plans.StoreAction | plans.Delete | plans.Stop) for action in plan.actions
        )
        if not plan.actions or not (deleting or goes_on):
            break
    if name not in cluster.tenants:
        return None
    again = cluster.plan(name)
    assert again.actions == (), f"a plan that was carried out is done with: {again.actions}"
    if not plan.actions:  # of what they change it is woken
        assert again.status == plan.status, "a status that was written is not looked at again"
    return plan.look_again


def succeeded(tenant: Trenchcoat) -> bool:
    conditions = {item.type: item.status for item in tenant.status.conditions}
    return conditions.get(ConditionType.SUCCEEDED) == "True"
