"""The score of a layer, against the teacher's own attention under masks."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from trenchcoat_trainer.checkpoints.teacher_layers import TeacherLayers
from trenchcoat_trainer.stages.select.score import Sight, layer_score

from tests.trainer.helpers.trainer_samples import make_config

TOKENS = 40
ANSWERS = slice(31, 39)


@pytest.fixture
def layers():
    torch.manual_seed(3)
    config = make_config(num_hidden_layers=1, attention_bias=True)
    model = LlamaForCausalLM(config).model
    made = TeacherLayers(config, [0], torch.float32)
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    made.load(weights)
    return made.eval()


@torch.no_grad()
def expected(layers, hidden, sight):
    attention = layers.layers[0].self_attn
    row, column = torch.arange(TOKENS)[:, None], torch.arange(TOKENS)
    causal = column <= row
    rope = layers.rope(hidden)
    normed = layers.layers[0].input_layernorm(hidden)
    full, cut = (
        attention(normed, position_embeddings=rope, attention_mask=mask[None, None])[0][:, ANSWERS]
        for mask in (causal, causal & ((row - column < sight.window) | (column < sight.first_tokens)))
    )
    return ((full - cut).norm(dim=-1) / (hidden[:, ANSWERS] + full).norm(dim=-1)).mean()


@pytest.mark.parametrize("sight", [Sight(8, 4), Sight(1, 0), Sight(16, 2)])
def test_the_score_is_that_of_the_layers_own_attention(layers, sight):
    hidden = torch.randn(3, TOKENS, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        score = layer_score(layers, hidden, ANSWERS, sight)
    assert score > 0.01
    torch.testing.assert_close(score, expected(layers, hidden, sight), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_layer_that_sees_all_does_not_move(layers):
    assert layer_score(layers, torch.randn(1, TOKENS, 64), ANSWERS, Sight(TOKENS, 0)) == 0
