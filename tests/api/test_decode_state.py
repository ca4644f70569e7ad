"""Bytes of decode state: Llama 3.1 405B by hand, and what follows from them."""

import pytest
from trenchcoat_api.decode_state import decode_state

from tests.api.planning.models import LLAMA_405B
from tests.api.specs import trenchcoat


def found(**attention):
    return decode_state(trenchcoat("spec.attention", attention).spec, LLAMA_405B)


def test_405b_by_hand():
    state = found()
    assert state.token_bytes == 2 * 8 * 128 * 2
    linear, terrace = 4 * 128 * 128 * 129, 127 * state.token_bytes
    assert state.state_bytes == 126 * (linear + terrace)
    assert 126 * linear / 1e9 == pytest.approx(1.06, abs=0.01)
    assert state.student(10**6) == state.state_bytes
    assert state.teacher(1000) == 126 * state.token_bytes * 1000


def test_maps_per_key_value_head_make_the_linear_state_sixteen_times_smaller():
    terrace = 126 * 127 * found().token_bytes
    shared = found(keyMaps="perKeyValueHead").state_bytes - terrace
    assert shared * 16 == found().state_bytes - terrace
    assert shared / 1e6 == pytest.approx(66, abs=1)


@pytest.mark.parametrize("kept", [[], [3, 4, 125]])
def test_from_the_crossover_on_the_student_holds_less(kept):
    state = found(keepSoftmaxLayers=kept)
    assert state.crossover == 2192
    assert state.student(state.crossover) < state.teacher(state.crossover)
    assert state.student(state.crossover - 1) >= state.teacher(state.crossover - 1)


def test_the_equal_window_holds_the_same_bytes_up_to_one_token():
    state = found(window=100, featureDim=37)
    token = 126 * state.token_bytes
    assert (state.equal_window + 1) * token <= state.state_bytes < (state.equal_window + 2) * token


def test_a_windows_rival_is_as_long_as_its_window_and_first_tokens_but_one():
    assert found(form="window", window=128).equal_window == 128 + 4 - 1


def test_where_every_layer_keeps_softmax_there_is_no_crossover():
    state = found(keepSoftmaxLayers=list(range(126)))
    assert (state.crossover, state.student(512)) == (0, state.teacher(512))


def test_layers_that_the_model_lacks_do_not_count():
    assert found(keepSoftmaxLayers=[1, 200]).student_layers == 125
