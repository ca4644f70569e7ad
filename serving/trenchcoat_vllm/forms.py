"""Which forms of student can be served, and how a layer's states lie in pages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trenchcoat_trainer.students import form_of

from trenchcoat_vllm.lolcats import HybridPages
from trenchcoat_vllm.pages import Pages
from trenchcoat_vllm.window import WindowPages

FORMS: dict[str, type[Pages]] = {"window": WindowPages, "lolcats": HybridPages}
"""By the name that the configuration has of a form."""


def layer_pages(config: Any, layer: int, ranks: int) -> Pages | None:
    """Return how a layer's states lie in pages; None where it keeps softmax attention.

    Args:
        config: the checkpoint's configuration.
        layer: counted from 0.
        ranks: how many the heads are divided among.

    Raises:
        ValueError: the heads cannot be divided so.
    """
    if layer in config.keep_softmax_layers:
        return None
    if config.num_key_value_heads % ranks:
        raise ValueError(
            f"{config.num_key_value_heads} key/value heads cannot be divided among {ranks} ranks: lower "
            "--tensor-parallel-size"
        )
    whole = form_of(config).code.layer_attention(config, layer)
    divided = {name: count // ranks for name, count in vars(whole).items() if name in DIVIDED}
    return FORMS[config.student_form](replace(whole, **divided))


DIVIDED = ("heads", "kv_heads", "key_maps")
"""What of a layer's attention counts heads."""
