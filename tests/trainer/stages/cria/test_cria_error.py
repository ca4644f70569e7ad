"""The relative error of a Cria's layers: what the definition says, on materialised attention."""

import pytest
import torch
from trenchcoat_trainer.stages.cria.error import layer_errors
from trenchcoat_trainer.students.lolcats import naive
from trenchcoat_trainer.students.lolcats.hybrid import HybridInputs

from tests.trainer.helpers.tiny_student import ATTENTION, make_cria, make_teacher
from tests.trainer.stages.cria.cria_training import batches, boundaries, make_spec, train_transfer


@pytest.fixture(scope="module")
def hidden():
    return boundaries()


def relative_error(layer, hidden, cria) -> float:
    attention = layer.self_attn
    q, k, v = attention.project(layer.input_layernorm(hidden), cria.rope(hidden))
    q, k, v = (x.double() for x in (q, k, v))
    maps = [attention.w_q.double(), attention.w_k.double(), attention.window_factor.double()]
    student = naive.attend(HybridInputs(q, k, v, *maps, cria.config.window))
    causal = naive.causal_mask(q.shape[2], q.device)
    softmax = naive.scores(q, k).masked_fill(~causal, float("-inf")).softmax(-1)
    teacher = softmax @ naive.per_head(v, q.shape[1], 1)
    return float((student - teacher).norm() / teacher.norm())


@torch.no_grad()
def test_it_is_the_norm_of_the_difference_over_the_teachers(hidden):
    cria = make_cria(make_teacher(6), 2, 3)
    errors = layer_errors(cria, batches(hidden[2], None, 5, epochs=1), sequences=8)
    assert list(errors) == ["2", "3"]
    for name, layer in cria.layers.items():
        expected = relative_error(layer, hidden[int(name)][:8], cria)
        assert errors[name] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_training_lowers_it_and_leaves_the_maps_alone(hidden):
    untrained = make_cria(make_teacher(6), 0, 2)
    trained, maps, _ = train_transfer(make_spec(), hidden, 0, 2, epochs=16)
    before = layer_errors(untrained, batches(hidden[0], None, 4, epochs=1))
    after = layer_errors(trained, batches(hidden[0], None, 4, epochs=1))
    assert all(after[name] < before[name] for name in before), (before, after)
    assert all(torch.equal(maps[name], parameter) for name, parameter in trained.form_parameters().items())


def test_layers_that_keep_softmax_have_no_error(hidden):
    attention = ATTENTION.model_copy(update={"keep_softmax_layers": [1]})
    cria = make_cria(make_teacher(6), 0, 2, attention)
    assert list(layer_errors(cria, batches(hidden[0], None, 4, epochs=1))) == ["0", "2"]
    all_softmax = ATTENTION.model_copy(update={"keep_softmax_layers": [0, 1, 2]})
    cria = make_cria(make_teacher(6), 0, 2, all_softmax)
    assert layer_errors(cria, batches(hidden[0], None, 4, epochs=1)) == {}
