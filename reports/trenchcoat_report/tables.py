"""The report's tables: what each picture shows, the plan, the lineage, and former runs."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from trenchcoat_api import waiting
from trenchcoat_api.results import ModelForm, Probe
from trenchcoat_api.sheets import sheets
from trenchcoat_api.spec import Form
from trenchcoat_api.status import CriaStatus, Source, WaitStatus
from trenchcoat_api.texts import duration, size

from trenchcoat_report.figures import gantt
from trenchcoat_report.run import Run, is_softmax, spec_document
from trenchcoat_report.verdict import ended, farthest

MOST_DIFFERENCES = 30
_OUTSIDE = {Form.LOLCATS: "linear mass", Form.WINDOW: "mass of the first tokens"}


class Sheet(NamedTuple):
    """One table; the first column of a row names it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def quality(run: Run) -> list[Sheet]:
    """What the evaluation measured."""
    status = run.trenchcoat.status
    if not status.perplexities:
        return []
    return [Sheet(*sheet) for sheet in sheets(status.perplexities, status.evaluation)]


def layers(run: Run) -> Sheet | None:
    """Every decoder layer: its Cria, what it attends with and why, and what was measured of it."""
    model = run.trenchcoat.status.model
    if model is None:
        return None
    measured, kinds = {item.layer: item for item in run.layers}, run.kinds()
    has_losses = any(item.losses for item in run.layers)
    rows = []
    for layer in range(model.layers):
        item = measured.get(layer)
        kind = kinds[layer] if kinds else None
        if kind is None:
            attends = "not chosen yet"
        elif is_softmax(kind):
            attends = "softmax, kept"
        else:
            attends = f"{kind.form.value if kind.form else ''}, window {kind.window}"
        outside = float(item.outside) if item is not None and item.outside else None
        losses_ = [f"{float(loss):.4g}" for loss in item.losses] if item is not None else []
        rows.append(
            (
                str(layer),
                str(layer // run.spec.layers_per_cria),
                attends,
                run.why(layer) or "-",
                *((losses_ or ["-", "-"]) if has_losses else []),
                f"{float(item.error):.4g}" if item is not None and item.error else "-",
                "-" if outside is None else f"{1 - outside:.1%}",
                "-" if outside is None else f"{outside:.1%}",
            )
        )
    header = (
        "layer",
        "Cria",
        "attends with",
        "why",
        *(("loss before transfer", "after") if has_losses else ()),
        "error",
        "mass in the window",
        _OUTSIDE[run.spec.attention.form],
    )
    return Sheet("Layers", header, rows)


def losses(run: Run) -> Sheet | None:
    """Of every Cria: losses before and after each phase."""
    rows = [_losses(row) for row in run.trenchcoat.status.crias if row.losses or row.curve]
    header = ("Cria", "layers", "transfer, before", "after", "LoRA, before", "after", "worst layer's error")
    return Sheet("Losses of the Crias", header, rows) if rows else None


def times(run: Run) -> Sheet:
    """What ran when."""
    rows = []
    for span in gantt.spans(run):
        now, row = run.told_at, span.row
        waited, ran = span.waited(now), span.ran(now)
        tries = [f"{item.number}: {item.outcome or 'going on'}" for item in row.attempts]
        why = waiting.why(row) or row.last_failure
        rows.append(
            (
                span.name,
                row.state.value,
                "reused" if row.source is Source.REUSED else "computed" if row.source else "-",
                duration(waited) if waited else "-",
                ", ".join(_wait(item, now) for item in row.waits) or "-",
                row.started_at or "-",
                duration(ran) if ran else "-",
                duration(float(row.seconds)) if row.seconds else "-",
                ", ".join(tries) or (str(row.attempt) if row.attempt else "-"),
                f"{float(row.gpu_seconds) / 3600:.2f}" if row.gpu_seconds else "-",
                why or "-",
            )
        )
    header = (
        "",
        "state",
        "source",
        "waited",
        "waited for",
        "first ran",
        "ran",
        "computing",
        "tries",
        "GPU-hours",
        "why",
    )
    return Sheet("What ran when", header, rows)


def _wait(item: WaitStatus, now: datetime) -> str:
    """For what, from when on and how long."""
    end = datetime.fromisoformat(item.until) if item.until else now
    seconds = (end - datetime.fromisoformat(item.since)).total_seconds()
    return f"{item.reason.value} from {item.since} for {duration(seconds)}" + (
        "" if item.until else " so far"
    )


def lineage(run: Run) -> Sheet:
    """Every artifact with its key and the digest of its content."""
    rows = [
        (
            name,
            row.key or "-",
            row.digest.removeprefix("sha256:") or "-",
            size(row.bytes) if row.bytes else "-",
            row.completed_at or "-",
            row.uri or "-",
        )
        for name, _, row in run.works()
    ]
    return Sheet(
        "Artifacts", ("", "content key", "SHA-256 of the content", "size", "complete", "place"), rows
    )


def comparison(run: Run, former: Sequence[Run]) -> Sheet | None:
    """This run beside former ones; what differs in their specs comes last."""
    if not former:
        return None
    every = [run, *former]
    titles = ["this run", *(f"{item.name}, {ended(item):%Y-%m-%d %H:%M}" for item in former)]
    rows = [(words, *(tell(item) for item in every)) for words, tell in _COMPARED]
    flat = [dict(_flat(spec_document(item)["spec"])) for item in every]
    fields = sorted({field for fields in flat for field in fields})
    differing = [field for field in fields if len({str(item.get(field)) for item in flat}) > 1]
    rows += [
        (f"spec.{field}", *(str(item.get(field, "-")) for item in flat))
        for field in differing[:MOST_DIFFERENCES]
    ]
    if len(differing) > MOST_DIFFERENCES:
        rows.append((f"{len(differing) - MOST_DIFFERENCES} more fields differ", *("" for _ in every)))
    return Sheet("Beside former runs", ("", *titles), rows)


def _losses(row: CriaStatus) -> tuple[str, ...]:
    names = ("transferInitial", "transfer", "loraInitial", "lora")
    told = (f"{float(row.losses[name]):.4g}" if name in row.losses else "-" for name in names)
    return (str(row.index), row.layers, *told, row.error or "-")


def computing(run: Run) -> str:
    """Time that all stages computed; a dash where none is known."""
    seconds = [float(row.seconds) for _, _, row in run.works() if row.seconds]
    return duration(sum(seconds)) if seconds else "-"


def _student(run: Run) -> str:
    student = run.perplexity(ModelForm.STITCHED)
    return f"{float(student.perplexity):.2f}" if student is not None else "-"


def _longest(run: Run) -> str:
    student = run.perplexity(ModelForm.STITCHED)
    if student is None or not student.longer:
        return "-"
    longest = max(student.longer, key=int)
    return f"{float(student.longer[longest]):.2f} at {longest}"


def _recall(run: Run, probe: Probe) -> str:
    row = farthest(run, probe)
    share = row.shares.get(ModelForm.STITCHED) if row is not None else None
    return f"{float(share):.0%} over {row.distance}" if row is not None and share else "-"


_COMPARED = (
    ("began", lambda run: f"{run.began:%Y-%m-%d %H:%M}"),
    (
        "took",
        lambda run: duration((ended(run) - run.began).total_seconds()) if run.is_complete else "not complete",
    ),
    ("student's perplexity", _student),
    ("in longer sequences", _longest),
    ("in parts of the baseline's", lambda run: f"{run.ratio:.3f} x {run.base_name}" if run.ratio else "-"),
    ("random tokens copied", lambda run: _recall(run, Probe.COPY)),
    ("pass key told", lambda run: _recall(run, Probe.PASSKEY)),
    ("stored", lambda run: size(run.trenchcoat.status.stored_bytes)),
    ("computing", computing),
)


def _flat(fields: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value


def moment(when: datetime) -> str:
    """A moment as people read it, in UTC."""
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"
