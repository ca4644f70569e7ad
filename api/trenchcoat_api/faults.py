"""What is wrong with an object that pydantic refused: one line a fault, naming the field and the remedy."""

import difflib
import re
import reprlib
import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trenchcoat_api.rules import RULE_ERROR


def faults(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Every fault of an object that was to be a `model`, such as "spec.data.tokens is missing: set it"."""
    return [line for detail in error.errors() for line in _lines(detail, model)]


def _lines(detail: ErrorDetails, model: type[BaseModel]) -> list[str]:
    field = _path(detail["loc"])
    kind, told, value = detail["type"], detail["msg"], detail["input"]
    if kind == RULE_ERROR:
        pairs = detail.get("ctx", {}).get("faults", [("", told)])
        return [f"{(field + suffix).lstrip('.') or 'object'}: {text}" for suffix, text in pairs]
    if kind == "missing":
        return [f"{field} is missing: set it"]
    if kind == "extra_forbidden":
        return [f"{field} is no field: {_instead(detail['loc'], model)}"]
    told = re.sub(r"^(Input|String|List) should", "it should", told).replace(" after validation", "")
    if isinstance(value, str | int | float | bool):
        told = f"{reprlib.repr(value)} cannot be used: {told}"
    return [f"{field or 'object'}: {told}"]


def _path(loc: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def _instead(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    *parents, name = loc
    known = _fields_at(parents, model)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.75)
    if close:
        return f"write {close[0]}"
    return f"remove it; known are {', '.join(known)}" if known else "remove it"


def _fields_at(parents: list[int | str], model: type[BaseModel]) -> list[str]:
    """The names, as in YAML, of the fields that the object at a path may have."""
    here: Any = model
    for part in parents:
        if not (isinstance(here, type) and issubclass(here, BaseModel)):
            return []
        named = {info.alias or name: info.annotation for name, info in here.model_fields.items()}
        here = _without_none(named.get(str(part)))
    if not (isinstance(here, type) and issubclass(here, BaseModel)):
        return []
    return [info.alias or name for name, info in here.model_fields.items()]


def _without_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return next(item for item in typing.get_args(annotation) if item is not type(None))
    return annotation
