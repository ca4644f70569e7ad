"""Configuration of a linearized Llama. An exported checkpoint carries this file."""

from transformers import LlamaConfig


class TrenchcoatLlamaConfig(LlamaConfig):
    """A Llama's configuration and the form of its hybrid attention (LoLCATs, arXiv 2410.10254).

    Attributes:
        window: tokens per block of the terraced window; a query sees its own block and the one before.
        feature_dim: columns of each feature map's matrix; there are twice as many features.
        keep_softmax_layers: decoder layers, counted from 0, that keep softmax attention.
    """

    model_type = "trenchcoat_llama"

    window: int = 64
    feature_dim: int = 64
    keep_softmax_layers: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.keep_softmax_layers = sorted(self.keep_softmax_layers or [])
        super().__post_init__(**kwargs)
