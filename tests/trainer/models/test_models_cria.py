"""A Cria computes what the whole model computes."""

import pytest
import torch
from trenchcoat_api.spec import Lora, Wide
from trenchcoat_trainer.models.adapters import adapted_modules, inject_adapters, merge_adapters
from trenchcoat_trainer.models.cria import PIECE_ROWS
from trenchcoat_trainer.models.student import initial_parameters, student_config

from tests.trainer.helpers.tiny_student import ATTENTION, make_cria, make_student, make_teacher

LORA = Lora(rank=3, alpha=6, dropout="0.5", target_modules=["q_proj", "v_proj", "o_proj"])


@torch.no_grad()
def test_crias_in_a_row_are_the_student_bit_for_bit():
    teacher = make_teacher(layers=6)
    student = make_student(teacher)
    ids = torch.randint(0, 61, (2, 37))
    hidden = student.model.embed_tokens(ids)
    for first, last in [(0, 1), (2, 4), (5, 5)]:
        hidden = make_cria(teacher, first, last)(hidden)
    assert torch.equal(student.lm_head(student.model.norm(hidden)), student(ids, use_cache=False).logits)


@torch.no_grad()
def test_a_cria_with_softmax_is_the_teacher_bit_for_bit():
    teacher = make_teacher(layers=2)
    cria = make_cria(teacher, 0, 1)
    ids = torch.randint(0, 61, (2, 37))
    hidden = teacher.model.embed_tokens(ids)
    hybrid = cria(hidden)
    cria.use(softmax=True)
    assert torch.equal(teacher.lm_head(teacher.model.norm(cria(hidden))), teacher(ids).logits)
    assert not torch.allclose(hybrid, cria(hidden), atol=1e-2)


@pytest.mark.parametrize("tokens", [20, PIECE_ROWS, 2 * PIECE_ROWS + 77])
@torch.no_grad()
def test_a_window_over_softmax_is_that_mask(tokens):
    cria = make_cria(make_teacher(layers=2), 0, 1)
    hidden = torch.randn(2, tokens, 32)
    place = torch.arange(tokens)
    distance = place[:, None] - place[None, :]
    seen = (distance >= 0) & ((distance < 9) | (place[None, :] == 0))
    cria.use(softmax=True)
    expected = hidden
    for layer in cria.layers.values():
        expected = layer(expected, position_embeddings=cria.rope(hidden), attention_mask=seen[None, None])
    assert not torch.allclose(cria(hidden), expected, atol=1e-2)
    cria.use(softmax=True, softmax_window=9)
    # Bit for bit where products of more or fewer rows give the same: not on every processor.
    torch.testing.assert_close(cria(hidden), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_merged_adapters_compute_what_adapters_compute():
    teacher = make_teacher(layers=3)
    cria = make_cria(teacher, 1, 2)
    adapters = inject_adapters(cria, LORA, seed=0, purpose="test")
    for parameter in adapters.values():
        parameter.normal_(std=0.1)
    state = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    merge_adapters(state, adapters, LORA)
    hidden = torch.randn(2, 20, 32)
    plain = make_cria(teacher, 1, 2, state=state)
    assert not torch.allclose(cria(hidden), make_cria(teacher, 1, 2)(hidden), atol=1e-2)
    torch.testing.assert_close(plain(hidden), cria(hidden), rtol=0, atol=1e-5)


def test_adapters_and_maps_start_alike_however_layers_are_grouped():
    teacher = make_teacher(layers=4)
    whole = inject_adapters(make_cria(teacher, 0, 3), LORA, seed=5, purpose="cria")
    second = make_cria(teacher, 2, 3)
    part = inject_adapters(second, LORA, seed=5, purpose="cria")
    assert set(part) < set(whole)
    assert all(torch.equal(part[name], whole[name]) for name in part)
    assert "base_model.model.model.layers.3.self_attn.o_proj.lora_B.weight" in part
    assert sorted(adapted_modules(second))[0] == "layers.2.self_attn.o_proj"
    config = student_config(teacher.config, ATTENTION)
    assert torch.equal(second.form_parameters()["layers.3.w_k"], initial_parameters(config, 3, seed=0)["w_k"])
    assert not torch.equal(initial_parameters(config, 3, 0)["w_k"], initial_parameters(config, 3, 1)["w_k"])
    assert not torch.equal(initial_parameters(config, 3, 0)["w_k"], initial_parameters(config, 2, 0)["w_k"])


def test_wide_layers_without_a_window_keep_softmax():
    attention = ATTENTION.model_copy(update={"keep_softmax_layers": [3], "wide": Wide(layers=[1])})
    assert student_config(make_teacher(layers=4).config, attention).keep_softmax_layers == [1, 3]


def test_a_softmax_layer_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"keepSoftmaxLayers has 9, but the model has .* 0 to 1"):
        attention = ATTENTION.model_copy(update={"keep_softmax_layers": [9]})
        student_config(make_teacher(layers=2).config, attention)
