import pytest
from hypothesis import given
from hypothesis import strategies as st
from trenchcoat_api.crias import cria_ranges


def test_405b_has_fourteen_crias_of_nine_layers():
    ranges = cria_ranges(126, 9)
    assert len(ranges) == 14
    assert (ranges[0].first, ranges[0].last) == (0, 8)
    assert str(ranges[13]) == "117-125"


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_ranges_cover_every_layer_once_in_order(sizes):
    num_layers, layers_per_cria = sizes
    ranges = cria_ranges(num_layers, layers_per_cria)
    assert [layer for cria in ranges for layer in cria.layers] == list(range(num_layers))
    assert [cria.index for cria in ranges] == list(range(len(ranges)))
    assert all(len(cria.layers) == layers_per_cria for cria in ranges[:-1])


@pytest.mark.parametrize("layers_per_cria", [0, 13])
def test_impossible_cut_names_the_field_and_the_bounds(layers_per_cria):
    with pytest.raises(ValueError, match=r"spec\.layersPerCria .* between 1 and 12"):
        cria_ranges(12, layers_per_cria)
