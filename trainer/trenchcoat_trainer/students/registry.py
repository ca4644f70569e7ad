"""The student forms that there are."""

from __future__ import annotations

from typing import Any

from trenchcoat_api import spec

from trenchcoat_trainer.students.form import StudentForm, StudentLayer
from trenchcoat_trainer.students.lolcats.form import Lolcats
from trenchcoat_trainer.students.window.form import Window

FORMS: dict[str, StudentForm] = {
    Lolcats.name: Lolcats(),
    Window.name: Window(),
}


def form_of_spec(attention: spec.Attention) -> StudentForm:
    """Return the form that spec.attention asks for.

    Raises:
        ValueError: there is none of that name.
    """
    if attention.form not in FORMS:
        raise ValueError(
            f"spec.attention.form is {attention.form}: it can be trained as {', '.join(FORMS)} alone"
        )
    return FORMS[attention.form]


def form_of(config: Any) -> StudentForm:
    """Return the form of the student that `config` configures.

    Raises:
        ValueError: there is no such form.
    """
    if config.student_form not in FORMS:
        raise ValueError(f"student_form must be one of {', '.join(FORMS)}, not {config.student_form!r}")
    return FORMS[config.student_form]


def layer_attention(config: Any, index: int) -> StudentLayer:
    """Return the attention of the decoder layer `index`, as ``student_attention.py`` of an export does."""
    return form_of(config).layer(config, index)
