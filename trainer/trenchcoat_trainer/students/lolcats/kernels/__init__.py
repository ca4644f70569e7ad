"""Hybrid attention and the losses of attention transfer as Triton kernels.

The linear part goes by blocks of tokens (`states`): what all keys before a block sum to gives the student's
rows, and what all rows after it sum to gives the gradients of its keys and values.  Only the cross-entropy
with the teacher, whose attention torch computes (`teacher`), visits every pair of tokens: once over query
tiles (`cross_entropy`) and once over key tiles (`key_gradient`), without atomics, so that results do not vary
from run to run.  The backward of attention transfer touches no window tile: the rows of the student's softmax
sum to a constant, so the gradient of log sigma is minus the sum of u du below the window.

Operands are bf16 on the matrix units with fp32 accumulation and statistics, or fp32 throughout for fp32
inputs.  Scores and logarithms are in base 2 inside.  Shape letters as in `attention.py`; M rows and N keys of
a tile, C tokens of a block, E the feature dimension padded to a power of two.
"""

from trenchcoat_trainer.students.lolcats.kernels.autograd import attend, distill_loss, unsupported
from trenchcoat_trainer.students.lolcats.kernels.launch import INTERPRETED

__all__ = ["INTERPRETED", "attend", "distill_loss", "unsupported"]
