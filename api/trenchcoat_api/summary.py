"""The numbers at the end of a run, as a table for people and as JSON for programs."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trenchcoat_api.results import Evaluation, Measured, ModelForm, Perplexity
from trenchcoat_api.sheets import Sheet, gap_closed, remarks, sheets

_FORMS = {
    ModelForm.TEACHER.value: "teacher_ppl",
    ModelForm.UNTRAINED.value: "untrained_ppl",
    ModelForm.TRANSFER.value: "transfer_ppl",
    ModelForm.CRIA_LORA.value: "cria_lora_ppl",
    ModelForm.STITCHED.value: "stitched_ppl",
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
    transfer_ppl: float | None
    """None for a form of student whose attention has nothing to learn in transfer."""
    cria_lora_ppl: float
    stitched_ppl: float
    stages: list[StageTime]
    stored_bytes: int
    crias: int
    gpus: int
    max_crias_running: int
    perplexities: tuple[Perplexity, ...] = ()
    """At every length."""
    evaluation: Evaluation | None = None
    """None from an evaluation by an earlier version."""
    wide_layers: list[int] = field(default_factory=list)
    """Those that the run chose."""

    @classmethod
    def from_results(
        cls,
        measured: Measured,
        *,
        stages: list[StageTime],
        stored_bytes: int,
        crias: int,
        gpus: int,
        max_crias_running: int,
    ) -> "Summary":
        """Make a summary from what the evaluate stage measured.

        Raises:
            ValueError: a form of the model is missing among the perplexities; attention transfer's may be.
        """
        by_name = {item.name: float(item.perplexity) for item in measured.perplexities}
        missing = _FORMS.keys() - by_name.keys() - {ModelForm.TRANSFER.value}
        if missing:
            raise ValueError(
                f"no perplexity of: {', '.join(sorted(missing))}; was spec.evaluate switched off?"
            )
        figures: dict[str, Any] = {field: by_name.get(name) for name, field in _FORMS.items()}
        return cls(
            **figures,
            perplexities=tuple(measured.perplexities),
            evaluation=measured.evaluation,
            stages=stages,
            stored_bytes=stored_bytes,
            crias=crias,
            gpus=gpus,
            max_crias_running=max_crias_running,
            wide_layers=[],
        )

    def gap_closed(self, perplexity: float) -> float:
        """Share of the way from the untrained student to the baseline, in log perplexity.

        The baseline is the adapted teacher where it was measured, else the teacher.
        """
        return gap_closed(self.perplexities, perplexity) or 0.0

    def to_json(self) -> str:
        """The same as JSON: keys as the fields, numbers as numbers."""
        fields: dict[str, Any] = asdict(self)
        length = "sequence" if self.evaluation is None else str(self.evaluation.sequence_length)
        fields["perplexities"] = {
            item.name: {
                length: float(item.perplexity),
                **{longer: float(value) for longer, value in item.longer.items()},
            }
            for item in self.perplexities
        }
        told = [
            ("perplexity_errors", "error"),
            ("other_perplexities", "other"),
            ("other_errors", "other_error"),
        ]
        for key, name in told:
            values = {item.name: getattr(item, name) for item in self.perplexities}
            fields[key] = {form: float(value) for form, value in values.items() if value is not None}
        if self.evaluation is not None:
            fields["evaluation"] = self.evaluation.model_dump(by_alias=True, exclude={"recall"})
            fields["evaluation"]["recallErrors"] = {
                f"{item.probe}-{item.distance}": {name: float(error) for name, error in item.errors.items()}
                for item in self.evaluation.recall
            }
            fields["evaluation"]["recall"] = {
                f"{item.probe}-{item.distance}": {name: float(share) for name, share in item.shares.items()}
                for item in self.evaluation.recall
            }
        return json.dumps(fields, indent=2) + "\n"

    def render(self) -> Group:
        """Tables for the terminal."""
        parts: list[RenderableType] = [
            rich_table(sheet) for sheet in sheets(self.perplexities, self.evaluation)
        ]
        parts += [Text(remark) for remark in remarks(self.perplexities, self.evaluation)]
        times = Table(title="Time by stage", title_justify="left")
        times.add_column("stage")
        times.add_column("seconds", justify="right")
        for stage in self.stages:
            times.add_row(stage.name, f"{stage.seconds:.0f}")
        where = f"{self.gpus} GPUs" if self.gpus else "the CPU"
        together = f", at most {self.max_crias_running} at a time" if self.max_crias_running else ""
        stored = Text(f"{self.stored_bytes / 1e6:.1f} MB stored; {self.crias} Crias on {where}{together}")
        layers = ", ".join(map(str, self.wide_layers))
        chosen = [Text(f"wide layers, as chosen: {layers}")] if layers else []
        return Group(*parts, times, stored, *chosen)


def rich_table(sheet: Sheet) -> Table:
    """A sheet for the terminal."""
    table = Table(title=sheet.title, title_justify="left")
    for position, name in enumerate(sheet.header):
        # A narrow terminal breaks what has no room: with dots for its last digits a number would be another.
        table.add_column(name, justify="right" if position else "left", overflow="fold")
    for row in sheet.rows:
        table.add_row(*row)
    return table
