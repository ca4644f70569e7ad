"""What cannot fit into the GPUs that are there, and what would mend it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from trenchcoat_api import texts
from trenchcoat_api.phases import job_stages, rolls
from trenchcoat_api.planning.memory import Need, gpu_need
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.spec import TeacherProducts
from trenchcoat_api.stages import Stage

_MOST_NODES = 1000


@dataclass(frozen=True, slots=True)
class Misfit:
    """A stage that cannot run."""

    stage: Stage
    need: Need
    memory: int
    """Bytes of the largest GPU that it could get."""
    remedy: str

    def __str__(self) -> str:
        largest = max(self.need.parts.items(), key=lambda part: part[1])
        return (
            f"{self.stage} needs {texts.size(self.need.total)} of GPU memory ({texts.size(largest[1])} for "
            f"{largest[0]}), and a GPU has {texts.size(self.memory)}: {self.remedy}"
        )


def misfits(
    outline: Outline, memory: Callable[[Stage], int | None], wanted: Iterable[Stage] | None = None
) -> list[Misfit]:
    """The stages that cannot run, in order.

    Args:
        outline: the run.
        memory: bytes of the largest GPU that a stage could get; None where that is not known.
        wanted: the stages to look at; all that the spec asks for unless given.
    """
    found = []
    for stage in job_stages(outline.spec) if wanted is None else wanted:
        need, has = gpu_need(outline, stage), memory(stage)
        if need is not None and has is not None and need.total > has:
            found.append(Misfit(stage, need, has, _REMEDIES[stage](outline, stage, has)))
    return found


def _fits(outline: Outline, stage: Stage, memory: int, **changes: Any) -> bool:
    """Whether a stage fits once fields of the spec are other than they are; parts by their name."""
    spec = outline.spec
    for field, values in changes.items():
        value = getattr(spec, field).model_copy(update=values) if isinstance(values, dict) else values
        spec = spec.model_copy(update={field: value})
    need = gpu_need(Outline.of(spec, outline.model), stage)
    return need is not None and need.total <= memory


def _of_cria(outline: Outline, stage: Stage, memory: int) -> str:
    remedy = _smaller_cria(outline, stage, memory)
    plain = {"teacher_products": TeacherProducts.DTYPE}
    if stage is Stage.CRIA and _fits(outline, stage, memory, transfer=plain):
        remedy += "; or remove spec.transfer.teacherProducts"
    return remedy


def _smaller_cria(outline: Outline, stage: Stage, memory: int) -> str:
    smaller: dict[str, Any] = {"transfer": {"micro_batch_size": 1}, "cria_lora": {"micro_batch_size": 1}}
    fields = "spec.transfer.microBatchSize and spec.criaLora.microBatchSize to 1"
    if stage is not Stage.CRIA:
        smaller, fields = {stage.value: {"batch_size": 1}}, f"spec.{stage}.batchSize to 1"
    if _fits(outline, stage, memory, **smaller):
        return f"set {fields}"
    for changes, words in (({}, ""), (smaller, f", and {fields}")):
        most = _largest_cria(outline, stage, memory, changes)
        if most:
            return f"set spec.layersPerCria to at most {most}{words}"
    return _larger(outline)


def _largest_cria(outline: Outline, stage: Stage, memory: int, changes: dict[str, Any]) -> int:
    low, high = 0, outline.longest_cria
    while low < high:
        middle = (low + high + 1) // 2
        if _fits(outline, stage, memory, layers_per_cria=middle, **changes):
            low = middle
        else:
            high = middle - 1
    return low


def _of_collection(outline: Outline, stage: Stage, memory: int) -> str:
    if rolls(outline.spec):
        return _of_cria(outline, stage, memory)
    remedy = _more_nodes(outline, stage, memory, "collect", {"batch_size": 1}) or _larger(outline)
    if _fits(outline, Stage.CRIA, memory):
        remedy += "; or set spec.collect.strategy to Rolling, for which a Cria's GPU will do"
    return remedy


def _of_stitch(outline: Outline, stage: Stage, memory: int) -> str:
    smaller = {"micro_batch_size": 1}
    remedy = _more_nodes(outline, stage, memory, "stitch", smaller) or _larger(outline)
    if stage is Stage.ADAPT:
        remedy += "; or set spec.evaluate.adaptedTeacher to never"
    return remedy


def _more_nodes(outline: Outline, stage: Stage, memory: int, part: str, smaller: dict[str, int]) -> str:
    """Fewer sequences at a time, or else the fewest nodes that do; empty where neither suffices."""
    field, value = next(iter(smaller.items()))
    camel = {"batch_size": "batchSize", "micro_batch_size": "microBatchSize"}[field]
    words = f"spec.{part}.{camel} to {value}"
    if _fits(outline, stage, memory, **{part: smaller}):
        return f"set {words}"
    settings = getattr(outline.spec, part)
    for changes, more in (({}, ""), (smaller, f", and {words}")):
        low, high = settings.nodes, _MOST_NODES
        if not _fits(outline, stage, memory, **{part: {**changes, "nodes": high}}):
            continue
        while high - low > 1:
            middle = (low + high) // 2
            if _fits(outline, stage, memory, **{part: {**changes, "nodes": middle}}):
                high = middle
            else:
                low = middle
        return f"set spec.{part}.nodes to at least {high} of {settings.gpus_per_node} GPUs each{more}"
    return ""


def _larger(outline: Outline, *_: object) -> str:
    return f"take larger GPUs, or lower spec.data.sequenceLength {outline.length}"


_REMEDIES: dict[Stage, Callable[[Outline, Stage, int], str]] = {
    Stage.COLLECT: _of_collection,
    Stage.SELECT: _larger,
    Stage.CRIA: _of_cria,
    Stage.STITCH: _of_stitch,
    Stage.ADAPT: _of_stitch,
    Stage.EVALUATE: _of_cria,
}


def explain(found: Iterable[Misfit]) -> str:
    """All of them in one message."""
    return "; ".join(map(str, found))
