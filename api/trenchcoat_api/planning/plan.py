"""The whole plan of a run, as a document for people and programs."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal

from pydantic import Field

from trenchcoat_api import texts
from trenchcoat_api.artifacts import Artifacts, ModelFacts
from trenchcoat_api.base import Camel
from trenchcoat_api.decode_state import DecodeState, decode_state
from trenchcoat_api.evaluation_states import stored_bytes
from trenchcoat_api.phases import job_stages, why_not_adapted
from trenchcoat_api.planning import memory, storage, traffic
from trenchcoat_api.planning.fit import Misfit, misfits
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.rates import Rates
from trenchcoat_api.planning.timing import Fleet, StageTime, busy_ranks, crias_at_once, times
from trenchcoat_api.spec import CollectStrategy
from trenchcoat_api.stages import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a plan is made for besides the spec."""

    rates: Rates = field(default_factory=Rates.load)
    gpu: str | None = None
    """A kind of GPU; None takes spec.plan.gpu, or else the rates' default."""
    gpu_memory: int | None = None
    """Bytes of one; None takes spec.plan.gpuMemory, or else the kind's."""
    gpus: int | None = None
    """GPUs for Crias; None takes as many as the largest stage of the spec names."""
    price: float | None = None
    """Of a GPU-hour; None takes spec.plan.pricePerGpuHour."""
    complete: Callable[[str], bool] = lambda key: False
    """Whether the artifact of a content key is in the store."""


_SAME_KIND = 0.1
"""A GPU whose memory is further from the kind's is another one: drivers tell a little more or less."""


class StagePlan(Camel):
    """One stage; the Crias together are one."""

    name: Stage = Field(description="The stage.")
    jobs: int = Field(description="Jobs that run it.")
    complete: int = Field(description="Jobs whose artifacts are in the store already.")
    gpus: int = Field(description="GPUs of one Job.")
    gpu_memory_bytes: int = Field(description="Memory that it needs on each GPU, at least.")
    gpu_memory: dict[str, int] = Field(description="The same by what it is of.")
    host_memory_bytes: int = Field(description="Memory that one of its pods needs.")
    reads_bytes: int = Field(description="Bytes that its Jobs read from the store.")
    writes_bytes: int = Field(description="Bytes of its artifacts.")
    bytes_per_second: int = Field(description="What one Job moves from and to the store, on average.")
    job_seconds: float = Field(description="Time of its longest Job.")
    seconds: float = Field(description="Time of all its Jobs.")
    gpu_hours: float = Field(description="GPUs times hours.")
    cost: float | None = Field(description="By the price of a GPU-hour; none without a price.")
    keys: list[str] = Field(description="Content keys of its artifacts.")


class StorePlan(Camel):
    """The store over time."""

    written_bytes: int = Field(description="All artifacts together.")
    peak_bytes: int = Field(description="The most that is there at once, checkpoints among it.")
    peak_during: Stage = Field(description="The stage that this is in.")
    left_bytes: int = Field(description="What is there at the end.")
    boundaries: int = Field(description="Cria boundaries whose hidden states are stored.")
    activation_bytes: int = Field(description="Hidden states at all of them.")
    after: dict[Stage, int] = Field(description="What is there after each stage.")


class DecodePlan(Camel):
    """What decoding one sequence holds."""

    student: dict[int, int] = Field(description="Bytes that the student holds, by tokens.")
    teacher: dict[int, int] = Field(description="Bytes of the teacher's key/value cache, by tokens.")
    crossover: int = Field(description="Tokens from which the student holds less; 0 for none.")
    equal_window: int = Field(description="Tokens of a sliding window of as many bytes.")


class StrategyPlan(Camel):
    """The run by one strategy of collection."""

    name: CollectStrategy = Field(description="The strategy.")
    gpus: int = Field(description="GPUs of the Job that collects: of the gang, or of one Cria.")
    gpu_memory_bytes: int = Field(description="Memory that it needs on each, at least.")
    boundaries: int = Field(description="Cria boundaries whose hidden states are stored at once, at most.")
    activation_bytes: int = Field(description="Hidden states at all of them.")
    peak_bytes: int = Field(description="The most that the store holds at once, checkpoints among it.")
    seconds: float = Field(description="From the first stage to the last.")
    gpu_hours: float = Field(description="Of all stages.")


class MisfitPlan(Camel):
    """A stage that cannot fit into its GPUs."""

    name: Stage = Field(description="The stage.")
    needed_bytes: int = Field(description="Memory that it needs.")
    memory_bytes: int = Field(description="Memory that a GPU has.")
    message: str = Field(description="The same in words, with the remedy.")


class Plan(Camel):
    """All of it."""

    model: ModelFacts = Field(description="The teacher's shape.")
    crias: list[str] = Field(description="Layers of each Cria.")
    tokens: int = Field(description="Training tokens in full sequences, at most.")
    weight_bytes: int = Field(description="The teacher's weights in spec.dtype.")
    cria_weight_bytes: int = Field(description="Weights of the largest Cria.")
    gpu: str = Field(description="The kind of GPU that times are reckoned for.")
    gpu_memory_bytes: int = Field(description="Memory of one.")
    parallel_crias: int = Field(description="Crias at one time.")
    price: float | None = Field(description="Of a GPU-hour.")
    stages: list[StagePlan] = Field(description="Stages, in order.")
    store: StorePlan = Field(description="Bytes in the store.")
    decode: DecodePlan = Field(description="Bytes of decode state.")
    peak_bytes_per_second: int = Field(description="What all Jobs of the busiest stage move together.")
    seconds: float = Field(description="From the first stage to the last.")
    gpu_hours: float = Field(description="Of all stages.")
    gpu_hours_left: float = Field(description="Of what is not in the store yet.")
    cost: float | None = Field(description="Of all stages.")
    cost_left: float | None = Field(description="Of what is not in the store yet.")
    strategies: list[StrategyPlan] = Field(description="The run by either strategy of collection.")
    misfits: list[MisfitPlan] = Field(description="Stages that cannot fit.")
    notes: list[str] = Field(description="What to know of these numbers.")


def make_plan(outline: Outline, given: Given) -> Plan:
    """Work out the plan of a run.

    Raises:
        RatesError: there are no rates of the kind of GPU.
    """
    wishes = outline.spec.plan
    name, kind = given.rates.kind(given.gpu or wishes.gpu)
    size = given.gpu_memory or (texts.quantity(wishes.gpu_memory) if wishes.gpu_memory else kind.memory_bytes)
    kind = kind.model_copy(update={"memory_bytes": size})
    price = given.price if given.price is not None else _price(wishes.price_per_gpu_hour)
    fleet = Fleet(kind, given.rates, parallel_crias(outline, given.gpus))
    found = times(outline, fleet)
    rows = [_stage(outline, time, given, price) for time in found.stages]
    hours, left = sum(row.gpu_hours for row in rows), _hours_left(rows)
    decode, lengths = _decoding(outline)
    return Plan(
        model=outline.facts,
        crias=[str(cria) for cria in outline.crias],
        tokens=outline.tokens,
        weight_bytes=outline.facts.parameters * outline.item,
        cria_weight_bytes=outline.longest_cria * outline.layer_bytes,
        gpu=name,
        gpu_memory_bytes=size,
        parallel_crias=fleet.crias,
        price=price,
        stages=rows,
        store=_store(outline, crias_at_once(outline, fleet)),
        decode=DecodePlan(
            student={length: decode.student(length) for length in lengths},
            teacher={length: decode.teacher(length) for length in lengths},
            crossover=decode.crossover,
            equal_window=decode.equal_window,
        ),
        peak_bytes_per_second=max(row.bytes_per_second * _at_once(row, fleet) for row in rows),
        seconds=_rounded(found.wall),
        gpu_hours=_rounded(hours),
        gpu_hours_left=_rounded(left),
        cost=_cost(hours, price),
        cost_left=_cost(left, price),
        strategies=_strategies(outline, fleet),
        misfits=[_misfit(item) for item in misfits(outline, lambda stage: size)],
        notes=_notes(outline, fleet, given.rates.kinds[name].memory_bytes),
    )


def parallel_crias(outline: Outline, gpus: int | None) -> int:
    """Crias at one time: as many as there are GPUs, spec.scheduling and Crias."""
    named = max(memory.gpus_of(outline, stage) for stage in job_stages(outline.spec))
    limit = min(len(outline.crias), outline.spec.scheduling.max_parallel_crias)
    return max(1, min(limit, named if gpus is None else gpus))


def _decoding(outline: Outline) -> tuple[DecodeState, list[int]]:
    """What decoding holds, and the lengths to tell it at."""
    multiples = (1, *sorted(outline.spec.evaluate.length_multiples))
    return decode_state(outline.spec, outline.facts), [outline.length * multiple for multiple in multiples]


def _stage(outline: Outline, time: StageTime, given: Given, price: float | None) -> StagePlan:
    need, stage = memory.gpu_need(outline, time.stage), time.stage
    keys = _keys(outline, stage)
    moved = traffic.job_bytes(outline, stage)
    return StagePlan(
        name=stage,
        jobs=len(keys),
        complete=sum(map(given.complete, keys)),
        gpus=memory.gpus_of(outline, stage),
        gpu_memory_bytes=need.total if need else 0,
        gpu_memory=dict(need.parts) if need else {},
        host_memory_bytes=memory.host_need(outline, stage).total,
        reads_bytes=traffic.read_bytes(outline, stage),
        writes_bytes=storage.artifact_bytes(outline, stage),
        bytes_per_second=int(moved / time.job) if time.job else 0,
        job_seconds=_rounded(time.job),
        seconds=_rounded(time.wall),
        gpu_hours=_rounded(time.gpu_seconds / 3600),
        cost=_cost(time.gpu_seconds / 3600, price),
        keys=keys,
    )


def _keys(outline: Outline, stage: Stage) -> list[str]:
    wanted = Artifacts(outline.spec).all(list(outline.crias))
    return [artifact.key for artifact in wanted if artifact.stage is stage]


def _hours_left(rows: list[StagePlan]) -> float:
    trained = any(row.name is Stage.CRIA and row.complete == row.jobs for row in rows)
    return sum(
        row.gpu_hours * (row.jobs - row.complete) / row.jobs
        for row in rows
        if not (trained and row.name is Stage.COLLECT)  # which nothing else reads
    )


def _at_once(row: StagePlan, fleet: Fleet) -> int:
    return fleet.crias if row.name is Stage.CRIA else 1


def _strategies(outline: Outline, fleet: Fleet) -> list[StrategyPlan]:
    """The run by either strategy of collection; none where nothing is collected."""
    found = []
    for strategy in CollectStrategy if outline.boundaries else ():
        collect = outline.spec.collect.model_copy(update={"strategy": strategy})
        other = replace(outline, spec=outline.spec.model_copy(update={"collect": collect}))
        taken, crias = times(other, fleet), crias_at_once(other, fleet)
        is_rolling = strategy is CollectStrategy.ROLLING
        need = memory.gpu_need(other, Stage.CRIA if is_rolling else Stage.COLLECT)
        found.append(
            StrategyPlan(
                name=strategy,
                gpus=memory.gpus_of(other, Stage.CRIA if is_rolling else Stage.COLLECT),
                gpu_memory_bytes=need.total if need else 0,
                boundaries=storage.boundaries_at_once(other, crias),
                activation_bytes=storage.activations_at_once(other, crias),
                peak_bytes=max(moment.peak for moment in storage.timeline(other, crias)),
                seconds=_rounded(taken.wall),
                gpu_hours=_rounded(sum(time.gpu_seconds for time in taken.stages) / 3600),
            )
        )
    return found


def _store(outline: Outline, crias: int) -> StorePlan:
    moments = storage.timeline(outline, crias)
    largest = max(moments, key=lambda moment: moment.peak)
    return StorePlan(
        written_bytes=storage.written_bytes(outline),
        peak_bytes=largest.peak,
        peak_during=largest.after,
        left_bytes=moments[-1].held,
        boundaries=outline.boundaries,
        activation_bytes=storage.activations_at_once(outline, crias),
        after={moment.after: moment.held for moment in moments},
    )


def _misfit(item: Misfit) -> MisfitPlan:
    return MisfitPlan(
        name=item.stage, needed_bytes=item.need.total, memory_bytes=item.memory, message=str(item)
    )


def _notes(outline: Outline, fleet: Fleet, measured_bytes: int) -> list[str]:
    """What to know; `measured_bytes` is the memory of the GPU that was measured."""
    spec, found = outline.spec, []
    if abs(fleet.kind.memory_bytes / measured_bytes - 1) > _SAME_KIND:
        found.append(
            f"times are those of {fleet.kind.title}, the memory is {texts.size(fleet.kind.memory_bytes)}: of "
            "other GPUs give rates (--rates, --gpu)"
        )
    if spec.dtype is not fleet.kind.dtype:
        found.append(
            f"times are of {fleet.kind.dtype.value}, in which {fleet.kind.title} was measured; spec.dtype is "
            f"{spec.dtype.value}"
        )
    ranks, busy = memory.ranks_of(outline, Stage.STITCH), busy_ranks(outline)
    if spec.stitch.epochs and busy < ranks:
        found.append(
            f"the stitch keeps {busy} of {ranks} ranks busy: spec.stitch.batchSize has no more micro-batches"
        )
    if spec.stitch.epochs and ranks > 1 and fleet.rates.gather.bytes_per_second is None:
        found.append(
            "the stitch takes at least what is told: how fast ranks gather weights from one another was not "
            "measured (gather.bytesPerSecond of --rates)"
        )
    if not outline.boundaries and len(outline.crias) > 1:
        found.append("no Cria trains on hidden states: none are collected")
    if spec.evaluate.enabled and (moved := stored_bytes(spec, outline.facts, storage.text_facts(outline))):
        found.append(f"the evaluation keeps {texts.size(moved)} of hidden states in the store while it runs")
    if reason := why_not_adapted(spec):
        found.append(f"no adapted teacher: {reason}")
    for stage in job_stages(spec):
        if warning := _short_of_memory(outline, stage):
            found.append(warning)
        elif stage is Stage.EVALUATE and not memory.reads_ahead(outline):
            needed = texts.size(memory.reading_ahead(outline))
            found.append(
                "the evaluation reads a Cria's weights only when it is due; it would while the one before "
                f"computes, with spec.pods.evaluate.resources.memory of {needed}"
            )
    return found


def _short_of_memory(outline: Outline, stage: Stage) -> str:
    field = Stage.STITCH.value if stage is Stage.ADAPT else stage.value
    limit = getattr(outline.spec.pods, field).resources.memory
    need = memory.host_need(outline, stage).total
    if limit is None or texts.quantity(limit) >= need:
        return ""
    return (
        f"spec.pods.{field}.resources.memory is {limit}, and a pod of {stage} needs about "
        f"{texts.size(need)}: raise it"
    )


def _price(text: str | None) -> float | None:
    return float(Decimal(text)) if text is not None else None


def _cost(hours: float, price: float | None) -> float | None:
    return None if price is None else round(hours * price, 2)


def _rounded(number: float) -> float:
    """To four digits: no time is known any better."""
    return float(f"{number:.4g}")
