"""The numbers at the end of a run, as a table for people and as JSON for programs."""

import json
import math
from dataclasses import asdict, dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from trenchcoat_api.artifacts import Perplexity

_FORMS = {
    "teacher": ("teacher_ppl", "teacher (softmax attention)"),
    "untrained": ("untrained_ppl", "student, untrained feature maps"),
    "transfer": ("transfer_ppl", "  after attention transfer"),
    "criaLora": ("cria_lora_ppl", "  after LoRA by Cria"),
    "stitched": ("stitched_ppl", "  after stitching"),
}


@dataclass(frozen=True, slots=True)
class StageTime:
    """Wall time of one stage; the Crias together are one."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run reached and what it took."""

    teacher_ppl: float
    untrained_ppl: float
    transfer_ppl: float
    cria_lora_ppl: float
    stitched_ppl: float
    stages: list[StageTime]
    stored_bytes: int
    crias: int
    gpus: int
    max_crias_running: int

    @classmethod
    def from_perplexities(
        cls,
        perplexities: list[Perplexity],
        *,
        stages: list[StageTime],
        stored_bytes: int,
        crias: int,
        gpus: int,
        max_crias_running: int,
    ) -> "Summary":
        """Make a summary from what the evaluate stage measured.

        Raises:
            ValueError: a form of the model is missing among the perplexities.
        """
        by_name = {item.name: float(item.perplexity) for item in perplexities}
        missing = _FORMS.keys() - by_name.keys()
        if missing:
            raise ValueError(
                f"no perplexity of: {', '.join(sorted(missing))}; was spec.evaluate switched off?"
            )
        return cls(
            teacher_ppl=by_name["teacher"],
            untrained_ppl=by_name["untrained"],
            transfer_ppl=by_name["transfer"],
            cria_lora_ppl=by_name["criaLora"],
            stitched_ppl=by_name["stitched"],
            stages=stages,
            stored_bytes=stored_bytes,
            crias=crias,
            gpus=gpus,
            max_crias_running=max_crias_running,
        )

    def gap_closed(self, perplexity: float) -> float:
        """Share of the way from the untrained student to the teacher, in log perplexity."""
        whole = math.log(self.untrained_ppl) - math.log(self.teacher_ppl)
        return (math.log(self.untrained_ppl) - math.log(perplexity)) / whole

    def to_json(self) -> str:
        """The same as JSON, keys as the fields."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def render(self) -> Group:
        """Tables for the terminal."""
        quality = Table(title="Perplexity on held-out text", title_justify="left")
        quality.add_column("model")
        quality.add_column("perplexity", justify="right")
        quality.add_column("gap closed", justify="right")
        for attribute, label in _FORMS.values():
            perplexity = getattr(self, attribute)
            quality.add_row(label, f"{perplexity:.2f}", f"{self.gap_closed(perplexity):.1%}")
        times = Table(title="Time by stage", title_justify="left")
        times.add_column("stage")
        times.add_column("seconds", justify="right")
        for stage in self.stages:
            times.add_row(stage.name, f"{stage.seconds:.0f}")
        where = f"{self.gpus} GPUs" if self.gpus else "the CPU"
        together = f", at most {self.max_crias_running} at a time" if self.max_crias_running else ""
        stored = Text(f"{self.stored_bytes / 1e6:.1f} MB stored; {self.crias} Crias on {where}{together}")
        return Group(quality, times, stored)
