"""Hybrid attention and the losses of attention transfer, computed three ways behind one signature.

``naive`` is the truth, ``tiled`` needs memory linear in the number of tokens on any device, ``triton`` runs
at the speed of a GPU's matrix units; ``hybrid`` is the student alone, with its state for decoding.
"""

from trenchcoat_trainer.attention.hybrid import HybridState, decode_step, feature_map, linear_share
from trenchcoat_trainer.attention.transfer import (
    TransferLoss,
    distill_loss,
    hybrid_attention,
    transfer_loss,
)

__all__ = [
    "HybridState",
    "TransferLoss",
    "decode_step",
    "distill_loss",
    "feature_map",
    "hybrid_attention",
    "linear_share",
    "transfer_loss",
]
