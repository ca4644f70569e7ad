"""The evaluation as tables of words, for the terminal and for a model card alike."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from trenchcoat_api import texts
from trenchcoat_api.results import Evaluation, ModelForm, Perplexity

UNADAPTED = (
    "The teacher never saw this text, the student was trained on it: part of what LoRA and stitching gain is "
    "that. What the teacher reaches with the same adapters on the same tokens was not measured."
)


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
    """Perplexity by length, recall by distance, bytes of decode state: as far as they were measured."""
    found = [_perplexity(perplexities, evaluation)]
    if evaluation is not None:
        found += [_recall(evaluation)] if evaluation.recall else []
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
    rows = []
    for item in perplexities:
        value = float(item.perplexity)
        closed = gap_closed(perplexities, value)
        longer = (f"{float(item.longer[length]):.2f}" if length in item.longer else "-" for length in lengths)
        ratio = f"{value / float(base.perplexity):.2f}" if base is not None else "-"
        gap = "-" if closed is None else f"{closed:.1%}"
        rows.append((label(item.name, evaluation), f"{value:.2f}", *longer, ratio, gap))
    against = "adapted teacher" if base is not None and base.name == ModelForm.ADAPTED_TEACHER else "teacher"
    header = ("model", first, *(f"at {length}" for length in lengths), f"to {against}", "gap closed")
    return Sheet("Perplexity on held-out text, by tokens in a sequence", header, rows)


def _recall(evaluation: Evaluation) -> Sheet:
    # A status that came from the API server has its maps in the order of the alphabet.
    measured = {name for item in evaluation.recall for name in item.shares}
    known = [form.value for form in ModelForm]
    names = [name for name in known if name in measured] + sorted(measured.difference(known))
    rows = []
    for name in names:
        shares = (item.shares.get(name) for item in evaluation.recall)
        rows.append(
            (
                label(name, evaluation),
                *("-" if share is None else f"{float(share):.0%}" for share in shares),
            )
        )
    samples = max(item.samples for item in evaluation.recall)
    return Sheet(
        f"Recall by distance in tokens, {samples} samples each",
        ("model", *(f"{item.probe} {item.distance}" for item in evaluation.recall)),
        rows,
    )


def _decode(evaluation: Evaluation) -> Sheet:
    assert evaluation.decode is not None  # noqa: S101
    held = {"student": evaluation.decode.student, "teacher's key/value cache": evaluation.decode.teacher}
    lengths = sorted(evaluation.decode.student, key=int)
    rows = [(name, *(texts.size(bytes_[length]) for length in lengths)) for name, bytes_ in held.items()]
    return Sheet("Decoding one sequence holds", ("", *(f"at {length}" for length in lengths)), rows)
