"""Configuration of a linearized Llama, and the versions of transformers that read it.

An exported checkpoint carries this file, so it imports transformers alone.
"""

import inspect

import transformers
from transformers import LlamaConfig

OLDEST = (4, 56)
"""Before it, caches and attention have other interfaces."""
NEWEST_MAJOR = 5
TRIED = ("4.56.0", "4.57.6", "5.0.0", "5.24.0")
"""The oldest and the newest of each line that this code was tried with."""
_IS_DATACLASS = hasattr(LlamaConfig, "__post_init__")
_TAKES_PARAMETERS = _IS_DATACLASS or "rope_parameters" in inspect.signature(LlamaConfig.__init__).parameters


def check_version(version=transformers.__version__):
    """Refuse a transformers that this code was not written for.

    Raises:
        ImportError: the version is older than 4.56, or of a later line than 5.
    """
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < OLDEST or numbers[0] > NEWEST_MAJOR:
        raise ImportError(
            f"transformers {version} cannot run this model's code, which was tried with "
            f"{', '.join(TRIED)}: install one from {OLDEST[0]}.{OLDEST[1]} on, before {NEWEST_MAJOR + 1}"
        )


def with_old_rope_names(fields):
    """Return a configuration's fields with RoPE under the names that transformers 4 reads.

    Those are ``rope_theta`` and ``rope_scaling``, where transformers 5 has ``rope_parameters`` alone.

    Args:
        fields: as in config.json; not changed.
    """
    parameters = fields.get("rope_parameters")
    if not parameters:
        return dict(fields)
    scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
    old = {"rope_theta": parameters["rope_theta"]} if "rope_theta" in parameters else {}
    if scaling.get("rope_type", "default") != "default":
        old["rope_scaling"] = scaling
    return {**fields, **old}


check_version()


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

    if _IS_DATACLASS:

        def __post_init__(self, **kwargs):
            self.keep_softmax_layers = sorted(self.keep_softmax_layers or [])
            super().__post_init__(**kwargs)

    else:  # older transformers

        def __init__(self, keep_softmax_layers=None, **kwargs):
            super().__init__(**(kwargs if _TAKES_PARAMETERS else with_old_rope_names(kwargs)))
            self.keep_softmax_layers = sorted(keep_softmax_layers or [])
