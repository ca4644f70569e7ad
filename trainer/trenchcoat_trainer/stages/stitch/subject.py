"""Whose adapters are trained: the student's, or the teacher's, whom the student is compared with.

Both are trained by the same code on the same batches. The teacher is the student all of whose layers keep
softmax attention, without what the Crias learned; nothing else differs.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import nn
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.phases import adapter_epochs
from trenchcoat_api.stages import Stage

from trenchcoat_trainer.models.artifacts import (
    Adapters,
    Tensors,
    cria_adapters,
    load_student_config,
    load_teacher_config,
    trained_parameters,
)
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.models.modeling_trenchcoat import TrenchcoatLlamaForCausalLM
from trenchcoat_trainer.runtime.context import StageContext


@dataclass(frozen=True, slots=True)
class Subject:
    """The model whose adapters a stage trains."""

    config: TrenchcoatLlamaConfig
    epochs: int
    """Passes over the text."""
    name: str
    """What losses and progress are called."""
    is_student: bool

    @classmethod
    def of(cls, context: StageContext) -> Self:
        """The student for the stage stitch; for adapt the teacher, as long as the student's adapters learn.

        Raises:
            BadInputError: the spec does not fit the model.
        """
        stage = context.artifact.stage
        if stage is Stage.ADAPT:
            return cls(load_teacher_config(context), adapter_epochs(context.spec), stage.value, False)
        return cls(load_student_config(context), context.spec.stitch.epochs, stage.value, True)

    def adapters(self, context: StageContext, cria: CriaRange) -> tuple[Adapters, ...]:
        """The adapters that are merged into a Cria's weights before training."""
        return (cria_adapters(context, cria),) if self.is_student else ()

    def form_parameters(self, context: StageContext, cria: CriaRange) -> Tensors:
        """What a Cria's student layers attend with besides weights, by ``layers.N.NAME``."""
        return trained_parameters(context, cria) if self.is_student else {}


def take_form_parameters(layer: nn.Module) -> None:
    """Remove from a decoder layer what attention transfer trains, so that it has weights alone."""
    for name in layer.self_attn.student_parameters():
        delattr(layer.self_attn, name)


def put_form_parameters(model: TrenchcoatLlamaForCausalLM, trained: Tensors, device: torch.device) -> None:
    """Give layers without them what attention transfer trained, ``layers.N.NAME``, as plain tensors."""
    for full_name, tensor in trained.items():
        _, layer, name = full_name.split(".")
        setattr(model.model.layers[int(layer)].self_attn, name, tensor.to(device))
