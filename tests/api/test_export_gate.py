"""The quality gate before the export: which evaluations pass."""

import pytest
from trenchcoat_api.artifacts import Facts
from trenchcoat_api.export_gate import explain_shortfalls, holds_export, shortfalls
from trenchcoat_api.resource import InvalidTrenchcoatError
from trenchcoat_api.results import Evaluation, Perplexity, Recall

from tests.api.specs import trenchcoat


def measured(*, adapted: str | None = None, copies=((40, "0.9", "0.9"), (256, "0.6", "0.3"))) -> Facts:
    rows = [
        Perplexity(name="teacher", perplexity="10", longer={"2048": "9", "4096": "8"}),
        Perplexity(name="stitched", perplexity="12", longer={"2048": "12.1", "4096": "15"}),
    ]
    if adapted:
        rows.append(Perplexity(name="adaptedTeacher", perplexity=adapted))
    recall = [
        Recall(probe="copy", distance=distance, samples=8, shares={"teacher": teacher, "stitched": student})
        for distance, teacher, student in copies
    ]
    return Facts(perplexities=rows, evaluation=Evaluation(sequence_length=1024, recall=recall))


def found(gates: dict[str, str], facts: Facts) -> list[str]:
    return shortfalls(trenchcoat("spec.gates", gates).spec, facts)


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        (
            {"maxPerplexityRatio": "1.1"},
            "1.2 times the teacher's, more than spec.gates.maxPerplexityRatio 1.1",
        ),
        ({"maxLengthRatio": "1.2"}, "at 4096 tokens is 1.25 times that at 1024"),
        ({"minRecall": "0.6"}, "over 256 tokens the student copies 0.5, less than spec.gates.minRecall 0.6"),
    ],
)
def test_what_does_not_pass_is_told_with_its_numbers(gates, words):
    (text,) = found(gates, measured())
    assert words in text
    assert explain_shortfalls([text], "wave it through").endswith("wave it through")


def test_bounds_that_are_kept_to_pass():
    gates = {"maxPerplexityRatio": "1.2", "maxLengthRatio": "1.25", "minRecall": "0.5"}
    assert found(gates, measured()) == []


def test_the_adapted_teacher_is_the_measure_where_there_is_one():
    (text,) = found({"maxPerplexityRatio": "1.2"}, measured(adapted="9"))
    assert "1.33 times the adapted teacher's" in text


def test_distances_over_which_the_teacher_copies_nothing_do_not_count():
    copies = ((40, "0.9", "0.9"), (256, "0", "0"))
    assert found({"minRecall": "0.9"}, measured(copies=copies)) == []


@pytest.mark.parametrize("gate", ["maxPerplexityRatio", "maxLengthRatio", "minRecall"])
def test_what_was_not_measured_does_not_pass(gate):
    (text,) = found({gate: "0.9"}, Facts())
    assert f"spec.gates.{gate}" in text


def test_a_number_that_is_none_does_not_pass():
    facts = measured()
    rows = [*facts.perplexities[:1], Perplexity(name="stitched", perplexity="nan", longer={"2048": "nan"})]
    broken = facts.model_copy(update={"perplexities": rows})
    assert len(found({"maxPerplexityRatio": "9", "maxLengthRatio": "9"}, broken)) == 2


def test_the_export_waits_only_where_a_bound_is_set_or_it_is_uploaded():
    assert not holds_export(trenchcoat("spec.gates", {"maxCriaError": "0.3"}).spec)
    assert holds_export(trenchcoat("spec.gates", {"minRecall": "0.3"}).spec)
    uploaded = trenchcoat("spec.export", {"destination": "hf://me/student"}).spec
    assert holds_export(uploaded)
    evaluate = uploaded.evaluate.model_copy(update={"enabled": False})
    assert not holds_export(uploaded.model_copy(update={"evaluate": evaluate}))


@pytest.mark.parametrize("stage", ["evaluate", "export"])
def test_without_evaluation_or_export_the_bounds_are_refused(stage):
    with pytest.raises(InvalidTrenchcoatError, match="hold the export"):
        trenchcoat({"spec.gates": {"minRecall": "0.3"}, f"spec.{stage}": {"enabled": False}})
