"""Models and runs to plan: those of examples/, and outlines of them."""

import json
from pathlib import Path
from typing import Any

from trenchcoat_api.planning.model import PlannedModel
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.spec import TrenchcoatSpec

from tests.api.specs import changed

EXAMPLES = Path(__file__).parents[3] / "examples"
NAMES = ("smollm2-135m", "llama-3.2-1b", "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b")


def config_file(name: str) -> Path:
    return EXAMPLES / "models" / f"{name}.json"


def model(name: str = "llama-3.1-405b", **changes: Any) -> PlannedModel:
    fields = json.loads(config_file(name).read_text()) | changes
    return PlannedModel.of_config(fields, name)


def example(name: str) -> TrenchcoatSpec:
    return Trenchcoat.from_yaml(EXAMPLES / f"{name}.yaml").spec


def published(**changes: Any) -> TrenchcoatSpec:
    """20M tokens in Crias of 9 layers, LoLCATs; changes by dotted path with __, such as stitch__nodes."""
    fields = {"spec.data.tokens": 20_000_000, "spec.layersPerCria": 9}
    fields |= {"spec." + path.replace("__", "."): value for path, value in changes.items()}
    return Trenchcoat.from_document(changed(fields)).spec


def outline(name: str = "llama-3.1-405b", **changes: Any) -> Outline:
    return Outline.of(published(**changes), model(name))


LLAMA_405B = model().facts
