"""What the evaluation leaves: the whole report, and what others want to know without opening it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from trenchcoat_api.artifacts import Facts
from trenchcoat_api.decode_state import DecodeState
from trenchcoat_api.results import (
    Comparison,
    Evaluation,
    ModelForm,
    Perplexity,
    PositionRange,
    Probe,
    Recall,
)
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.stages.evaluate.comparing import TIE_NATS, Compared, compare
from trenchcoat_trainer.stages.evaluate.crossing import Place
from trenchcoat_trainer.stages.evaluate.plan import COMPARED_FORMS, EvaluationPlan
from trenchcoat_trainer.stages.evaluate.samples import Sample
from trenchcoat_trainer.stages.evaluate.scores import RANGES, Score
from trenchcoat_trainer.stages.evaluate.sets import EvaluationSet, Metric
from trenchcoat_trainer.stages.evaluate.tasks import TaskScores, task_results

REPORT = "report.json"
MOST_TASKS = 64
"""Rows of tasks that a status takes; the report has them all."""


@dataclass(frozen=True, slots=True)
class Results:
    """All that was measured, and of what."""

    plan: EvaluationPlan
    scores: Mapping[Place, Score]
    shares: Mapping[str, float]
    """Shares of attention outside the window, by layer."""
    decode: DecodeState
    tasks: TaskScores
    samples: list[Sample]


def report(found: Results) -> dict[str, Any]:
    """Everything that was measured, as JSON."""
    plan, scores, decode = found.plan, found.scores, found.decode
    text = plan.sets[0]
    parts = {part.name for part in plan.parts}
    values = {name: scores[name, text.name].value(text.metric) for name in text.forms}
    return {
        "sequences": len(text.tokens),
        "tokensPerSequence": text.length,
        "perplexities": {name: value for name, value in values.items() if name not in parts},
        "parts": {name: value for name, value in values.items() if name in parts},
        "shareOutsideWindowByLayer": dict(found.shares),
        "sets": [
            {
                "name": item.name,
                "metric": item.metric.value,
                "samples": len(item.tokens),
                "tokensPerSample": item.length,
                "values": {name: scores[name, item.name].value(item.metric) for name in item.forms},
                "standardErrors": {name: scores[name, item.name].error(item.metric) for name in item.forms},
                **_by_position(item, scores),
            }
            for item in plan.sets
        ],
        "comparisons": {name: asdict(own) for name, own in _comparisons(plan, scores).items()},
        "tieNats": TIE_NATS,
        "samples": [asdict(sample) for sample in found.samples],
        "tasks": {form: [asdict(row) for row in rows] for form, rows in found.tasks.items()},
        "decode": asdict(decode) | {"crossover": decode.crossover, "equalWindow": decode.equal_window},
        "leftOut": plan.left_out,
    }


def facts(spec: TrenchcoatSpec, found: Results) -> Facts:
    """The headline numbers."""
    plan, scores, decode = found.plan, found.scores, found.decode
    texts = [item for item in plan.sets if item.probe is None and not item.is_other]
    other = {form: item for item in plan.sets if item.is_other for form in item.forms}
    rows = [
        Perplexity(
            name=variant.name,
            perplexity=_told(scores, variant.name, texts[0]),
            error=_told_error(scores, variant.name, texts[0]),
            longer={str(item.length): _told(scores, variant.name, item) for item in texts[1:]},
            **_other(scores, variant.name, other.get(variant.name)),
        )
        for variant in plan.variants
    ]
    length = spec.data.sequence_length
    lengths = [length, *(length * multiple for multiple in sorted(spec.evaluate.length_multiples))]
    return Facts(
        perplexities=rows,
        evaluation=Evaluation(
            sequence_length=length,
            recall=[_recall(item, item.probe, scores) for item in plan.sets if item.probe is not None],
            comparisons=[
                Comparison(
                    teacher=name,
                    continuations=own.continuations,
                    ratio=f"{own.ratio:.6g}",
                    ratio_error=_number(own.ratio_error),
                    wins=f"{own.wins:.6g}",
                    ties=f"{own.ties:.6g}",
                    error=f"{own.error:.2g}",
                )
                for name, own in _comparisons(plan, scores).items()
            ],
            positions=_positions(texts[-1], scores),
            parts={part.name: _told(scores, part.name, texts[0]) for part in plan.parts},
            tasks=task_results(found.tasks)[:MOST_TASKS],
            decode=decode.facts(lengths),
            left_out=plan.left_out,
        ),
    )


def _recall(item: EvaluationSet, probe: Probe, scores: Mapping[Place, Score]) -> Recall:
    return Recall(
        probe=probe.value,
        distance=item.distance,
        samples=len(item.tokens),
        shares={name: _told(scores, name, item) for name in item.forms},
        errors={name: f"{scores[name, item.name].error(item.metric):.2g}" for name in item.forms},
    )


def _comparisons(plan: EvaluationPlan, scores: Mapping[Place, Score]) -> dict[str, Compared]:
    """The student beside each teacher that was measured, by the teacher's name."""
    text = plan.sets[0]
    student = scores[ModelForm.STITCHED, text.name]
    teachers = (form for form in (ModelForm.TEACHER, ModelForm.ADAPTED_TEACHER) if form in text.forms)
    return {form.value: compare(student, scores[form, text.name]) for form in teachers}


def _positions(item: EvaluationSet, scores: Mapping[Place, Score]) -> list[PositionRange]:
    forms = [form for form in COMPARED_FORMS if form in item.forms]
    found = {form: scores[form, item.name].by_position() for form in forms}
    return [
        PositionRange(
            first=first,
            last=last,
            perplexities={form.value: f"{found[form][index]:.6g}" for form in forms},
        )
        for index, (first, last) in enumerate(_ranges(item.length))
    ]


def _by_position(item: EvaluationSet, scores: Mapping[Place, Score]) -> dict[str, Any]:
    if item.metric is not Metric.PERPLEXITY:
        return {}
    return {
        "positions": _ranges(item.length),
        "valuesByPosition": {name: scores[name, item.name].by_position() for name in item.forms},
    }


def _ranges(length: int) -> list[tuple[int, int]]:
    """First and last position of each of `RANGES`."""
    begins = [-(-index * length // RANGES) for index in range(RANGES + 1)]
    return [(begin, end - 1) for begin, end in pairwise(begins)]


def _other(scores: Mapping[Place, Score], name: str, item: EvaluationSet | None) -> dict[str, str | None]:
    """Fields of `Perplexity` for the other text; none where the form was not measured on any."""
    if item is None:
        return {}
    return {"other": _told(scores, name, item), "other_error": _told_error(scores, name, item)}


def _told(scores: Mapping[Place, Score], name: str, item: EvaluationSet) -> str:
    return f"{scores[name, item.name].value(item.metric):.6g}"


def _told_error(scores: Mapping[Place, Score], name: str, item: EvaluationSet) -> str | None:
    return _number(scores[name, item.name].error(item.metric))


def _number(error: float | None) -> str | None:
    return None if error is None else f"{error:.2g}"
