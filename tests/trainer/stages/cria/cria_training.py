"""Training a Cria of a tiny teacher without a store."""

from collections.abc import Iterator
from typing import Any

import torch
from trenchcoat_api.spec import Attention, TrenchcoatSpec
from trenchcoat_trainer.data import Batch
from trenchcoat_trainer.layers.llama import softmax_attention
from trenchcoat_trainer.models.cria import CriaModel
from trenchcoat_trainer.stages.cria.transfer import TransferPhase, finish_layer

from tests.trainer.helpers.tiny_student import ATTENTION, make_cria, make_teacher

SEQUENCES = 12
TOKENS = 29


def make_spec(**changes: Any) -> TrenchcoatSpec:
    """A spec whose numbers fit the tiny teacher; `changes` are YAML fields."""
    body: dict[str, Any] = {
        "model": {"source": "file:///teacher"},
        "data": {"source": "file:///text/*.txt", "tokens": 1000, "sequenceLength": TOKENS},
        "store": {
            "endpoint": "http://127.0.0.1:9000",
            "bucket": "trenchcoat",
            "credentialsSecretRef": {"name": "minio"},
        },
        "preset": "shipped",
        "layersPerCria": 3,
        "dtype": "float32",
        "attention": {"window": 8, "featureDim": 8},
        "transfer": {"batchSize": 4, "plateau": {"every": 3, "patience": 0, "factor": "0.5"}},
        "criaLora": {"batchSize": 4, "microBatchSize": 2, "learningRate": "1e-2"},
    }
    return TrenchcoatSpec.model_validate(body | changes)


def boundaries(layers: int = 6) -> list[torch.Tensor]:
    """The raw residual stream before every layer and after the last, [SEQUENCES, TOKENS, hidden].

    Computed as attention transfer computes it, sequence by sequence and with the same kernels, so that what a
    longer Cria passes on is the same to the last bit.
    """
    teacher = make_teacher(layers)
    cria = make_cria(teacher, 0, layers - 1)
    ids = torch.randint(0, 61, (SEQUENCES, TOKENS), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        sequences = [_states(cria, teacher.model.embed_tokens(row)) for row in ids.split(1)]
    return [torch.cat(states) for states in zip(*sequences, strict=True)]


def _states(cria: CriaModel, hidden: torch.Tensor) -> list[torch.Tensor]:
    states = [hidden]
    for layer in cria.layers.values():
        attention = layer.self_attn
        heads = attention.project(layer.input_layernorm(hidden), cria.rope(hidden))
        hidden = finish_layer(layer, hidden, softmax_attention(*heads))
        states.append(hidden)
    return states


def batches(inputs: torch.Tensor, targets: torch.Tensor | None, size: int, epochs: int) -> Iterator[Batch]:
    """Batches in a fixed order, epoch after epoch."""
    for _ in range(epochs):
        for start in range(0, len(inputs), size):
            part = slice(start, start + size)
            yield Batch(inputs[part], None if targets is None else targets[part])


def train_transfer(
    spec: TrenchcoatSpec,
    hidden: list[torch.Tensor],
    first: int,
    last: int,
    epochs: int = 4,
    attention: Attention = ATTENTION,
) -> tuple[CriaModel, dict[str, torch.Tensor], list[float | None]]:
    """Run attention transfer on layers first to last; returns the Cria, its maps and the losses."""
    cria = make_cria(make_teacher(len(hidden) - 1), first, last, attention)
    size = spec.transfer.batch_size
    phase = TransferPhase(cria, spec, steps=epochs * -(-SEQUENCES // size))
    losses = [
        phase.step(batch, epoch=0, step=step)
        for step, batch in enumerate(batches(hidden[first], None, size, epochs))
    ]
    return cria, phase.finish()[0], losses
