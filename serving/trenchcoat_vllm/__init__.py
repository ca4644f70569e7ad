"""Serve a linearized Llama with vLLM: a plugin that makes ``vllm serve FOLDER`` know its checkpoint.

vLLM calls `register` in each of its processes.  The rest, from what vLLM asks to what is computed: `settings`
answers for the configuration, `model` is the model, `layer` one layer's attention, `metadata` what a step
of the engine asks of all layers, and `window` and `lolcats` compute.
"""

from __future__ import annotations

from transformers import AutoConfig
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from vllm.config import CompilationConfig
from vllm.model_executor.models.config import MODELS_CONFIG_MAP
from vllm.model_executor.models.registry import ModelRegistry
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from trenchcoat_vllm.settings import StudentSettings

ARCHITECTURE = "TrenchcoatLlamaForCausalLM"
"""What config.json of an exported checkpoint calls its model."""
BACKEND = "TRENCHCOAT"
OPERATOR = "vllm::trenchcoat_attention"
"""`layer.attention`, by the name that vLLM's compiler splits the graph at."""


def register() -> None:
    """Tell vLLM of the model; more than once in a process changes nothing."""
    AutoConfig.register(TrenchcoatLlamaConfig.model_type, TrenchcoatLlamaConfig, exist_ok=True)
    ModelRegistry.register_model(ARCHITECTURE, "trenchcoat_vllm.model:TrenchcoatLlamaForCausalLM")
    MODELS_CONFIG_MAP[ARCHITECTURE] = StudentSettings
    if BACKEND not in MambaAttentionBackendEnum.__members__:
        MambaAttentionBackendEnum.register(BACKEND, "trenchcoat_vllm.metadata.StudentBackend")
    # Without this the loop over prompts would be captured once, as part of a CUDA graph.
    if OPERATOR not in CompilationConfig._attention_ops:
        CompilationConfig._attention_ops.append(OPERATOR)
