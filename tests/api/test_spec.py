import copy
import json

import pytest
from trenchcoat_api.resource import InvalidTrenchcoatError, Trenchcoat, read_status
from trenchcoat_api.status import TrenchcoatStatus

from tests.api.specs import BASE, trenchcoat


def test_little_more_than_model_data_and_store_is_needed():
    spec = trenchcoat().spec
    # The published settings (arXiv 2410.10254).
    assert (spec.attention.window, spec.attention.feature_dim) == (64, 64)
    assert float(spec.transfer.learning_rate) == 1e-2
    assert (spec.cria_lora.lora.rank, spec.cria_lora.lora.alpha) == (8, 16)
    assert (spec.stitch.lora.rank, spec.stitch.lora.alpha, len(spec.stitch.lora.target_modules)) == (4, 8, 4)


def test_yaml_reads_back_as_it_was(tmp_path):
    file = tmp_path / "x.yaml"
    import yaml

    file.write_text(yaml.safe_dump(BASE))
    first = Trenchcoat.from_yaml(file)
    file.write_text(yaml.safe_dump(first.to_object()))
    assert Trenchcoat.from_yaml(file) == first


@pytest.mark.parametrize("text", [b"- a\n- b\n", b"a: [", b"", b"\x7fELF\xd0", b"a: 2026-11-31", b"[" * 5000])
def test_files_that_hold_no_trenchcoat_are_named(tmp_path, text):
    file = tmp_path / "x.yaml"
    file.write_bytes(text)
    with pytest.raises(InvalidTrenchcoatError, match=r"x\.yaml"):
        Trenchcoat.from_yaml(file)


NEWER = {
    "spec": {"brandNew": 3},
    "spec.transfer": {"brandNew": 3},
    "spec.pods": {"cria": {"brandNew": 3}},
    "status": {"brandNew": 3},
}


@pytest.mark.parametrize("path", NEWER)
def test_a_field_of_a_newer_definition_is_left_out_where_the_api_server_let_it_pass(path):
    """An operator reads such objects while it is upgraded: the definition comes before it."""
    body = copy.deepcopy(BASE)
    place = body
    for name in path.split("."):
        place = place.setdefault(name, {})
    place |= NEWER[path]
    with pytest.raises(InvalidTrenchcoatError, match="brandNew"):
        Trenchcoat.from_document(copy.deepcopy(body))
    assert "brandNew" not in json.dumps(Trenchcoat.from_object(body).to_object())


def test_of_a_newer_operators_status_what_is_known_stays():
    """Its GPU seconds and artifacts of former specs stand there alone: they outlive going back a release."""
    status = {
        "gpuSeconds": "77",
        "brandNew": 3,
        "stages": [{"name": "collect", "state": "Running", "gpuSeconds": "77", "brandNew": "x"}],
    }
    read = read_status(status)
    assert (read.gpu_seconds, read.stages[0].gpu_seconds) == ("77", "77")
    assert "brandNew" not in read.model_dump_json(by_alias=True)


def test_a_status_that_cannot_be_read_is_as_good_as_none():
    stage = {"name": "collect", "state": "BrandNew"}
    assert read_status({"gpuSeconds": "77", "stages": [stage]}) == TrenchcoatStatus()
