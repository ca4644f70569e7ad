"""A world to decide about, written as YAML: what stands in it is what the API server and the store would say.

Content keys are hashes, so files name them by artifact: KEY[cria-02] is the key, KEY8[cria-02] the part
of it that stands in names; SPEC[now] and TEMPLATE[cria-02] are hashes of the spec's ConfigMap and of pods.
"""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from trenchcoat_api import phases
from trenchcoat_api.artifacts import (
    Artifact,
    Artifacts,
    DataFacts,
    Deletion,
    DeletionPhase,
    Facts,
    Manifest,
    ModelFacts,
    Progress,
    StoredObject,
)
from trenchcoat_api.boundaries import with_boundaries
from trenchcoat_api.crias import CriaRange, cria_ranges
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.results import Evaluation, Perplexity, Recall
from trenchcoat_api.selection import Selection
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_operator.apply.applier import status_object
from trenchcoat_operator.children import jobs, names, rendezvous, specs
from trenchcoat_operator.model import sayings, views, workloads
from trenchcoat_operator.model.capacity import Capacity, Contender, Demand
from trenchcoat_operator.model.observed import Child, ChildKind, Observed, Peers, Problem, StoreView
from trenchcoat_operator.model.plan import (
    Apply,
    Condemn,
    Delete,
    ForcePod,
    Forget,
    Keep,
    Plan,
    Purge,
    RecordOutcome,
    Restore,
    SetFinalizer,
    Stop,
)
from trenchcoat_operator.settings import PodDefaults, Settings
from trenchcoat_operator.works import graph

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
LAYERS = 12
read_yaml = partial(yaml.load, Loader=yaml.CSafeLoader)
"""By libyaml: there are a hundred cases, which several files of tests read."""
SETTINGS = Settings(pods=PodDefaults(image="trainer:1"))


def model_facts(layers: int = LAYERS) -> ModelFacts:
    return ModelFacts(
        layers=layers,
        hidden_size=64,
        heads=4,
        kv_heads=2,
        head_dim=16,
        intermediate_size=128,
        vocab_size=1000,
        parameters=1_000_000,
    )


def crias_of(spec: TrenchcoatSpec, layers: int = LAYERS) -> list[CriaRange]:
    try:
        return cria_ranges(layers, spec.layers_per_cria)
    except ValueError:
        return []


def artifacts_of(spec: TrenchcoatSpec, layers: int = LAYERS) -> dict[str, Artifact]:
    """All artifacts that a spec can ask for, by name; evaluate-without is that without an adapted teacher."""
    all_of_them = spec.model_copy(
        update={
            "evaluate": spec.evaluate.model_copy(update={"enabled": True}),
            "export": spec.export.model_copy(update={"enabled": True}),
        }
    )
    crias = crias_of(spec, layers)
    artifacts = Artifacts(all_of_them)
    found = with_boundaries(all_of_them, artifacts, crias) if crias else artifacts.before_crias
    result = {artifact.name: artifact for artifact in found}
    if crias and phases.may_go_without(all_of_them):
        result["evaluate-without"] = Artifacts(phases.without_adapted_teacher(all_of_them)).evaluate(crias)
    return result


def manifest(artifact: Artifact, layers: int = LAYERS) -> Manifest:
    """What a stage's program would have written."""
    facts = Facts()
    if artifact.stage is Stage.TOKENIZE:
        facts = Facts(
            model=model_facts(layers),
            data=DataFacts(
                documents=10, sequences=100, tokens=51_200, held_out_documents=1, held_out_sequences=4
            ),
        )
    if artifact.stage is Stage.CRIA:
        errors = {str(layer): "0.12" for layer in artifact.cria.layers} if artifact.cria else {}
        facts = Facts(losses={"transfer": "0.10", "lora": "0.05"}, curve=["0.9", "0.1"], layer_errors=errors)
    if artifact.stage is Stage.SELECT:
        facts = Facts(selection=Selection(layers=[3, 7], scores=["0.10"] * layers))
    if artifact.stage is Stage.EVALUATE:
        facts = Facts(
            perplexities=[
                Perplexity(name="teacher", perplexity="3.20"),
                Perplexity(name="stitched", perplexity="3.40", longer={"1024": "3.90"}),
            ],
            evaluation=Evaluation(
                sequence_length=512,
                recall=[Recall(probe="copy", distance=256, samples=32, shares={"stitched": "0.1"})],
            ),
        )
    return Manifest(
        stage=artifact.stage,
        cria=artifact.cria.index if artifact.cria else None,
        key=artifact.key,
        inputs=list(artifact.inputs),
        objects=[StoredObject(path="data", size=1000, sha256="0" * 64)],
        facts=facts,
        started_at=NOW - timedelta(minutes=10),
        completed_at=NOW - timedelta(minutes=5),
        seconds=300,
    )


def manifests_before_crias(spec: TrenchcoatSpec) -> dict[str, Manifest]:
    """Manifests, by content key, of all that a Cria needs, select if asked for among them."""
    needed = (Stage.TOKENIZE, Stage.COLLECT, Stage.SHARD, Stage.SELECT)
    return {item.key: manifest(item) for item in artifacts_of(spec).values() if item.stage in needed}


def child_of(trenchcoat: Trenchcoat, work: graph.Work, **changes: Any) -> Child:
    """The first try of a work, as it was made; `changes` are fields that differ."""
    made = Child(
        kind=jobs.kind(trenchcoat.spec, work),
        name=names.child_name(trenchcoat.metadata.name, work.artifact, 1),
        stage=work.stage,
        cria=work.artifact.cria.index if work.artifact.cria else None,
        gang=jobs.kind(trenchcoat.spec, work) is ChildKind.PYTORCH_JOB or work.pods > 1,
        key=work.key,
        attempt=1,
        spec_name=specs.spec_name(trenchcoat),
        template=jobs.template_hash(trenchcoat, work, SETTINGS.pods),
        owned=True,
        created_at=NOW,
    )
    return replace(made, **changes)


class World:
    """One Trenchcoat and all that is to be seen of it."""

    def __init__(self, trenchcoat: Trenchcoat, seen: dict[str, Any]) -> None:
        self.trenchcoat = trenchcoat
        self.now = datetime.fromisoformat(seen["now"]) if "now" in seen else NOW
        self.layers = seen.get("layers", LAYERS)
        self.artifacts = artifacts_of(trenchcoat.spec, self.layers)
        self._codes = {artifact.key: name for name, artifact in self.artifacts.items()}
        text = yaml.safe_dump(seen, sort_keys=False)
        self.seen: dict[str, Any] = read_yaml(self.decode(text))

    def decode(self, text: str) -> str:
        """Put hashes where a file names them."""
        text = re.sub(r"KEY\[([\w-]+)\]", lambda found: self.artifacts[found[1]].key, text)
        text = re.sub(r"KEY8\[([\w-]+)\]", lambda found: self.artifacts[found[1]].key[:8], text)
        text = text.replace("SPEC[now]", specs.spec_name(self.trenchcoat).rpartition("-")[2])
        text = text.replace("RANKS[uid]", rendezvous.service_name(self.trenchcoat).rpartition("-")[2])
        return re.sub(r"TEMPLATE\[([\w-]+)\]", lambda found: self._templates()[found[1]], text)

    def encode(self, text: str) -> str:
        """Put names where hashes stand."""
        for key, name in self._codes.items():
            text = text.replace(key, f"KEY[{name}]").replace(key[:8], f"KEY8[{name}]")
        text = text.replace(specs.spec_name(self.trenchcoat).rpartition("-")[2], "SPEC[now]")
        text = text.replace(rendezvous.service_name(self.trenchcoat).rpartition("-")[2], "RANKS[uid]")
        for name, digest in self._templates().items():
            text = text.replace(digest, f"TEMPLATE[{name}]")
        return text

    def _templates(self) -> dict[str, str]:
        manifests = {a.key: manifest(a, self.layers) for a in self.artifacts.values()}
        return {
            self._codes[work.key]: jobs.template_hash(self.trenchcoat, work, SETTINGS.pods)
            for work in graph.possible(self.trenchcoat.spec, manifests)
        }

    @property
    def observed(self) -> Observed:
        seen, uid = self.seen, self.trenchcoat.metadata.uid
        pods: dict[str, list[Any]] = {}
        for body in seen.get("pods", []):
            pod = views.pod(body)
            said = sayings.by_autoscalers(_events_of(seen, pod.name)) if pod.waits_for_node else ""
            pods.setdefault(views.controller(body), []).append(replace(pod, autoscaler=said))
        queued = {workloads.job_uid(body): workloads.queued(body) for body in seen.get("workloads", [])}
        children = []
        for body in seen.get("children", []):
            child = views.child(
                ChildKind(body["kind"]),
                body,
                uid,
                pods.get(body["metadata"]["name"], []),
                queued.get(body["metadata"].get("uid", "")),
            )
            assert child is not None, f"{body['metadata']['name']} carries no stage"
            room_by = views.moment(seen.get("roomBy", {}).get(child.name))
            refusal = seen.get("refusals", {}).get(child.name, "")
            children.append(replace(child, room_by=room_by, refusal=refusal))
        return Observed(
            children=tuple(children),
            config_maps=frozenset(seen.get("configMaps", [])),
            services=frozenset(seen.get("services", [])),
            store=self._store(),
            capacity=self._capacity(),
            peers=self._peers(),
            training_operator=seen.get("trainingOperator", True),
            kueue=seen.get("kueue", True),
        )

    def _store(self) -> StoreView:
        seen = self.seen.get("store", {})
        complete = [self.artifacts[name] for name in seen.get("complete", [])]
        progress = {
            self.artifacts[name].key: Progress(
                stage=self.artifacts[name].stage,
                key=self.artifacts[name].key,
                updated_at=self.now,
                **report,
            )
            for name, report in seen.get("progress", {}).items()
        }
        problem = Problem(**seen["problem"]) if "problem" in seen else None
        manifests = {artifact.key: manifest(artifact, self.layers) for artifact in complete}
        deletions = {
            self.artifacts[name].key: Deletion(
                phase=DeletionPhase(phase),
                manifest=manifest(self.artifacts[name], self.layers),
                updated_at=NOW,
            )
            for name, phase in seen.get("deletions", {}).items()
        }
        remains = frozenset(self.artifacts[name].key for name in seen.get("remains", []))
        return StoreView(problem, manifests, progress, deletions, remains)

    def _peers(self) -> Peers | None:
        seen = self.seen.get("peers", {})
        return None if seen is None else Peers(**seen)

    def _capacity(self) -> Capacity | None:
        seen = self.seen.get("capacity")
        if seen is None:
            return None
        bound = [views.bound_pod(body) for body in seen.get("pods", [])]
        return Capacity(
            known=seen.get("known", True),
            nodes=tuple(views.node(body) for body in seen.get("nodes", [])),
            bound=tuple(pod for pod in bound if pod is not None),
            promised=tuple(_demand(demand) for demand in seen.get("promised", [])),
            contenders=tuple(
                Contender(
                    item["name"],
                    datetime.fromisoformat(item["createdAt"]),
                    item["held"],
                    _demand(item["demand"]),
                    item.get("gang", False),
                    datetime.fromisoformat(item["since"]) if "since" in item else None,
                )
                for item in seen.get("contenders", [])
            ),
        )


def _events_of(seen: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [event for event in seen.get("events", []) if event["involvedObject"]["name"] == name]


def _demand(seen: dict[str, Any]) -> Demand:
    placement = views.placement(seen.get("pod", {}))
    return Demand(**{"placement": placement, **{k: v for k, v in seen.items() if k != "pod"}})


def load(folder: Path) -> World:
    """Read a case."""
    base = read_yaml((folder.parent / "trenchcoat.yaml").read_text())
    change = folder / "trenchcoat.yaml"
    body = merged(base, read_yaml(change.read_text())) if change.exists() else base
    seen = read_yaml((folder / "observed.yaml").read_text()) or {}
    # The status may name artifacts too, whose keys the spec alone decides.
    world = World(Trenchcoat.from_object({k: v for k, v in body.items() if k != "status"}), seen)
    if "status" in body:
        text = world.decode(yaml.safe_dump(body["status"], sort_keys=False))
        with_status = Trenchcoat.from_object({**body, "status": read_yaml(text)})
        world.trenchcoat = with_status
    return world


def merged(base: Any, change: Any) -> Any:
    """Lay one YAML document over another."""
    if isinstance(base, dict) and isinstance(change, dict):
        return {
            key: merged(base.get(key), change[key]) if key in change else base[key]
            for key in [*base, *(key for key in change if key not in base)]
        }
    return change


def plan_document(plan: Plan) -> dict[str, Any]:
    """A plan as it stands in a file."""
    actions: list[Any] = []
    for action in plan.actions:
        match action:
            case Apply(manifest=manifest):
                actions.append({"apply": manifest})
            case Delete(kind=kind, name=name, reason=reason):
                actions.append({"delete": f"{kind} {name}", "because": reason})
            case ForcePod(name=name, node=node):
                actions.append({"force": f"Pod {name}", "on": node})
            case Keep(kind=kind, name=name):
                actions.append({"keep": f"{kind} {name}"})
            case Stop(kind=kind, name=name, reason=reason):
                actions.append({"stop": f"{kind} {name}", "because": reason})
            case SetFinalizer(present=present, reason=reason):
                actions.append({"finalizer": present, "because": reason})
            case Condemn() | Restore() | Purge() | Forget():
                actions.append({type(action).__name__.lower(): action.artifact.name})
            case RecordOutcome():
                verdict: dict[str, Any] = {
                    "record": f"{action.kind} {action.name}",
                    "outcome": action.outcome,
                    "message": action.message,
                }
                actions.append(verdict if action.saved is None else {**verdict, "saved": action.saved})
    return {
        "actions": actions,
        "events": [f"{event.type} {event.reason}: {event.message}" for event in plan.events],
        "lookAgain": plan.look_again,
        "needsSurroundings": plan.needs_surroundings,
        "status": status_object(plan.status),
    }
