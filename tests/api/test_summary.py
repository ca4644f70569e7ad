import io
import json
from dataclasses import replace

import pytest
from rich.console import Console
from trenchcoat_api.results import (
    Comparison,
    DecodeFacts,
    Evaluation,
    Measured,
    Perplexity,
    PositionRange,
    Recall,
    TaskResult,
)
from trenchcoat_api.summary import StageTime, Summary

NAMES = ("teacher", "untrained", "transfer", "criaLora", "stitched")


def summary(values=(10.0, 1000.0, 20.0, 15.0, 12.0), extra=(), evaluation=None):
    rows = [Perplexity(name=name, perplexity=str(value)) for name, value in zip(NAMES, values, strict=True)]
    return Summary.from_results(
        Measured([*rows, *extra], evaluation),
        stages=[StageTime("collect", 12.5)],
        stored_bytes=3_000_000,
        crias=6,
        gpus=2,
        max_crias_running=2,
    )


def test_json_has_the_documented_keys():
    assert set(json.loads(summary().to_json())) == {
        "teacher_ppl",
        "untrained_ppl",
        "transfer_ppl",
        "cria_lora_ppl",
        "stitched_ppl",
        "stages",
        "stored_bytes",
        "crias",
        "gpus",
        "max_crias_running",
        "perplexities",
        "perplexity_errors",
        "other_perplexities",
        "other_errors",
        "evaluation",
        "wide_layers",
    }


def test_a_form_of_student_without_attention_transfer_has_a_summary():
    rows = [Perplexity(name=name, perplexity="9") for name in NAMES if name != "transfer"]
    result = Summary.from_results(
        Measured(rows, None), stages=[], stored_bytes=1, crias=2, gpus=1, max_crias_running=1
    )
    assert json.loads(result.to_json())["transfer_ppl"] is None
    assert "after stitching │ 9.00" in " ".join(shown(result).split())


def test_json_has_every_number_as_a_number():
    result = json.loads(measured().to_json())
    assert result["perplexities"]["teacher"] == {"1024": 10.0}
    assert result["perplexities"]["windowedTeacher"] == {"1024": 11.0, "2048": 11.5}
    assert result["evaluation"]["recall"] == {"copy-256": {"teacher": 0.5, "stitched": 0.0}}
    assert result["evaluation"]["recallErrors"] == {"copy-256": {"teacher": 0.083, "stitched": 0.038}}
    assert result["evaluation"]["decode"]["student"] == {"1024": 30_000_000}


def test_json_has_errors_and_the_other_text_of_the_forms_that_have_them():
    adapted = Perplexity(name="adaptedTeacher", perplexity="9", error="0.25", other="20", other_error="0.75")
    result = json.loads(summary(extra=[adapted]).to_json())
    assert result["perplexity_errors"] == {"adaptedTeacher": 0.25}
    assert result["other_perplexities"] == {"adaptedTeacher": 20.0}
    assert result["other_errors"] == {"adaptedTeacher": 0.75}


def test_gap_closed_is_none_of_it_untrained_and_all_of_it_at_the_teacher():
    result = summary()
    assert result.gap_closed(1000.0) == pytest.approx(0.0)
    assert result.gap_closed(100.0) == pytest.approx(0.5)
    assert result.gap_closed(10.0) == pytest.approx(1.0)


def test_an_adapted_teacher_is_what_the_student_is_held_to():
    adapted = Perplexity(name="adaptedTeacher", perplexity="1")
    assert summary(extra=[adapted]).gap_closed(10.0) == pytest.approx(2 / 3)


def measured(**changes):
    fields = {
        "sequence_length": 1024,
        "recall": [
            Recall(
                probe="copy",
                distance=256,
                samples=32,
                shares={"teacher": "0.5", "stitched": "0"},
                errors={"teacher": "0.083", "stitched": "0.038"},
            ),
        ],
        "comparisons": [
            Comparison(
                teacher="teacher",
                ratio="1.2",
                ratio_error="0.02",
                continuations=50,
                wins="0.06",
                ties="0.12",
                error="0.054",
            )
        ],
        "positions": [
            PositionRange(first=0, last=1023, perplexities={"teacher": "10", "stitched": "12"}),
            PositionRange(first=1024, last=2047, perplexities={"teacher": "9", "stitched": "13"}),
        ],
        "parts": {"withoutWindow": "99.5"},
        "tasks": [
            TaskResult(
                task="colours",
                metric="exact_match",
                samples=16,
                values={"teacher": "0.5", "stitched": "0.25"},
                errors={"teacher": "0.12"},
            )
        ],
        "decode": DecodeFacts(
            crossover=2192,
            student={"1024": 30_000_000},
            teacher={"1024": 20_000_000},
            equal_window=2190,
        ),
        "left_out": ["perplexity at 4096 tokens: the teacher has 2048 positions"],
    }
    windowed = Perplexity(name="windowedTeacher", perplexity="11", longer={"2048": "11.5"})
    return summary(extra=[windowed], evaluation=Evaluation(**(fields | changes)))


def shown(result, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(result.render())
    return console.export_text()


def test_what_was_measured_besides_is_shown():
    text = " ".join(shown(measured()).split())
    assert "cut to a window of 2190, untrained │ 11.00 │ 11.50 │ 1.10 │" in text
    assert "│ after stitching │ 12.00 │ - │ 1.20 │" in text
    assert "asked for ┃ teacher ┃ student" in text
    assert "│ copy 256 │ 50 ± 8% │ 0 ± 4% │" in text
    assert "32 samples each" in text
    assert "│ teacher │ 1.200 ± 0.02 │ 6% │ 12% │ 18 ± 5% │" in text
    assert "tokens ┃ teacher ┃ student" in text and "│ to 2048 │ 9.00 │ 13.00 │" in text
    assert "│ without its window │ 99.50 │" in text
    assert "│ colours, exact_match │ 16 │ 0.5 ± 0.12 │ 0.25 │" in text
    assert "│ student │ 30.0 MB │" in text
    assert "from 2,192 tokens on" in text
    assert "Not measured: perplexity at 4096 tokens: the teacher has 2048 positions." in text


def test_rows_and_lengths_keep_their_order_when_a_status_has_lost_it():
    # The API server gives maps back in the order of the alphabet.
    shares = {"stitched": "0", "teacher": "0.5"}
    evaluation = measured(
        recall=[Recall(probe="copy", distance=256, samples=32, shares=shares)],
        decode=DecodeFacts(
            crossover=0, student={"2048": 2, "512": 1}, teacher={"2048": 4, "512": 3}, equal_window=1
        ),
    ).evaluation
    windowed = Perplexity(name="windowedTeacher", perplexity="11", longer={"16384": "3", "2048": "2"})
    text = " ".join(shown(summary(extra=[windowed], evaluation=evaluation)).split())
    assert "at 1024 ┃ at 2048 ┃ at 16384" in text
    assert "asked for ┃ teacher ┃ student" in text and "│ copy 256 │ 50% │ 0% │" in text
    assert "at 512 ┃ at 2048" in text


def test_other_text_has_a_column_where_it_was_measured():
    assert "other text" not in shown(measured())
    windowed = Perplexity(name="windowedTeacher", perplexity="11", other="21.5")
    text = " ".join(shown(summary(extra=[windowed], evaluation=measured().evaluation)).split())
    assert "other text" in text and "│ 11.00 │ 21.50 │ 1.10 │" in text


def test_a_missing_adapted_teacher_is_told():
    adapted = Perplexity(name="adaptedTeacher", perplexity="9")
    evaluation = measured().evaluation
    told = " ".join(shown(measured()).split())
    assert "the student was trained on it" in told
    assert "at most what lies between 20.00, before any adapter, and 12.00." in told
    text = " ".join(shown(summary(extra=[adapted], evaluation=evaluation)).split())
    assert "the student was trained on it" not in text
    assert "to adapted teacher" in text


def test_an_earlier_evaluation_is_shown_as_far_as_it_goes():
    text = shown(summary())
    assert "1000.00" in text and "96.0%" in text and "6 Crias on 2 GPUs" in text


def test_wide_layers_are_told_where_they_were_chosen():
    def text(result):
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(result.render())
        return console.export_text()

    assert "wide layers, as chosen: 7, 14" in text(replace(summary(), wide_layers=[7, 14]))
    assert "wide" not in text(summary())


def test_a_missing_form_is_named():
    with pytest.raises(ValueError, match="stitched"):
        Summary.from_results(
            Measured([Perplexity(name=name, perplexity="1") for name in NAMES[:-1]], None),
            stages=[],
            stored_bytes=0,
            crias=1,
            gpus=0,
            max_crias_running=1,
        )


def test_a_narrow_terminal_loses_no_digits():
    names = ("teacher", "adaptedTeacher", "windowedTeacher", "stitched")
    ranges = [
        PositionRange(first=64 * n, last=64 * n + 63, perplexities=dict.fromkeys(names, "123.45"))
        for n in range(8)
    ]
    text = shown(measured(positions=ranges), width=80)
    assert "…" not in text and text.count("123.45") == 32
    assert "…" not in shown(measured(positions=ranges), width=40)
