import pytest
from trenchcoat_api.resource import InvalidTrenchcoatError, Trenchcoat

from tests.api.specs import BASE, changed, trenchcoat


def test_little_more_than_model_data_and_store_is_needed():
    spec = trenchcoat().spec
    # The published settings (arXiv 2410.10254).
    assert (spec.attention.window, spec.attention.feature_dim) == (64, 64)
    assert float(spec.transfer.learning_rate) == 1e-2
    assert (spec.cria_lora.lora.rank, spec.cria_lora.lora.alpha) == (8, 16)
    assert (spec.stitch.lora.rank, spec.stitch.lora.alpha, len(spec.stitch.lora.target_modules)) == (4, 8, 4)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec.model", None, "spec.model: Field required"),
        ("spec.model.source", "meta-llama/Llama-3.1-405B", r"spec\.model\.source.*pattern"),
        ("spec.store.endpoint", "minio:9000", r"spec\.store\.endpoint.*pattern"),
        ("spec.store.endpoint", "htp://minio:9000", r"spec\.store\.endpoint.*pattern"),
        ("spec.layersPerCria", 0, r"spec\.layersPerCria.*greater than or equal to 1"),
        ("spec.layerPerCria", 9, r"spec\.layerPerCria.*not permitted"),
        ("spec.transfer.learningRate", "fast", r"spec\.transfer\.learningRate.*pattern"),
        ("spec.data.tokens", 100, r"data\.tokens must be at least data\.sequenceLength"),
        ("spec.attention.window", 1024, r"sequenceLength must be greater than attention\.window"),
        ("spec.criaLora.lora", {"targetModules": ["q_proj", "o_proj"]}, r"o_proj.*layerwise"),
        ("spec.criaLora.objective", "blockwise", r"spec\.criaLora\.objective.*layerwise"),
        ("metadata.name", "x" * 33, r"metadata\.name.*32"),
        ("kind", "Raincoat", "kind.*Trenchcoat"),
    ],
)
def test_errors_name_the_field(path, value, message):
    with pytest.raises(InvalidTrenchcoatError, match=message):
        Trenchcoat.from_object(changed(path, value))


def test_yaml_reads_back_as_it_was(tmp_path):
    file = tmp_path / "x.yaml"
    import yaml

    file.write_text(yaml.safe_dump(BASE))
    first = Trenchcoat.from_yaml(file)
    file.write_text(yaml.safe_dump(first.to_object()))
    assert Trenchcoat.from_yaml(file) == first


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", ""])
def test_files_that_hold_no_trenchcoat_are_named(tmp_path, text):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(InvalidTrenchcoatError, match=r"x\.yaml"):
        Trenchcoat.from_yaml(file)
