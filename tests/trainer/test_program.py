"""Stages as programs: exit codes, the termination log, and signals."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml
from trenchcoat_api.artifacts import Artifacts, Manifest
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_trainer.cli import main
from trenchcoat_trainer.errors import PreemptedError
from trenchcoat_trainer.runtime.ports import free_port
from trenchcoat_trainer.runtime.ranks import joined
from trenchcoat_trainer.runtime.stop import StopRequest
from trenchcoat_trainer.runtime.termination import write_termination_log
from trenchcoat_trainer.stages import tokenize
from trenchcoat_trainer.store import FolderStore

from tests.trainer.helpers.holding import hold_collect, holding_ranks
from tests.waiting import until


@pytest.fixture(autouse=True)
def restored_signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def termination_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "termination-log"
    monkeypatch.setenv("TRENCHCOAT_TERMINATION_LOG", str(file))
    return file


def write_spec(spec: TrenchcoatSpec, folder: Path) -> Path:
    file = folder / "trenchcoat.yaml"
    body = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    document = {
        "apiVersion": "trenchcoat.dev/v1alpha1",
        "kind": "Trenchcoat",
        "metadata": {"name": "t"},
        "spec": body,
    }
    file.write_text(yaml.safe_dump(document))
    return file


def run(stage: str, spec: Path, folder: Path, *more: str) -> int:
    return main([stage, "--spec", str(spec), "--store", str(folder / "store"), *more])


def read_manifest(spec: TrenchcoatSpec, folder: Path, stage: str) -> Manifest:
    store = FolderStore(folder / "store" / spec.store.bucket)
    return Manifest.model_validate_json(store.read(getattr(Artifacts(spec), stage).manifest_path))


def test_stages_run_one_after_the_other_and_only_once(
    make_spec, tmp_path: Path, termination_log: Path
) -> None:
    spec = make_spec()
    file = write_spec(spec, tmp_path)
    for stage in ("tokenize", "shard", "collect"):
        assert run(stage, file, tmp_path) == ExitCode.OK
    before = read_manifest(spec, tmp_path, "collect")
    assert run("collect", file, tmp_path) == ExitCode.OK
    assert read_manifest(spec, tmp_path, "collect") == before
    assert not termination_log.exists()


def test_the_manifest_and_the_last_progress_tell_the_same(make_spec, tmp_path: Path) -> None:
    spec = make_spec()
    run("tokenize", write_spec(spec, tmp_path), tmp_path)
    store = FolderStore(tmp_path / "store" / spec.store.bucket)
    artifact = Artifacts(spec).tokenize
    manifest = read_manifest(spec, tmp_path, "tokenize")
    listed = {entry.path.removeprefix(artifact.prefix) for entry in store.list(artifact.prefix)}
    told = {"manifest.json", "progress.json", "paces.json"}
    assert listed == {item.path for item in manifest.objects} | told
    progress = json.loads(store.read(artifact.progress_path))
    assert progress["fraction"] == 1
    assert progress["step"] == progress["steps"] == 100
    assert manifest.seconds > 0


@pytest.mark.parametrize(
    ("stage", "arguments", "code", "message"),
    [
        ("collect", [], ExitCode.FAILED, "tokenize is not complete"),
        ("shard", [], ExitCode.FAILED, "tokenize is not complete"),
        ("cria", ["--cria", "0"], ExitCode.FAILED, "tokenize is not complete"),
        ("stitch", [], ExitCode.FAILED, "tokenize is not complete"),
    ],
)
def test_missing_inputs_are_failures_that_name_the_stage(
    make_spec,
    tmp_path: Path,
    termination_log: Path,
    stage: str,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert run(stage, write_spec(make_spec(), tmp_path), tmp_path, *arguments) == code
    assert message in termination_log.read_text()


def test_a_cria_waits_for_both_its_inputs(make_spec, tmp_path: Path, termination_log: Path) -> None:
    file = write_spec(make_spec(), tmp_path)
    run("tokenize", file, tmp_path)
    run("shard", file, tmp_path)
    assert run("cria", file, tmp_path, "--cria", "1") == ExitCode.FAILED
    assert "collect is not complete" in termination_log.read_text()


@pytest.mark.parametrize("index", ["3", "-1"])
def test_a_cria_that_does_not_exist_is_bad_input(
    make_spec, tmp_path: Path, termination_log: Path, index: str
) -> None:
    file = write_spec(make_spec(), tmp_path)
    run("tokenize", file, tmp_path)
    assert run("cria", file, tmp_path, "--cria", index) == ExitCode.BAD_INPUT
    assert "Crias 0 to 2" in termination_log.read_text()


def test_bad_input_has_its_own_code_and_a_message_of_one_line(
    make_spec, tmp_path: Path, termination_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_spec(make_spec(layersPerCria=6), tmp_path)
    assert run("tokenize", file, tmp_path) == ExitCode.BAD_INPUT
    expected = "spec.layersPerCria is 6, but the model has 5 decoder layers: set it between 1 and 5"
    assert termination_log.read_text() == expected
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("kind: Trenchcoat\nspec: {modle: 1}", "spec.modle"),
        ("just text", "holds no object"),
        ("a: [", "not YAML"),
    ],
)
def test_a_spec_that_cannot_be_read_is_bad_input(
    tmp_path: Path, termination_log: Path, text: str | None, message: str
) -> None:
    file = tmp_path / "spec.yaml"
    if text is not None:
        file.write_text(text)
    assert run("tokenize", file, tmp_path) == ExitCode.BAD_INPUT
    assert message in termination_log.read_text()


def test_a_store_that_cannot_be_reached_has_its_own_code(
    make_spec, tmp_path: Path, termination_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    spec = make_spec(store={"endpoint": "http://127.0.0.1:9"})
    assert main(["tokenize", "--spec", str(write_spec(spec, tmp_path))]) == ExitCode.STORE_UNAVAILABLE
    assert "spec.store.endpoint http://127.0.0.1:9" in termination_log.read_text()


def test_a_device_out_of_memory_has_its_own_code(
    make_spec, tmp_path: Path, termination_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(context: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tokenize, "run", fail)
    assert run("tokenize", write_spec(make_spec(), tmp_path), tmp_path) == ExitCode.OUT_OF_MEMORY
    assert "lower its batch size" in termination_log.read_text()


def test_anything_else_is_a_failure_told_with_its_kind(
    make_spec, tmp_path: Path, termination_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(context: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(tokenize, "run", fail)
    assert run("tokenize", write_spec(make_spec(), tmp_path), tmp_path) == ExitCode.FAILED
    assert termination_log.read_text() == "ZeroDivisionError: by zero"


def collect_in_child(spec: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    hold_collect()
    raise SystemExit(run("collect", spec, folder))


@pytest.mark.slow
def test_a_signal_stops_a_stage_which_goes_on_when_started_again(make_spec, tmp_path: Path) -> None:
    spec = make_spec(data={"tokens": 12_000})
    file = write_spec(spec, tmp_path)
    run("tokenize", file, tmp_path)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(
        ["tests.trainer.helpers.holding", "tests.trainer.helpers.trainer_samples"]
    )
    child = processes.Process(target=collect_in_child, args=(file, tmp_path))
    child.start()
    progress = tmp_path / "store" / spec.store.bucket / Artifacts(spec).collect.progress_path
    until(progress.exists, 120, "it tells its progress")
    assert child.pid is not None
    os.kill(child.pid, signal.SIGTERM)
    child.join(120)
    assert child.exitcode == ExitCode.PREEMPTED
    assert not (progress.parent / "manifest.json").exists()
    assert run("collect", file, tmp_path) == ExitCode.OK


def collect_as_two(
    spec: Path, folder: Path, variables: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    words = ["collect", "--spec", str(spec), "--store", str(folder / "store"), "--processes", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | dict(variables or {})
    return subprocess.Popen([sys.executable, "-m", "trenchcoat_trainer", *words], env=environment)


@pytest.mark.slow
def test_several_processes_are_one_stage(make_spec, tmp_path: Path, termination_log: Path) -> None:
    """Stopped by a signal to the first one alone; what is wrong has its own code and is told once."""
    spec = make_spec(data={"tokens": 12_000})
    file = write_spec(spec, tmp_path)
    assert collect_as_two(file, tmp_path).wait(120) == ExitCode.FAILED
    assert termination_log.read_text().count("tokenize is not complete") == 1
    termination_log.unlink()

    run("tokenize", file, tmp_path)
    stopped = collect_as_two(file, tmp_path, holding_ranks(tmp_path / "holding"))
    progress = tmp_path / "store" / spec.store.bucket / Artifacts(spec).collect.progress_path
    until(progress.exists, 120, "it tells its progress")
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(120) == ExitCode.PREEMPTED
    assert not (progress.parent / "manifest.json").exists()
    termination_log.unlink()

    assert collect_as_two(file, tmp_path).wait(120) == ExitCode.OK
    manifest = read_manifest(spec, tmp_path, "collect")
    assert not termination_log.exists()
    alone = tmp_path / "alone"
    run("tokenize", file, alone)
    run("collect", file, alone)
    assert read_manifest(spec, alone, "collect").objects == manifest.objects


def heard_from(rank: int, port: int) -> None:
    """Return when a rank is on its way to meet another: the first waits at the port, others come there."""
    if rank > 0:
        with socket.create_server(("127.0.0.1", port)) as server:
            server.settimeout(120)
            server.accept()
        return

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(listens, 120, "the first rank waits for others")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_ends_a_rank_that_waits_for_one_that_never_comes(
    make_spec, tmp_path: Path, rank: int
) -> None:
    """As when a PyTorchJob is deleted while its pods start: the name that they meet under goes first."""
    spec = make_spec(data={"tokens": 12_000})
    file = write_spec(spec, tmp_path)
    run("tokenize", file, tmp_path)
    port = free_port()
    meet = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = ["collect", "--spec", str(file), "--store", str(tmp_path / "store")]
    bereft = subprocess.Popen([sys.executable, "-m", "trenchcoat_trainer", *words], env=os.environ | meet)
    try:
        heard_from(rank, port)
        bereft.send_signal(signal.SIGTERM)
        assert bereft.wait(120) == -signal.SIGTERM
    finally:
        bereft.kill()


def test_a_rank_that_was_asked_to_stop_joins_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest()
    stop.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(PreemptedError), joined(0, 2, torch.device("cpu"), stop):
        pytest.fail("it joined")
    assert signal.getsignal(signal.SIGTERM) == stop._note


def test_what_failed_first_has_the_last_word(termination_log: Path) -> None:
    write_termination_log("what was\nat fault")
    write_termination_log("connection closed by peer")
    assert termination_log.read_text() == "what was at fault"


def test_no_more_is_said_than_kubernetes_keeps(termination_log: Path) -> None:
    write_termination_log("x" * 10_000)
    assert len(termination_log.read_text()) == 4096
