"""What a linearized Llama asks of vLLM's configuration, and what it refuses."""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from trenchcoat_vllm.forms import FORMS


class StudentSettings(VerifyAndUpdateConfig):
    """vLLM calls these before it makes the model."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Say which layers keep softmax attention.

        Raises:
            ValueError: the student is of a form that cannot be served.
        """
        config = model_config.hf_config
        if config.student_form not in FORMS:
            raise ValueError(
                f"{model_config.model}: student_form is {config.student_form}, but vLLM can serve only "
                f"{', '.join(FORMS)}: use transformers' generate, or serve a student of that form"
            )
        kept = set(config.keep_softmax_layers)
        if len(kept) == config.num_hidden_layers:  # by this vLLM sees that there are no states
            config.layer_types = ["full_attention"] * config.num_hidden_layers
        config.layers_block_type = [
            "attention" if layer in kept else "mamba" for layer in range(config.num_hidden_layers)
        ]

    @classmethod
    def verify_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Refuse what cannot be done.

        Raises:
            ValueError: tokens would have to be taken back.
        """
        if vllm_config.speculative_config is not None:
            raise ValueError(
                "speculative decoding takes tokens back, and a student's state cannot forget them: serve it "
                "without"
            )
