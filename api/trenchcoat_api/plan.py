"""What a spec would run and what it would need, as tables for the terminal."""

from rich.table import Table

from trenchcoat_api.artifacts import Artifacts
from trenchcoat_api.estimate import Estimate
from trenchcoat_api.layer_kinds import chooses_layers, wide_count
from trenchcoat_api.phases import adapter_epochs, adapts_teacher, reads_boundaries, why_not_adapted
from trenchcoat_api.spec import Distributed, Form, TrenchcoatSpec


def stage_table(spec: TrenchcoatSpec, needs: Estimate) -> Table:
    """One row a stage."""
    table = Table(title="Stages", title_justify="left")
    for column in ("stage", "runs as", "GPUs", "leaves", "artifact"):
        table.add_column(column)
    artifacts = Artifacts(spec)
    crias = list(needs.crias)
    collect, stitch = spec.collect, spec.stitch
    table.add_row("tokenize", "Job", "-", f"{needs.tokens:,} tokens", artifacts.tokenize.key)
    if reads_boundaries(spec):
        table.add_row(
            "collect",
            _gang(spec, collect.nodes),
            str(collect.nodes * collect.gpus_per_node),
            f"{_bytes(needs.activation_bytes)} of activations at {len(crias) - 1} boundaries",
            artifacts.collect.key,
        )
    table.add_row("shard", "Job", "-", f"{_bytes(needs.weight_bytes)} of weights", artifacts.shard.key)
    if chooses_layers(spec.attention):
        count = wide_count(spec.attention, crias[-1].last + 1)
        chosen = f"the {count} layers that are" if count > 1 else "the layer that is"
        table.add_row("select", "Job", "1", f"{chosen} to be wide", artifacts.select.key)
    trained = "adapters" if spec.attention.form is Form.WINDOW else "feature maps and adapters"
    table.add_row(
        "cria",
        f"{len(crias)} Jobs, at most {min(len(crias), spec.scheduling.max_parallel_crias)} at a time",
        "1 each",
        f"{trained} of layers {crias[0]} to {crias[-1]}",
        ", ".join(artifacts.cria(cria).key[:6] for cria in crias[:2]) + ", ...",
    )
    table.add_row(
        "stitch",
        _gang(spec, stitch.nodes),
        str(stitch.nodes * stitch.gpus_per_node),
        f"end-to-end adapters{_at_the_end(spec)}",
        artifacts.stitch(crias).key,
    )
    if adapts_teacher(spec):
        table.add_row(
            "adapt",
            _gang(spec, stitch.nodes),
            str(stitch.nodes * stitch.gpus_per_node),
            "adapters of the teacher, to compare with",
            artifacts.adapt.key,
        )
    if spec.evaluate.enabled:
        table.add_row("evaluate", "Job", "1", "perplexities", artifacts.evaluate(crias).key)
    if spec.export.enabled:
        table.add_row(
            "export", "Job", "-", f"{_bytes(needs.weight_bytes)} checkpoint", artifacts.export(crias).key
        )
    return table


def _gang(spec: TrenchcoatSpec, pods: int) -> str:
    """What runs a stage that may have several pods."""
    if spec.scheduling.distributed is Distributed.PYTORCH_JOB:
        return f"PyTorchJob, {pods} pods"
    return f"Indexed Job, {pods} pods" if pods > 1 else "Job"


def _at_the_end(spec: TrenchcoatSpec) -> str:
    long = spec.stitch.long_sequences
    if not long.are_on:
        return ""
    return f"; sequences of {long.multiple * spec.data.sequence_length:,} tokens in the last {long.share}"


def needs_table(spec: TrenchcoatSpec, needs: Estimate, teraflops: float) -> Table:
    """What it costs."""
    table = Table(title="Needs", title_justify="left", show_header=False)
    table.add_row("store", _bytes(needs.activation_bytes + 2 * needs.weight_bytes))
    table.add_row("GPU memory for a Cria's weights", _bytes(needs.cria_weight_bytes))
    collection = f"{needs.gpu_hours(needs.collect_flop, teraflops):.2f}"
    table.add_row(
        f"GPU-hours of collection, at least, at {teraflops:.0f} TFLOP/s",
        collection if reads_boundaries(spec) else "none: no Cria trains on what it leaves",
    )
    if needs.select_flop:
        table.add_row(
            "GPU-hours of choosing the wide layers, at least",
            f"{needs.gpu_hours(needs.select_flop, teraflops):.2g}",
        )
    hours = needs.gpu_hours(needs.cria_flop, teraflops)
    table.add_row(
        f"GPU-hours of all Crias, at least ({needs.transfer_epochs} + {spec.cria_lora.epochs} epochs)",
        f"{hours:.2f}",
    )
    table.add_row(
        f"GPU-hours of the stitch, at least ({spec.stitch.epochs} epochs)",
        f"{needs.gpu_hours(needs.stitch_flop, teraflops):.2f}",
    )
    table.add_row(*_adapted_teacher(spec, needs, teraflops))
    decode, length = needs.decode, spec.data.sequence_length
    for tokens in (length, *(length * multiple for multiple in sorted(spec.evaluate.length_multiples))):
        table.add_row(
            f"decoding holds at {tokens:,} tokens: student, teacher's key/value cache",
            f"{_bytes(decode.student(tokens))}, {_bytes(decode.teacher(tokens))}",
        )
    if decode.student_layers:
        table.add_row("the student holds less than the teacher from", f"{decode.crossover:,} tokens")
        table.add_row("a sliding window of as many bytes sees", f"{decode.equal_window:,} tokens")
    return table


def _adapted_teacher(spec: TrenchcoatSpec, needs: Estimate, teraflops: float) -> tuple[str, str]:
    """What the adapted teacher costs, or why there is none."""
    reason = why_not_adapted(spec)
    if reason:
        return "the adapted teacher, to compare with", f"none: {reason}"
    epochs, hours = adapter_epochs(spec), needs.gpu_hours(needs.adapt_flop, teraflops)
    return f"GPU-hours of the adapted teacher, at least ({epochs} epochs)", f"{hours:.2f}"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1e3:.1f} kB"
