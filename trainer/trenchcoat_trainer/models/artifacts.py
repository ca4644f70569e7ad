"""What the student is made of, read from the artifacts Cria by Cria."""

import json

import torch
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.layer_kinds import chooses_layers
from trenchcoat_api.spec import Attention, DType, Lora, TrenchcoatSpec

from trenchcoat_trainer.checkpoints.shards import TORCH_DTYPES, layer_path, load_config, load_object
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.models.adapters import merge_adapters
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.models.student import initial_parameters, student_config
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.inputs import Inputs
from trenchcoat_trainer.students import StudentForm, form_of

FEATURE_MAPS = "feature_maps.safetensors"
"""Object of a cria artifact: what attention transfer trained, ``layers.N.NAME`` by the form's names, fp32."""
ADAPTERS = "adapters.safetensors"
"""Object of a cria or stitch artifact: adapters by peft's names."""

SELECTION = "selection.json"
"""Object of a select artifact: the wide layers, every layer's score, and how they were scored."""

Tensors = dict[str, torch.Tensor]
Adapters = tuple[Tensors, Lora]


def load_student_config(context: StageContext) -> TrenchcoatLlamaConfig:
    """Return the configuration of the student, its dtype that of the spec.

    Raises:
        BadInputError: a layer that is to keep softmax attention does not exist, or the spec asks for what
            its form does not have.
    """
    try:
        config = student_config(load_config(context), context.spec.attention, selected_layers(context))
        check_form(context.spec, form_of(config))
    except ValueError as error:
        raise BadInputError(str(error)) from error
    config.dtype = weight_dtype(context)
    return config


def load_teacher_config(context: StageContext) -> TrenchcoatLlamaConfig:
    """Return the configuration of a student all of whose layers keep softmax attention: the teacher's own."""
    teacher = load_config(context)
    attention = Attention(keep_softmax_layers=list(range(teacher.num_hidden_layers)))
    config = student_config(teacher, attention)
    config.dtype = weight_dtype(context)
    return config


def selected_layers(inputs: Inputs) -> list[int] | None:
    """Return the wide layers that the select stage chose; none where the spec does not have them chosen.

    Raises:
        MissingInputError: the select stage is not complete.
        CorruptObjectError: its object is not what the manifest says.
    """
    if not chooses_layers(inputs.spec.attention):
        return None
    layers: list[int] = json.loads(inputs.read_object(inputs.artifacts.select, SELECTION))["layers"]
    return layers


def check_form(spec: TrenchcoatSpec, form: StudentForm) -> None:
    """Raise ValueError where `spec` asks for what `form` does not have."""
    dropout = spec.transfer.window_dropout
    if float(dropout) > 0 and not form.has_window_dropout:
        raise ValueError(
            f"spec.transfer.windowDropout is {dropout}, but the {form.name} form is nothing without its "
            "window: set it to 0"
        )


def weight_dtype(context: StageContext) -> torch.dtype:
    """Return the number format of weights and activations."""
    return TORCH_DTYPES[DType(context.spec.dtype)]


def untrained_parameters(context: StageContext, config: TrenchcoatLlamaConfig, cria: CriaRange) -> Tensors:
    """Return the parameters of a Cria's student attention as they are before training."""
    return {
        f"layers.{layer}.{name}": tensor
        for layer in cria.layers
        for name, tensor in initial_parameters(config, layer, context.spec.seed).items()
    }


def trained_parameters(context: StageContext, cria: CriaRange) -> Tensors:
    """Return the parameters that attention transfer left."""
    return context.read_tensors(context.artifacts.cria(cria), FEATURE_MAPS)


def cria_adapters(context: StageContext, cria: CriaRange) -> Adapters:
    """Return the adapters that LoRA by Cria left, with their settings."""
    return context.read_tensors(context.artifacts.cria(cria), ADAPTERS), context.spec.cria_lora.lora


def stitch_adapters(context: StageContext) -> Adapters:
    """Return the adapters over the whole student that stitching left, with their settings."""
    tensors = context.read_tensors(context.artifacts.stitch(context.crias), ADAPTERS)
    return tensors, context.spec.stitch.lora


def adapted_teacher_adapters(context: StageContext) -> Adapters:
    """Return the adapters over the whole teacher that the adapt stage left, with their settings."""
    return context.read_tensors(context.artifacts.adapt, ADAPTERS), context.spec.stitch.lora


def layer_weights(context: StageContext, cria: CriaRange, layer: int, *adapters: Adapters) -> Tensors:
    """Return one layer's weights with adapters merged in, one set after the other, on the CPU."""
    weights = load_object(context, layer_path(cria, layer), "cpu")
    for tensors, lora in adapters:
        merge_adapters(weights, tensors, lora)
    return weights
