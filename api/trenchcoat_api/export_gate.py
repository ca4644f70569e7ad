"""The quality gate before the export: whether what the evaluation measured keeps to spec.gates."""

from collections.abc import Iterator

from trenchcoat_api.artifacts import Facts
from trenchcoat_api.headline import kept_recall, perplexity_ratio
from trenchcoat_api.results import ModelForm, Perplexity
from trenchcoat_api.spec import TrenchcoatSpec


def holds_export(spec: TrenchcoatSpec) -> bool:
    """Whether the export waits for the evaluation: for a bound, or so that what is uploaded tells of it."""
    gates = spec.gates
    reasons = (gates.max_perplexity_ratio, gates.max_length_ratio, gates.min_recall, spec.export.destination)
    return spec.evaluate.enabled and any(reason is not None for reason in reasons)


def shortfalls(spec: TrenchcoatSpec, facts: Facts) -> list[str]:
    """What does not pass, in words; a bound on what was not measured does not pass."""
    return [*_perplexity(spec, facts), *_length(spec, facts), *_recall(spec, facts)]


def explain_shortfalls(found: list[str], override: str) -> str:
    """Say what does not pass and what to do; `override` is how to go on all the same, in words."""
    return f"{'; '.join(found)}: change the bound, train longer or keep more softmax layers, or {override}"


def _perplexity(spec: TrenchcoatSpec, facts: Facts) -> Iterator[str]:
    bound = spec.gates.max_perplexity_ratio
    if bound is None:
        return
    ratio = perplexity_ratio(facts.perplexities)
    if ratio is None:
        yield "the perplexities that spec.gates.maxPerplexityRatio compares were not measured"
    elif not ratio.value <= float(bound):
        name = "adapted teacher" if ratio.teacher == ModelForm.ADAPTED_TEACHER else "teacher"
        yield (
            f"the student's perplexity is {ratio.value:.3g} times the {name}'s, more than "
            f"spec.gates.maxPerplexityRatio {bound}"
        )


def _length(spec: TrenchcoatSpec, facts: Facts) -> Iterator[str]:
    bound = spec.gates.max_length_ratio
    if bound is None:
        return
    student = _by_name(facts, ModelForm.STITCHED)
    if student is None or not student.longer:
        yield "no longer sequences were measured, which spec.gates.maxLengthRatio compares"
        return
    longest = max(student.longer, key=int)
    ratio = float(student.longer[longest]) / float(student.perplexity)
    if not ratio <= float(bound):
        yield (
            f"the student's perplexity at {longest} tokens is {ratio:.3g} times that at "
            f"{spec.data.sequence_length}, more than spec.gates.maxLengthRatio {bound}"
        )


def _recall(spec: TrenchcoatSpec, facts: Facts) -> Iterator[str]:
    bound = spec.gates.min_recall
    if bound is None:
        return
    kept = kept_recall(facts)
    if kept is None:
        yield "no passage was copied by the teacher, which spec.gates.minRecall compares"
    elif not kept.value >= float(bound):
        yield (
            f"of what the teacher copies over {kept.distance} tokens the student copies {kept.value:.3g}, "
            f"less than spec.gates.minRecall {bound}"
        )


def _by_name(facts: Facts, name: str) -> Perplexity | None:
    return next((item for item in facts.perplexities if item.name == name), None)
