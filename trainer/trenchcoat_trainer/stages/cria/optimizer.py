"""AdamW with its state in named tensors, so that a checkpoint needs no pickle.

On a GPU nothing of a step waits for the device: rates and step counts are tensors there, so that a CUDA graph
may hold the step, and one kernel updates all parameters of a group.
"""

from collections.abc import Iterable

import torch
from torch import nn

_STATE = ("exp_avg", "exp_avg_sq", "step")


class NamedAdamW:
    """torch's AdamW, without weight decay, one parameter group (and learning rate) per name in `groups`."""

    def __init__(self, groups: dict[str, dict[str, nn.Parameter]], rate: float) -> None:
        """`groups` maps a group's name to its parameters by name; names are unique over all groups."""
        self._groups = groups
        self._device = next((p.device for group in groups.values() for p in group.values()), None)
        self._on_gpu = self._device is not None and self._device.type == "cuda"
        rates = torch.full((len(groups),), rate, device=self._device).unbind() if self._on_gpu else None
        self._adamw = torch.optim.AdamW(
            [
                {"params": list(group.values()), "name": name, "lr": rates[i] if rates else rate}
                for i, (name, group) in enumerate(groups.items())
            ],
            lr=rate,
            weight_decay=0.0,
            **({"fused": True, "capturable": True} if self._on_gpu else {}),
        )

    def step(self, clip: float) -> torch.Tensor:
        """Clip each group's gradient to the norm `clip` (0: not at all), update, and clear the gradients.

        Returns:
            Norm of each group's gradient before clipping, [groups], on the parameters' device.
        """
        norms = []
        for group in self._groups.values():
            gradients = [p.grad for p in group.values() if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients) if gradients else torch.zeros((), device=self._device)
            if clip > 0 and gradients:
                nn.utils.clip_grads_with_norm_(group.values(), clip, norm)
            norms.append(norm)
        self._adamw.step()
        self.clear()
        return torch.stack(norms)

    def set_rate(self, group: str, rate: float) -> None:
        """Set the learning rate of one group."""
        for item in self._adamw.param_groups:
            if item["name"] == group:
                if self._on_gpu:
                    item["lr"].fill_(rate)
                else:
                    item["lr"] = rate

    def clear(self) -> None:
        """Forget the gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def _parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return ((name, p) for group in self._groups.values() for name, p in group.items())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the optimiser's state; empty before the first step."""
        return {
            f"adamw.{name}.{key}": self._adamw.state[parameter][key]
            for name, parameter in self._parameters()
            if parameter in self._adamw.state
            for key in _STATE
        }

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over the state that `tensors` returned."""
        for name, parameter in self._parameters():
            if f"adamw.{name}.step" in tensors:
                state = {key: tensors[f"adamw.{name}.{key}"].clone() for key in _STATE}
                self._adamw.state[parameter] = {
                    # On the CPU AdamW keeps its step count there.
                    key: value if key == "step" and not self._on_gpu else value.to(parameter.device)
                    for key, value in state.items()
                }
