import io
import json

import pytest
from rich.console import Console
from trenchcoat_api.artifacts import Perplexity
from trenchcoat_api.summary import StageTime, Summary

NAMES = ("teacher", "untrained", "transfer", "criaLora", "stitched")


def summary(values=(10.0, 1000.0, 20.0, 15.0, 12.0)):
    return Summary.from_perplexities(
        [Perplexity(name=name, perplexity=str(value)) for name, value in zip(NAMES, values, strict=True)],
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
    }


def test_gap_closed_is_none_of_it_untrained_and_all_of_it_at_the_teacher():
    result = summary()
    assert result.gap_closed(1000.0) == pytest.approx(0.0)
    assert result.gap_closed(100.0) == pytest.approx(0.5)
    assert result.gap_closed(10.0) == pytest.approx(1.0)


def test_table_shows_every_form():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary().render())
    text = console.export_text()
    assert "1000.00" in text and "96.0%" in text and "6 Crias on 2 GPUs" in text


def test_a_missing_form_is_named():
    with pytest.raises(ValueError, match="stitched"):
        Summary.from_perplexities(
            [Perplexity(name=name, perplexity="1") for name in NAMES[:-1]],
            stages=[],
            stored_bytes=0,
            crias=1,
            gpus=0,
            max_crias_running=1,
        )
