"""How fast a Cria Job reads its activations from a real MinIO on this machine, and in how much memory.

`python benchmarks/reader` measures three things, each in processes of their own:

- reading alone: an epoch of 4 MiB sequences, as fast as it goes; medians of several epochs
- waiting: attention transfer of a Cria of the demo's teacher, and its share of time spent on waiting for data
- memory: whole Cria Jobs (`trenchcoat cria`) on a boundary and on one ten times as long; peak resident memory

and writes them to `results/reader.json` and `results/reader.md`, with hardware and versions.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM
from trenchcoat_api.artifacts import DataFacts, Facts
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints.teacher import open_teacher
from trenchcoat_trainer.data import Batch, CriaData
from trenchcoat_trainer.data.layout import (
    HIDDEN,
    TOKENS,
    boundary_path,
    sequences_per_hidden_object,
    sequences_per_token_object,
    token_path,
)
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.stages import shard
from trenchcoat_trainer.stages.cria import load_cria
from trenchcoat_trainer.stages.cria.transfer import TransferPhase

from tests.minio_server import ACCESS_KEY, BUCKET, SECRET_KEY, find_minio, running_minio

RESULTS = Path(__file__).parent / "results"

# A boundary whose sequences are 4 MiB each. Heads and MLP are thin, so that a Job on a CPU reads a lot.
WIDE = LlamaConfig(
    vocab_size=1000, hidden_size=1024, intermediate_size=64, num_hidden_layers=3, num_attention_heads=1,
    num_key_value_heads=1, head_dim=16,
)  # fmt: skip
WIDE_SPEC: dict[str, Any] = {
    "layersPerCria": 1,
    "attention": {"window": 64, "featureDim": 16},
    "transfer": {"epochs": 1, "microBatchSize": 8},
    "criaLora": {"epochs": 1, "microBatchSize": 8},
}
WIDE_LENGTH = 1024

# The demo's teacher and settings: examples/tiny_teacher.py and examples/tiny.yaml.
TINY_SPEC_FILE = Path(__file__).parents[2] / "examples" / "tiny.yaml"


def tiny_config() -> LlamaConfig:
    sys.path.insert(0, str(TINY_SPEC_FILE.parent))
    from tiny_teacher import Recipe

    recipe = Recipe()
    return LlamaConfig(
        vocab_size=recipe.vocab_size, hidden_size=recipe.hidden_size, num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads, num_key_value_heads=recipe.kv_heads, head_dim=recipe.head_dim,
        intermediate_size=recipe.intermediate_size,
    )  # fmt: skip


def make_spec(endpoint: str, teacher: Path, prefix: str, sequences: int, length: int, **fields: Any) -> Any:
    return TrenchcoatSpec.model_validate(
        {
            "model": {"source": teacher.as_uri()},
            "data": {"source": "file:///text", "tokens": sequences * length, "sequenceLength": length},
            "store": {
                "endpoint": endpoint,
                "bucket": BUCKET,
                "prefix": prefix,
                "credentialsSecretRef": {"name": "minio"},
            },
            "dtype": "float32",
            **fields,
        }
    )


def write(spec: TrenchcoatSpec, sequences: int, boundary: int) -> None:
    """Complete tokenize, shard and collect artifacts, with random activations at one boundary."""
    length, generator = spec.data.sequence_length, torch.Generator().manual_seed(0)
    context = open_context(spec, Stage.TOKENIZE)
    model = open_teacher(spec, context.store).facts()
    size = sequences_per_token_object(length)
    for index in range(-(-sequences // size)):
        shape = (min(size, sequences - index * size), length)
        ids = torch.randint(0, model.vocab_size, shape, dtype=torch.int32, generator=generator)
        context.writer.write_tensors(token_path("train", index), {TOKENS: ids})
    data = DataFacts(
        documents=1,
        sequences=sequences,
        tokens=sequences * length,
        held_out_documents=1,
        held_out_sequences=1,
    )
    context.writer.finish(Facts(model=model, data=data))
    shard.run(open_context(spec, Stage.SHARD))
    context = open_context(spec, Stage.COLLECT)
    size = sequences_per_hidden_object(length, model.hidden_size, spec.dtype)
    hidden = torch.randn(size, length, model.hidden_size, generator=generator)
    for index in range(-(-sequences // size)):
        count = min(size, sequences - index * size)
        context.writer.write_tensors(boundary_path(boundary, index), {HIDDEN: hidden[:count]})
    context.writer.finish()


def open_cria(spec: TrenchcoatSpec, index: int) -> tuple[Any, CriaData]:
    context = open_context(spec, Stage.CRIA, cria=index)
    return context, CriaData(context, context.cria, lambda ids: ids, with_targets=False)


def read_epoch(spec: TrenchcoatSpec, epoch: int) -> dict[str, float]:
    """Read an epoch of one Cria's inputs as its Job does, after a first look at them."""
    _, data = open_cria(spec, 1)
    warm = data.batches(epoch=epoch + 100, batch_size=8)
    for _ in range(8):
        next(warm)
    warm.close()
    before = os.times()
    began, size = time.perf_counter(), 0
    for batch in data.batches(epoch=epoch, batch_size=8):
        size += batch.inputs.nbytes
    seconds, after = time.perf_counter() - began, os.times()
    cpu = after.user + after.system - before.user - before.system
    return {"gigabytes": size / 1e9, "seconds": seconds, "cpuSeconds": cpu}


def train_and_wait(spec: TrenchcoatSpec) -> dict[str, float]:
    """Run attention transfer on real modules and measure how long each step waited for its batch."""
    context, data = open_cria(spec, 1)
    steps = data.steps(spec.transfer.batch_size)
    phase = TransferPhase(load_cria(context, context.cria), spec, steps)
    waited = 0.0

    def timed(batches: Iterator[Batch]) -> Iterator[Batch]:
        nonlocal waited
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    began = time.perf_counter()
    for step, batch in enumerate(timed(data.batches(epoch=0, batch_size=spec.transfer.batch_size))):
        phase.step(batch, epoch=0, step=step)
    seconds = time.perf_counter() - began
    tokens = data.sequences * spec.data.sequence_length
    return {"steps": steps, "seconds": seconds, "waitedSeconds": waited, "tokensPerSecond": tokens / seconds}


def run_job(spec: TrenchcoatSpec, folder: Path) -> dict[str, float]:
    """Run a whole Cria Job, and measure its peak resident memory."""
    file = folder / "spec.yaml"
    body: dict[str, Any] = {"apiVersion": "trenchcoat.dev/v1alpha1", "kind": "Trenchcoat"}
    body["metadata"] = {"name": "reader"}
    body["spec"] = spec.model_dump(by_alias=True, mode="json", exclude_none=True)
    file.write_text(yaml.safe_dump(body))
    began = time.perf_counter()
    job = subprocess.Popen(
        [sys.executable, "-m", "trenchcoat_trainer", "cria", "--spec", file, "--cria", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert job.stderr is not None
    log = job.stderr.read()
    _, status, usage = os.wait4(job.pid, 0)
    if status:
        sys.exit(f"the Cria Job failed:\n{log}")
    return {"peakMegabytes": usage.ru_maxrss / 1024, "seconds": time.perf_counter() - began}


def in_child(function: str, spec: TrenchcoatSpec, *arguments: int) -> dict[str, float]:
    """Run one of the functions above in a fresh process."""
    text = json.dumps([function, spec.model_dump(by_alias=True, mode="json"), arguments])
    run = subprocess.run(
        [sys.executable, __file__, "--child", text], check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, float] = json.loads(run.stdout)
    return result


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def server_pid() -> int:
    """The MinIO that this process started."""
    own = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return next(int(pid) for pid in own if "minio" in Path(f"/proc/{pid}/cmdline").read_text())


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    program = find_minio()
    if program is None:
        sys.exit("no MinIO program: set TRENCHCOAT_MINIO, or build the cluster's components")
    results: dict[str, Any] = {"machine": machine(program)}
    with tempfile.TemporaryDirectory() as top, running_minio(program, Path(top)) as server:
        minio = server_pid()
        wide, tiny = Path(top, "wide"), Path(top, "tiny")
        LlamaForCausalLM(WIDE).save_pretrained(wide)
        LlamaForCausalLM(tiny_config()).save_pretrained(tiny)

        jobs = []
        for sequences in (arguments.sequences, arguments.sequences * 10):
            spec = make_spec(server.endpoint, wide, f"wide-{sequences}", sequences, WIDE_LENGTH, **WIDE_SPEC)
            write(spec, sequences, boundary=1)
            if sequences > arguments.sequences:
                epochs = []
                for epoch in range(arguments.epochs):
                    before = cpu_seconds(minio)
                    found = in_child("read_epoch", spec, epoch)
                    found["minioCpuSeconds"] = cpu_seconds(minio) - before
                    found["loadBefore"] = os.getloadavg()[0]
                    epochs.append(found)
                    print("read", found, flush=True)
                results["reading"] = {
                    "epochs": epochs,
                    "gigabytesPerSecond": statistics.median(e["gigabytes"] / e["seconds"] for e in epochs),
                }
            job = run_job(spec, Path(top))
            job |= {"tokens": sequences * WIDE_LENGTH, "megabytes": sequences * WIDE_LENGTH * 4096 / 1e6}
            jobs.append(job)
            print("job", job, flush=True)
        results["memory"] = jobs

        fields = yaml.safe_load(TINY_SPEC_FILE.read_text())["spec"]
        length, tokens = fields["data"]["sequenceLength"], fields["data"]["tokens"]
        kept = {name: fields[name] for name in ("attention", "transfer", "layersPerCria", "dtype")}
        spec = make_spec(server.endpoint, tiny, "tiny", tokens // length, length, **kept)
        write(spec, tokens // length, boundary=1)
        runs = [in_child("train_and_wait", spec) for _ in range(arguments.trainings)]
        for run in runs:
            run["waitedShare"] = run["waitedSeconds"] / run["seconds"]
            print("train", run, flush=True)
        share = statistics.median(run["waitedShare"] for run in runs)
        results["waiting"] = {"runs": runs, "waitedShare": share}
    return results


def machine(minio: str) -> dict[str, Any]:
    model = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    release = subprocess.run([minio, "--version"], check=True, capture_output=True, text=True).stdout
    packages = ("torch", "minio", "urllib3", "safetensors", "numpy")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memoryGigabytes": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "minioServer": release.split()[2],
        **{name: version(name) for name in packages},
    }


def report(results: dict[str, Any]) -> str:
    """The tables as Markdown."""
    host, reading, waiting = results["machine"], results["reading"], results["waiting"]
    rates = [epoch["gigabytes"] / epoch["seconds"] for epoch in reading["epochs"]]

    def per_gigabyte(name: str) -> float:
        return statistics.median(epoch[name] / epoch["gigabytes"] for epoch in reading["epochs"])

    jobs = "\n".join(
        f"| {job['tokens']:,} | {job['megabytes'] / 1e3:.2f} GB | {job['peakMegabytes']:.0f} MiB | "
        f"{job['seconds']:.0f} s |"
        for job in results["memory"]
    )
    trained = waiting["runs"][0]
    speed = statistics.median(run["tokensPerSecond"] for run in waiting["runs"])
    return f"""# Reading activations from MinIO
{host["cpu"]}, {host["cores"]} cores shared by MinIO and the reader, {host["memoryGigabytes"]} GB;
Linux {host["kernel"]}, Python {host["python"]}, torch {host["torch"]}, minio {host["minio"]}, MinIO server
{host["minioServer"]}.

Reading alone, {len(rates)} epochs of {reading["epochs"][0]["gigabytes"]:.2f} GB, in a fresh process each:
**{reading["gigabytesPerSecond"]:.2f} GB/s** in the median ({min(rates):.2f} to {max(rates):.2f});
{per_gigabyte("cpuSeconds"):.2f} CPU seconds a GB in the reader and {per_gigabyte("minioCpuSeconds"):.2f} in
MinIO.

Attention transfer of one Cria of the demo's teacher, {trained["steps"]:.0f} steps at {speed:,.0f} tokens/s:
**{100 * waiting["waitedShare"]:.2f}%** of the time was spent waiting for data (median of
{len(waiting["runs"])} runs).

Whole Cria Jobs (transfer and LoRA, an epoch each) on the same layers:

| training tokens | inputs in the store | peak resident memory | time |
|---|---|---|---|
{jobs}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sequences", type=int, default=64, help="of the shorter boundary (4 MiB each)")
    parser.add_argument("--epochs", type=int, default=7, help="that reading alone is measured on")
    parser.add_argument("--trainings", type=int, default=3, help="that waiting is measured on")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    if arguments.child:
        function, spec, rest = json.loads(arguments.child)
        print(json.dumps(globals()[function](TrenchcoatSpec.model_validate(spec), *rest)))
        return
    results = measure(arguments)
    (arguments.out / "reader.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "reader.md").write_text(report(results))
    print(report(results))


if __name__ == "__main__":
    main()
