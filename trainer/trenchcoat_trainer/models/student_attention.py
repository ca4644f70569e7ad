"""The student's attention that `modeling_trenchcoat.py` uses inside this package: that of any form.

In an exported checkpoint a file of this name is the student's own form's, which needs torch alone. Here the
same name finds the form that the configuration names, with the fastest way of computing it.
"""

from trenchcoat_trainer.students import layer_attention

__all__ = ["layer_attention"]
