"""`trenchcoat plan` tells what cannot work before anything is paid for."""

import json
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_trainer.cli import main

from tests.trainer.helpers.killing import write_spec


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables without broken lines."""
    monkeypatch.setenv("COLUMNS", "250")


def test_a_choice_of_layers_is_a_stage_where_it_is_asked_for(
    make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for attention, lines in (({}, 0), ({"wide": {"share": "0.4"}}, 1)):
        file = write_spec(make_spec(attention=attention), tmp_path)
        assert main(["plan", str(file), "--store", str(tmp_path / "store")]) == ExitCode.OK
        told = capsys.readouterr().out
        assert told.count("the 2 layers that are to be wide") == lines
        assert ("select " in told) == bool(lines)


@pytest.mark.parametrize(("form", "epochs"), [("lolcats", "3 + 2"), ("window", "0 + 2")])
def test_epochs_are_those_that_are_trained(
    make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, epochs: str
) -> None:
    fields = {"attention": {"form": form}, "transfer": {"epochs": 3}, "criaLora": {"epochs": 2}}
    file = write_spec(make_spec(**fields), tmp_path)
    assert main(["plan", str(file), "--store", str(tmp_path / "store")]) == ExitCode.OK
    assert f"; {epochs} epochs" in capsys.readouterr().out


def test_what_a_form_does_not_train_is_not_promised(
    make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for attention, maps in (({}, True), ({"form": "window", "wide": {"share": "0.1"}}, False)):
        file = write_spec(make_spec(attention=attention), tmp_path)
        assert main(["plan", str(file), "--store", str(tmp_path / "store")]) == ExitCode.OK
        told = " ".join(word for word in capsys.readouterr().out.split() if word != "│")
        assert ("feature maps" in told) == maps
        assert ("; 0 + " in told) == ("the layer that is" in told) == (not maps)


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


def test_a_store_out_of_reach_is_told_with_what_a_plan_can_do_without_it(
    make_spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    file = write_spec(make_spec(store={"endpoint": "https://minio.example:9000"}), tmp_path)
    monkeypatch.setenv("COLUMNS", "40")  # which breaks no message
    assert main(["plan", str(file)]) == ExitCode.STORE_UNAVAILABLE
    told = capsys.readouterr().err
    assert told.startswith("error: the environment has no AWS_ACCESS_KEY_ID")
    assert told.endswith("; a plan needs the model's config.json alone: --config FILE names one here\n")


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
        ({}, ["adapt ", "adapters of the teacher, to compare with; 3 epochs"], ["no adapted teacher"]),
        (
            {"stitch": {"nodes": 2}},
            ["no adapted teacher: spec.evaluate.adaptedTeacher is auto", "is 2"],
            ["adapt "],
        ),
        ({"evaluate": {"adaptedTeacher": "never"}}, ["adaptedTeacher is never"], ["adapt "]),
        (
            {"attention": {"form": "window"}, "criaLora": {"epochs": 0}},
            ["no Cria trains on hidden states: none are collected", "to compare with; 1 epoch "],
            ["collect ", "activations"],
        ),
    ],
)
def test_what_is_left_out_is_told(
    make_spec,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fields: dict,
    told: list[str],
    untold: list[str],
) -> None:
    file = write_spec(make_spec(**fields), tmp_path)
    assert main(["plan", str(file), "--store", str(tmp_path / "store")]) == ExitCode.OK
    found = capsys.readouterr().out
    assert [text for text in told if text not in found] == []
    assert [text for text in untold if text in found] == []


EXAMPLES = Path(__file__).parents[3] / "examples"


def plan_405b(capsys: pytest.CaptureFixture[str], spec: Path, *options: str) -> tuple[int, str, str]:
    config = EXAMPLES / "models" / "llama-3.1-405b.json"
    code = main(["plan", str(spec), "--config", str(config), *options])
    told = capsys.readouterr()
    return code, told.out, told.err


def with_longer_crias(folder: Path) -> Path:
    file = folder / "long.yaml"
    text = (EXAMPLES / "llama-3.1-405b.yaml").read_text()
    file.write_text(text.replace("layersPerCria: 9", "layersPerCria: 30"))
    return file


def test_a_cria_that_no_gpu_holds_is_refused_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = plan_405b(capsys, with_longer_crias(tmp_path))
    assert code == ExitCode.BAD_INPUT
    assert "error: cria needs 199.7 GB of GPU memory (191.3 GB for layers), and a GPU has 80.0 GB" in err
    assert "set spec.layersPerCria to at most 11" in err and "--force" in err
    assert "Needs, on h100-80gb" in out  # the plan is told all the same

    code, _, err = plan_405b(capsys, with_longer_crias(tmp_path), "--force")
    assert code == ExitCode.OK and "warning: cria needs" in err
    code, out, err = plan_405b(capsys, with_longer_crias(tmp_path), "--gpu-memory", "288G")
    assert (code, err) == (ExitCode.OK, "") and "times are those of NVIDIA H100 80 GB" in out
    _, out, _ = plan_405b(capsys, EXAMPLES / "llama-3.1-405b.yaml", "--gpu-memory", "81559Mi")
    assert "times are those of" not in out


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_a_plan_for_programs(capsys: pytest.CaptureFixture[str], output: str) -> None:
    file = EXAMPLES / "llama-3.1-405b.yaml"
    options = ("--gpu", "h200-141gb", "--gpus", "7", "--price", "2.5", "-o", output)
    code, out, _ = plan_405b(capsys, file, *options)
    assert code == ExitCode.OK
    document = yaml.safe_load(out)
    assert json.loads(out) == document if output == "json" else not out.startswith("{")
    assert document["store"]["boundaries"] == 13 and len(document["crias"]) == 14
    assert (document["gpu"], document["parallelCrias"]) == ("h200-141gb", 7)
    assert document["cost"] == pytest.approx(2.5 * document["gpuHours"], rel=0.01)
    crias = next(row for row in document["stages"] if row["name"] == "cria")
    assert crias["seconds"] == pytest.approx(2 * crias["jobSeconds"], rel=0.01)


@pytest.mark.parametrize("output", ["table", "json"])
def test_a_plan_that_cannot_be_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code, _, err = plan_405b(capsys, EXAMPLES / "llama-3.1-405b.yaml", "-o", output)
    assert code == ExitCode.FAILED
    assert "standard output cannot be written to (No space left on device)" in err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--gpu", "abacus"), "no rates of a GPU 'abacus': name one of h100-80gb, h200-141gb"),
        (("--rates", "nowhere.yaml"), "rates nowhere.yaml cannot be read"),
    ],
)
def test_rates_that_are_not_there(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], told: str
) -> None:
    code, _, err = plan_405b(capsys, EXAMPLES / "llama-3.1-405b.yaml", *options)
    assert code == ExitCode.BAD_INPUT and told in err


@pytest.mark.parametrize("options", [("--price", "nan"), ("--gpus", "0"), ("--gpu-memory", "80 GB")])
def test_options_that_cannot_be(capsys: pytest.CaptureFixture[str], options: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        plan_405b(capsys, EXAMPLES / "llama-3.1-405b.yaml", *options)


def test_rates_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packaged = files("trenchcoat_api.planning").joinpath("rates.yaml").read_text()
    file = tmp_path / "rates.yaml"
    file.write_text(packaged.replace("bytesPerSecond: 570000000", "bytesPerSecond: 57000000000"))
    spec = EXAMPLES / "llama-3.1-405b.yaml"
    hours = [
        json.loads(plan_405b(capsys, spec, "-o", "json", *options)[1])["seconds"]
        for options in ((), ("--rates", str(file)))
    ]
    assert hours[1] < hours[0]
    file.write_text(packaged.replace("startSeconds: 15", "startSeconds: soon"))
    code, _, err = plan_405b(capsys, spec, "--rates", str(file))
    assert code == ExitCode.BAD_INPUT and "kinds.h100-80gb.startSeconds" in err
