"""The Trenchcoat custom resource as a whole, read from and written to YAML."""

import copy
import functools
import operator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trenchcoat_api.base import Camel
from trenchcoat_api.constants import MAX_NAME_LENGTH
from trenchcoat_api.faults import faults
from trenchcoat_api.presets import kept_preset, names_form
from trenchcoat_api.rules import Text
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.status import TrenchcoatStatus

NAME = Text(
    rf"[a-z]([-a-z0-9]{{0,{MAX_NAME_LENGTH - 2}}}[a-z0-9])?",
    f"write at most {MAX_NAME_LENGTH} lowercase letters, digits and -, a letter first, for the names of its "
    "Jobs and pods are made from it",
)
"""What a Trenchcoat may be called."""


class InvalidTrenchcoatError(ValueError):
    """A Trenchcoat that cannot be read: says which object, which field and what to do."""


class Metadata(BaseModel):
    """The parts of an object's metadata that anything here depends on; the rest is ignored."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True, frozen=True)

    name: Annotated[str, NAME]
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = Field(default="", alias="resourceVersion")
    annotations: dict[str, str] = Field(default_factory=dict)
    finalizers: list[str] = Field(default_factory=list)
    creation_timestamp: str | None = Field(default=None, alias="creationTimestamp")
    deletion_timestamp: str | None = Field(default=None, alias="deletionTimestamp")


class Trenchcoat(Camel):
    """One linearization."""

    api_version: Literal["trenchcoat.dev/v1alpha1"] = "trenchcoat.dev/v1alpha1"
    kind: Literal["Trenchcoat"] = "Trenchcoat"
    metadata: Metadata
    spec: TrenchcoatSpec
    status: TrenchcoatStatus = Field(default_factory=TrenchcoatStatus)

    @model_validator(mode="before")
    @classmethod
    def _keep_default_preset(cls, body: Any) -> Any:
        """An object that a release with another default has taken up keeps that, so that its run goes on."""
        spec, former = (body.get("spec"), body.get("status")) if isinstance(body, dict) else (None, None)
        if not isinstance(spec, dict) or not former or "preset" in spec or names_form(spec):
            return body
        if isinstance(former, dict):
            kept = kept_preset(former.get("defaultPreset"), former.get("observedGeneration"))
        else:
            kept = former.preset_by_default
        return {**body, "spec": {**spec, "preset": kept.value}}

    @classmethod
    def from_object(cls, body: dict[str, Any]) -> Self:
        """Read an object as the API server gives it.

        The API server lets no field pass that the definition lacks. One that is unknown here comes of a newer
        definition, with its default value, while an upgrade goes on: it is left out.

        Raises:
            InvalidTrenchcoatError: naming every field at fault.
        """
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            return cls.from_document(_without_unknown(body, error))

    @classmethod
    def from_document(cls, body: dict[str, Any]) -> Self:
        """Read an object as a person wrote it.

        Raises:
            InvalidTrenchcoatError: naming every field at fault, among them those that no Trenchcoat has.
        """
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            name = (body.get("metadata") or {}).get("name", "?") if isinstance(body, dict) else "?"
            told = "; ".join(faults(error, cls))
            raise InvalidTrenchcoatError(f"Trenchcoat {name}: {told}") from error

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Read a YAML file that holds one Trenchcoat.

        Raises:
            InvalidTrenchcoatError: the file is no YAML, holds something else, or fields are at fault.
            OSError: the file cannot be read.
        """
        try:
            body = yaml.safe_load(path.read_bytes())  # of which YAML itself knows the encoding
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # such as the 32nd of a month
            raise InvalidTrenchcoatError(f"{path}: not YAML: {error}") from error
        if not isinstance(body, dict):
            raise InvalidTrenchcoatError(f"{path}: holds no object; expected one of kind Trenchcoat")
        return cls.from_document(body)

    def to_object(self) -> dict[str, Any]:
        """The object with YAML's field names; what is unset stays out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def read_status(document: dict[str, Any]) -> TrenchcoatStatus:
    """Read a status that any version of the operator may have written.

    Fields that are unknown here are left out. A status that cannot be read even so is as good as none: all
    but the GPU seconds and the artifacts of former specs can be found out again.
    """
    try:
        return TrenchcoatStatus.model_validate(document)
    except ValidationError as error:
        known = _without_unknown(document, error)
    try:
        return TrenchcoatStatus.model_validate(known)
    except ValidationError:
        return TrenchcoatStatus()


def _without_unknown(body: dict[str, Any], error: ValidationError) -> dict[str, Any]:
    """A copy of an object, but for the fields that an error calls unknown."""
    kept = copy.deepcopy(body)
    for fault in error.errors():
        if fault["type"] == "extra_forbidden":
            *path, unknown = fault["loc"]
            del functools.reduce(operator.getitem, path, cast(Any, kept))[unknown]
    return kept
