"""The student that a spec makes of a teacher, before any training."""

from collections.abc import Collection

import torch
from transformers import LlamaConfig
from trenchcoat_api.layer_kinds import layer_kinds
from trenchcoat_api.spec import Attention

from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.seeds import generator
from trenchcoat_trainer.students import form_of_spec, layer_attention


def student_config(
    teacher: LlamaConfig, attention: Attention, selected: Collection[int] | None = None
) -> TrenchcoatLlamaConfig:
    """Return the configuration of the student that `attention` makes of `teacher`.

    Args:
        teacher: the teacher's configuration.
        attention: spec.attention.
        selected: the wide layers that the run chose; read where attention.wide.share asks for it.

    Raises:
        ValueError: a layer is named that does not exist, or layers are to be chosen and were not; or there
            is no such form.
    """
    form, kinds = form_of_spec(attention), layer_kinds(attention, teacher.num_hidden_layers, selected)
    of_the_teacher = ("model_type", "architectures", "auto_map")
    fields = {name: value for name, value in teacher.to_dict().items() if name not in of_the_teacher}
    config = TrenchcoatLlamaConfig(
        **fields,
        **form.config_fields(attention, kinds),
        student_form=form.name,
        keep_softmax_layers=[layer for layer, kind in enumerate(kinds) if kind.form is None],
    )
    config._attn_implementation = "sdpa"
    return config


def initial_parameters(config: TrenchcoatLlamaConfig, layer: int, seed: int) -> dict[str, torch.Tensor]:
    """Return a layer's parameters before training, fp32; a pure function of the shapes, `seed` and `layer`.

    Names, shapes and values are the form's; nothing for a layer that keeps softmax.
    """
    if layer in config.keep_softmax_layers:
        return {}
    attention = layer_attention(config, layer)
    return {
        # "maps" as it ever was: another word would be another stream.
        name: attention.initialize(name, torch.empty(shape), generator(seed, "maps", layer, name))
        for name, shape in attention.shapes.items()
    }
