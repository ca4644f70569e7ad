"""A stage that was given GPUs computes on them, or says why not."""

import pytest
import torch
from trenchcoat_api.artifacts import Artifacts
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.errors import BadInputError, StageError
from trenchcoat_trainer.runtime.devices import ENV_DEVICE, choose_device
from trenchcoat_trainer.stages import tokenize

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
CPU = torch.device("cpu")


@pytest.fixture
def collecting(make_spec, open_stage, monkeypatch: pytest.MonkeyPatch):
    """Opens collect, as in a pod (without a folder) or on this machine."""
    monkeypatch.delenv(ENV_DEVICE)

    def open_it(gpus: int, *, pod: bool):
        spec = make_spec(collect={"gpusPerNode": gpus}, data={"tokens": 640})
        context = open_stage(spec, Stage.TOKENIZE)
        if not context.store.exists(Artifacts(spec).tokenize.manifest_path):
            tokenize.run(context)
        context = open_stage(spec, Stage.COLLECT)
        if pod:
            context.folder = None
        return context

    return open_it


def test_a_pod_that_was_given_a_gpu_and_finds_none_fails(collecting) -> None:
    with pytest.raises(StageError, match=r"finds 0 that can be used: .* driver and .* runtimeClassName"):
        choose_device(collecting(1, pod=True))


def test_that_is_tried_again_elsewhere() -> None:
    assert StageError.exit_code is ExitCode.FAILED


@pytest.mark.parametrize(("gpus", "pod"), [(0, True), (1, False)])
def test_the_cpu_is_taken_where_no_gpu_was_asked_for_or_without_a_cluster(
    collecting, gpus: int, pod: bool
) -> None:
    assert choose_device(collecting(gpus, pod=pod)) == CPU


def test_the_cpu_is_taken_where_that_is_said(collecting, monkeypatch: pytest.MonkeyPatch) -> None:
    context = collecting(1, pod=True)
    monkeypatch.setenv(ENV_DEVICE, "cpu")
    assert choose_device(context) == CPU
    monkeypatch.setenv(ENV_DEVICE, "gpu")
    with pytest.raises(BadInputError, match="TRENCHCOAT_DEVICE is 'gpu': set it to cpu"):
        choose_device(context)
