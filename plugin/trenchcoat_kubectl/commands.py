"""What the subcommands do; each takes its arguments, kubectl and a console, and returns an exit code."""

import json
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live
from trenchcoat_api import constants
from trenchcoat_api.resource import InvalidTrenchcoatError, Trenchcoat
from trenchcoat_api.stages import DISTRIBUTED, Stage
from trenchcoat_api.status import ConditionType, State
from trenchcoat_api.status import Work as Row

from trenchcoat_kubectl import table
from trenchcoat_kubectl.kubectl import Kubectl, Object, PluginError

RESOURCE = f"{constants.PLURAL}.{constants.GROUP}"
_PYTORCH_JOBS = "pytorchjobs.kubeflow.org"
POLL_SECONDS = 2.0


def read(body: Object) -> Trenchcoat:
    """Read an object.

    Raises:
        PluginError: it is of another version.
    """
    try:
        return Trenchcoat.from_object(body)
    except InvalidTrenchcoatError as error:
        raise PluginError(f"{error}: this plugin and the operator are of different versions") from error


# status


def status(arguments: Namespace, kubectl: Kubectl, console: Console) -> int:
    """Show one Trenchcoat, or all."""
    if arguments.name is None:
        if arguments.watch:
            raise PluginError("--watch needs a NAME")
        return _show_all(arguments, kubectl, console)
    if not arguments.watch:
        console.print(
            table.status(read(kubectl.get(RESOURCE, arguments.name)), datetime.now(UTC), console.width)
        )
        return 0
    return _follow(arguments.name, kubectl, console)


def _show_all(arguments: Namespace, kubectl: Kubectl, console: Console) -> int:
    words = ["--all-namespaces"] if arguments.all_namespaces else []
    found = [read(body) for body in kubectl.get(RESOURCE, *words)["items"]]
    if not found:
        console.print("no Trenchcoats found")
        return 0
    found.sort(
        key=lambda item: (item.metadata.namespace, item.metadata.creation_timestamp or "", item.metadata.name)
    )
    console.print(table.overview(found, namespaces=arguments.all_namespaces))
    return 0


def _follow(name: str, kubectl: Kubectl, console: Console) -> int:
    """Show it as it changes; exit code 0 once it succeeded, 1 when it stalls."""
    with Live(console=console, auto_refresh=False, vertical_overflow="crop", transient=False) as live:
        for body in _changes(name, kubectl):
            trenchcoat = read(body)
            if trenchcoat.metadata.deletion_timestamp:
                raise PluginError(f"Trenchcoat {name} is being deleted")
            live.update(table.status(trenchcoat, datetime.now(UTC), console.width), refresh=True)
            held = {item.type for item in trenchcoat.status.conditions if item.status == "True"}
            if ConditionType.SUCCEEDED in held:
                return 0
            if ConditionType.STALLED in held:
                return 1
    raise AssertionError("a watch is begun again when it ends")


def _changes(name: str, kubectl: Kubectl) -> Iterator[Object]:
    while True:  # the API server ends every watch after a while
        yield from kubectl.watch(RESOURCE, name)


# suspend and resume


def suspend(arguments: Namespace, kubectl: Kubectl, console: Console) -> int:
    """Set spec.suspend."""
    return _set_suspend(arguments.name, kubectl, console, wanted=True)


def resume(arguments: Namespace, kubectl: Kubectl, console: Console) -> int:
    """Clear spec.suspend."""
    return _set_suspend(arguments.name, kubectl, console, wanted=False)


def _set_suspend(name: str, kubectl: Kubectl, console: Console, *, wanted: bool) -> int:
    trenchcoat = read(kubectl.get(RESOURCE, name))
    if trenchcoat.spec.suspend == wanted:
        console.print(f"trenchcoat/{name} {'is suspended already' if wanted else 'is not suspended'}")
        return 0
    change = json.dumps({"spec": {"suspend": wanted}})
    kubectl.run("patch", RESOURCE, name, "--type=merge", f"--patch={change}")
    console.print(f"trenchcoat/{name} {'suspended' if wanted else 'resumed'}")
    return 0


# One Cria or stage


@dataclass(frozen=True, slots=True)
class Target:
    """A Cria or a stage of one Trenchcoat."""

    trenchcoat: str
    stage: Stage
    cria: int | None
    row: Row

    @property
    def name(self) -> str:
        """For people."""
        return self.stage.value if self.cria is None else f"Cria {self.cria}"

    @property
    def selector(self) -> str:
        """Labels of its Jobs and pods."""
        result = f"{constants.LABEL_NAME}={self.trenchcoat},{constants.LABEL_STAGE}={self.stage.value}"
        return result if self.cria is None else f"{result},{constants.LABEL_CRIA}={self.cria}"

    def attempts(self, kubectl: Kubectl) -> dict[str, Object]:
        """What runs it or ran it, by resource and name as kubectl takes them.

        Of a stage of several pods that are Jobs or PyTorchJobs, or both where the spec changed since.

        Raises:
            PluginError: they cannot be read.
        """
        resources = {"Job": "jobs.batch"}
        if self.stage in DISTRIBUTED and _PYTORCH_JOBS in _served(kubectl, _PYTORCH_JOBS.partition(".")[2]):
            resources["PyTorchJob"] = _PYTORCH_JOBS
        found = kubectl.get(",".join(resources.values()), "-l", self.selector)["items"]
        return {f"{resources[body['kind']]}/{body['metadata']['name']}": body for body in found}


def _served(kubectl: Kubectl, group: str) -> list[str]:
    """Resources of a group that the cluster serves, as RESOURCE.GROUP."""
    return kubectl.run("api-resources", f"--api-group={group}", "--output=name").split()


def find(trenchcoat: Trenchcoat, word: str) -> Target:
    """Read a Cria's number, cria-N or a stage's name.

    Raises:
        PluginError: there is no such Cria or stage.
    """
    name, told = trenchcoat.metadata.name, trenchcoat.status
    number = word.removeprefix("cria-")
    if number.isdecimal():
        for cria in told.crias:
            if cria.index == int(number):
                return Target(name, Stage.CRIA, cria.index, cria)
        known = f"it has {len(told.crias)}, counted from 0" if told.crias else "the model was not read yet"
        raise PluginError(f"Trenchcoat {name} has no Cria {number}: {known}")
    if word == Stage.CRIA:
        raise PluginError("which Cria? Give its number")
    for stage in told.stages:
        if stage.name == word:
            return Target(name, Stage(word), None, stage)
    names = ", ".join(stage.name for stage in told.stages if stage.name != Stage.CRIA)
    raise PluginError(
        f"{word!r} is neither a Cria's number nor a stage of {name}: {names or 'it has none yet'}"
    )


# logs


def logs(arguments: Namespace, kubectl: Kubectl, console: Console) -> int:
    """Print logs of one Cria's or stage's latest attempt, or of all that runs."""
    words = ["--prefix", f"--tail={arguments.tail}", "--max-log-requests=100"]
    if arguments.follow:
        words += ["--follow", "--pod-running-timeout=10m"]
    while True:
        trenchcoat = read(kubectl.get(RESOURCE, arguments.name))
        selector, why_none = _pods(trenchcoat, arguments.target, kubectl)
        if selector:
            return kubectl.show("logs", f"--selector={selector}", *words)
        if not arguments.follow:
            raise PluginError(f"{why_none}: no pod has logs; `-f` waits for one")
        time.sleep(POLL_SECONDS)


def _pods(trenchcoat: Trenchcoat, word: str | None, kubectl: Kubectl) -> tuple[str, str]:
    """Selector of the pods whose logs are wanted, or else why there are none."""
    if word is None:
        selector = f"{constants.LABEL_NAME}={trenchcoat.metadata.name}"
        running = kubectl.get("pods", "-l", selector, "--field-selector=status.phase=Running")["items"]
        stages = sorted({pod["metadata"]["labels"].get(constants.LABEL_STAGE, "") for pod in running})
        if stages:
            return f"{selector},{constants.LABEL_STAGE} in ({','.join(stages)})", ""
        return "", f"nothing of {trenchcoat.metadata.name} runs"
    target = find(trenchcoat, word)
    pods = kubectl.get("pods", "-l", target.selector)["items"]
    if not pods:
        reason = f" ({target.row.message})" if target.row.message else ""
        return "", f"{target.name} is {target.row.state.value}{reason}"
    latest = max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
    for label in ("batch.kubernetes.io/job-name", "training.kubeflow.org/job-name"):
        if job := latest["metadata"]["labels"].get(label):
            return f"{label}={job}", ""
    return target.selector, ""


# retry


def retry(arguments: Namespace, kubectl: Kubectl, console: Console) -> int:
    """Delete the failed attempts: they are what the operator counts, so that it starts anew."""
    trenchcoat = read(kubectl.get(RESOURCE, arguments.name))
    target = find(trenchcoat, arguments.target)
    if target.row.state is not State.FAILED:
        raise PluginError(f"{target.name} is {target.row.state.value}: only what Failed can be tried again")
    attempts = target.attempts(kubectl)
    failed = [name for name, body in attempts.items() if _is_failed(body, target.row.key)]
    if not failed:
        raise PluginError(f"{target.name} has no failed attempt left: is it starting?")
    kubectl.run("delete", *failed, "--cascade=foreground", "--wait=false")
    names = ", ".join(name.partition("/")[2] for name in failed)
    console.print(f"trenchcoat/{arguments.name}: {target.name} starts again; deleted {names}")
    return 0


def _is_failed(body: Object, key: str) -> bool:
    if body["metadata"].get("annotations", {}).get(constants.ANNOTATION_KEY) != key:
        return False
    if constants.ANNOTATION_OUTCOME in body["metadata"]["annotations"]:
        return True
    conditions = body.get("status", {}).get("conditions") or []
    return any(item["type"] == "Failed" and item["status"] == "True" for item in conditions)
