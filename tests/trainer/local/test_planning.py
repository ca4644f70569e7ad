"""`trenchcoat plan` tells what cannot work before anything is paid for."""

from pathlib import Path

import pytest
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_trainer.cli import main

from tests.trainer.helpers.killing import write_spec


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
