"""The quality gate: which Crias pass."""

from datetime import UTC, datetime

import pytest
from trenchcoat_api.artifacts import Facts, Manifest
from trenchcoat_api.gates import excesses, explain
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage

from tests.api.specs import trenchcoat

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LAYERS = {0: range(0, 2), 1: range(2, 4)}


def trained(cria: int, **errors: str) -> Manifest:
    layers = {name.removeprefix("layer"): error for name, error in errors.items()}
    return Manifest(
        stage=Stage.CRIA,
        cria=cria,
        key=str(cria),
        facts=Facts(layer_errors=layers),
        started_at=NOW,
        completed_at=NOW,
        seconds=1,
    )


GOOD = trained(0, layer0="0.1", layer1="0.3")
BAD = trained(1, layer2="0.2", layer3="0.31")


def test_the_worst_layer_decides():
    spec = trenchcoat("spec.gates", {"maxCriaError": "0.3"}).spec
    (found,) = excesses(spec, LAYERS, [BAD, GOOD])
    assert (found.cria, found.layer, found.error) == (1, "3", 0.31)
    text = explain(spec, [found], "wave it through")
    assert text.startswith("Cria 1 errs by 0.31 in layer 3: more than spec.gates.maxCriaError 0.3")
    assert text.endswith("wave it through")


def test_without_a_gate_everything_passes():
    assert excesses(trenchcoat().spec, LAYERS, [BAD, trained(0)]) == []


def test_an_error_that_was_not_measured_does_not_pass():
    spec = trenchcoat("spec.gates", {"maxCriaError": "9"}).spec
    (found,) = excesses(spec, LAYERS, [trained(0), GOOD])
    assert found.error is None


@pytest.mark.parametrize("error", ["nan", "inf"])
def test_an_error_that_is_no_number_does_not_pass(error):
    spec = trenchcoat("spec.gates", {"maxCriaError": "9"}).spec
    assert len(excesses(spec, LAYERS, [trained(0, layer0="0.1", layer1=error)])) == 1


def test_a_cria_whose_layers_were_all_chosen_to_keep_softmax_has_no_error_to_measure():
    fields = {"maxCriaError": "0.3"}
    for wide, passes in (({"share": "0.5"}, True), ({"layers": [0, 1]}, True), ({"layers": [0]}, False)):
        spec = trenchcoat("spec.gates", fields).spec.model_dump(by_alias=True)
        spec["attention"]["wide"] = wide
        found = excesses(TrenchcoatSpec.model_validate(spec), LAYERS, [trained(0), BAD])
        assert [excess.cria for excess in found] == ([1] if passes else [0, 1])


def test_a_cria_of_softmax_layers_is_the_teachers_own():
    spec = trenchcoat("spec.gates", {"maxCriaError": "0.3"}).spec
    attention = spec.attention.model_copy(update={"keep_softmax_layers": [0, 1]})
    spec = spec.model_copy(update={"attention": attention})
    assert excesses(spec, LAYERS, [trained(0)]) == []
