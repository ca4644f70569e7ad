"""Hidden states that are no numbers: noted on the device, read where the host waits for it anyway."""

import torch

from trenchcoat_trainer.errors import BadInputError


class FiniteWatch:
    """Sees from which of a rank's layers on hidden states are not finite."""

    def __init__(self, layers: list[int], device: torch.device) -> None:
        """`layers`: the rank's own, by their number in the whole model; a rank may have none."""
        self._layers = layers
        self._finite = torch.ones(1 + len(layers), dtype=torch.bool, device=device)

    def note(self, index: int, hidden: torch.Tensor) -> None:
        """Take note of states: index 0 for what enters the rank, then one for what leaves each layer."""
        low, high = torch.aminmax(hidden)  # which pass on NaN, and read the states once
        self._finite[index].logical_and_(low * 0 == high * 0)

    @property
    def noted(self) -> torch.Tensor:
        """What was noted so far, bool [1 + layers], on the device."""
        return self._finite

    def check(self, noted: torch.Tensor | None = None) -> None:
        """Wait for the device, and see what was noted; or look at a copy of `noted` that was taken before.

        Raises:
            BadInputError: some states were not finite; the message says from which layer on.
        """
        finite: list[bool] = (self._finite if noted is None else noted).tolist()
        if all(finite):
            return
        index = finite.index(False)
        first = self._layers[0] if self._layers else 0
        where = f"after layer {self._layers[index - 1]}" if index else f"that enter layer {first}"
        raise BadInputError(
            f"the teacher's hidden states {where} are not finite (NaN or infinity), so that no Cria could be "
            "trained on them: its checkpoint is damaged, or its config.json belongs to another model"
        )
