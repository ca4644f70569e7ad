"""What an administrator sets for the whole operator, read from the environment once at start."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Self

DEFAULT_IMAGE = f"trenchcoat-trainer:{version('trenchcoat')}"
_PORTS = 65535


class SettingsError(ValueError):
    """A variable of the environment that cannot be used: says which and what it should hold."""


def _level(name: str) -> str:
    """The level that a log begins at, as `logging` calls it; SettingsError where it knows no such name."""
    if name.upper() not in logging.getLevelNamesMapping():
        raise SettingsError(f"TRENCHCOAT_LOG_LEVEL is {name!r}: set it to DEBUG, INFO, WARNING or ERROR")
    return name.upper()


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

        def text(name: str, default: str) -> str:
            return environment.get(f"TRENCHCOAT_{name}", "").strip() or default

        def number(name: str, default: float, least: float, most: float = 1_000_000) -> float:
            raw = text(name, str(default))
            try:
                value = float(raw)
            except ValueError:
                value = -1.0
            if not least <= value <= most:
                raise SettingsError(
                    f"TRENCHCOAT_{name} is {raw!r}: set it to a number from {least:,.10g} to {most:,.10g}"
                )
            return value

        def switch(name: str, default: bool) -> bool:
            raw = text(name, str(default).lower())
            if raw not in ("true", "false"):
                raise SettingsError(f"TRENCHCOAT_{name} is {raw!r}: set it to true or false")
            return raw == "true"

        def words(name: str) -> tuple[str, ...]:
            return tuple(word.strip() for word in text(name, "").split(",") if word.strip())

        def variables(name: str) -> tuple[dict[str, Any], ...]:
            try:
                items = json.loads(text(name, "[]"))
            except ValueError:
                items = None
            named = isinstance(items, list) and all(
                isinstance(item, dict) and item.get("name") for item in items
            )
            if not named:  # without what it holds: people write passwords where they should not
                raise SettingsError(f"TRENCHCOAT_{name} is no list of variables in JSON: set trainer.env")
            return tuple(items)

        base = cls()
        pods = PodDefaults(
            image=text("TRAINER_IMAGE", base.pods.image),
            pull_policy=text("TRAINER_PULL_POLICY", base.pods.pull_policy),
            pull_secrets=words("TRAINER_PULL_SECRETS"),
            cpu=text("TRAINER_CPU", base.pods.cpu),
            cpu_limit=text("TRAINER_CPU_LIMIT", base.pods.cpu_limit),
            memory=text("TRAINER_MEMORY", base.pods.memory),
            memory_limit=text("TRAINER_MEMORY_LIMIT", base.pods.memory_limit),
            env=variables("TRAINER_ENV"),
            grace_seconds=int(number("TRAINER_GRACE_SECONDS", base.pods.grace_seconds, 0)),
            fixed_user=switch("TRAINER_FIXED_USER", base.pods.fixed_user),
        )
        if pods.pull_policy not in ("Always", "IfNotPresent", "Never"):
            raise SettingsError(
                f"TRENCHCOAT_TRAINER_PULL_POLICY is {pods.pull_policy!r}: set Always, IfNotPresent or Never"
            )
        return cls(
            pods=pods,
            namespaces=words("NAMESPACES"),
            count_gpus=switch("COUNT_GPUS", base.count_gpus),
            workers=int(number("WORKERS", base.workers, 1)),
            poll_seconds=number("POLL_SECONDS", base.poll_seconds, 0.1),
            pending_jobs=int(number("PENDING_JOBS", base.pending_jobs, 0)),
            pending_patience_seconds=number("PENDING_PATIENCE_SECONDS", base.pending_patience_seconds, 0),
            gang_patience_seconds=number("GANG_PATIENCE_SECONDS", base.gang_patience_seconds, 0),
            resync_seconds=number("RESYNC_SECONDS", base.resync_seconds, 1),
            health_port=int(number("HEALTH_PORT", base.health_port, 1, _PORTS)),
            metrics_port=int(number("METRICS_PORT", base.metrics_port, 0, _PORTS)),
            log_level=_level(text("LOG_LEVEL", base.log_level)),
        )
