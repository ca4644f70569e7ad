"""Weights that are no numbers: told before anything is computed with them."""

from collections.abc import Mapping

import torch

from trenchcoat_trainer.errors import BadInputError


def require_finite(weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Raise BadInputError where a weight is NaN or infinite; `source` names the checkpoint."""
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise BadInputError(
                f"tensor {name} of {source} holds NaN or infinity: the checkpoint is damaged, "
                "fetch or save it anew"
            )
