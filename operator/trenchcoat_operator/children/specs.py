"""The ConfigMap from which the stage programs read the spec."""

import yaml
from trenchcoat_api import constants
from trenchcoat_api.resource import Trenchcoat

from trenchcoat_operator.children import names
from trenchcoat_operator.model.plan import Object

# How the operator runs a stage is nothing to the stage, and environment variables may hold what should
# not be copied; without them the ConfigMap also stays the same when they change.
_NOT_FOR_STAGES = {"pods", "retention", "scheduling", "suspend"}


def _document(trenchcoat: Trenchcoat) -> Object:
    return {
        "apiVersion": constants.API_VERSION,
        "kind": constants.KIND,
        "metadata": {"name": trenchcoat.metadata.name},
        "spec": trenchcoat.spec.model_dump(
            mode="json", by_alias=True, exclude_none=True, exclude=_NOT_FOR_STAGES
        ),
    }


def spec_name(trenchcoat: Trenchcoat) -> str:
    """Name of the ConfigMap: another spec has another one."""
    return f"{trenchcoat.metadata.name}-spec-{names.digest(_document(trenchcoat))}"


def spec_config_map(trenchcoat: Trenchcoat) -> Object:
    """The ConfigMap."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.metadata(trenchcoat, spec_name(trenchcoat)),
        "immutable": True,
        "data": {constants.SPEC_FILE: yaml.safe_dump(_document(trenchcoat), sort_keys=False)},
    }
