"""Whether a node lets pods on it, by the scheduler's rules for selectors, node affinity and taints."""

from trenchcoat_operator.model.capacity import Node, Placement, Requirement, Taint, Toleration

_KEEPS_OFF = ("NoSchedule", "NoExecute")
_PASSING = "node.kubernetes.io/"
"""Taints of this prefix tell of a node's condition, which may mend by itself."""


def tolerates(toleration: Toleration, taint: Taint) -> bool:
    """Whether a toleration answers a taint."""
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if not toleration.key:
        return toleration.operator == "Exists"
    if toleration.key != taint.key:
        return False
    return toleration.operator == "Exists" or toleration.value == taint.value


def meets(node: Node, requirement: Requirement) -> bool:
    """Whether a node meets one expression of a node affinity; an operator that is not known is not met."""
    value = node.labels.get(requirement.key)
    if requirement.field:
        value = node.name if requirement.key == "metadata.name" else None
    match requirement.operator:
        case "In":
            return value in requirement.values
        case "NotIn":
            return value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt":
            bound = _whole(requirement.values[0]) if len(requirement.values) == 1 else None
            number = _whole(value)
            if number is None or bound is None:
                return False
            return number > bound if requirement.operator == "Gt" else number < bound
        case _:
            return False


def _whole(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def admits(node: Node, placement: Placement, *, ever: bool = False) -> bool:
    """Whether a node's name, labels and taints let pods on it.

    Affinity to other pods and topology spread are left to the scheduler: a pod that they keep off every free
    node waits as Pending.

    Args:
        node: The node.
        placement: What the pods' spec says of nodes.
        ever: Whether to leave out what may pass by itself: a node that is not ready or under pressure.
    """
    if not node.usable and not ever:
        return False
    if any(node.labels.get(key) != value for key, value in placement.node_selector.items()):
        return False
    if placement.affinity is not None and not any(
        term and all(meets(node, requirement) for requirement in term) for term in placement.affinity
    ):
        return False
    return all(
        taint.effect not in _KEEPS_OFF
        or (ever and taint.key.startswith(_PASSING))
        or any(tolerates(toleration, taint) for toleration in placement.tolerations)
        for taint in node.taints
    )
