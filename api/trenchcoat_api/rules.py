"""Rules of the models, written once and checked twice: by pydantic here, as CEL on the API server.

A rule stands beside the fields that it guards. Both sides say the same: what is wrong, then the remedy.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

VALIDATIONS = "x-kubernetes-validations"
RULE_ERROR = "trenchcoat_rule"
"""Type of pydantic's errors that carry `faults`, a list of (path of the field, message)."""


def cel_string(text: str) -> str:
    """The text as a CEL literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def matches(operand: str, pattern: str) -> str:
    """CEL for: the whole of a string matches a pattern that Python and RE2 read alike."""
    return f"{operand}.matches({cel_string(f'^({pattern})$')})"


@dataclass(frozen=True, slots=True)
class Rule:
    """What must hold between the fields of one model."""

    cel: str
    """The condition in CEL, over `self` and, for a rule on changes, `oldSelf`."""
    holds: Callable[[Any], bool] | None
    """The same over the model; none for a rule on changes, which only the API server sees."""
    message: str
    """What is wrong and the remedy. It shows no values: CEL cannot bound the length of a number's text."""
    field: str
    """The field at fault, as named in YAML, relative to the model."""

    def validation(self) -> dict[str, str]:
        """The entry of x-kubernetes-validations."""
        entry = {"rule": self.cel, "fieldPath": f".{self.field}", "message": self.message}
        return entry if self.holds else {**entry, "reason": "FieldValueForbidden"}


@dataclass(frozen=True, slots=True)
class Text:
    """Marks a string that must match a pattern: says what to write, where a bare pattern would not.

    The string needs a bound (max_length), from which the API server works out what the check may cost.
    """

    pattern: str
    """Matched against the whole string; read alike by Python and RE2. Empty: any string."""
    remedy: str
    """What to write in its place."""
    cel: str = ""
    """A further condition over `self`, where the pattern cannot tell."""
    holds: Callable[[str], bool] = bool
    """The same over the string."""
    shown: bool = True
    """Whether the message repeats the string; not where people may have written a password into it."""

    def _check(self, value: str) -> str:
        if (not self.pattern or re.fullmatch(self.pattern, value)) and (not self.cel or self.holds(value)):
            return value
        text = f"'{value}' cannot be used: {self.remedy}" if self.shown else self.remedy
        raise PydanticCustomError(RULE_ERROR, "{text}", {"text": text})

    def validation(self) -> dict[str, str]:
        """The entry of x-kubernetes-validations."""
        conditions = [matches("self", self.pattern)] if self.pattern else []
        told = f"' cannot be used: {self.remedy}"
        entry = {
            "rule": " && ".join([*conditions, *([self.cel] if self.cel else [])]),
            "message": self.remedy,
        }
        if self.shown:
            # The API server itself shows a string's type in place of its value. Where the value has line
            # breaks, which no message may have, it falls back to the plain one.
            entry["messageExpression"] = f"{cel_string(chr(39))} + self + {cel_string(told)}"
        return entry

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The source's schema with the check after it."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The source's JSON schema with the check in CEL."""
        made = handler(schema)
        return {**made, VALIDATIONS: [*made.get(VALIDATIONS, []), self.validation()]}


@dataclass(frozen=True, slots=True)
class Unique:
    """Marks a list that names nothing twice; a list of objects, by one of their keys."""

    key: str = ""

    def _check(self, items: list[Any]) -> list[Any]:
        seen: list[Any] = []
        for index, item in enumerate(items):
            value = item[self.key] if self.key else item
            if value in seen:
                path = f"[{index}]" + (f".{self.key}" if self.key else "")
                text = f"{value!s} stands here twice: remove one"
                raise PydanticCustomError(RULE_ERROR, "{text}", {"text": text, "faults": [(path, text)]})
            seen.append(value)
        return items

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The source's schema with the check after it."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The source's JSON schema as a list type that the API server checks, and merges item by item."""
        made = dict(handler(schema))
        made["x-kubernetes-list-type"] = "map" if self.key else "set"
        if self.key:
            made["x-kubernetes-list-map-keys"] = [self.key]
        return made
