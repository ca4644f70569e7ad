"""What an administrator sets for the whole operator, read from the environment once at start."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Self

from trenchcoat_api.environment import SettingsError, Variables

DEFAULT_IMAGE = f"trenchcoat-trainer:{version('trenchcoat')}"
_PORTS = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class PodDefaults:
    """What pods of stages get where the Trenchcoat does not say otherwise."""

    image: str = DEFAULT_IMAGE
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    """Secrets for a private registry, in the namespaces of the Trenchcoats."""
    cpu: str = "100m"
    """CPU requested."""
    cpu_limit: str = ""
    """None by default, for a limit only slows a stage down."""
    memory: str = "256Mi"
    """Memory requested."""
    memory_limit: str = ""
    """None by default."""
    grace_seconds: int = 120
    """Time to write a checkpoint after SIGTERM."""
    env: tuple[dict[str, Any], ...] = ()
    """Further environment variables, as in a Container: a proxy's, say."""
    fixed_user: bool = True
    """Whether pods ask to run as the image's user; else the cluster chooses, as OpenShift insists to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The operator's settings."""

    pods: PodDefaults = field(default_factory=PodDefaults)
    namespaces: tuple[str, ...] = ()
    """Namespaces whose Trenchcoats are served; none means all."""
    count_gpus: bool = True
    """Whether nodes and all pods are looked at; where they are not, the scheduler alone decides."""
    workers: int = 4
    """Trenchcoats reconciled at one time."""
    poll_seconds: float = 2.0
    """How often a Trenchcoat with something going on is looked at."""
    pending_jobs: int = 0
    """Jobs of a Trenchcoat that may wait as Pending pods for an autoscaler, where it does not say itself."""
    pending_patience_seconds: float = 900.0
    """How long pods may wait for nodes that may be added before a person is told."""
    gang_patience_seconds: float = 300.0
    """A gang that waits longer for GPUs goes first, and GPUs that come free are kept for it."""
    resync_seconds: float = 60.0
    """How often every Trenchcoat is looked at, whatever events said."""
    health_port: int = 8080
    metrics_port: int = 8081
    """0 serves no metrics."""
    log_level: str = "INFO"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read TRENCHCOAT_* variables; what is not set keeps its default.

        Raises:
            SettingsError: a variable holds something else than it should.
        """

        variables, base = Variables(environment), cls()
        pods = PodDefaults(
            image=variables.text("TRENCHCOAT_TRAINER_IMAGE", base.pods.image),
            pull_policy=variables.text("TRENCHCOAT_TRAINER_PULL_POLICY", base.pods.pull_policy),
            pull_secrets=variables.words("TRENCHCOAT_TRAINER_PULL_SECRETS"),
            cpu=variables.text("TRENCHCOAT_TRAINER_CPU", base.pods.cpu),
            cpu_limit=variables.text("TRENCHCOAT_TRAINER_CPU_LIMIT", base.pods.cpu_limit),
            memory=variables.text("TRENCHCOAT_TRAINER_MEMORY", base.pods.memory),
            memory_limit=variables.text("TRENCHCOAT_TRAINER_MEMORY_LIMIT", base.pods.memory_limit),
            env=_variables_of_pods(variables, "TRENCHCOAT_TRAINER_ENV"),
            grace_seconds=int(
                variables.number("TRENCHCOAT_TRAINER_GRACE_SECONDS", base.pods.grace_seconds, 0)
            ),
            fixed_user=variables.switch("TRENCHCOAT_TRAINER_FIXED_USER", default=base.pods.fixed_user),
        )
        if pods.pull_policy not in ("Always", "IfNotPresent", "Never"):
            raise SettingsError(
                f"TRENCHCOAT_TRAINER_PULL_POLICY is {pods.pull_policy!r}: set Always, IfNotPresent or Never"
            )
        return cls(
            pods=pods,
            namespaces=variables.words("TRENCHCOAT_NAMESPACES"),
            count_gpus=variables.switch("TRENCHCOAT_COUNT_GPUS", default=base.count_gpus),
            workers=int(variables.number("TRENCHCOAT_WORKERS", base.workers, 1)),
            poll_seconds=variables.number("TRENCHCOAT_POLL_SECONDS", base.poll_seconds, 0.1),
            pending_jobs=int(variables.number("TRENCHCOAT_PENDING_JOBS", base.pending_jobs, 0)),
            pending_patience_seconds=variables.number(
                "TRENCHCOAT_PENDING_PATIENCE_SECONDS", base.pending_patience_seconds, 0
            ),
            gang_patience_seconds=variables.number(
                "TRENCHCOAT_GANG_PATIENCE_SECONDS", base.gang_patience_seconds, 0
            ),
            resync_seconds=variables.number("TRENCHCOAT_RESYNC_SECONDS", base.resync_seconds, 1),
            health_port=int(variables.number("TRENCHCOAT_HEALTH_PORT", base.health_port, 1, _PORTS)),
            metrics_port=int(variables.number("TRENCHCOAT_METRICS_PORT", base.metrics_port, 0, _PORTS)),
            log_level=variables.log_level("TRENCHCOAT_LOG_LEVEL", base.log_level),
        )


def _variables_of_pods(variables: Variables, name: str) -> tuple[dict[str, Any], ...]:
    try:
        items = json.loads(variables.text(name, "[]"))
    except ValueError:
        items = None
    if not isinstance(items, list) or not all(isinstance(item, dict) and item.get("name") for item in items):
        # Without what it holds: people write passwords where they should not.
        raise SettingsError(f"{name} is no list of variables in JSON: set trainer.env")
    return tuple(items)
