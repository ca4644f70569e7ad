"""Configuration of a linearized Llama. An exported checkpoint carries this file."""

from transformers import LlamaConfig


class TrenchcoatLlamaConfig(LlamaConfig):
    """A Llama's configuration, and what takes the place of its softmax attention.

    The form's own settings stand beside these, by the names that ``student_attention.py`` reads.

    Attributes:
        student_form: the kind of attention; the first release had one, and did not name it.
        keep_softmax_layers: decoder layers, counted from 0, that keep softmax attention.
    """

    model_type = "trenchcoat_llama"

    student_form: str = "lolcats"
    keep_softmax_layers: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.keep_softmax_layers = sorted(self.keep_softmax_layers or [])
        super().__post_init__(**kwargs)
