"""A random teacher and the student made of it, whole or one Cria of it, small enough for any machine."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.spec import Attention
from trenchcoat_trainer.models import TrenchcoatLlamaForCausalLM
from trenchcoat_trainer.models.cria import CriaModel
from trenchcoat_trainer.models.student import initial_parameters, student_config

ATTENTION = Attention(window=8, feature_dim=8)


def make_teacher(layers: int = 6, **changes: Any) -> LlamaForCausalLM:
    """A Llama with grouped queries; weights large enough that attention is far from uniform."""
    torch.manual_seed(0)
    fields: dict[str, Any] = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(LlamaConfig(**(fields | changes))).eval()


def make_cria(
    teacher: LlamaForCausalLM,
    first: int,
    last: int,
    attention: Attention = ATTENTION,
    state: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> CriaModel:
    """The student's layers first to last, maps untrained; of the weights `state`, or the teacher's."""
    cria = CriaRange(0, first, last)
    config = student_config(teacher.config, attention)
    state = state or teacher.state_dict()
    weights = {
        name: tensor
        for name, tensor in state.items()
        if any(name.startswith(f"model.layers.{layer}.") for layer in cria.layers)
    }
    maps = {
        f"layers.{layer}.{name}": tensor
        for layer in cria.layers
        for name, tensor in initial_parameters(config, layer, seed=0).items()
    }
    return CriaModel.build(config, cria, weights, maps, dtype=dtype, device=torch.device(device))


def make_student(teacher: LlamaForCausalLM, attention: Attention = ATTENTION) -> TrenchcoatLlamaForCausalLM:
    """The whole student, maps untrained."""
    config = student_config(teacher.config, attention)
    student = TrenchcoatLlamaForCausalLM(config).eval()
    student.load_state_dict(teacher.state_dict(), strict=False)
    cria = make_cria(teacher, 0, config.num_hidden_layers - 1, attention)
    student.model.layers.load_state_dict(cria.layers.state_dict())
    return student
