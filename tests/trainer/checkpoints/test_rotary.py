"""The rotary embedding that is made once: Hugging Face's numbers, and of no use to inference alone."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from trenchcoat_trainer.checkpoints.rotary import RopeOnce

from tests.trainer.helpers.trainer_samples import make_config

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 5e5,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}


@pytest.mark.parametrize("rope", [None, LLAMA3, DYNAMIC])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_hugging_faces_whatever_came_before(rope, dtype) -> None:
    config = make_config(max_position_embeddings=96, **({"rope_parameters": rope} if rope else {}))
    once, rotary = RopeOnce(config), LlamaRotaryEmbedding(config)
    for tokens, start in ((40, 0), (40, 0), (200, 0), (200, 0), (40, 0), (40, 7)):
        hidden = torch.randn(2, tokens, 8).to(dtype)
        expected = rotary(hidden, position_ids=torch.arange(start, start + tokens)[None])
        for mine, his in zip(once(hidden, start), expected, strict=True):
            assert mine.dtype == dtype and torch.equal(mine, his)


def test_it_is_made_once_for_batches_of_one_length() -> None:
    once = RopeOnce(make_config())
    first = once(torch.randn(2, 40, 8))
    assert once(torch.randn(3, 40, 8))[0] is first[0]
    assert once(torch.randn(3, 41, 8))[0] is not first[0]


def test_training_may_use_what_inference_has_made() -> None:
    with torch.device("meta"):
        once = RopeOnce(make_config())
    with torch.inference_mode():
        cos, _ = once(torch.randn(2, 40, 8))
    weight = torch.ones(cos.shape[-1], requires_grad=True)
    (weight * cos).sum().backward()
    assert torch.equal(weight.grad, cos.sum((0, 1)))
