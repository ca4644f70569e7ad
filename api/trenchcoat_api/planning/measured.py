"""Rates of the machine that a run was made on, from how fast its stages went.

Every kind of pass keeps the proportions of a kind of machine that was measured in more detail, products to
attention to host, and is made faster or slower until the plan of the run tells what its phases took. What
neither steps nor reading account for of a Job is its start.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import geometric_mean
from typing import Any

import yaml

from trenchcoat_api.artifacts import Artifact, Manifest
from trenchcoat_api.paces import CPU, Paces
from trenchcoat_api.phases import job_stages, rolls, transfer_epochs
from trenchcoat_api.planning.memory import ranks_of
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.rates import (
    Kind,
    Passes,
    PassRate,
    Rates,
    RatesError,
    TextRate,
    by_products,
)
from trenchcoat_api.planning.timing import (
    Fleet,
    collect_seconds,
    cria_seconds,
    end_to_end_seconds,
    evaluation_seconds,
    lora_seconds,
    stage_seconds,
    transfer_seconds,
)
from trenchcoat_api.spec import Objective
from trenchcoat_api.stages import DISTRIBUTED, Stage

_FAST = 1e-9
"""Steps this many times as long take no time: what is left of a plan's seconds is reading and writing."""
_EXACT = 1e-6
"""How near a factor is to what it is solved for, as a part of it."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One artifact of a run: what made it, when, and how fast."""

    artifact: Artifact
    manifest: Manifest
    paces: Paces

    def seconds(self, phase: str) -> float | None:
        """What a phase takes from its beginning to its end; None where that is not known."""
        return next((pace.whole for pace in self.paces.phases if pace.phase == phase), None)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Rates of a machine, and what they lack."""

    rates: Rates
    like: str
    """The kind whose proportions they have; of a CPU, the proportions of its products alone."""
    missing: tuple[Stage, ...]
    """Stages that the run has not left, whose rates are that kind's."""


def fit(outline: Outline, ran: Sequence[Ran], rates: Rates, *, name: str, like: str | None = None) -> Fitted:
    """Rates by which the plan of a run tells what the run took.

    Args:
        outline: The run, with the text as it was read.
        ran: Its artifacts that tell of their paces.
        rates: What is known of other machines.
        name: What to call the machine's kind.
        like: The kind whose proportions are kept; None for the one of the device that computed.

    Raises:
        RatesError: nothing tells of its pace, or there is no such kind.
    """
    if not ran:
        raise RatesError("no artifact of this run tells how fast it was made: run it anew with this version")
    device = next((item.paces.device for item in ran if item.paces.device != CPU), CPU)
    asked, (like, base) = like, rates.kind(like or _kind_of(device, rates))
    if device == CPU and asked is None:
        base = by_products(base)
    outline = _as_ran(outline, ran)
    kind = base.model_copy(
        update={
            "title": "CPU cores" if device == CPU else device,
            "products": [] if device == CPU else base.products,
            "dtype": outline.spec.dtype,
            "passes": _passes(outline, ran, rates, base),
            "start_seconds": 0.0,
            "stage_start_seconds": {},
        }
    )
    found = rates.model_copy(update={"text": _text(outline, ran, rates)})
    starts = _starts(outline, ran, Fleet(kind, found, 1))
    kind = kind.model_copy(
        update={
            "start_seconds": min(starts.values(), default=base.start_seconds),
            "stage_start_seconds": dict(sorted(starts.items())),
        }
    )
    kinds = {name: kind} | {key: value for key, value in rates.kinds.items() if key != name}
    left = tuple(stage for stage in job_stages(outline.spec) if stage not in starts)
    return Fitted(found.model_copy(update={"default": name, "kinds": kinds}), like, left)


def as_yaml(rates: Rates) -> str:
    """Rates as a file that `Rates.load` reads, numbers to four digits."""
    document = _rounded(rates.model_dump(mode="json", by_alias=True))
    return str(yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=110))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {int(key) if key.isdecimal() else key: _rounded(item) for key, item in value.items()}
    if not isinstance(value, float):
        return value
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() else short


def _kind_of(device: str, rates: Rates) -> str | None:
    product = device.replace(" ", "-")  # as a node's label tells it
    return next((name for name, kind in rates.kinds.items() if product in kind.products), None)


def _as_ran(outline: Outline, ran: Sequence[Ran]) -> Outline:
    """With as many ranks as really ran: a machine may have fewer GPUs than the spec names."""
    spec = outline.spec
    for item in ran:
        stage = item.artifact.stage
        if item.paces.ranks == ranks_of(outline, stage):
            continue
        if stage in DISTRIBUTED:
            field = Stage.STITCH.value if stage is Stage.ADAPT else stage.value
            own = getattr(spec, field).model_copy(update={"nodes": item.paces.ranks, "gpus_per_node": 1})
            spec = spec.model_copy(update={field: own})
    return replace(outline, spec=spec)


def _passes(outline: Outline, ran: Sequence[Ran], rates: Rates, base: Kind) -> Passes:
    """Each kind of pass as fast as it ran; others are to those of `base` as these are on average."""
    spec, found = outline.spec, base.passes
    factors: dict[str, float] = {}
    block = spec.cria_lora.objective is Objective.BLOCK
    through = rolls(spec) and transfer_epochs(spec) == 1
    alone = ranks_of(outline, Stage.STITCH) == 1

    def refit(name: str, stage: Stage, phase: str, planned: Callable[[Fleet, Ran], float]) -> None:
        nonlocal found
        own = [item for item in ran if item.artifact.stage is stage and item.seconds(phase) is not None]
        took = sum(item.seconds(phase) or 0.0 for item in own)
        rate = getattr(found, name) or getattr(found, _INSTEAD.get(name, name))

        def told(by: float) -> float:
            passes = found.model_copy(update={name: _scaled(rate, by)})
            fleet = Fleet(base.model_copy(update={"passes": passes}), rates, 1)
            return sum(planned(fleet, item) for item in own)

        fixed = told(_FAST)
        if fixed < took and fixed < told(1.0 / _FAST):
            factor = _solved(told, took)
            found = found.model_copy(update={name: _scaled(rate, factor)})
            factors[name] = factors.get(name, 1.0) * factor

    refit("forward", Stage.COLLECT, "collect", lambda fleet, _: collect_seconds(outline, fleet))
    refit(
        "transfer_through" if through else "transfer",
        Stage.CRIA,
        "transfer",
        lambda fleet, item: transfer_seconds(outline, fleet, _layers(item)),
    )
    refit(
        "block" if block else "layerwise",
        Stage.CRIA,
        "lora",
        lambda fleet, item: lora_seconds(outline, fleet, _layers(item)),
    )
    for stage in (Stage.ADAPT, Stage.STITCH):  # the stitch is what counts where both ran
        refit(
            "end_to_end_alone" if alone else "end_to_end",
            stage,
            stage.value,
            lambda fleet, item: end_to_end_seconds(outline, fleet, item.artifact.stage),
        )
    refit("evaluate", Stage.EVALUATE, "evaluate", lambda fleet, _: evaluation_seconds(outline, fleet))
    average = geometric_mean(factors.values()) if factors else 1.0
    others = {
        name: _scaled(rate, average)
        for name, rate in found
        if isinstance(rate, PassRate) and name not in factors
    }
    return found.model_copy(update=others)


_INSTEAD = {"evaluate": "forward", "transfer_through": "transfer"}
"""Where a kind has no rate of its own of a pass."""


def _solved(told: Callable[[float], float], took: float) -> float:
    """How many times as long steps take where the plan tells what a run took.

    It tells more the slower they are, but not evenly: reading that they outlast counts for nothing.
    """
    low, high = _FAST, 1.0
    while told(high) < took:
        low, high = high, 2.0 * high
    while high - low > _EXACT * high:
        middle = (low + high) / 2.0
        low, high = (middle, high) if told(middle) < took else (low, middle)
    return high


def _layers(item: Ran) -> int:
    assert item.artifact.cria is not None  # noqa: S101
    return len(item.artifact.cria.layers)


def _scaled(rate: PassRate, by: float) -> PassRate:
    """So many times as long."""
    return rate.model_copy(
        update={
            "tflops": rate.tflops / by,
            "attention_ms": {length: ms * by for length, ms in rate.attention_ms.items()},
            "host_ms": rate.host_ms * by,
        }
    )


def _text(outline: Outline, ran: Sequence[Ran], rates: Rates) -> TextRate:
    took = next((item.seconds("tokenize") for item in ran if item.artifact.stage is Stage.TOKENIZE), None)
    tokens = (outline.sequences + outline.held_out) * outline.length
    return TextRate(tokens_per_second=tokens / took) if took else rates.text


def _starts(outline: Outline, ran: Sequence[Ran], fleet: Fleet) -> dict[Stage, float]:
    """What each stage's Jobs took, on average, besides steps and reading; `fleet` has none of it."""
    between, found = _between(ran), dict[Stage, list[float]]()
    for item in ran:
        stage = item.artifact.stage
        if item.artifact.boundary is not None:
            continue  # a Cria's Job has left it on its way
        steps = (
            cria_seconds(outline, fleet, _layers(item))
            if stage is Stage.CRIA
            else stage_seconds(outline, fleet, stage)
        )
        found.setdefault(stage, []).append(max(0.0, item.manifest.seconds + between - steps))
    return {stage: sum(each) / len(each) for stage, each in found.items()}


def _between(ran: Sequence[Ran]) -> float:
    """Seconds from the end of what a Job reads to the beginning of its clock: its pod, its process, imports.

    The least of all, for others may have waited for GPUs besides.
    """
    ends = {item.artifact.key: item.manifest.completed_at for item in ran}
    waits = [
        (item.manifest.started_at - max(ends[key] for key in item.manifest.inputs)).total_seconds()
        for item in ran
        if item.manifest.inputs and all(key in ends for key in item.manifest.inputs)
    ]
    return max(0.0, min(waits, default=0.0))
