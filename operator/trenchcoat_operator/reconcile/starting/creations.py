"""What is made for the works that start: their Jobs, and what the pods of these need beside them."""

from trenchcoat_operator.children import jobs, specs
from trenchcoat_operator.model.plan import Apply
from trenchcoat_operator.reconcile.assessment.counting import refusing_nodes
from trenchcoat_operator.reconcile.assessment.standing import Assessment
from trenchcoat_operator.reconcile.look import Look
from trenchcoat_operator.reconcile.starting.release import Release


def creations(look: Look, assessments: tuple[Assessment, ...], released: Release) -> list[Apply]:
    """The objects to make; the ConfigMap, and the Services of gangs, first."""
    known = {item.work.key: item for item in assessments}
    result = []
    if released.start and specs.spec_name(look.trenchcoat) not in look.observed.config_maps:
        result.append(Apply(specs.spec_config_map(look.trenchcoat)))
    at_work = [item.work for item in assessments if item.latest is not None and item.latest.active]
    services = jobs.services(look.trenchcoat, [*released.start, *at_work])
    result += [Apply(body) for name, body in services.items() if name not in look.observed.services]
    for work in released.start:
        job = jobs.build(
            look.trenchcoat,
            work,
            known[work.key].attempt + 1,
            look.settings.pods,
            avoid=refusing_nodes(known[work.key].outcomes),
            expects_nodes=work.key in released.expecting_nodes,
        )
        result.append(Apply(job))
    return result
