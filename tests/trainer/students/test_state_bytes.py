"""Bytes of decode state: what the API says of a spec is what the student's own layers say."""

import pytest
import torch
from trenchcoat_api.artifacts import ModelFacts
from trenchcoat_api.decode_state import decode_state
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_trainer.models.student import student_config
from trenchcoat_trainer.students import form_of

from tests.trainer.helpers.trainer_samples import LAYERS, make_config

FACTS = ModelFacts(
    layers=LAYERS,
    hidden_size=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate_size=96,
    vocab_size=300,
    parameters=1,
)
SPEC = {
    "model": {"source": "file:///teacher"},
    "data": {"source": "file:///*.txt", "tokens": 6400, "sequenceLength": 64},
    "store": {"endpoint": "http://minio:9000", "bucket": "tiny", "credentialsSecretRef": {"name": "minio"}},
    "preset": "shipped",
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "attention",
    [
        {"window": 16, "featureDim": 8},
        {"window": 7, "featureDim": 5, "keyMaps": "perKeyValueHead", "keepSoftmaxLayers": [1, 3]},
        {"form": "window", "window": 24, "firstTokens": 3, "wide": {"layers": [2], "window": 48}},
    ],
    ids=["a map for every head", "shared maps, two softmax layers", "a window, one layer's wider"],
)
def test_the_api_and_the_form_agree(attention, dtype):
    spec = TrenchcoatSpec.model_validate(SPEC | {"attention": attention, "dtype": dtype})
    config = student_config(make_config(), spec.attention)
    student = [layer for layer in range(LAYERS) if layer not in config.keep_softmax_layers]
    form, number = form_of(config), getattr(torch, dtype)
    expected = sum(form.layer(config, layer).state_bytes(number) for layer in student)
    found = decode_state(spec, FACTS)
    assert (found.student_layers, found.state_bytes) == (len(student), expected)
