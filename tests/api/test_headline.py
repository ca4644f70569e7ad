"""The two numbers of a run: the same that gates bound and columns show."""

import pytest
from trenchcoat_api.artifacts import Facts
from trenchcoat_api.headline import kept_recall, perplexity_ratio
from trenchcoat_api.results import Evaluation, Perplexity, Recall


def rows(**perplexities):
    return [Perplexity(name=name, perplexity=value) for name, value in perplexities.items()]


def facts(*copies, probe="copy"):
    recall = [
        Recall(probe=probe, distance=distance, samples=8, shares={"teacher": teacher, "stitched": student})
        for distance, teacher, student in copies
    ]
    return Facts(evaluation=Evaluation(sequence_length=1024, recall=recall))


def test_the_ratio_is_to_the_adapted_teacher_where_there_is_one():
    assert perplexity_ratio(rows(teacher="10", stitched="12")) == ("teacher", 1.2)
    name, value = perplexity_ratio(rows(teacher="10", adaptedTeacher="8", stitched="12"))
    assert (name, value) == ("adaptedTeacher", 1.5)
    assert perplexity_ratio(rows(teacher="10")) is None
    assert perplexity_ratio(rows(stitched="10")) is None


def test_recall_is_told_at_the_longest_distance_that_the_teacher_copies_over():
    found = kept_recall(facts((40, "0.9", "0.9"), (256, "0.6", "0.3"), (1024, "0", "0")))
    assert found == (256, pytest.approx(0.5))
    assert kept_recall(facts((40, "0", "0"))) is None
    assert kept_recall(facts((40, "1", "1"), probe="induction")) is None
    assert kept_recall(Facts()) is None
