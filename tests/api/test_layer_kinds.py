"""What each layer attends with: the spec alone, layers that were named and layers that were chosen."""

import pytest
from trenchcoat_api.layer_kinds import SOFTMAX, LayerKind, layer_kinds, likely_kinds, wide_count
from trenchcoat_api.spec import Attention, Form


def attention(**fields):
    return Attention.model_validate(fields)


def window(size):
    return LayerKind(Form.WINDOW, size)


def test_all_layers_are_alike_unless_told():
    assert layer_kinds(attention(), 3) == (LayerKind(Form.LOLCATS, 64),) * 3
    assert layer_kinds(attention(form="window", window=128), 2) == (window(128),) * 2


@pytest.mark.parametrize("form", ["lolcats", "window"])
def test_wide_layers_without_a_window_are_layers_that_keep_softmax(form):
    wide = layer_kinds(attention(form=form, wide={"layers": [2, 0]}), 4)
    assert wide == layer_kinds(attention(form=form, keepSoftmaxLayers=[0, 2]), 4)
    assert [kind == SOFTMAX for kind in wide] == [True, False, True, False]


def test_wide_layers_have_a_window_of_their_own():
    fields = {"form": "window", "window": 64, "wide": {"layers": [1, 2], "window": 1088}}
    assert layer_kinds(attention(**fields), 4) == (window(64), window(1088), window(1088), window(64))
    kept = layer_kinds(attention(**fields, keepSoftmaxLayers=[2, 3]), 4)
    assert kept == (window(64), window(1088), SOFTMAX, SOFTMAX)


def test_a_share_has_its_layers_chosen():
    asked = attention(form="window", window=64, wide={"share": "0.5", "window": 256})
    assert layer_kinds(asked, 3, [2]) == (window(64), window(64), window(256))
    with pytest.raises(ValueError, match=r"wide\.share has the wide layers chosen, and none were"):
        layer_kinds(asked, 3)


def test_layers_that_were_named_are_not_chosen_over():
    assert layer_kinds(attention(wide={"layers": [0]}), 2, [1])[0] == SOFTMAX


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"keepSoftmaxLayers": [9]}, "keepSoftmaxLayers"), ({"wide": {"layers": [0, 9]}}, r"wide\.layers")],
)
def test_a_layer_that_is_not_there_is_named(fields, named):
    with pytest.raises(ValueError, match=f"attention.{named} has 9, but the model has .* 0 to 3"):
        layer_kinds(attention(**fields), 4)


@pytest.mark.parametrize(("share", "count"), [("0.25", 7), ("0.29", 8), ("0.01", 1), ("3e-1", 9)])
def test_a_share_is_rounded_down_but_never_to_nothing(share, count):
    asked = attention(form="window", window=64, wide={"share": share, "window": 256})
    assert wide_count(asked, 30) == count
    assert likely_kinds(asked, 30).count(window(256)) == count


def test_estimates_take_a_share_of_what_is_not_kept():
    asked = attention(
        form="window", window=64, wide={"share": "0.5", "window": 256}, keepSoftmaxLayers=[0, 9]
    )
    assert likely_kinds(asked, 4) == (SOFTMAX, window(256), window(256), window(64))


@pytest.mark.parametrize("share", ["0", "0.0", "0e1"])
def test_a_share_of_nothing_makes_no_layer_wide(share):
    asked = attention(form="window", wide={"share": share})
    assert wide_count(asked, 30) == 0
    assert layer_kinds(asked, 2) == likely_kinds(asked, 2) == (window(256), window(256))


def test_first_tokens_and_window_go_by_the_form():
    assert (attention().first_tokens, attention(form="window").first_tokens) == (0, 4)
    assert (attention().window, attention(form="window").window) == (64, 256)
    assert attention(form="window", window=8).window == 8
    assert attention(form="window", firstTokens=0).first_tokens == 0
    assert attention(form="window", firstTokens=None).first_tokens == 4
