"""The plan of a run as far as the operator makes one; kept, for every look tells of it."""

from dataclasses import dataclass
from functools import lru_cache

from trenchcoat_api.artifacts import Facts
from trenchcoat_api.planning.model import PlannedModel
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.plan import Given, Plan, make_plan
from trenchcoat_api.planning.rates import Rates, RatesError
from trenchcoat_api.spec import TrenchcoatSpec


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan and what it was made of; or why there is none."""

    plan: Plan | None = None
    outline: Outline | None = None
    fault: str = ""
    """What of spec.plan cannot be used."""


def planned(spec: TrenchcoatSpec, facts: Facts) -> Planned:
    """The plan by what the tokenize stage found out of model and text."""
    return _planned(spec.model_dump_json(), facts.model_dump_json(include={"model", "data"}))


@lru_cache(maxsize=1024)
def _planned(spec_text: str, facts_text: str) -> Planned:
    spec, facts = TrenchcoatSpec.model_validate_json(spec_text), Facts.model_validate_json(facts_text)
    if facts.model is None:
        return Planned()
    try:
        outline = Outline.of(spec, PlannedModel.of_facts(facts.model, spec), facts.data)
    except ValueError:
        return Planned()  # spec and model do not fit together, of which the graph tells
    try:
        return Planned(make_plan(outline, Given(rates=_rates())), outline)
    except RatesError as error:
        return Planned(outline=outline, fault=f"spec.plan.gpu: {error}")


@lru_cache(maxsize=1)
def _rates() -> Rates:
    return Rates.load()
