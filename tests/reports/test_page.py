"""The page without a browser: what it says, and that it asks nothing of anybody."""

import re
from datetime import timedelta
from functools import cache
from html.parser import HTMLParser

import pytest
from trenchcoat_api.history import run_id
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.status import State, WaitingReason
from trenchcoat_report.figures import coat, gantt
from trenchcoat_report.instructions import instructions
from trenchcoat_report.page import render
from trenchcoat_report.planned import planned
from trenchcoat_report.run import Manner, Run
from trenchcoat_report.tables import comparison, layers
from trenchcoat_report.verdict import bounds, state

from tests.plugin import samples as live
from tests.reports import samples

MOST_BYTES = 2_000_000
RUNS = {
    "small": samples.small,
    "large": samples.large,
    "going on": lambda: samples.large(complete=False),
}
LIVE = [f"live {name}" for name in live.ALL]


def of(trenchcoat: Trenchcoat) -> Run:
    """A run as the plugin makes it."""
    return Run(trenchcoat=trenchcoat, began=samples.BEGAN, told_at=samples.BEGAN, manner=Manner.CLUSTER)


class Addresses(HTMLParser):
    """Everything that a browser would fetch, and the elements that no report has."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                self.fetched.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def made(name: str) -> Run:
    """One of the runs above, or one of the plugin's samples."""
    return RUNS[name]() if name in RUNS else of(live.ALL[name.removeprefix("live ")]())


@cache
def page_of(name: str) -> str:
    """One of the runs above as it is drawn, which takes a second."""
    return render(made(name))


@pytest.mark.parametrize("name", [*RUNS, *LIVE])
def test_it_loads_nothing_and_is_small(name: str) -> None:
    page = render(made(name), [samples.large(name=f"former-{number}") for number in range(4)])
    assert len(page.encode()) < MOST_BYTES
    parser = Addresses()
    parser.feed(page)
    assert all(address.startswith(("#", "data:")) for address in parser.fetched)
    assert not parser.tags & {"script", "iframe", "object", "embed", "img"}
    assert not re.search(r"url\((?!#)|@import", page)
    assert len(parser.ids) == len(set(parser.ids))
    inner = {address.removeprefix("#") for address in parser.fetched if address.startswith("#")}
    assert inner <= set(parser.ids)
    assert not re.search(r"#010[1-4]0", page), "a stand-in colour is left"


def test_the_same_run_gives_the_same_bytes() -> None:
    assert render(samples.small()) == page_of("small")


def test_the_verdict_of_the_run_on_one_machine() -> None:
    run, page = samples.small(), page_of("small")
    assert state(run) == ("Complete", "")
    student = next(item for item in run.trenchcoat.status.perplexities if item.name == "stitched")
    teacher = next(item for item in run.trenchcoat.status.perplexities if item.name == "teacher")
    ratio = float(student.perplexity) / float(teacher.perplexity)
    assert f"{ratio - 1:.1%} above the teacher&#39;s at 512 tokens" in page
    assert "This page is final." in page
    assert "trenchcoat run examples/tiny.yaml --store build/store" in page
    assert "AutoModelForCausalLM" in page and "vllm serve" in page


def test_bounds_are_told_one_by_one() -> None:
    found = {item.name: item for item in bounds(samples.large())}
    assert [item.is_kept for item in found.values()] == [True, True, False]
    assert "0.0714" in found["spec.gates.minRecall"].verdict
    early = bounds(samples.large(complete=False))
    assert [item.is_kept for item in early] == [True, None, None]
    strict = samples.large(gates={"maxCriaError": "0.3"})
    assert bounds(strict)[0].verdict == "not kept by Cria 11, 12, 13"


def test_a_run_that_goes_on_says_what_it_waits_for_and_that_it_is_not_final() -> None:
    run, page = samples.large(complete=False), page_of("going on")
    waits = "waits for GPUs since 2026-01-01T13:42:00Z: 0 of 6 nodes have a free nvidia.com/gpu; ends when "
    assert state(run)[0] == "Running" and state(run)[1].startswith(f"cria: Cria 12 (layers 108-116) {waits}")
    assert page.count(waits) == 3  # at the top, and in the rows of both Crias
    assert "This page is final." not in page and "AutoModelForCausalLM" not in page


def test_a_failure_is_the_first_thing_said() -> None:
    failed = samples.small().model_copy(update={"failure": "cria-03 failed: <no> memory"})
    done = failed.trenchcoat.status.model_copy(update={"conditions": []})
    run = failed.model_copy(update={"trenchcoat": failed.trenchcoat.model_copy(update={"status": done})})
    assert state(run) == ("Failed", "cria-03 failed: <no> memory")
    assert "cria-03 failed: &lt;no&gt; memory" in render(run)
    stalled = of(live.stalled())
    assert state(stalled)[0] == "Stalled" and "NaN" in state(stalled)[1]


def test_words_of_others_are_never_markup() -> None:
    run = samples.large(complete=False)
    row = run.trenchcoat.status.crias[0].model_copy(update={"message": "<script>alert(1)</script>"})
    status = run.trenchcoat.status.model_copy(update={"crias": [row, *run.trenchcoat.status.crias[1:]]})
    page = render(run.model_copy(update={"trenchcoat": run.trenchcoat.model_copy(update={"status": status})}))
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page


def test_what_pods_are_given_is_copied_nowhere() -> None:
    run = samples.large()
    assert "hush" in run.trenchcoat.model_dump_json()
    assert "hush" not in page_of("large") and "hush" not in run.document()
    assert "NOT_TO_BE_COPIED" not in render(samples.small(), [run])


def test_samples_of_teacher_and_student_stand_side_by_side() -> None:
    page = page_of("large")
    for words in ("&lt;camelids&gt;", "a cria. It is weaned\nat six months.", "its coat"):
        assert words in page
    assert page.index("<dt>teacher</dt>") < page.index("<dt>student</dt>")
    without = samples.large().model_copy(update={"samples": []})
    assert "Side by side" in page and "Side by side" not in render(without)


def test_every_layer_says_what_it_attends_with_and_why() -> None:
    sheet = layers(samples.large())
    assert sheet is not None and len(sheet.rows) == 126
    assert sheet.rows[60][:4] == ("60", "6", "softmax, kept", "named in spec.attention.keepSoftmaxLayers")
    assert sheet.rows[61][2:4] == ("lolcats, window 64", "-")
    assert sheet.header[4:6] == ("loss before transfer", "after")
    assert sheet.rows[61][4:6] == ("151", "15.1") and sheet.rows[60][4:6] == ("-", "-")
    window, linear = sheet.rows[61][7:]
    assert float(window.rstrip("%")) + float(linear.rstrip("%")) == pytest.approx(100, abs=0.1)
    measured = layers(samples.small())  # of a version that kept losses of whole Crias alone
    assert measured is not None and all(row[4] != "-" and row[6] != "-" for row in measured.rows)
    assert measured.header[4] == "error"


def test_chosen_layers_say_their_score_and_place() -> None:
    run = samples.large(attention={"form": "window", "wide": {"share": "0.25"}})
    assert run.kinds() == ()  # they are not chosen yet
    assert "not chosen yet" in render(run)
    selection = {"layers": [3, 7], "scores": [f"0.{layer % 9}" for layer in range(126)]}
    body = run.trenchcoat.to_object()
    body["status"]["selection"] = selection
    chosen = run.model_copy(update={"trenchcoat": Trenchcoat.from_object(body)})
    assert chosen.why(7) == "chosen by the select stage: score 0.7, place 15 of 126"
    assert chosen.why(8) == ""
    assert "softmax is kept" in coat.draw(
        chosen
    ).lower() or "Softmax attention is kept in layers 3, 7" in coat.draw(chosen)


def test_waiting_running_interrupted_and_reused_are_told_apart() -> None:
    run = samples.large()
    found = {span.name: span for span in gantt.spans(run)}
    now = run.told_at
    assert found["Cria 0"].is_reused and found["Cria 0"].note(now) == "reused"
    assert found["Cria 4"].waited(now) == pytest.approx(1.4 * 3600, abs=1)  # since collect was complete
    assert found["Cria 2"].waited(now) == pytest.approx(0, abs=1)
    assert found["Cria 5"].interrupted(now) == pytest.approx(1.25 * 3600 - 3000, abs=2)
    assert found["Cria 5"].note(now) == "1h15m, try 2, 25m00s of it interrupted"
    going = {span.name: span for span in gantt.spans(samples.large(complete=False))}
    later = samples.BEGAN + timedelta(hours=5)
    assert going["Cria 12"].waited(later) == pytest.approx(3.3 * 3600, abs=1)
    assert going["Cria 12"].note(later) == "waiting (Gpu)"
    assert going["Cria 11"].note(later).endswith("failed")
    assert going["stitch"].waited(later) == 0  # its inputs are not there


def test_the_plan_stands_beside_what_it_came_to() -> None:
    found = planned(samples.large(plan={"pricePerGpuHour": "2.5"}))
    assert found is not None
    rows = {row[0]: list(row[1:]) for row in found.sheet.rows}
    assert rows["collect"][1] == "1h30m" and rows["collect"][3] == "36" and rows["collect"][5] == "8.5 TB"
    assert rows["cria"][3] == "16.8" and rows["cria"][-1] == "42.00"
    assert (
        rows["cria"][1] == "5h31m"
    )  # of the twelve that were not reused, from the first start to the last end
    assert rows["tokenize"][1] == "-"
    assert rows["all"][3] == "226" and rows["all"][-1] == f"{812345 / 3600 * 2.5:,.2f}"
    assert any("was reused is in the plan" in remark for remark in found.remarks)
    small = planned(samples.small())
    assert small is not None and "GPU-hours are accounted for on a cluster alone." in small.remarks
    assert len(small.sheet.header) == 7  # nobody set a price


def test_without_rates_for_its_gpus_it_says_so() -> None:
    page = render(samples.large(plan={"gpu": "abacus"}))
    assert "There is no plan: " in page and "abacus" in page


def test_former_runs_stand_beside_with_what_differs_in_their_specs() -> None:
    former = [samples.large(name=f"former-{number}", attention={"window": 32}) for number in range(6)]
    sheet = comparison(samples.large(), former[:4])
    assert sheet is not None and len(sheet.header) == 6
    rows = {row[0]: row[1:] for row in sheet.rows}
    assert rows["spec.attention.window"] == ("64", "32", "32", "32", "32")
    assert "spec.data.source" not in rows
    assert render(samples.large(), former).count("former-5") == 0  # four at most


def test_a_former_run_is_headed_by_when_it_ended() -> None:
    """Of one on a cluster is told whenever somebody asks: that moment says nothing of it."""
    asked_later = {"told_at": samples.BEGAN + timedelta(days=400)}
    ended, going_on = (samples.large(complete=whole, name="x") for whole in (True, False))
    sheet = comparison(samples.large(), [run.model_copy(update=asked_later) for run in (ended, going_on)])
    assert sheet is not None
    assert sheet.header[2].startswith("x, 2026-01-01 ")
    assert sheet.header[3].startswith("x, 2027-02-05 ")


def test_a_run_has_the_name_of_what_it_computes() -> None:
    spec = samples.large().spec
    assert run_id(spec) == run_id(spec.model_copy(update={"suspend": True, "retention": "Delete"}))
    assert run_id(spec) != run_id(samples.large(attention={"window": 32}).spec)
    assert run_id(spec) != run_id(samples.large(stitch={"epochs": 2}).spec)


def test_commands_quote_what_a_shell_would_read() -> None:
    run = samples.small().model_copy(update={"store": "a folder; rm", "spec_file": "x y.yaml"})
    told = instructions(run)[-1].commands
    assert told == "$ trenchcoat run 'x y.yaml' --store 'a folder; rm'"


@pytest.mark.filterwarnings("error")
def test_pictures_of_little_are_drawn_as_well() -> None:
    """Few rows leave little room beside what is written at the bars."""
    run = samples.large(complete=False)
    status = run.trenchcoat.status
    long = status.stages[1].model_copy(
        update={"attempt": 7, "state": State.WAITING, "waiting_reason": WaitingReason.TRAINING_OPERATOR}
    )
    waiting = status.stages[1].model_copy(
        update={"state": State.WAITING, "started_at": "", "completed_at": "", "source": None}
    )  # for hours after what ran before it
    for stages, crias in (
        (status.stages[:1], []),
        ([long], []),
        ([status.stages[0], long], []),
        ([status.stages[2], waiting], []),
        (status.stages[:3], status.crias[:1]),
    ):
        little = status.model_copy(update={"stages": stages, "crias": crias})
        body = run.trenchcoat.model_copy(update={"status": little})
        assert "<svg" in render(run.model_copy(update={"trenchcoat": body}))


def test_what_was_trained_alone_is_loaded_onto_its_teacher() -> None:
    titles = [item.title for item in instructions(samples.large(export={"form": "adapters"}))]
    assert titles == ["Fetch", "Load", "Look, stop and go on"]
    load = instructions(samples.large(export={"form": "adapters"}))[1]
    local = {"export": {"form": "adapters"}, "model": {"source": "file:///models/one"}}
    assert "from_adapters(folder, teacher='/models/one')" in instructions(samples.large(**local))[1].commands
    assert "from_adapters(folder)" in load.commands and "save the model to serve it" in load.remark
    assert "from_adapters" not in instructions(samples.large(export={"form": "delta"}))[1].commands
