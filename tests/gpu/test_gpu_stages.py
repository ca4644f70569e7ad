"""All stages on real GPUs, by `trenchcoat run`: the numbers of the CPU, on one GPU and on two."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from trenchcoat_api.artifacts import Artifacts, Manifest, Progress
from trenchcoat_api.crias import cria_ranges
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.runtime.context import Place
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.runtime.ports import free_port
from trenchcoat_trainer.stages import evaluate
from trenchcoat_trainer.stages.evaluate import room, states

from tests.trainer.helpers.trainer_samples import make_config, make_documents, save_teacher
from tests.waiting import until

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: this machine has none"),
]

LAYERS, PER_CRIA = 4, 2


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A teacher in fp32 that the kernels can run, and text."""
    folder = tmp_path_factory.mktemp("inputs")
    config = make_config(
        hidden_size=256, intermediate_size=512, num_hidden_layers=LAYERS, head_dim=64,
        max_position_embeddings=1024, initializer_range=0.05,
    )  # fmt: skip
    save_teacher(folder / "teacher", config)
    lines = [json.dumps({"text": text}) for text in make_documents(1500)]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def document(inputs, objective, gpus):
    lora = {"dropout": "0", "targetModules": ["q_proj", "v_proj"]}
    batches = {"batchSize": 4, "microBatchSize": 2}
    return {
        "apiVersion": "trenchcoat.dev/v1alpha1",
        "kind": "Trenchcoat",
        "metadata": {"name": "gpu"},
        "spec": {
            "model": {"source": (inputs / "teacher").as_uri()},
            "data": {
                "source": (inputs / "text.jsonl").as_uri(), "tokens": 16 * 256, "sequenceLength": 256,
                "heldOutTokens": 2048, "heldOutPercent": 10,
            },
            "store": {
                "endpoint": "http://localhost:9000", "bucket": "gpu",
                "credentialsSecretRef": {"name": "none"},
            },
            "preset": "shipped",
            "dtype": "float32",
            "layersPerCria": PER_CRIA,
            "collect": {"gpusPerNode": gpus, "batchSize": 4},
            "transfer": {"epochs": 2, **batches},
            "criaLora": {
                "epochs": 2, "objective": objective, "learningRate": "1e-3", "lora": lora, **batches,
            },
            "stitch": {"gpusPerNode": gpus, "learningRate": "1e-3", "lora": {"dropout": "0"}, **batches},
        },
    }  # fmt: skip


def linearize(folder, body, visible):
    """Run everything, seeing only some GPUs; returns perplexities by form and losses by stage or Cria."""
    folder.mkdir()
    spec_file = folder / "spec.yaml"
    spec_file.write_text(yaml.safe_dump(body))
    command = [sys.executable, "-m", "trenchcoat_trainer", "run", str(spec_file), "--store", str(folder)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": visible}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500
    )
    logs = "".join(f"--- {log.name}\n{log.read_text()}" for log in sorted(folder.glob("logs/*.log")))
    assert done.returncode == 0, done.stdout + logs
    artifacts = Artifacts(Trenchcoat.from_yaml(spec_file).spec)
    perplexities, losses = {}, {}
    for artifact in artifacts.all(cria_ranges(LAYERS, PER_CRIA)):
        manifest = Manifest.model_validate_json((folder / "gpu" / artifact.manifest_path).read_text())
        losses |= {f"{artifact.name}.{name}": float(x) for name, x in manifest.facts.losses.items()}
        perplexities |= {item.name: float(item.perplexity) for item in manifest.facts.perplexities}
    return perplexities, losses


def assert_alike(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert set(one) == set(other)
        for name, value in other.items():
            # First losses differ by rounding alone; training then makes differences of rounding larger.
            tolerance = 1e-3 if name.endswith("Initial") or name in ("teacher", "untrained") else 2e-2
            assert one[name] == pytest.approx(value, rel=tolerance), name


@pytest.mark.parametrize("objective", ["layerwise", "block"])
def test_a_gpu_trains_what_the_cpu_does(inputs, tmp_path, objective):
    body = document(inputs, objective, 1)
    expected = linearize(tmp_path / "cpu", body, "")
    found = linearize(tmp_path / "gpu", body, "0")
    assert_alike(found, expected)
    losses = found[1]
    assert losses["cria-00.transfer"] < losses["cria-00.transferInitial"]
    assert losses["cria-00.lora"] < losses["cria-00.loraInitial"]
    assert losses["stitch.stitch"] < losses["stitch.stitchInitial"]


def test_a_gpu_trains_a_window_as_the_cpu_does(inputs, tmp_path):
    """Wide layers that are chosen, recall in the text, and longer sequences at the end of the stitch."""
    body = document(inputs, "block", 1)
    body["spec"]["attention"] = {"form": "window", "window": 64, "wide": {"share": "0.25", "window": 200}}
    body["spec"]["evaluate"] = {"recallSamples": 4}
    body["spec"]["stitch"] |= {"recallShare": "0.3", "longSequences": {"share": "0.5", "multiple": 2}}
    expected = linearize(tmp_path / "cpu", body, "")
    found = linearize(tmp_path / "gpu", body, "0")
    assert_alike(found, expected)
    assert found[1]["stitch.stitch"] < found[1]["stitch.stitchInitial"]


def test_states_on_the_gpu_are_measured_as_those_in_the_hosts_memory(inputs, tmp_path, monkeypatch):
    linearize(tmp_path / "whole", document(inputs, "block", 1), "0")
    spec = Trenchcoat.from_yaml(tmp_path / "whole" / "spec.yaml").spec
    held, found, restore = [], [], states.InMemory.restore

    def noting(own):
        restored = restore(own)
        held[-1] |= {hidden.device.type for hidden in own.batches()}
        return restored

    monkeypatch.setattr(states.InMemory, "restore", noting)
    for name, needed in (("gpu", room.ROOM), ("host", 2**40)):
        monkeypatch.setattr(room, "ROOM", needed)
        folder = shutil.copytree(tmp_path / "whole", tmp_path / name)
        context = open_context(spec, Stage.EVALUATE, folder=folder, place=Place())
        shutil.rmtree(folder / "gpu" / context.artifact.prefix)
        held.append(set())
        evaluate.run(context)
        found.append(context.read_object(context.artifact, evaluate.REPORT))
    assert held == [{"cuda"}, {"cpu"}]
    assert found[0] == found[1]


two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")


@two_gpus
def test_two_gpus_train_what_one_does(inputs, tmp_path):
    """Collection hands hidden states from GPU to GPU by NCCL, Crias run side by side, ZeRO-3 partitions."""
    body = document(inputs, "block", 2)
    assert_alike(linearize(tmp_path / "two", body, "0,1"), linearize(tmp_path / "one", body, "0"))


def started(folder, stage, *more, **variables):
    """A stage as the program of a pod."""
    command = [sys.executable, "-m", "trenchcoat_trainer", stage, "--spec", str(folder / "spec.yaml")]
    environment = {**os.environ, "TRENCHCOAT_TERMINATION_LOG": str(folder / "termination-log"), **variables}
    return subprocess.Popen([*command, "--store", str(folder), *more], env=environment)


TWO = ("--processes", "2")


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    """All that a long stitch reads; the folder, and where its progress will be."""
    folder = tmp_path_factory.mktemp("trained")
    body = document(inputs, "block", 2)
    body["spec"]["stitch"]["epochs"] = 60
    (folder / "spec.yaml").write_text(yaml.safe_dump(body))
    stages = (("tokenize",), ("shard",), ("collect", *TWO), ("cria", "--cria", "0"), ("cria", "--cria", "1"))
    for words in stages:
        assert started(folder, *words).wait(200) == 0, words
    artifacts = Artifacts(Trenchcoat.from_yaml(folder / "spec.yaml").spec)
    return folder, folder / "gpu" / artifacts.stitch(cria_ranges(LAYERS, PER_CRIA)).progress_path


@two_gpus
def test_a_pod_of_two_gpus_stops_on_a_signal_and_does_not_outlive_a_rank(trained):
    """A rank that waits in NCCL for one that is gone would hold its GPU for half an hour."""
    folder, progress = trained
    bereft = started(folder, "stitch", *TWO)
    wait_for_steps(progress)
    children = Path(f"/proc/{bereft.pid}/task/{bereft.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[0]), signal.SIGKILL)
    assert bereft.wait(60) == 137

    stopped = started(folder, "stitch", *TWO)
    wait_for_steps(progress)
    stopped.terminate()
    assert stopped.wait(60) == ExitCode.PREEMPTED


@two_gpus
@pytest.mark.parametrize("lost", [0, 1])
def test_a_pod_does_not_wait_for_one_of_a_lost_node(trained, lost):
    """Two pods of one GPU each that speak through sockets, as those of two nodes do."""
    folder, progress = trained
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    apart = {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1", "NCCL_SOCKET_IFNAME": "lo"}
    pods = [
        started(
            folder, "stitch", RANK=str(rank), CUDA_VISIBLE_DEVICES=str(rank), LOCAL_RANK="0", **meet, **apart
        )
        for rank in range(2)
    ]
    wait_for_steps(progress)
    pods[lost].kill()
    began = time.monotonic()
    assert pods[1 - lost].wait(100) != 0
    print(f"it ended {time.monotonic() - began:.0f} s later")
    assert time.monotonic() - began < 40


@two_gpus
def test_after_all_that_a_stitch_goes_on_to_its_end(trained):
    folder, _ = trained
    assert started(folder, "stitch", *TWO).wait(200) == 0


def wait_for_steps(progress):
    """Return when a stage that has just been started trains; what an earlier one left is removed first."""
    progress.unlink(missing_ok=True)

    def trains() -> bool:
        return progress.exists() and Progress.model_validate_json(progress.read_text()).step > 2

    until(trains, 120, "it trains")
