"""How far a Cria's attention is from the teacher's, in a number that can be compared across models."""

from collections.abc import Iterator
from contextlib import closing

import torch

from trenchcoat_trainer.data import Batch
from trenchcoat_trainer.models.cria import CriaModel
from trenchcoat_trainer.stages.cria.transfer import finish_layer

SEQUENCES = 16
"""Sequences that the error is measured on."""


@torch.no_grad()
def layer_errors(
    cria: CriaModel, batches: Iterator[Batch], *, sequences: int = SEQUENCES
) -> dict[str, float]:
    """Measure the relative error of each student layer's attention outputs, before o_proj, adapters left out.

    Teacher forced, as attention transfer is: every layer sees the teacher's own input. The error of a layer
    is ||student - teacher|| / ||teacher|| over all tokens, heads and columns: 0 is the teacher's own output,
    1 is as far off as an output of zeros.

    Args:
        cria: the layers, with the attention to be judged.
        batches: raw residual streams at the Cria's first boundary; closed when enough were read.
        sequences: how many sequences to use, at most.

    Returns:
        Errors by number of decoder layer, in order; none for layers that keep softmax attention.
    """
    device = next(cria.parameters()).device
    layers = [str(number) for number, _ in cria.student_layers()]
    if not layers:
        return {}
    # On the device until the end: the host would wait for a GPU at every layer.
    differences = {name: torch.zeros((), dtype=torch.float64, device=device) for name in layers}
    norms = {name: torch.zeros((), dtype=torch.float64, device=device) for name in layers}
    seen = 0
    with closing(batches):
        for batch in batches:
            inputs_BTE = batch.inputs[: sequences - seen].to(device)
            _add(cria, inputs_BTE, layers[-1], differences, norms)
            seen += len(inputs_BTE)
            if seen >= sequences:
                break
    squares = torch.stack([differences[name] / norms[name] for name in layers])
    return dict(zip(layers, squares.sqrt().tolist(), strict=True))


def _add(
    cria: CriaModel,
    hidden_BTE: torch.Tensor,
    last: str,
    differences: dict[str, torch.Tensor],
    norms: dict[str, torch.Tensor],
) -> None:
    """Add a batch's squared differences and squared norms, layer by layer."""
    rope = cria.rope(hidden_BTE)
    for name, layer in cria.layers.items():
        attention = layer.self_attn
        if name not in differences:
            hidden_BTE = layer(hidden_BTE, position_embeddings=rope)
            continue
        heads = attention.project(layer.input_layernorm(hidden_BTE), rope)
        result = attention.student.transfer_loss(heads, attention.student_parameters())
        count = result.output.numel()
        differences[name] += result.mse.double() * count
        norms[name] += result.output.double().square().sum()
        if name == last:
            return
        hidden_BTE = finish_layer(layer, hidden_BTE, result.output)
