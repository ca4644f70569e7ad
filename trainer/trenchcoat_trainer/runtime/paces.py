"""Taking the time of a stage's phases, over all attempts."""

import sys
from typing import Any

from trenchcoat_api.paces import CPU, Paces, PhasePace


class PaceKeeper:
    """Adds up what passes between two reports of the same phase in the same attempt.

    What goes before a phase's first report, the first step among it, is left out: kernels are compiled there,
    and it is no part of the pace.
    """

    def __init__(self) -> None:
        self._phases: dict[str, list[float]] = {}
        """By name: the share of the stage where it began, where it is, what was timed, and its seconds."""
        self._latest: tuple[str, float, float] | None = None
        """Phase, share and time of the last report of this attempt."""

    def note(self, phase: str, fraction: float, now: float) -> None:
        """Note a report.

        Args:
            phase: What the stage does.
            fraction: Share of the whole stage that is done, 0 to 1. One that is less than before is what an
                attempt does again.
            now: Seconds on a clock that only goes on.
        """
        before = self._latest
        self._latest = (phase, fraction, now)
        if phase not in self._phases:
            begun = max((known[1] for known in self._phases.values()), default=0.0)
            self._phases[phase] = [min(begun, fraction), fraction, 0.0, 0.0]
        own = self._phases[phase]
        own[1] = max(own[1], fraction)
        if before is not None and before[0] == phase and fraction > before[1]:
            own[2] += fraction - before[1]
            own[3] += now - before[2]

    def state(self) -> dict[str, Any]:
        """What the next attempt goes on from, as JSON."""
        return dict(self._phases)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what an earlier attempt kept."""
        self._phases = {name: [float(value) for value in values] for name, values in state.items()}

    def told(self, ranks: int) -> Paces:
        """What is known now, of so many processes together."""
        phases = [
            PhasePace(
                phase=name,
                share=round(end - begun, 6),
                timed=round(timed, 6),
                seconds=round(seconds, 3),
            )
            for name, (begun, end, timed, seconds) in self._phases.items()
            if timed > 1e-6
        ]
        return Paces(device=_device(), ranks=ranks, phases=phases)


def _device() -> str:
    # A stage that has not loaded torch, or has not asked for a GPU, used none.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return CPU
    return str(torch.cuda.get_device_name())
