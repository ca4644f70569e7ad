"""Checks of the fused teacher against modules that run on a GPU or under Triton's interpreter."""

from collections.abc import Iterator

import torch
from trenchcoat_trainer.checkpoints.teacher_layers import TeacherLayers
from trenchcoat_trainer.layers.teacher import FusedTeacherLayers

from tests.trainer.helpers.trainer_samples import make_config

LAYERS = (1, 2)
"""Of the model's: a rank has some in a row, not the first ones."""


def both(
    dtype: torch.dtype = torch.float32, device: str = "cpu", **fields: object
) -> tuple[TeacherLayers, FusedTeacherLayers]:
    """Return the same random layers run by modules and fused."""
    config = make_config(**fields)
    place, made = torch.device(device), []
    for kind in (TeacherLayers, FusedTeacherLayers):
        layers = kind(config, LAYERS, dtype, place)
        layers.load(dict(random_weights(layers, dtype)))
        made.append(layers)
    return made[0], made[1]


def random_weights(layers: TeacherLayers, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield weights by Hugging Face's names, the same whoever asks."""
    draw = torch.Generator().manual_seed(3)
    for index, layer in zip(layers.indices, layers.layers, strict=True):
        for name, weight in layer.state_dict().items():
            drawn = torch.randn(weight.shape, generator=draw)
            scaled = drawn * weight.shape[-1] ** -0.5 if weight.ndim == 2 else 1 + 0.1 * drawn
            yield f"model.layers.{index}.{name}", scaled.to(dtype)


def teacher_errors(
    dtype: torch.dtype = torch.float32, device: str = "cpu", tokens: int = 21
) -> dict[str, list[float]]:
    """Return how far modules and fused layers are from float64, by layer, in parts of what the layers add."""
    modules, fused = both(dtype, device)
    exact = TeacherLayers(make_config(), LAYERS, torch.float64)
    exact.load({name: weight.double() for name, weight in random_weights(exact, dtype)})
    hidden = torch.randn(3, tokens, 64, generator=torch.Generator().manual_seed(4)).to(dtype)
    with torch.inference_mode():
        truth = list(exact.states(hidden.double()))
        return {
            name: [
                float((x.cpu().double() - y).norm() / (y - hidden).norm())
                for x, y in zip(layers.states(hidden.to(device)), truth, strict=True)
            ]
            for name, layers in (("modules", modules), ("fused", fused))
        }
