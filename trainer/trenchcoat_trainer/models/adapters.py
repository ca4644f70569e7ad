"""Low-rank adapters: how they start, what they are called in files, how they merge into weights.

Names in files are those of a peft checkpoint of the whole model, so that Crias' files can be put together.
"""

import re

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from trenchcoat_api.spec import Lora

from trenchcoat_trainer.seeds import generator

ADAPTER = "default"
FILE_PREFIX = "base_model.model.model."
_ADAPTED = re.compile(r"(layers\.(\d+)\.self_attn\.\w+)$")


def inject_adapters(module: nn.Module, lora: Lora, *, seed: int, purpose: str) -> dict[str, nn.Parameter]:
    """Put peft's LoRA on the projections that `lora` names, and leave nothing else trainable.

    A starts uniform within 1 / sqrt(inputs), as in peft, and is a pure function of (`seed`, `purpose`,
    layer, projection), so a layer starts alike in whichever Cria it stands; B starts at zero.

    Returns:
        The adapters by their names in files; always fp32, on the projections' device, or on the CPU where
        that is `meta`.
    """
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=float(lora.dropout),
        target_modules=sorted(lora.target_modules),
        bias="none",
    )
    inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    module.train(module.training)  # peft's own modules start in training mode, with dropout
    parameters = {}
    for name, adapted in adapted_modules(module).items():
        a, b = adapted.lora_A[ADAPTER], adapted.lora_B[ADAPTER]
        bound = a.in_features**-0.5
        start = torch.empty(lora.rank, a.in_features).uniform_(
            -bound, bound, generator=generator(seed, purpose, name)
        )
        device = adapted.get_base_layer().weight.device
        if device.type == "meta":  # a module that is a shape alone
            device = start.device
        a.weight = nn.Parameter(start.to(device))
        b.weight = nn.Parameter(torch.zeros(b.out_features, lora.rank, device=device))
        parameters[f"{FILE_PREFIX}{name}.lora_A.weight"] = a.weight
        parameters[f"{FILE_PREFIX}{name}.lora_B.weight"] = b.weight
    return parameters


def adapted_modules(module: nn.Module) -> dict[str, LoraLinear]:
    """Return the projections that carry an adapter, by name from ``layers.N`` on."""
    found = {}
    for name, child in module.named_modules():
        match = _ADAPTED.search(name)
        if match and isinstance(child, LoraLinear):
            found[match[1]] = child
    return found


def base_layer(projection: nn.Module) -> nn.Module:
    """Return the projection without its adapter."""
    return projection.get_base_layer() if isinstance(projection, LoraLinear) else projection


def adapter_delta(projection: LoraLinear, x: torch.Tensor) -> torch.Tensor:
    """Return what the adapter adds to the projection's output of `x`, in fp32; dropout as the mode says."""
    down, up = projection.lora_A[ADAPTER], projection.lora_B[ADAPTER]
    return up(down(projection.lora_dropout[ADAPTER](x.to(down.weight.dtype)))) * projection.scaling[ADAPTER]


def adapted_weights(
    weights: dict[str, torch.Tensor], adapters: dict[str, torch.Tensor]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return which of `weights` the adapters stand on, by name, and A and B of each.

    Args:
        weights: by their names in a Hugging Face checkpoint.
        adapters: by their names in files; those of layers that `weights` lacks are ignored.
    """
    found = {}
    for name, a in adapters.items():
        if not name.endswith(".lora_A.weight"):
            continue
        target = "model." + name.removeprefix(FILE_PREFIX).removesuffix(".lora_A.weight") + ".weight"
        if target in weights:
            found[target] = (a, adapters[name.replace(".lora_A.", ".lora_B.")])
    return found


@torch.no_grad()
def merge_adapters(weights: dict[str, torch.Tensor], adapters: dict[str, torch.Tensor], lora: Lora) -> None:
    """Add `adapters` to `weights`: W + B A alpha / rank, computed in fp32, rounded to the dtype of W.

    Args:
        weights: by their names in a Hugging Face checkpoint; changed in place: a Cria fits its GPU once.
        adapters: by their names in files; those of layers that `weights` lacks are ignored.
        lora: the settings that the adapters were trained with.
    """
    for name, (a, b) in adapted_weights(weights, adapters).items():
        w = weights[name]
        delta = b.to(w.device, torch.float32) @ a.to(w.device, torch.float32)
        w.copy_(delta.mul_(lora.alpha / lora.rank).add_(w))


def combine_adapters(
    sets: list[tuple[dict[str, torch.Tensor], Lora]], layers: set[int]
) -> dict[str, torch.Tensor]:
    """Make one adapter of all that stand on a projection: W + B A is what merging one by one gives.

    Args:
        sets: adapters by their names in files, each with the settings that they were trained with.
        layers: those of other layers are left out.

    Returns:
        ``model.layers.N.self_attn.NAME.lora_A``, [ranks together, inputs], and ``.lora_B``, scaled; fp32.
    """
    found: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for adapters, lora in sets:
        for name, a in adapters.items():
            match = _ADAPTED.search(name.removesuffix(".lora_A.weight"))
            if match is None or not name.endswith(".lora_A.weight") or int(match[2]) not in layers:
                continue
            b = adapters[name.replace(".lora_A.", ".lora_B.")]
            found.setdefault(f"model.{match[1]}", []).append(
                (a.float(), b.float() * (lora.alpha / lora.rank))
            )
    return {
        f"{name}.{part}": torch.cat([pair[index] for pair in pairs], dim=index)
        for name, pairs in found.items()
        for index, part in enumerate(("lora_A", "lora_B"))
    }
