"""Llama decoder layers as plain functions, and the training steps of one Cria over them."""

from trenchcoat_trainer.layers.adapters import Adapter
from trenchcoat_trainer.layers.cria_step import (
    CriaLayers,
    Layer,
    StepLosses,
    block_step,
    boundary_error,
    layerwise_step,
    student_forward,
    transfer_step,
    transfer_through,
)
from trenchcoat_trainer.layers.llama import LayerShape, LayerWeights, Rope, teacher_forward

__all__ = [
    "Adapter",
    "CriaLayers",
    "Layer",
    "LayerShape",
    "LayerWeights",
    "Rope",
    "StepLosses",
    "block_step",
    "boundary_error",
    "layerwise_step",
    "student_forward",
    "teacher_forward",
    "transfer_step",
    "transfer_through",
]
