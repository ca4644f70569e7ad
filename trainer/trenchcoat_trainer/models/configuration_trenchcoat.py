"""Configuration of a linearized Llama. An exported checkpoint carries this file."""

from transformers import LlamaConfig


class TrenchcoatLlamaConfig(LlamaConfig):
    """A Llama's configuration and the form of its hybrid attention (LoLCATs, arXiv 2410.10254).

    Attributes:
        window: tokens per block of the terraced window; a query sees its own block and the one before.
        feature_dim: columns of each feature map's matrix; there are twice as many features.
        key_maps: which heads have a key feature map of their own, "perQueryHead" or "perKeyValueHead".
        keep_softmax_layers: decoder layers, counted from 0, that keep softmax attention.
    """

    model_type = "trenchcoat_llama"

    window: int = 64
    feature_dim: int = 64
    key_maps: str = "perQueryHead"
    keep_softmax_layers: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.keep_softmax_layers = sorted(self.keep_softmax_layers or [])
        super().__post_init__(**kwargs)

    @property
    def map_heads(self) -> tuple[int, int]:
        """Heads that have a feature map of queries, and of keys.

        Raises:
            ValueError: key_maps is unknown.
        """
        heads = {"perQueryHead": self.num_attention_heads, "perKeyValueHead": self.num_key_value_heads}
        if self.key_maps not in heads:
            raise ValueError(f"key_maps must be one of {', '.join(heads)}, not {self.key_maps!r}")
        return self.num_attention_heads, heads[self.key_maps]
