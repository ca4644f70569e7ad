"""The plugin without a cluster: what is asked for is understood, and what cannot be done is said."""

import io
import json
import os
import stat
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from trenchcoat_api.artifacts import Artifacts
from trenchcoat_api.crias import cria_ranges
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.planning.command import read_config
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import TrenchcoatStatus
from trenchcoat_kubectl import cli, commands, planning
from trenchcoat_kubectl.kubectl import Kubectl, PluginError, _documents

from tests.plugin import samples


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert not ended.value.code
    assert capsys.readouterr().out == f"kubectl trenchcoat {version('trenchcoat')}\n"


def test_a_file_that_is_not_there_is_told_without_numbers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["plan", str(tmp_path / "not-there.yaml")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/not-there.yaml: No such file or directory\n"


@pytest.mark.parametrize("word", ["7", "07", "cria-07"])
def test_a_cria_by_its_number(word: str) -> None:
    target = commands.find(samples.running(), word)
    assert (target.stage, target.cria, target.name) == (Stage.CRIA, 7, "Cria 7")
    assert target.selector == "trenchcoat.dev/name=llama-405b,trenchcoat.dev/stage=cria,trenchcoat.dev/cria=7"


@pytest.mark.parametrize(
    ("word", "served", "asked"),
    [
        ("collect", "pytorchjobs.kubeflow.org", "jobs.batch,pytorchjobs.kubeflow.org"),
        ("collect", "", "jobs.batch"),
        ("shard", "pytorchjobs.kubeflow.org", "jobs.batch"),
    ],
)
def test_a_stage_by_its_name(
    word: str, served: str, asked: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stage of several pods is Jobs, PyTorchJobs or both, where the cluster knows any of these."""
    target = commands.find(samples.running(), word)
    assert target.selector == f"trenchcoat.dev/name=llama-405b,trenchcoat.dev/stage={word}"
    items = [{"kind": kind, "metadata": {"name": kind.lower()}} for kind in ("Job", "PyTorchJob")]
    found = json.dumps({"items": items[: len(asked.split(","))]})
    script = f"""[ "$1" = api-resources ] && echo "{served}" && exit
[ "$*" = "get {asked} -l {target.selector} -o json" ] && echo '{found}'"""
    _write_kubectl(tmp_path, script, monkeypatch)
    names = [
        f"{kind}/{body['metadata']['name']}" for kind, body in zip(asked.split(","), items, strict=False)
    ]
    assert list(target.attempts(Kubectl())) == names


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("14", "no Cria 14: it has 14, counted from 0"),
        ("cria", "number"),
        ("weave", "tokenize, collect, shard"),
    ],
)
def test_what_is_not_there_is_said(word: str, told: str) -> None:
    with pytest.raises(PluginError, match=told):
        commands.find(samples.running(), word)


def test_only_failed_attempts_of_the_wanted_artifact_go() -> None:
    def job(key: str, *, outcome: str = "", failed: bool = False) -> dict[str, object]:
        annotations = {"trenchcoat.dev/artifact-key": key} | (
            {"trenchcoat.dev/outcome": outcome} if outcome else {}
        )
        conditions = [{"type": "Failed", "status": "True"}] if failed else []
        return {"metadata": {"annotations": annotations}, "status": {"conditions": conditions}}

    assert commands._is_failed(job("k", failed=True), "k")
    assert commands._is_failed(job("k", outcome="NoManifest"), "k")
    assert not commands._is_failed(job("k"), "k")
    assert not commands._is_failed(job("other", failed=True), "k")
    assert not commands._is_failed({"metadata": {}}, "k")


def test_a_watch_is_split_into_objects() -> None:
    objects = [{"a": {"b": "}\n{"}}, {"c": [1, 2]}, {}]
    stream = io.StringIO("".join(json.dumps(item, indent=4) + "\n" for item in objects[:2]))
    assert list(_documents(stream)) == objects[:2]


def test_no_kubectl(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["status", "tiny"]) == 1
    assert "kubectl is not on the PATH" in capsys.readouterr().err


def _write_kubectl(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a shell script in kubectl's place, in front of the PATH."""
    program = folder / "kubectl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_flags_choose_the_cluster_before_and_after_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _write_kubectl(tmp_path, 'echo "$@" >&2\nexit 1', monkeypatch)
    for line in (
        ["-n", "ml", "--context=east", "status", "tiny"],
        ["status", "tiny", "--context=east", "-n", "ml"],
    ):
        assert cli.main(line) == 1
        words = "--context=east --namespace=ml get trenchcoats.trenchcoat.dev tiny -o json"
        assert capfd.readouterr().err.strip() == f"error: {words}"
    assert Kubectl(["--context=x"])


def test_a_cluster_that_does_not_answer_is_told_without_kubectls_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logged = 'E1129 13:15:49.015487    9032 memcache.go:265] "Unhandled Error" err="refused"'
    script = f"cat >&2 <<'END'\n{logged}\n{logged}\nerror: no server\nEND\nexit 1"
    _write_kubectl(tmp_path, script, monkeypatch)
    assert cli.main(["status", "tiny"]) == 1
    assert capsys.readouterr().err == "error: no server\n"


LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 126,
    "hidden_size": 16384,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "intermediate_size": 53248,
    "vocab_size": 128256,
}


def test_the_shape_of_a_model_from_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    facts = read_config(tmp_path / "config.json").facts
    assert facts.parameters == 405_853_388_800  # as published
    assert (facts.layers, facts.head_dim, facts.kv_heads) == (126, 128, 8)


def test_a_plan_refuses_layers_that_the_model_has_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_kubectl(tmp_path, """echo '{"items": []}'""", monkeypatch)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    body = samples.running().model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"status"})
    body["spec"]["attention"]["keepSoftmaxLayers"] = [126]
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(body))
    assert cli.main(["plan", str(tmp_path / "spec.yaml"), "--config", str(tmp_path / "config.json")]) == 1
    assert "keepSoftmaxLayers has 126" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "config.json is not JSON"),
        ("[]", "config.json holds no JSON object"),
        (json.dumps({"model_type": "gpt2"}), "gpt2"),
        (
            json.dumps({key: value for key, value in LLAMA.items() if key != "vocab_size"}),
            "has no vocab_size",
        ),
    ],
)
def test_what_is_no_llama_is_said(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=told):
        read_config(tmp_path / "config.json")


def test_what_others_have_made_is_told() -> None:
    wanted = samples.trenchcoat("new", {})
    artifacts = Artifacts(wanted.spec).all(cria_ranges(126, 9))
    made = {item.name: item.key for item in artifacts}
    status = TrenchcoatStatus.model_validate(
        {
            "stages": [
                {"name": "tokenize", "state": "Succeeded", "key": made["tokenize"]},
                {"name": "shard", "state": "Running", "key": made["shard"]},
            ],
            "crias": [samples.cria(3, "Succeeded", key=made["cria-03"])],
        }
    )
    other = samples.trenchcoat("old", {}).model_copy(update={"status": status})
    reused = planning.complete(artifacts, wanted, [other])
    assert [item.name for item in reused] == ["tokenize", "cria-03"]
    assert planning.told(reused) == "Complete already, and reused: tokenize, 1 Cria."
    elsewhere = samples.trenchcoat(
        "old",
        {},
        store={
            "endpoint": "https://other.example",
            "bucket": "trenchcoat",
            "credentialsSecretRef": {"name": "m"},
        },
    ).model_copy(update={"status": status})
    assert planning.complete(artifacts, wanted, [elsewhere]) == []


def _plan(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spec: dict[str, object], others: list[object], nodes: str
) -> int:
    """Plan a file where the cluster has other Trenchcoats, and these nodes, or none to look at."""
    (folder / "others.json").write_text(json.dumps({"items": others}))
    answer = f"echo '{nodes}'" if nodes else "echo 'error: nodes is forbidden' >&2; exit 1"
    script = f'case "$*" in *nodes*) {answer};; *) cat {folder}/others.json;; esac'
    _write_kubectl(folder, script, monkeypatch)
    body = samples.trenchcoat("new", {}).model_dump(mode="json", by_alias=True, exclude_none=True)
    gang = {"nodes": 3, "gpusPerNode": 8}
    body["spec"] |= {"collect": gang, "stitch": gang} | spec
    (folder / "spec.yaml").write_text(yaml.safe_dump({**body, "status": {}}))
    return cli.main(["plan", str(folder / "spec.yaml"), "-o", "json"])


def _object(trenchcoat: Trenchcoat) -> dict[str, object]:
    return trenchcoat.to_object()


def test_a_model_that_was_read_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [_object(samples.stalled()), _object(samples.running())]
    assert _plan(tmp_path, monkeypatch, {}, others, "") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"]["layers"] == 126 and document["gpu"] == "h100-80gb"
    other_model = {"model": {"source": "hf://meta-llama/Llama-3.1-8B"}}
    assert _plan(tmp_path, monkeypatch, other_model, others, "") == 1
    assert "give its config.json with --config" in " ".join(capsys.readouterr().err.split())


def test_the_nodes_tell_what_gpus_they_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def node(product: str, memory: str) -> dict[str, object]:
        return {"metadata": {"labels": {"nvidia.com/gpu.product": product, "nvidia.com/gpu.memory": memory}}}

    nodes = [{"metadata": {}}, node("NVIDIA-H200", "143771"), node("Tesla-T4", "15360")]
    others = [_object(samples.running())]
    assert _plan(tmp_path, monkeypatch, {}, others, json.dumps({"items": nodes})) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["gpu"], document["gpuMemoryBytes"]) == ("h200-141gb", 143771 * 1024**2)
    small = json.dumps({"items": nodes[2:]})
    assert _plan(tmp_path, monkeypatch, {}, others, small) == ExitCode.BAD_INPUT
    assert "a GPU has 16.1 GB" in capsys.readouterr().err
    # What the spec says goes before what nodes tell.
    assert _plan(tmp_path, monkeypatch, {"plan": {"gpuMemory": "80G"}}, others, small) == 0
