"""What the evaluation leaves: the whole report, and what others want to know without opening it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from trenchcoat_api.artifacts import Facts
from trenchcoat_api.decode_state import DecodeState
from trenchcoat_api.results import Evaluation, Perplexity, Recall
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.stages.evaluate.crossing import Place
from trenchcoat_trainer.stages.evaluate.plan import EvaluationPlan
from trenchcoat_trainer.stages.evaluate.scores import Score
from trenchcoat_trainer.stages.evaluate.sets import EvaluationSet, Metric

REPORT = "report.json"


def report(
    plan: EvaluationPlan, scores: Mapping[Place, Score], shares: Mapping[str, float], decode: DecodeState
) -> dict[str, Any]:
    """Everything that was measured, as JSON."""
    text = plan.sets[0]
    parts = {part.name for part in plan.parts}
    values = {name: scores[name, text.name].value(text.metric) for name in text.forms}
    return {
        "sequences": len(text.tokens),
        "tokensPerSequence": text.length,
        "perplexities": {name: value for name, value in values.items() if name not in parts},
        "parts": {name: value for name, value in values.items() if name in parts},
        "linearShareByLayer": dict(shares),
        "sets": [
            {
                "name": item.name,
                "metric": item.metric.value,
                "samples": len(item.tokens),
                "tokensPerSample": item.length,
                "values": {name: scores[name, item.name].value(item.metric) for name in item.forms},
            }
            for item in plan.sets
        ],
        "decode": asdict(decode) | {"crossover": decode.crossover, "equalWindow": decode.equal_window},
        "leftOut": plan.left_out,
    }


def facts(
    spec: TrenchcoatSpec, plan: EvaluationPlan, scores: Mapping[Place, Score], decode: DecodeState
) -> Facts:
    """The headline numbers."""
    texts = [item for item in plan.sets if item.metric is Metric.PERPLEXITY]
    rows = [
        Perplexity(
            name=variant.name,
            perplexity=_told(scores, variant.name, texts[0]),
            longer={str(item.length): _told(scores, variant.name, item) for item in texts[1:]},
        )
        for variant in plan.variants
    ]
    recall = [
        Recall(
            probe=item.probe.value,
            distance=item.distance,
            samples=len(item.tokens),
            shares={name: _told(scores, name, item) for name in item.forms},
        )
        for item in plan.sets
        if item.probe is not None
    ]
    length = spec.data.sequence_length
    lengths = [length, *(length * multiple for multiple in sorted(spec.evaluate.length_multiples))]
    return Facts(
        perplexities=rows,
        evaluation=Evaluation(
            sequence_length=length, recall=recall, decode=decode.facts(lengths), left_out=plan.left_out
        ),
    )


def _told(scores: Mapping[Place, Score], name: str, item: EvaluationSet) -> str:
    return f"{scores[name, item.name].value(item.metric):.6g}"
