"""Student forms: what softmax attention is replaced by. `form` is the interface, `registry` names them.

A further form is a folder beside `lolcats` with its `StudentForm` and the file that exports carry, its name
in the API's `Form`, a line in `registry`, and tests; those in tests/trainer/students/test_forms.py try it as
they try the others.
"""

from trenchcoat_trainer.students.form import (
    Heads,
    LossWeights,
    Parameters,
    Student,
    StudentForm,
    StudentLayer,
    TransferLoss,
)
from trenchcoat_trainer.students.registry import FORMS, form_of, form_of_spec, layer_attention

__all__ = [
    "FORMS",
    "Heads",
    "LossWeights",
    "Parameters",
    "Student",
    "StudentForm",
    "StudentLayer",
    "TransferLoss",
    "form_of",
    "form_of_spec",
    "layer_attention",
]
