"""The student: a Llama with the attention of a form, whole or one Cria of it, and what is trained on it."""

from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.models.modeling_trenchcoat import TrenchcoatCache, TrenchcoatLlamaForCausalLM

__all__ = ["TrenchcoatCache", "TrenchcoatLlamaConfig", "TrenchcoatLlamaForCausalLM"]
