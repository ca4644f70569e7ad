"""Hybrid attention and the losses of attention transfer as Triton kernels, in the manner of flash attention.

One pass over the tiles of keys serves both attentions (`forward`).  Per row only the teacher's log-sum-exp,
the student's weight Z and two products are kept.  The backward of attention transfer touches no window tile:
the rows of the student's softmax sum to a constant, so the gradient of log sigma is minus the sum of u du
below the window.  Two kernels, one over query tiles and one over key tiles (`query_gradient`,
`key_gradient`), give every gradient without atomics, so results do not vary from run to run.

Operands are bf16 on the matrix units with fp32 accumulation and statistics, or fp32 throughout for fp32
inputs.  Scores and logarithms are in base 2 inside.  Shape letters as in `attention.py`; M rows and N keys of
a tile, E the feature dimension padded to a power of two.
"""

from trenchcoat_trainer.students.lolcats.kernels.autograd import attend, distill_loss, unsupported
from trenchcoat_trainer.students.lolcats.kernels.launch import INTERPRETED

__all__ = ["INTERPRETED", "attend", "distill_loss", "unsupported"]
