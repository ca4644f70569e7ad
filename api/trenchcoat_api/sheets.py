"""The evaluation as tables of words, for the terminal and for a model card alike."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from trenchcoat_api import texts
from trenchcoat_api.results import Evaluation, ModelForm, Perplexity

UNADAPTED = (
    "The teacher never saw this text, the student was trained on it: part of what LoRA and stitching gain is "
    "that. What the teacher reaches with the same adapters on the same tokens was not measured."
)
_SHORT = {
    ModelForm.TEACHER.value: "teacher",
    ModelForm.ADAPTED_TEACHER.value: "adapted teacher",
    ModelForm.WINDOWED_TEACHER.value: "cut to a window",
    ModelForm.STITCHED.value: "student",
}
_PARTS = {
    "withoutLinear": "without linear attention",
    "withoutWindow": "without its window",
    "withoutFirstTokens": "without the first tokens",
    "withoutWideLayers": "without wide layers: all as narrow as the others",
}


class Sheet(NamedTuple):
    """One table."""

    title: str
    header: tuple[str, ...]
    """Names of the columns; the first holds words, the others numbers."""
    rows: list[tuple[str, ...]]


def label(name: str, evaluation: Evaluation | None = None) -> str:
    """What a form of the model is called where people read."""
    window = ""
    if evaluation is not None and evaluation.decode is not None:
        window = f" of {evaluation.decode.equal_window}"
    return {
        ModelForm.TEACHER.value: "teacher (softmax attention)",
        ModelForm.ADAPTED_TEACHER.value: "  adapted on the same tokens",
        ModelForm.WINDOWED_TEACHER.value: f"  cut to a window{window}, untrained",
        ModelForm.UNTRAINED.value: "student, untrained",
        ModelForm.TRANSFER.value: "  after attention transfer",
        ModelForm.CRIA_LORA.value: "  after LoRA by Cria",
        ModelForm.STITCHED.value: "  after stitching",
    }.get(name, name)


def baseline(perplexities: Sequence[Perplexity]) -> Perplexity | None:
    """What the student is held to: the adapted teacher where it was measured, else the teacher."""
    by_name = {item.name: item for item in perplexities}
    return by_name.get(ModelForm.ADAPTED_TEACHER) or by_name.get(ModelForm.TEACHER)


def gap_closed(perplexities: Sequence[Perplexity], perplexity: float) -> float | None:
    """Share of the way from the untrained student to the baseline, in log perplexity; none if unknown."""
    base = baseline(perplexities)
    untrained = next((item for item in perplexities if item.name == ModelForm.UNTRAINED), None)
    if base is None or untrained is None:
        return None
    worst, best = float(untrained.perplexity), float(base.perplexity)
    whole = math.log(worst) - math.log(best)
    return (math.log(worst) - math.log(perplexity)) / whole if whole else None


def sheets(perplexities: Sequence[Perplexity], evaluation: Evaluation | None) -> list[Sheet]:
    """Perplexity, recall, tasks, bytes of decode state: as far as they were measured."""
    found = [_perplexity(perplexities, evaluation)]
    if evaluation is not None:
        found += [_comparisons(evaluation)] if evaluation.comparisons else []
        found += [_recall(evaluation)] if evaluation.recall else []
        found += [_tasks(evaluation)] if evaluation.tasks else []
        found += [_positions(evaluation)] if evaluation.positions else []
        found += [_parts(evaluation)] if evaluation.parts else []
        found += [_decode(evaluation)] if evaluation.decode is not None else []
    return found


def remarks(perplexities: Sequence[Perplexity], evaluation: Evaluation | None) -> list[str]:
    """What a reader of the tables must know."""
    told: list[str] = []
    if evaluation is None:
        return told
    if all(item.name != ModelForm.ADAPTED_TEACHER for item in perplexities):
        told.append(UNADAPTED + _most(perplexities))
    decode = evaluation.decode
    if decode is not None and decode.crossover:
        told.append(f"The student holds less than the teacher's cache from {decode.crossover:,} tokens on.")
    told += [f"Not measured: {reason}." for reason in evaluation.left_out]
    return told


def _most(perplexities: Sequence[Perplexity]) -> str:
    """How much of the student's gain may be the text's domain, at most; empty where it is not known."""
    by_name = {item.name: float(item.perplexity) for item in perplexities}
    # Where attention transfer had nothing to train, what is there before adapters is the untrained student.
    bare = by_name.get(ModelForm.TRANSFER, by_name.get(ModelForm.UNTRAINED))
    adapted = by_name.get(ModelForm.STITCHED)
    if bare is None or adapted is None or adapted >= bare:
        return ""
    return f" It is at most what lies between {bare:.2f}, before any adapter, and {adapted:.2f}."


def _perplexity(perplexities: Sequence[Perplexity], evaluation: Evaluation | None) -> Sheet:
    lengths = sorted({length for item in perplexities for length in item.longer}, key=int)
    first = f"at {evaluation.sequence_length}" if evaluation is not None else "perplexity"
    base = baseline(perplexities)
    has_other = any(item.other is not None for item in perplexities)
    rows = []
    for item in perplexities:
        value = float(item.perplexity)
        closed = gap_closed(perplexities, value)
        longer = (_cell(item.longer.get(length)) for length in lengths)
        others = [_cell(item.other)] if has_other else []
        ratio = f"{value / float(base.perplexity):.2f}" if base is not None else "-"
        gap = "-" if closed is None else f"{closed:.1%}"
        rows.append((label(item.name, evaluation), f"{value:.2f}", *longer, *others, ratio, gap))
    against = "adapted teacher" if base is not None and base.name == ModelForm.ADAPTED_TEACHER else "teacher"
    other = ["other text"] if has_other else []
    header = ("model", first, *(f"at {length}" for length in lengths), *other, f"to {against}", "gap closed")
    return Sheet("Perplexity on held-out text, by tokens in a sequence", header, rows)


def _recall(evaluation: Evaluation) -> Sheet:
    names = _ordered(item.shares for item in evaluation.recall)
    rows = [
        (
            f"{item.probe} {item.distance}",
            *(_share(item.shares.get(name), item.errors.get(name)) for name in names),
        )
        for item in evaluation.recall
    ]
    samples = max(item.samples for item in evaluation.recall)
    errors = ", with standard errors" if any(item.errors for item in evaluation.recall) else ""
    title = f"Recall by distance in tokens, {samples} samples each{errors}"
    return Sheet(title, ("asked for", *(_short(name) for name in names)), rows)


def _comparisons(evaluation: Evaluation) -> Sheet:
    rows: list[tuple[str, ...]] = [
        (
            _short(item.teacher),
            _with_error(item.ratio, item.ratio_error, ".3f"),
            f"{float(item.wins):.0%}",
            f"{float(item.ties):.0%}",
            _share(str(float(item.wins) + float(item.ties)), item.error),
        )
        for item in evaluation.comparisons
    ]
    continuations = max(item.continuations for item in evaluation.comparisons)
    title = f"The student beside a teacher, on {continuations} continuations of held-out text"
    return Sheet(title, ("against", "perplexity ratio", "wins", "ties", "wins or ties"), rows)


def _positions(evaluation: Evaluation) -> Sheet:
    ranges = evaluation.positions
    names = _ordered(item.perplexities for item in ranges)
    rows = [
        (f"to {item.last + 1}", *(_cell(item.perplexities.get(name)) for name in names)) for item in ranges
    ]
    title = f"Perplexity by position in sequences of {ranges[-1].last + 1} tokens"
    return Sheet(title, ("tokens", *map(_short, names)), rows)


def _parts(evaluation: Evaluation) -> Sheet:
    rows: list[tuple[str, ...]] = [
        (_PARTS.get(name, name), _cell(value)) for name, value in evaluation.parts.items()
    ]
    return Sheet("The student with a part of its attention taken away", ("student", "perplexity"), rows)


def _tasks(evaluation: Evaluation) -> Sheet:
    names = _ordered(item.values for item in evaluation.tasks)
    rows = [
        (
            f"{item.task}, {item.metric}",
            str(item.samples),
            *(_with_error(item.values.get(name), item.errors.get(name), ".4g") for name in names),
        )
        for item in evaluation.tasks
    ]
    return Sheet("Tasks of lm-evaluation-harness", ("task", "samples", *map(_short, names)), rows)


def _ordered(measured: Iterable[Mapping[str, str]]) -> list[str]:
    """Names of forms in the order of their telling; a status from the API server has that of the alphabet."""
    found = {name for names in measured for name in names}
    known = [form.value for form in ModelForm]
    return [name for name in known if name in found] + sorted(found.difference(known))


def _short(name: str) -> str:
    return _SHORT.get(name, name)


def _share(share: str | None, error: str | None) -> str:
    if share is None:
        return "-"
    return f"{float(share):.0%}" if error is None else f"{float(share) * 100:.0f} ± {float(error) * 100:.0f}%"


def _with_error(value: str | None, error: str | None, form: str) -> str:
    if value is None:
        return "-"
    own = format(float(value), form)
    return own if error is None else f"{own} ± {float(error):.2g}"


def _cell(value: str | None) -> str:
    return "-" if value is None else f"{float(value):.2f}"


def _decode(evaluation: Evaluation) -> Sheet:
    assert evaluation.decode is not None  # noqa: S101
    held = {"student": evaluation.decode.student, "teacher's key/value cache": evaluation.decode.teacher}
    lengths = sorted(evaluation.decode.student, key=int)
    rows = [(name, *(texts.size(bytes_[length]) for length in lengths)) for name, bytes_ in held.items()]
    return Sheet("Decoding one sequence holds", ("", *(f"at {length}" for length in lengths)), rows)
