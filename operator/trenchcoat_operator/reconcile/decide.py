"""The decision: from one Trenchcoat and one look at the world to a plan."""

from datetime import datetime

from trenchcoat_api import constants, texts
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.status import WaitingReason

from trenchcoat_operator.model.observed import Observed
from trenchcoat_operator.model.plan import Plan, StoreAction
from trenchcoat_operator.reconcile.again import look_again
from trenchcoat_operator.reconcile.assessment.assess import assess_all
from trenchcoat_operator.reconcile.assessment.giving_up import going_on
from trenchcoat_operator.reconcile.look import Look
from trenchcoat_operator.reconcile.situation import Situation
from trenchcoat_operator.reconcile.starting.creations import creations
from trenchcoat_operator.reconcile.starting.release import release
from trenchcoat_operator.reconcile.stopping import ended, retention, unwanted
from trenchcoat_operator.reconcile.stopping.farewell import farewell
from trenchcoat_operator.reconcile.telling import events, usage
from trenchcoat_operator.reconcile.telling.status import status
from trenchcoat_operator.settings import Settings


def reconcile(trenchcoat: Trenchcoat, observed: Observed, settings: Settings, now: datetime) -> Plan:
    """Decide what is to be done for a Trenchcoat."""
    look = Look.at(trenchcoat, observed, settings, now)
    if trenchcoat.metadata.deletion_timestamp:
        return _part(look)
    look, assessments = going_on(look, assess_all(look))
    released = release(look, assessments)
    removals = unwanted.deletions(look)
    overdue = ended.past_deadline(look)
    outstayed = ended.outstayed(look, assessments, {action.name for action in (*removals, *overdue)})
    kept = retention.intermediates(look)
    actions = (
        *retention.wanted_finalizer(trenchcoat),
        *removals,
        *ended.records(look),
        *ended.verdicts(assessments),  # with a pod goes the knowledge that its node was lost
        *ended.lost_pods(look),
        *overdue,
        *outstayed,
        *creations(look, assessments, released),
        *kept.actions,
    )
    situation = Situation(look, assessments, released, frozenset(action.name for action in removals))
    told = usage.account(status(situation), look, last_look=bool(removals or overdue or outstayed))
    stuck = observed.capacity is None and bool(unwanted.stuck(look))
    return Plan(
        actions,
        told,
        events.of_look(situation, actions, told),
        look_again(situation, told, hurry=bool(kept.actions)),
        needs_surroundings=released.needs_surroundings or kept.undecided or stuck,
        waits_for_gpus=any(hold.waiting is WaitingReason.GPU for hold in released.held.values()),
        due=released.due,
    )


def _part(look: Look) -> Plan:
    """Let a Trenchcoat go; without the finalizer its children go by their owner references."""
    if constants.FINALIZER not in look.trenchcoat.metadata.finalizers:
        return Plan((), look.former, (), None)
    steps = farewell(look)
    actions = (*ended.lost_pods(look), *steps.actions)
    told = (*steps.events, *events.of_actions(actions, texts.timestamp(look.now)))
    hurry = any(isinstance(action, StoreAction) for action in actions)
    return Plan(actions, look.former, told, 0.0 if hurry else look.settings.poll_seconds, steps.undecided)
