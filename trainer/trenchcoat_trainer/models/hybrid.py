"""The attention that `modeling_trenchcoat.py` uses inside this package.

In an exported checkpoint a file of this name holds `trenchcoat_trainer.attention.hybrid` itself, which needs
torch alone. Here the same names choose the fastest backend for the device.
"""

from trenchcoat_trainer.attention import HybridState, decode_step, hybrid_attention

__all__ = ["HybridState", "decode_step", "hybrid_attention"]
