"""What all models of the API have in common."""

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError

from trenchcoat_api.rules import RULE_ERROR, VALIDATIONS, Rule


class Camel(BaseModel):
    """A model whose YAML keys are the camelCase of its Python names; unknown keys are errors."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    rules: ClassVar[tuple[Rule, ...]] = ()
    """What must hold between its fields; checked here, and by the API server as CEL."""

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        broken = [rule for rule in self.rules if rule.holds is not None and not rule.holds(self)]
        if broken:
            faults = [(f".{rule.field}", rule.message) for rule in broken]
            text = "; ".join(text for _, text in faults)
            raise PydanticCustomError(RULE_ERROR, "{text}", {"text": text, "faults": faults})
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The JSON schema with the rules in CEL."""
        made = handler.resolve_ref_schema(handler(schema))
        if cls.rules:
            made[VALIDATIONS] = [rule.validation() for rule in cls.rules]
        return made
