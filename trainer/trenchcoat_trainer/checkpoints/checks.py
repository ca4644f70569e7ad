"""Whether a checkpoint is the Llama that its config.json describes, as transformers would load it."""

import hashlib

import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from trenchcoat_api.crias import cria_ranges
from trenchcoat_api.layer_kinds import check_named_layers
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.checkpoints.teacher import CONFIG, EMBEDDING, HEAD, NORM, Teacher
from trenchcoat_trainer.errors import BadInputError

Shape = tuple[int, ...]


def check_teacher(teacher: Teacher, spec: TrenchcoatSpec) -> None:
    """Find out all that can be known of a teacher without running it; of weights, only headers are read.

    Raises:
        BadInputError: it is no complete Llama, its tensors are not those that config.json describes, or it
            does not fit the spec.
    """
    teacher.check_files()
    try:
        cria_ranges(teacher.layers, spec.layers_per_cria)
        check_named_layers(spec.attention, teacher.layers)
    except ValueError as error:
        raise BadInputError(str(error)) from error
    teacher.check()
    _check_shapes(teacher)
    _check_head(teacher)


def _check_shapes(teacher: Teacher) -> None:
    config = teacher.config
    try:
        with torch.device("meta"):
            layer = LlamaDecoderLayer(config, 0).state_dict()
        LlamaRotaryEmbedding(config)
    except Exception as error:  # whatever the library makes of what it does not know
        raise BadInputError(
            f"{CONFIG} of {teacher.source} describes a Llama that cannot be made "
            f"({type(error).__name__}: {' '.join(str(error).split())}): correct it"
        ) from error
    own = {name: tuple(tensor.shape) for name, tensor in layer.items()}
    for index in range(teacher.layers):
        start = f"model.layers.{index}."
        expected = {start + name: shape for name, shape in own.items()}
        for name in teacher.layer_names(index):
            if name not in expected:
                raise BadInputError(
                    f"{teacher.source} has the tensor {name}, which the Llama of its {CONFIG} has not: it is "
                    f"another kind of model, or {CONFIG} lacks attention_bias or mlp_bias"
                )
        for name, shape in expected.items():
            _check_shape(teacher, name, shape)
    table = (config.vocab_size, config.hidden_size)
    _check_shape(teacher, EMBEDDING, table)
    _check_shape(teacher, NORM, (config.hidden_size,))
    if HEAD in teacher.head_names():
        _check_shape(teacher, HEAD, table)


def _check_shape(teacher: Teacher, name: str, expected: Shape) -> None:
    stored = teacher.find(name)
    if stored.place.shape != expected:
        raise BadInputError(
            f"tensor {name} in {stored.file} of {teacher.source} is {list(stored.place.shape)}, but by "
            f"{CONFIG} it would be {list(expected)}: one of them belongs to another model"
        )


def _check_head(teacher: Teacher) -> None:
    """A head of its own in spite of tie_word_embeddings: transformers takes it, so it must be told which."""
    if HEAD not in teacher.tensor_files or HEAD in teacher.head_names():
        return
    if _content(teacher, HEAD) != _content(teacher, EMBEDDING):
        raise BadInputError(
            f"{CONFIG} of {teacher.source} ties the head to the embedding (tie_word_embeddings), but the "
            f"checkpoint holds another {HEAD}, which transformers would use: set tie_word_embeddings to "
            f"false, or remove {HEAD}"
        )


def _content(teacher: Teacher, name: str) -> tuple[str, Shape, bytes]:
    stored, digest = teacher.find(name), hashlib.sha256()
    path, place = teacher.prefix + stored.file, stored.place
    for chunk in teacher.store.stream(path, place.offset, place.length):
        digest.update(chunk)
    return place.dtype, place.shape, digest.digest()
