"""Which of the tries at an artifact count, and what is known of nodes by those that do not."""

from collections.abc import Sequence
from itertools import takewhile

from trenchcoat_operator.model.observed import Child
from trenchcoat_operator.reconcile.assessment.failures import FailureClass, Outcome

Ends = Sequence[tuple[Child, Outcome]]
"""How tries ended, the latest last."""


def counted(outcomes: Sequence[Outcome]) -> int:
    """How many of the tries count against spec.scheduling.maxAttempts.

    Those before a try that saved a later checkpoint than any of them are forgiven: the work comes further.
    """
    since, furthest = 0, 0.0
    for number, outcome in enumerate(outcomes):
        if outcome.saved is not None and outcome.saved > furthest:
            since, furthest = number, outcome.saved
    left = outcomes[since:]
    evictions = sum(outcome.failure is FailureClass.EVICTED for outcome in left)
    return sum(not outcome.failure.free for outcome in left) - min(evictions, 1)


def in_a_row(outcomes: Sequence[Outcome], *classes: FailureClass) -> int:
    """How many of the latest tries ended in one of these ways, one after another."""
    return sum(1 for _ in takewhile(lambda outcome: outcome.failure in classes, reversed(outcomes)))


def refusing_nodes(ends: Ends) -> tuple[str, ...]:
    """Nodes that refused the pods of the latest tries."""
    latest = takewhile(lambda end: end[1].failure is FailureClass.NODE_REFUSED, reversed(ends))
    return tuple(sorted({pod.node for child, _ in latest for pod in child.pods if pod.node}))
