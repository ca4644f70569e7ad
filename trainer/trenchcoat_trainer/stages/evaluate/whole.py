"""A form of the model as one module in memory, as a checkpoint of it would be loaded."""

import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from trenchcoat_api.results import ModelForm

from trenchcoat_trainer.checkpoints.shards import load_rest_weights
from trenchcoat_trainer.models.artifacts import (
    Adapters,
    Tensors,
    adapted_teacher_adapters,
    cria_adapters,
    layer_weights,
    load_student_config,
    load_teacher_config,
    stitch_adapters,
    trained_parameters,
)
from trenchcoat_trainer.models.modeling_trenchcoat import TrenchcoatLlamaForCausalLM
from trenchcoat_trainer.runtime.context import StageContext

WHOLE_FORMS = (ModelForm.TEACHER, ModelForm.ADAPTED_TEACHER, ModelForm.STITCHED)
"""Those that can be had so: the rival's window is none that a checkpoint has."""


def whole_model(context: StageContext, form: ModelForm, device: torch.device) -> TrenchcoatLlamaForCausalLM:
    """Return the teacher, the adapted teacher or the stitched student, its weights frozen, on `device`."""
    is_student = form is ModelForm.STITCHED
    config = load_student_config(context) if is_student else load_teacher_config(context)
    with torch.device("meta"):
        model = TrenchcoatLlamaForCausalLM(config)
    over_all: list[Adapters] = []
    if is_student:
        over_all.append(stitch_adapters(context))
    elif form is ModelForm.ADAPTED_TEACHER:
        over_all.append(adapted_teacher_adapters(context))
    state: Tensors = {}
    weights = load_rest_weights(context)
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])  # absent when tied
    state |= {name: tensor.to(device, config.dtype) for name, tensor in weights.items()}
    for cria in context.crias:
        own = [cria_adapters(context, cria)] if is_student else []
        for layer in cria.layers:
            weights = layer_weights(context, cria, layer, *own, *over_all)
            state |= {name: tensor.to(device, config.dtype) for name, tensor in weights.items()}
        for name, tensor in (trained_parameters(context, cria) if is_student else {}).items():
            layer_name, part = name.rsplit(".", 1)
            state[f"model.{layer_name}.self_attn.{part}"] = tensor.to(device, torch.float32)
    state = {name: tensor for name, tensor in state.items() if not name.endswith("rotary_emb.inv_freq")}
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    model.requires_grad_(False)
    return model.eval()
