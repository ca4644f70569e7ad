"""A plan as tables for the terminal."""

from collections.abc import Iterator

from rich.table import Table

from trenchcoat_api import texts
from trenchcoat_api.layer_kinds import wide_count
from trenchcoat_api.phases import adapter_epochs, transfer_epochs
from trenchcoat_api.planning.plan import Plan, StagePlan
from trenchcoat_api.spec import Distributed, Form, TrenchcoatSpec
from trenchcoat_api.stage_size import is_gang, stage_size
from trenchcoat_api.stages import Stage

NARROW = 100
"""On terminals below this what is complete is told below its key, so that both stay whole."""


def tables(plan: Plan, spec: TrenchcoatSpec, width: int) -> Iterator[Table]:
    """The stages, what they need, the store, and what decoding will hold.

    Args:
        plan: The plan.
        spec: What was planned.
        width: Columns of the terminal.
    """
    yield stage_table(plan, spec, narrow=width < NARROW)
    yield needs_table(plan)
    yield time_table(plan)
    yield store_table(plan)
    if plan.strategies:
        yield strategy_table(plan, spec)
    yield decode_table(plan)


def stage_table(plan: Plan, spec: TrenchcoatSpec, *, narrow: bool) -> Table:
    """What runs, on how many GPUs, and what it leaves; no key is broken, however narrow it is."""
    table = _table("Stages", "stage", "runs as", "GPUs", "leaves", "artifact")
    for column in (table.columns[0], table.columns[-1]):
        column.no_wrap = True
    for row in plan.stages:
        told = [part for part in (_keys(row), _complete(row)) if part]
        table.add_row(
            row.name.value,
            _runs_as(row, spec, plan),
            _gpus(row),
            _leaves(row, spec, plan),
            ("\n" if narrow else ", ").join(told),
        )
    return table


def _runs_as(row: StagePlan, spec: TrenchcoatSpec, plan: Plan) -> str:
    if is_gang(spec, row.name):
        return _gang(spec, stage_size(spec, row.name).nodes)
    if row.name is Stage.CRIA:
        return f"{row.jobs} Jobs, {plan.parallel_crias} at a time"
    return "Job"


def _gang(spec: TrenchcoatSpec, pods: int) -> str:
    """What runs a stage that may have several pods."""
    count = "1 pod" if pods == 1 else f"{pods} pods"
    if spec.scheduling.distributed is Distributed.PYTORCH_JOB:
        return f"PyTorchJob, {count}"
    return f"Indexed Job, {count}" if pods > 1 else "Job"


def _gpus(row: StagePlan) -> str:
    if row.name is Stage.CRIA:
        return f"{row.gpus} each"
    return str(row.gpus) if row.gpus else "-"


def _leaves(row: StagePlan, spec: TrenchcoatSpec, plan: Plan) -> str:
    size = texts.size(row.writes_bytes)
    match row.name:
        case Stage.TOKENIZE:
            return f"{plan.tokens:,} tokens"
        case Stage.COLLECT:
            return f"{size} of activations at {plan.store.boundaries} boundaries"
        case Stage.SHARD:
            return f"{size} of weights"
        case Stage.SELECT:
            count = wide_count(spec.attention, plan.model.layers)
            return f"the {count} layers that are to be wide" if count > 1 else "the layer that is to be wide"
        case Stage.CRIA:
            trained = "adapters" if spec.attention.form is Form.WINDOW else "feature maps and adapters"
            epochs = f"{transfer_epochs(spec)} + {spec.cria_lora.epochs} epochs"
            return f"{size} of {trained}, layers {plan.crias[0]} to {plan.crias[-1]}; {epochs}"
        case Stage.STITCH:
            return f"{size} of adapters over the whole; {_epochs(spec.stitch.epochs)}{_at_the_end(spec)}"
        case Stage.ADAPT:
            return f"{size} of adapters of the teacher, to compare with; {_epochs(adapter_epochs(spec))}"
        case Stage.EVALUATE:
            return "perplexities, recall"
        case Stage.EXPORT:
            return f"{size} checkpoint"


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


def _at_the_end(spec: TrenchcoatSpec) -> str:
    long = spec.stitch.long_sequences
    if not long.are_on:
        return ""
    return f", sequences of {long.multiple * spec.data.sequence_length:,} tokens in the last {long.share}"


def _keys(row: StagePlan) -> str:
    if len(row.keys) <= 1:
        return "".join(row.keys)
    return ", ".join(key[:6] for key in row.keys[:2]) + (", ..." if len(row.keys) > 2 else "")


def _complete(row: StagePlan) -> str:
    if not row.complete:
        return ""
    return "complete" if row.complete == row.jobs else f"{row.complete} complete"


def needs_table(plan: Plan) -> Table:
    """Memory and traffic of every stage."""
    title = f"Needs, on {plan.gpu} ({texts.size(plan.gpu_memory_bytes)})"
    table = _table(title, "stage", "GPU memory", "host memory", "reads", "a Job moves")
    for row in plan.stages:
        table.add_row(
            row.name.value,
            texts.size(row.gpu_memory_bytes) if row.gpus else "-",
            texts.size(row.host_memory_bytes),
            texts.size(row.reads_bytes) if row.reads_bytes else "-",
            f"{texts.size(row.bytes_per_second)}/s",
        )
    table.add_section()
    table.add_row("at once, at most", "", "", "", f"{texts.size(plan.peak_bytes_per_second)}/s")
    return table


def time_table(plan: Plan) -> Table:
    """Time and cost of every stage."""
    priced = plan.price is not None
    table = _table(
        f"Time, with {plan.parallel_crias} {'Cria' if plan.parallel_crias == 1 else 'Crias'} at a time",
        *("stage", "a Job takes", "all take", "GPU-hours"),
        *(["cost"] if priced else []),
    )

    def add(name: str, job: str, wall: str, gpu_hours: str, cost: float | None) -> None:
        table.add_row(name, job, wall, gpu_hours, *([f"{cost:,.2f}"] if cost is not None else []))

    for row in plan.stages:
        used = hours(row.gpu_hours) if row.gpus else "-"
        add(row.name.value, texts.duration(row.job_seconds), texts.duration(row.seconds), used, row.cost)
    table.add_section()
    add("all", "", texts.duration(plan.seconds), hours(plan.gpu_hours), plan.cost)
    if plan.gpu_hours_left < plan.gpu_hours:
        add("not in the store yet", "", "", hours(plan.gpu_hours_left), plan.cost_left)
    return table


def store_table(plan: Plan) -> Table:
    """The store over time."""
    table = _table("Store", "", "bytes")
    for stage, held in plan.store.after.items():
        table.add_row(f"after {stage.value}", texts.size(held))
    table.add_section()
    table.add_row(
        f"at most, checkpoints among it (during {plan.store.peak_during.value})",
        texts.size(plan.store.peak_bytes),
    )
    table.add_row("written in all", texts.size(plan.store.written_bytes))
    return table


def strategy_table(plan: Plan, spec: TrenchcoatSpec) -> Table:
    """The run by either strategy of collection."""
    table = _table(
        "By spec.collect.strategy",
        *("", "GPUs", "memory", "boundaries", "of bytes", "store", "takes", "GPU-hours"),
    )
    for row in plan.strategies:
        table.add_row(
            f"{row.name.value} *" if row.name is spec.collect.strategy else row.name.value,
            str(row.gpus) if row.gpus else "-",
            texts.size(row.gpu_memory_bytes) if row.gpus else "-",
            str(row.boundaries),
            texts.size(row.activation_bytes),
            texts.size(row.peak_bytes),
            texts.duration(row.seconds),
            hours(row.gpu_hours),
        )
    table.caption = (
        "* This run's. GPUs of the Job that collects; boundaries and bytes in the store at once, at most."
    )
    table.caption_justify = "left"
    return table


def decode_table(plan: Plan) -> Table:
    """What decoding one sequence holds."""
    table = _table("Decoding holds", "tokens", "student", "teacher's key/value cache")
    for tokens, size in plan.decode.student.items():
        table.add_row(f"{tokens:,}", texts.size(size), texts.size(plan.decode.teacher[tokens]))
    if plan.decode.crossover:
        table.caption = (
            f"The student holds less from {plan.decode.crossover:,} tokens on; a sliding window of as many "
            f"bytes sees {plan.decode.equal_window:,}."
        )
        table.caption_justify = "left"
    return table


def hours(number: float) -> str:
    """GPU-hours, with as many digits as they are worth."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        words = number == 0 or title == "Stages"
        table.add_column(column, justify="left" if words else "right", overflow="fold")
    return table
