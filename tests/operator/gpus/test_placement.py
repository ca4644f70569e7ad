"""Which nodes a pod may run on: selectors, node affinity, taints, by the scheduler's rules."""

from dataclasses import replace
from typing import Any

import pytest
from trenchcoat_operator.gpus.placement import admits, tolerates
from trenchcoat_operator.model import views
from trenchcoat_operator.model.capacity import Node, Placement, Taint, Toleration

GPU = "nvidia.com/gpu"
NODE = Node("gpu-1", {GPU: 8}, {"gpu": "h100", "zone": "a", "memory": "80"})


@pytest.mark.parametrize(
    ("toleration", "yes"),
    [
        (Toleration(operator="Exists"), True),
        (Toleration("team", "Exists"), True),
        (Toleration("team", "Equal", "ml"), True),
        (Toleration("team", "Equal", "ml", "NoSchedule"), True),
        (Toleration("team", "Equal", "web"), False),
        (Toleration("team", "Equal", "ml", "NoExecute"), False),
        (Toleration("other", "Exists"), False),
        (Toleration(), False),
    ],
)
def test_tolerations(toleration: Toleration, yes: bool) -> None:
    assert tolerates(toleration, Taint("team", "ml", "NoSchedule")) is yes


def test_a_taint_that_only_prefers_keeps_nobody_off() -> None:
    node = replace(NODE, taints=(Taint("x", "", "PreferNoSchedule"),))
    assert admits(node, Placement())
    assert not admits(replace(node, taints=(Taint("x", "", "NoExecute"),)), Placement())


def test_a_node_that_is_not_ready_may_be_some_day() -> None:
    taint = Taint("node.kubernetes.io/not-ready", "", "NoExecute")
    node = replace(NODE, usable=False, taints=(taint,))
    assert not admits(node, Placement())
    assert admits(node, Placement(), ever=True)
    assert not admits(replace(node, taints=(Taint("team", "ml", "NoSchedule"),)), Placement(), ever=True)


def affinity(*terms: dict[str, Any]) -> Placement:
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}
    return views.placement({"affinity": {"nodeAffinity": required}})


def labelled(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


@pytest.mark.parametrize(
    ("expression", "yes"),
    [
        (("gpu", "In", "a100", "h100"), True),
        (("gpu", "In", "a100"), False),
        (("none", "In", "a100"), False),
        (("gpu", "NotIn", "a100"), True),
        (("gpu", "NotIn", "h100"), False),
        (("none", "NotIn", "a100"), True),
        (("gpu", "Exists"), True),
        (("none", "Exists"), False),
        (("gpu", "DoesNotExist"), False),
        (("none", "DoesNotExist"), True),
        (("memory", "Gt", "79"), True),
        (("memory", "Gt", "80"), False),
        (("memory", "Lt", "81"), True),
        (("memory", "Lt", "80"), False),
        (("gpu", "Gt", "1"), False),
        (("none", "Lt", "1"), False),
        (("gpu", "Newfangled", "h100"), False),
    ],
)
def test_operators_of_node_affinity(expression: tuple[str, ...], yes: bool) -> None:
    assert admits(NODE, affinity(labelled(*expression))) is yes


def test_terms_are_alternatives_and_expressions_of_one_belong_together() -> None:
    h100, zone_b = labelled("gpu", "In", "h100"), labelled("zone", "In", "b")
    both = {"matchExpressions": [*h100["matchExpressions"], *zone_b["matchExpressions"]]}
    assert admits(NODE, affinity(zone_b, h100))
    assert not admits(NODE, affinity(both))
    assert not admits(NODE, affinity())
    assert not admits(NODE, affinity({}))


def test_fields_and_labels_are_told_apart() -> None:
    by_name = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["gpu-1"]}]}
    assert admits(NODE, affinity(by_name))
    assert not admits(replace(NODE, name="gpu-2"), affinity(by_name))
    assert not admits(NODE, affinity(labelled("metadata.name", "In", "gpu-1")))


def test_what_is_only_preferred_keeps_nobody_off() -> None:
    preferred = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {}}]}
    assert admits(NODE, views.placement({"affinity": {"nodeAffinity": preferred}}))
    assert not admits(NODE, views.placement({"nodeSelector": {"gpu": "a100"}}))
    assert admits(NODE, views.placement({"nodeSelector": {"gpu": "h100", "zone": "a"}}))
