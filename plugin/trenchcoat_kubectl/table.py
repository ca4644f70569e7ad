"""A Trenchcoat as a table for the terminal: pure, from its object and the time."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from trenchcoat_api import texts, waiting
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.sheets import remarks, sheets
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import Condition, ConditionType, CriaStatus, Source, StageStatus, State
from trenchcoat_api.status import Work as Row

BAR_WIDTH = 20
NARROW = 100
"""Terminals below this get short bars and no curves."""
FOLD_ABOVE = 24
"""With more Crias than this, neighbours in the same state that needs no attention share a line."""

_LOOKS = {
    State.BLOCKED: ("·", "bright_black"),
    State.WAITING: ("○", "yellow"),
    State.STARTING: ("◌", "cyan"),
    State.RUNNING: ("▶", "cyan"),
    State.SUCCEEDED: ("✔", "green"),
    State.FAILED: ("✘", "bold red"),
    State.SUSPENDED: ("‖", "magenta"),
}
_QUIET = (State.SUCCEEDED, State.WAITING, State.BLOCKED, State.SUSPENDED)
_BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the table, before it is laid out."""

    label: Text
    row: Row
    share: float
    curve: str = ""
    detail: str = ""


def status(trenchcoat: Trenchcoat, now: datetime, width: int) -> RenderableType:
    """One Trenchcoat: how it stands, its stages and its Crias.

    Args:
        trenchcoat: With its status.
        now: Until when what runs has run.
        width: Columns of the terminal.
    """
    parts: list[RenderableType] = [_title(trenchcoat), _verdict(trenchcoat)]
    if trenchcoat.status.stages:
        parts += [Text(), _rows(trenchcoat, now, narrow=width < NARROW)]
    if not trenchcoat.spec.suspend and (waits := waiting.by_reason(trenchcoat.status)):
        parts += [Text(), *(Text(f"○ {line}", _LOOKS[State.WAITING][1]) for line in waits)]
    if trenchcoat.status.perplexities:
        parts += [Text(), _perplexities(trenchcoat)]
    if trenchcoat.status.export_uri and _is(trenchcoat, ConditionType.SUCCEEDED):
        parts.append(Text.assemble(("checkpoint  ", "bold"), trenchcoat.status.export_uri))
    return Padding(Group(*parts), (0, 0, 0, 1))


def overview(trenchcoats: Iterable[Trenchcoat], *, namespaces: bool) -> RenderableType:
    """Many Trenchcoats, one line each."""
    table = _grid()
    if namespaces:
        table.add_column("NAMESPACE", no_wrap=True)
    for name in ("NAME", "STAGE", "CRIAS"):
        table.add_column(name, no_wrap=True)
    table.add_column("PROGRESS", no_wrap=True, width=BAR_WIDTH)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("LOSS", justify="right", no_wrap=True)
    table.add_column("ETA", justify="right", no_wrap=True)
    table.add_column("NOTE")
    for trenchcoat in trenchcoats:
        told, (_, style) = trenchcoat.status, _looks(trenchcoat)
        share = _share(told.progress)
        note = "" if style == "green" else _message(trenchcoat)
        cells: list[RenderableType] = [trenchcoat.metadata.namespace] if namespaces else []
        cells += [
            Text(trenchcoat.metadata.name, "bold"),
            Text(told.stage, style),
            told.crias_done,
            _bar(share, style),
            told.progress,
            told.loss,
            told.eta,
            _cut(note, style if style == "bold red" else "dim"),
        ]
        table.add_row(*cells)
    return Padding(table, (0, 0, 0, 1))


def bytes_(count: int) -> str:
    """Such as 9.3 TB; empty for none."""
    return texts.size(count) if count else ""


# The head


def _title(trenchcoat: Trenchcoat) -> RenderableType:
    told = trenchcoat.status
    facts = [trenchcoat.metadata.namespace, trenchcoat.spec.model.source.rpartition("/")[2]]
    if told.model is not None:
        facts.append(f"{told.model.layers} layers")
    if told.crias:
        facts.append(f"{len(told.crias)} Crias")
    if told.stored_bytes:
        facts.append(f"{bytes_(told.stored_bytes)} stored")
    if told.gpu_seconds:
        facts.append(f"{float(told.gpu_seconds) / 3600:.3g} GPU hours")
    return Text.assemble((trenchcoat.metadata.name, "bold"), ("  " + " · ".join(facts), "dim"))


def _verdict(trenchcoat: Trenchcoat) -> RenderableType:
    told, (icon, style) = trenchcoat.status, _looks(trenchcoat)
    line = Table.grid(padding=(0, 1))
    line.add_column(no_wrap=True)
    line.add_column(width=2 * BAR_WIDTH, no_wrap=True)
    line.add_column(no_wrap=True)
    eta = f"ETA {told.eta}" if told.eta else ""
    line.add_row(
        Text(f"{icon} {told.stage or 'Unseen'}", style),
        _bar(_share(told.progress), style, 2 * BAR_WIDTH),
        Text.assemble((told.progress or "0%", "bold"), f"  {eta}"),
    )
    message = _message(trenchcoat)
    if style in ("green", "cyan") or not message:
        return line
    return Group(line, Text(message, style))


def _looks(trenchcoat: Trenchcoat) -> tuple[str, str]:
    """Icon and style of the whole run."""
    if _is(trenchcoat, ConditionType.SUCCEEDED):
        return _LOOKS[State.SUCCEEDED]
    if _is(trenchcoat, ConditionType.STALLED):
        return _LOOKS[State.FAILED]
    if trenchcoat.spec.suspend:
        return _LOOKS[State.SUSPENDED]
    if not trenchcoat.status.conditions:
        return _LOOKS[State.WAITING]
    return _LOOKS[State.RUNNING]


def _message(trenchcoat: Trenchcoat) -> str:
    """What a person should know of the whole run."""
    stalled = _condition(trenchcoat, ConditionType.STALLED)
    if stalled is not None and stalled.status == "True":
        return f"{stalled.reason}: {stalled.message}"
    if not trenchcoat.status.conditions:
        return "the operator has not looked at it yet: is it running, and does it serve this namespace?"
    succeeded = _condition(trenchcoat, ConditionType.SUCCEEDED)
    return succeeded.message if succeeded is not None else ""


def _condition(trenchcoat: Trenchcoat, kind: ConditionType) -> Condition | None:
    return next((item for item in trenchcoat.status.conditions if item.type is kind), None)


def _is(trenchcoat: Trenchcoat, kind: ConditionType) -> bool:
    condition = _condition(trenchcoat, kind)
    return condition is not None and condition.status == "True"


# The rows


def _grid() -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", collapse_padding=True)


def _cut(note: str, style: str) -> Text:
    # The column may wrap, so that it is the first to give way; its text does not, and is cut instead.
    return Text(note, style, no_wrap=True, overflow="ellipsis")


def _rows(trenchcoat: Trenchcoat, now: datetime, *, narrow: bool) -> Table:
    lines = []
    for stage in trenchcoat.status.stages:
        lines.append(_stage_line(stage))
        if stage.name == Stage.CRIA:
            lines += _cria_lines(trenchcoat.status.crias)
    width = BAR_WIDTH // 2 if narrow else BAR_WIDTH
    curves = not narrow and any(line.curve for line in lines)
    table = _grid()
    table.add_column("STAGE", no_wrap=True)
    table.add_column("PROGRESS", width=width, no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("LOSS", justify="right", no_wrap=True)
    if curves:
        table.add_column("CURVE", no_wrap=True)
    table.add_column("TIME", justify="right", no_wrap=True)
    table.add_column("ETA", justify="right", no_wrap=True)
    table.add_column("DETAIL")
    for line in lines:
        row, style = line.row, _LOOKS[line.row.state][1]
        share = f"{line.share:.0%}" if line.share else ""
        cells: list[RenderableType] = [line.label, _bar(line.share, style, width), share, row.loss]
        cells += [Text(line.curve, style)] if curves else []
        cells += [_took(row, now), row.eta]
        cells.append(_cut(line.detail, style if row.state is State.FAILED else "dim"))
        table.add_row(*cells)
    return table


def _stage_line(stage: StageStatus) -> _Line:
    icon, style = _LOOKS[stage.state]
    label = Text.assemble((icon, style), " ", (stage.name, "bold"))
    return _Line(label, stage, _row_share(stage), detail=_detail(stage))


def _cria_lines(crias: list[CriaStatus]) -> list[_Line]:
    if len(crias) <= FOLD_ABOVE:
        return [_cria_line([cria]) for cria in crias]
    lines = []
    for (state, _), group in groupby(crias, key=lambda cria: (cria.state, cria.source)):
        members = list(group)
        if state in _QUIET and len(members) > 1:
            lines.append(_cria_line(members))
        else:
            lines += [_cria_line([cria]) for cria in members]
    return lines


def _cria_line(crias: list[CriaStatus]) -> _Line:
    first, last = crias[0], crias[-1]
    icon, style = _LOOKS[first.state]
    layers = f"{first.layers.partition('-')[0]}-{last.layers.rpartition('-')[2]}"
    name = f"Cria {first.index:<3}" if len(crias) == 1 else f"Crias {first.index} to {last.index}"
    label = Text.assemble("  ", (icon, style), f" {name} ", (layers, "dim"))
    if len(crias) == 1:
        return _Line(label, first, _row_share(first), sparkline(first.curve), _detail(first))
    alike = first.model_copy(update={"loss": "", "node": "", "attempt": 0, "started_at": "", "seconds": ""})
    return _Line(label, alike, _row_share(first), detail=f"{len(crias)} alike · {_detail(alike)}")


def _detail(row: Row) -> str:
    """Of a row that goes well where and what, of any other why."""
    parts = []
    if row.state is State.SUCCEEDED:
        error = f"error {row.error}" if isinstance(row, CriaStatus) and row.error else ""
        parts += ["reused" if row.source is Source.REUSED else "", error, bytes_(row.bytes), row.node]
    elif row.state is State.RUNNING and row.steps:
        parts += [f"{row.phase} {row.step}/{row.steps}".strip(), row.node]
    else:
        parts += [row.message or row.state.value.lower(), row.node]
    if row.attempt > 1 and row.state is not State.FAILED:
        after = row.last_failure.partition(":")[0]
        parts.append(f"try {row.attempt}" + (f" after {after}" if after else ""))
    return " · ".join(part for part in parts if part)


def _took(row: Row, now: datetime) -> str:
    if row.seconds:
        return texts.duration(float(row.seconds))
    if row.state is State.RUNNING and row.started_at:
        return texts.duration((now - datetime.fromisoformat(row.started_at)).total_seconds())
    return ""


def _share(percent: str) -> float:
    return float(percent.rstrip("%") or 0) / 100


def _row_share(row: Row) -> float:
    return 1.0 if row.state is State.SUCCEEDED else _share(row.progress)


def _bar(share: float, style: str, width: int = BAR_WIDTH) -> ProgressBar:
    return ProgressBar(
        total=1.0,
        completed=share,
        width=width,
        complete_style=style,
        finished_style=style,
        style="bright_black",
    )


def sparkline(curve: list[str], width: int = 10) -> str:
    """Losses as a line of blocks, on a logarithmic scale; gaps where a loss is no positive number."""
    step = max(1.0, len(curve) / width)
    picked = [float(curve[int(position * step)]) for position in range(min(width, len(curve)))]
    heights = [math.log(loss) if 0 < loss < math.inf else math.nan for loss in picked]
    known = [height for height in heights if not math.isnan(height)]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    scale = (len(_BLOCKS) - 1) / span if span else 0.0
    return "".join(
        " " if math.isnan(height) else _BLOCKS[round((height - low) * scale)] for height in heights
    )


def _perplexities(trenchcoat: Trenchcoat) -> RenderableType:
    """The tables that a local run ends with, in a quieter look."""
    told = trenchcoat.status
    parts: list[RenderableType] = []
    for sheet in sheets(told.perplexities, told.evaluation):
        table = _grid()
        for position, name in enumerate(sheet.header):
            table.add_column(
                name, justify="right" if position else "left", no_wrap=not position, overflow="fold"
            )
        for row in sheet.rows:
            table.add_row(*row)
        parts += [Text(sheet.title, "bold"), table]
    parts += [Text(remark, "dim") for remark in remarks(told.perplexities, told.evaluation)]
    return Group(*parts)
