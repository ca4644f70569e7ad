"""The two numbers that say in short what became of the teacher: what gates bound and columns show."""

from collections.abc import Sequence
from typing import NamedTuple

from trenchcoat_api.artifacts import Facts
from trenchcoat_api.results import ModelForm, Perplexity, Probe, Recall
from trenchcoat_api.sheets import baseline


class PerplexityRatio(NamedTuple):
    """The student's perplexity at data.sequenceLength over that of the teacher it is held to."""

    teacher: str
    """adaptedTeacher where that was measured, else teacher."""
    value: float


class KeptRecall(NamedTuple):
    """The share of what the teacher copies that the student copies."""

    distance: int
    """The longest at which the teacher copies anything."""
    value: float


def perplexity_ratio(perplexities: Sequence[Perplexity]) -> PerplexityRatio | None:
    """The ratio; none where either was not measured."""
    student = next((item for item in perplexities if item.name == ModelForm.STITCHED), None)
    base = baseline(perplexities)
    if student is None or base is None:
        return None
    return PerplexityRatio(base.name, float(student.perplexity) / float(base.perplexity))


def kept_recall(facts: Facts) -> KeptRecall | None:
    """The share; none where the teacher copied nothing, or copying was not measured."""
    rows = facts.evaluation.recall if facts.evaluation is not None else []
    copies = [row for row in rows if row.probe == Probe.COPY and _share(row, ModelForm.TEACHER) > 0]
    if not copies:
        return None
    row = max(copies, key=lambda row: row.distance)
    return KeptRecall(row.distance, _share(row, ModelForm.STITCHED) / _share(row, ModelForm.TEACHER))


def _share(row: Recall, name: str) -> float:
    return float(row.shares.get(name, "0"))
