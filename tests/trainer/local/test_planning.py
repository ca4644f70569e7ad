"""`trenchcoat plan` tells what cannot work before anything is paid for."""

import shutil
from pathlib import Path

import pytest
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_trainer.cli import main

from tests.trainer.helpers.killing import write_spec


def test_a_choice_of_layers_is_a_stage_where_it_is_asked_for(
    make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for attention, lines in (({}, 0), ({"wide": {"share": "0.4"}}, 1)):
        file = write_spec(make_spec(attention=attention), tmp_path)
        assert main(["plan", str(file), "--store", str(tmp_path / "store")]) == ExitCode.OK
        told = capsys.readouterr().out
        assert told.count("select ") == told.count("the 2 layers") == lines


@pytest.mark.parametrize(("form", "epochs"), [("lolcats", "3 + 2"), ("window", "0 + 2")])
def test_epochs_are_those_that_are_trained(
    make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, epochs: str
) -> None:
    fields = {"attention": {"form": form}, "transfer": {"epochs": 3}, "criaLora": {"epochs": 2}}
    file = write_spec(make_spec(**fields), tmp_path)
    assert main(["plan", str(file), "--store", str(tmp_path / "store")]) == ExitCode.OK
    assert f"({epochs} epochs)" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_what_a_form_does_not_train_is_not_promised(
    make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for attention, maps in (({}, True), ({"form": "window", "wide": {"share": "0.1"}}, False)):
        file = write_spec(make_spec(attention=attention), tmp_path)
        assert main(["plan", str(file), "--store", str(tmp_path / "store")]) == ExitCode.OK
        told = " ".join(word for word in capsys.readouterr().out.split() if word != "│")
        assert ("feature maps" in told) == maps
        assert ("(0 + " in told) == ("the layer that is" in told) == (not maps)


def test_longer_sequences_at_the_end_are_told(
    make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for share, told in (("0", False), ("0.25", True)):
        file = write_spec(make_spec(stitch={"longSequences": {"share": share}}), tmp_path)
        assert main(["plan", str(file), "--store", str(tmp_path / "store")]) == ExitCode.OK
        words = " ".join(word for word in capsys.readouterr().out.split() if word != "│")
        assert ("sequences of 256 tokens in the last 0.25" in words) == told


def test_a_config_json_may_have_any_name(
    make_spec, teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = shutil.copyfile(teacher_folder / "config.json", tmp_path / "llama.json")
    file = write_spec(make_spec(model={"source": "hf://nobody/out-of-reach"}), tmp_path)
    assert main(["plan", str(file), "--config", str(named)]) == ExitCode.OK
    assert "tokenize" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": {"keepSoftmaxLayers": [1, 7]}}, "keepSoftmaxLayers has 7"),
        ({"layersPerCria": 6}, "layersPerCria is 6"),
    ],
)
def test_a_spec_that_does_not_fit_the_model_is_bad_input(
    make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, message: str
) -> None:
    file = write_spec(make_spec(**changes), tmp_path)
    assert main(["plan", str(file), "--store", str(tmp_path / "store")]) == ExitCode.BAD_INPUT
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("fields", "told", "untold"),
    [
        ({}, ["adapt ", "adapters of the teacher", "of the adapted teacher, at least (3 epochs)"], ["none:"]),
        ({"stitch": {"nodes": 2}}, ["none: spec.evaluate.adaptedTeacher is auto", "is 2"], ["adapt "]),
        ({"evaluate": {"adaptedTeacher": "never"}}, ["adaptedTeacher is never"], ["adapt "]),
        (
            {"attention": {"form": "window"}, "criaLora": {"epochs": 0}},
            ["none: no Cria trains", "of the adapted teacher, at least (1 epochs)"],
            ["collect ", "activations"],
        ),
    ],
)
def test_what_is_left_out_is_told(
    make_spec,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fields: dict,
    told: list[str],
    untold: list[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    file = write_spec(make_spec(**fields), tmp_path)
    assert main(["plan", str(file), "--store", str(tmp_path / "store")]) == ExitCode.OK
    found = capsys.readouterr().out
    assert [text for text in told if text not in found] == []
    assert [text for text in untold if text in found] == []
