"""Which stages a spec asks for: the adapted teacher where it is worth its cost, boundaries where read."""

import pytest
from trenchcoat_api.phases import may_go_without, stages, why_not_adapted
from trenchcoat_api.stages import Stage

from tests.api.specs import trenchcoat

STILL = {"spec.criaLora": {"epochs": 0}, "spec.stitch": {"epochs": 0}}


@pytest.mark.parametrize(
    ("wanted", "fields", "reason"),
    [
        ("auto", {}, ""),
        ("auto", {"spec.stitch": {"gpusPerNode": 8}}, ""),
        ("auto", {"spec.stitch": {"nodes": 2}}, "spec.stitch.nodes is 2"),
        ("auto", {"spec.evaluate.enabled": False}, "spec.evaluate.enabled is false"),
        ("auto", STILL, "has no adapters"),
        ("auto", {"spec.stitch": {"epochs": 0}}, "spec.stitch.epochs is 0"),
        ("always", {"spec.stitch": {"epochs": 0}}, ""),
        ("always", {"spec.stitch": {"nodes": 2}}, ""),
        ("always", {"spec.evaluate.enabled": False}, "spec.evaluate.enabled is false"),
        ("always", STILL, "has no adapters"),
        ("never", {}, "adaptedTeacher is never"),
    ],
)
def test_whether_the_teacher_is_adapted(wanted, fields, reason):
    spec = trenchcoat(fields | {"spec.evaluate.adaptedTeacher": wanted}).spec
    told = why_not_adapted(spec)
    assert (reason in told) if reason else not told
    assert (Stage.ADAPT in stages(spec)) is not bool(reason)
    assert may_go_without(spec) is (wanted == "auto" and not reason)


@pytest.mark.parametrize(
    ("fields", "collects"),
    [
        ({}, True),
        ({"spec.attention": {"form": "window"}}, True),
        ({"spec.attention": {"form": "window"}, "spec.criaLora": {"epochs": 0}}, False),
        ({"spec.transfer": {"epochs": 0}}, True),
        ({"spec.transfer": {"epochs": 0}, "spec.criaLora": {"epochs": 0}}, False),
        (
            {
                "spec.attention": {"form": "window"},
                "spec.criaLora": {"epochs": 0},
                "spec.gates": {"maxCriaError": "0.3"},  # of errors that are measured on boundaries
            },
            True,
        ),
    ],
)
def test_whether_boundaries_are_collected(fields, collects):
    assert (Stage.COLLECT in stages(trenchcoat(fields or None).spec)) is collects
