"""Against the published run: Llama 3.1 405B, 20M tokens, 9 layers a Cria."""

import pytest
from trenchcoat_api.artifacts import ModelFacts
from trenchcoat_api.estimate import estimate, layer_parameters
from trenchcoat_api.phases import without_adapted_teacher

from tests.api.specs import trenchcoat

LLAMA_405B = ModelFacts(
    layers=126,
    hidden_size=16384,
    heads=128,
    kv_heads=8,
    head_dim=128,
    intermediate_size=53248,
    vocab_size=128256,
    parameters=405_853_388_800,
)


def published():
    spec = trenchcoat("spec.data.tokens", 20_000_000).spec
    return spec.model_copy(update={"layers_per_cria": 9})


def test_layer_is_6_38_gb_in_bf16():
    assert 2 * layer_parameters(LLAMA_405B) / 1e9 == pytest.approx(6.38, abs=0.005)


def test_published_run():
    found = estimate(published(), LLAMA_405B)
    assert len(found.crias) == 14
    assert found.activation_bytes / 1e12 == pytest.approx(8.52, abs=0.005)
    assert found.cria_weight_bytes / 1e9 == pytest.approx(57.4, abs=0.05)
    assert found.weight_bytes / 1e9 == pytest.approx(812, abs=1)


def test_a_layers_products_at_1024_tokens_are_6528_gflop():
    found = estimate(published(), LLAMA_405B)
    steps = found.tokens / 1024
    assert found.collect_flop / steps / 126 / 1e9 == pytest.approx(6528, rel=0.001)


def with_attention(**attention):
    fields = published().model_dump(by_alias=True)
    return type(published()).model_validate({**fields, "attention": attention})


def test_choosing_wide_layers_costs_a_pass_over_24_sequences():
    assert estimate(published(), LLAMA_405B).select_flop == 0
    found = estimate(with_attention(wide={"share": "0.25"}), LLAMA_405B)
    assert found.gpu_hours(found.select_flop, 600) * 60 < 10  # minutes of one GPU
    assert found.select_flop / found.collect_flop == pytest.approx(24 * 1024 / found.tokens)


def test_a_windows_state_is_its_keys_and_values():
    found = estimate(with_attention(form="window", window=128), LLAMA_405B)
    assert found.decode.state_bytes == 126 * (4 + 128) * 2 * 8 * 128 * 2
    assert found.decode.crossover == 4 + 128 + 1


def test_a_window_has_no_attention_transfer():
    trained = estimate(published(), LLAMA_405B)
    found = estimate(with_attention(form="window"), LLAMA_405B)
    assert trained.cria_flop - found.cria_flop == pytest.approx(2 * trained.collect_flop)


def test_wide_layers_have_a_state_of_their_own_size():
    narrow, wide = 126 - 31, 31  # a quarter, rounded down
    found = estimate(
        with_attention(form="window", window=64, wide={"share": "0.25", "window": 1088}), LLAMA_405B
    )
    assert found.decode.state_bytes == (narrow * 68 + wide * 1092) * 2 * 8 * 128 * 2
    found = estimate(with_attention(form="window", window=64, wide={"share": "0.25"}), LLAMA_405B)
    assert found.decode.state_bytes == narrow * 68 * 2 * 8 * 128 * 2


def test_layers_that_do_not_divide():
    spec = trenchcoat("spec.layersPerCria", 8).spec
    found = estimate(spec, LLAMA_405B)
    assert [len(cria.layers) for cria in found.crias][-2:] == [8, 6]


def test_the_adapted_teacher_costs_a_stitch_of_as_many_passes_as_the_students_adapters_see():
    found = estimate(published(), LLAMA_405B)
    assert found.adapt_flop == pytest.approx(3 * found.stitch_flop) and found.stitch_flop
    assert found.stitch_flop == pytest.approx(2 * found.collect_flop)
    never = without_adapted_teacher(published())
    assert estimate(never, LLAMA_405B).adapt_flop == 0


def test_what_no_cria_reads_costs_nothing():
    fields = published().model_dump(by_alias=True)
    still = {"attention": {"form": "window"}, "criaLora": {"epochs": 0}}
    found = estimate(type(published()).model_validate(fields | still), LLAMA_405B)
    assert found.collect_flop == found.cria_flop == found.activation_bytes == 0
