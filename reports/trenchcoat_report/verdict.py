"""What a report says first: how the run stands, how good its student is, and which bounds are kept."""

from datetime import datetime
from typing import NamedTuple

from trenchcoat_api import waiting
from trenchcoat_api.artifacts import Facts
from trenchcoat_api.export_gate import shortfalls
from trenchcoat_api.results import ModelForm, Probe, Recall
from trenchcoat_api.sheets import baseline
from trenchcoat_api.status import ConditionType
from trenchcoat_api.texts import duration, size

from trenchcoat_report.run import Run


class Figure(NamedTuple):
    """A number with what it is and what it stands beside."""

    name: str
    value: str
    beside: str = ""


class Bound(NamedTuple):
    """A bound of spec.gates."""

    name: str
    bound: str
    verdict: str
    is_kept: bool | None
    """None while it is not known."""


def state(run: Run) -> tuple[str, str]:
    """A word for how the run stands, and why."""
    status = run.trenchcoat.status
    if run.is_complete:
        return "Complete", ""
    if run.failure:
        return "Failed", run.failure
    if stalled := run.condition(ConditionType.STALLED):
        return "Stalled", stalled
    if run.spec.suspend:
        return "Suspended", "spec.suspend is true"
    waits = waiting.of_run(status)
    return "Running", f"{status.stage or 'not begun'}{': ' + waits if waits else ''}"


def sentence(run: Run) -> str:
    """How good the student is, in words."""
    student, base = run.perplexity(ModelForm.STITCHED), baseline(run.trenchcoat.status.perplexities)
    if student is None or base is None or run.ratio is None:
        return (
            "The student was not evaluated yet."
            if run.spec.evaluate.enabled
            else "spec.evaluate is switched off."
        )
    change = run.ratio - 1
    where = "above" if change >= 0 else "below"
    evaluation = run.trenchcoat.status.evaluation
    length = evaluation.sequence_length if evaluation is not None else run.spec.data.sequence_length
    told = (
        f"The student's perplexity is {abs(change):.1%} {where} the {run.base_name}'s at {length} tokens: "
        f"{float(student.perplexity):.2f} against {float(base.perplexity):.2f}."
    )
    if student.longer:
        longest = max(student.longer, key=int)
        other = base.longer.get(longest)
        told += f" At {longest} tokens it is {float(student.longer[longest]):.2f}"
        told += f" against {float(other):.2f}." if other else "."
    if evaluation is not None and evaluation.comparisons:
        by_name = {item.teacher: item for item in evaluation.comparisons}
        beside = by_name.get(ModelForm.ADAPTED_TEACHER) or evaluation.comparisons[0]
        name = "adapted teacher" if beside.teacher == ModelForm.ADAPTED_TEACHER else "teacher"
        told += (
            f" Of {beside.continuations} held-out continuations {float(beside.wins):.0%} are likelier to the "
            f"student than to the {name}, {float(beside.ties):.0%} about as likely."
        )
    return told


def figures(run: Run) -> list[Figure]:
    """The numbers to look at first."""
    status, found = run.trenchcoat.status, []
    student, base = run.perplexity(ModelForm.STITCHED), baseline(status.perplexities)
    if student is not None and base is not None and run.ratio is not None:
        found.append(
            Figure(
                "student's perplexity",
                f"{float(student.perplexity):.2f}",
                f"{run.ratio:.3f} x {run.base_name}",
            )
        )
    evaluation = status.evaluation
    if evaluation is not None:
        for probe, words in ((Probe.COPY, "copied"), (Probe.PASSKEY, "pass key")):
            if row := farthest(run, probe):
                share, other = row.shares.get(ModelForm.STITCHED), row.shares.get(ModelForm.TEACHER)
                beside = f"teacher {float(other):.0%}" if other else ""
                if share:
                    found.append(Figure(f"{words} over {row.distance} tokens", f"{float(share):.0%}", beside))
        if evaluation.decode is not None and evaluation.decode.student:
            length = max(evaluation.decode.student, key=int)
            found.append(
                Figure(
                    f"decoding holds at {length} tokens",
                    size(evaluation.decode.student[length]),
                    f"teacher {size(evaluation.decode.teacher.get(length, 0))}",
                )
            )
    if status.gpu_seconds:
        found.append(Figure("GPU-hours", f"{float(status.gpu_seconds) / 3600:.2f}"))
    if not run.is_complete:
        crias = f"{status.crias_done} Crias" if status.crias_done else ""
        found.append(Figure("progress", status.progress or "0%", crias))
    found.append(
        Figure(
            "took" if run.is_complete else "since it began",
            duration((ended(run) - run.began).total_seconds()),
        )
    )
    return found


def farthest(run: Run, probe: Probe) -> Recall | None:
    """Recall at the largest distance that was measured."""
    evaluation = run.trenchcoat.status.evaluation
    rows = [row for row in evaluation.recall if row.probe == probe] if evaluation is not None else []
    return max(rows, key=lambda row: row.distance, default=None)


def bounds(run: Run) -> list[Bound]:
    """The bounds that spec.gates sets, each with what came out."""
    spec, status = run.spec, run.trenchcoat.status
    found = []
    if spec.gates.max_cria_error is not None:
        found.append(_cria_bound(run, spec.gates.max_cria_error))
    facts = Facts(perplexities=status.perplexities, evaluation=status.evaluation)
    for field, name in (
        ("max_perplexity_ratio", "maxPerplexityRatio"),
        ("max_length_ratio", "maxLengthRatio"),
        ("min_recall", "minRecall"),
    ):
        bound = getattr(spec.gates, field)
        if bound is None:
            continue
        others = {
            other: None
            for other in ("max_perplexity_ratio", "max_length_ratio", "min_recall")
            if other != field
        }
        alone = spec.model_copy(update={"gates": spec.gates.model_copy(update=others)})
        if not status.perplexities:
            found.append(Bound(f"spec.gates.{name}", bound, "not evaluated yet", None))
            continue
        wrong = shortfalls(alone, facts)
        found.append(Bound(f"spec.gates.{name}", bound, "; ".join(wrong) or "kept", not wrong))
    return found


def ended(run: Run) -> datetime:
    """When its last artifact was complete; now, where some are not."""
    moments = [row.completed_at for _, _, row in run.works() if row.completed_at]
    if not run.is_complete or not moments:
        return run.told_at
    return max(run.began, max(datetime.fromisoformat(moment) for moment in moments))


def _cria_bound(run: Run, bound: str) -> Bound:
    name = "spec.gates.maxCriaError"
    known = {row.index: float(row.error) for row in run.trenchcoat.status.crias if row.error}
    above = [index for index, error in known.items() if not error <= float(bound)]
    if above:
        return Bound(name, bound, f"not kept by Cria {', '.join(map(str, above))}", False)
    return Bound(name, bound, "kept", True) if known else Bound(name, bound, "no Cria measured yet", None)
