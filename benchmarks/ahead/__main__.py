"""Whether an evaluation computes while it reads: the real stage over a store that is slow, in pairs.

`python benchmarks/ahead` has the stages of this checkout evaluate a random Llama of 8 layers from a folder
whose weights come at so many bytes a second and process, once as they are (`ahead`) and once as where there
is no memory for what is read ahead (`due`), in turn; by one process, and by two ranks of a pod. `--before
PYTHON` has another checkout take the place of the latter. Every report must have the same bytes. Results go
to `results/ahead.json` and `results/ahead.md`.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import yaml
from trenchcoat_api.artifacts import Manifest
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.runtime.context import Place
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.runtime.ports import free_port
from trenchcoat_trainer.stages import cria, shard, tokenize
from trenchcoat_trainer.stages.evaluate import REPORT

from tests.trainer.helpers.trainer_samples import make_config, make_documents, save_teacher

RESULTS = Path(__file__).parent / "results"
LAYERS, PER_CRIA, HIDDEN = 8, 2, 512
PASSES = 2
"""Over held-out text, and over twice as long pieces of it."""
FIELDS: dict[str, Any] = {
    "preset": "shipped",
    "layersPerCria": PER_CRIA,
    "dtype": "float32",
    "attention": {"window": 32, "featureDim": 32},
    "transfer": {"epochs": 0},
    "criaLora": {"epochs": 0},
    "evaluate": {"recallSamples": 0, "samples": 0, "adaptedTeacher": "never", "lengthMultiples": [2]},
}
CHILD = """\
import os, sys, time
rate, room = float(sys.argv[1]), sys.argv[2]
from trenchcoat_trainer.store import FolderStore
stream = FolderStore.stream
def slow(store, path, *arguments):
    if "/shard/" not in path or not path.endswith(".safetensors"):
        yield from stream(store, path, *arguments)
        return
    began, size = time.monotonic(), 0
    for chunk in stream(store, path, *arguments):
        size += len(chunk)
        time.sleep(max(0.0, began + size / rate - time.monotonic()))
        yield chunk
FolderStore.stream = slow
from trenchcoat_trainer.checkpoints.pod_weights import PodWeights
cria, waited = PodWeights.cria, 0.0
def timed(*arguments):
    global waited
    began = time.monotonic()
    found = cria(*arguments)
    waited += time.monotonic() - began
    return found
PodWeights.cria = timed
if room == "due":
    from trenchcoat_trainer.checkpoints import pod_weights
    pod_weights.available_memory = lambda: 0
import torch
torch.set_num_threads(1)
from trenchcoat_trainer.cli import main
code = main(sys.argv[3:])
open("waited-" + os.environ.get("RANK", "0"), "w").write(str(waited))
sys.exit(code)
"""


def prepare(top: Path, tokens: int) -> tuple[TrenchcoatSpec, Path]:
    """A store with all that the evaluation reads, of a student that nothing has trained."""
    teacher, text, store = top / "teacher", top / "text", top / "store"
    for folder in (teacher, text, store):
        folder.mkdir()
    config = make_config(
        hidden_size=HIDDEN, intermediate_size=4 * HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, max_position_embeddings=1024, initializer_range=0.02,
    )  # fmt: skip
    save_teacher(teacher, config)
    lines = [json.dumps({"text": words}) for words in make_documents(400)]
    (text / "all.jsonl").write_text("\n".join(lines))
    fields = FIELDS | {
        "model": {"source": teacher.as_uri()},
        "data": {"source": f"{text.as_uri()}/*.jsonl", "tokens": 2048, "sequenceLength": 256,
                 "heldOutTokens": tokens, "heldOutPercent": 50},
        "store": {"endpoint": "http://127.0.0.1:9", "bucket": "trenchcoat",
                  "credentialsSecretRef": {"name": "none"}},
    }  # fmt: skip
    spec = TrenchcoatSpec.model_validate(fields)
    for stage, module in ((Stage.TOKENIZE, tokenize), (Stage.SHARD, shard)):
        module.run(open_context(spec, stage, folder=store, place=Place()))
    for index in range(LAYERS // PER_CRIA):
        cria.run(open_context(spec, Stage.CRIA, cria=index, folder=store, place=Place()))
    context = open_context(spec, Stage.STITCH, folder=store, place=Place())
    context.writer.write_tensors("adapters.safetensors", adapters(spec, torch.Generator().manual_seed(0)))
    context.writer.finish()
    document = {"apiVersion": "trenchcoat.dev/v1alpha1", "kind": "Trenchcoat", "metadata": {"name": "ahead"}}
    body = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    (top / "trenchcoat.yaml").write_text(yaml.safe_dump(document | {"spec": body}))
    return spec, store


def adapters(spec: TrenchcoatSpec, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random ones over the whole student."""
    rank, found = spec.stitch.lora.rank, {}
    outputs = {"q_proj": HIDDEN, "k_proj": HIDDEN // 2, "v_proj": HIDDEN // 2, "o_proj": HIDDEN}
    for layer in range(LAYERS):
        for projection, width in outputs.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{projection}"
            found[f"{name}.lora_A.weight"] = torch.randn(rank, HIDDEN, generator=generator) / HIDDEN
            found[f"{name}.lora_B.weight"] = torch.randn(width, rank, generator=generator) / HIDDEN
    return found


def evaluate(
    spec: TrenchcoatSpec, top: Path, python: str, how: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Run the stage over a copy of the store, and tell how long it took by its own clock."""
    ranks = options.ranks
    folder = shutil.copytree(top / "store", top / "run")
    command = [
        python,
        "-c",
        CHILD,
        str(options.rate),
        how,
        "evaluate",
        "--spec",
        str(top / "trenchcoat.yaml"),
    ]
    command += ["--store", str(folder)]
    common = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    if ranks > 1:
        common |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    with (top / "log").open("w") as log:
        each = [{"RANK": str(rank)} if ranks > 1 else {} for rank in range(ranks)]
        processes = [
            subprocess.Popen(command, env=common | own, stdout=log, stderr=log, cwd=top) for own in each
        ]
        codes = [process.wait() for process in processes]
    if any(codes):
        sys.exit(f"the evaluation ended with {codes}:\n{(top / 'log').read_text()}")
    context = open_context(spec, Stage.EVALUATE, folder=folder, place=Place())
    manifest: Manifest = context.manifest(context.artifact)
    digest = hashlib.sha256(context.read_object(context.artifact, REPORT)).hexdigest()
    shutil.rmtree(folder)
    waited = max(float((top / f"waited-{rank}").read_text()) for rank in range(ranks))
    found = {
        "how": how,
        "ranks": ranks,
        "seconds": manifest.seconds,
        "waited": waited,
        "report": digest,
        "load": os.getloadavg()[0],
    }
    print(found, flush=True)
    return found


def machine() -> dict[str, Any]:
    """Where it ran."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0))
    return {"cpu": model, "cores": cores, "python": platform.python_version(), "torch": torch.__version__}


def table(results: dict[str, Any]) -> str:
    """As Markdown."""
    rows, host = results["runs"], results["machine"]
    lines = [
        "# Reading ahead",
        f"{host['cpu']}, {host['cores']} cores that other programs shared; Python {host['python']}, torch "
        f"{host['torch']}. {LAYERS} layers of {results['layer_bytes'] / 1e6:.1f} MB, Crias of {PER_CRIA}, "
        f"{PASSES} passes, at {results['rate'] / 1e6:g} MB/s: a process alone reads for "
        f"{results['reading']:.0f} s.",
        "",
        f"| ranks | waited for weights, s: {results['other']} | ahead | in all, s: {results['other']} | "
        "ahead | of it, pair by pair |",
        "|---:|---|---|---|---|---|",
    ]
    for ranks in sorted({row["ranks"] for row in rows}):
        own = [row for row in rows if row["ranks"] == ranks]
        before, after = ([row for row in own if (row["how"] == "ahead") is ahead] for ahead in (False, True))
        parts = [late["seconds"] / early["seconds"] for early, late in zip(before, after, strict=True)]
        cells = [
            ", ".join(f"{row[name]:.1f}" if name == "waited" else f"{row[name]:.0f}" for row in each)
            for name in ("waited", "seconds")
            for each in (before, after)
        ]
        shares = ", ".join(f"{part:.2f}" for part in parts)
        lines.append(f"| {ranks} | {' | '.join(cells)} | {shares} |")
    return "\n".join([*lines, "", "All reports have the same bytes.", ""])


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=6e6, help="bytes a second that a process reads")
    parser.add_argument("--tokens", type=int, default=1024, help="held out")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--before", help="Python of a checkout that does not read ahead")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        spec, _ = prepare(top, options.tokens)
        context = open_context(spec, Stage.EVALUATE, folder=top / "store", place=Place())
        weights = [context.stored_object(context.artifacts.shard, path)
                   for path in context.object_paths(context.artifacts.shard) if "layer" in path]  # fmt: skip
        for ranks in options.ranks:
            asked = argparse.Namespace(rate=options.rate, ranks=ranks)
            for pair in range(options.pairs):
                both = ["before" if options.before else "due", "ahead"]
                for how in both if pair % 2 == 0 else both[::-1]:
                    python = options.before if how == "before" else sys.executable
                    runs.append(evaluate(spec, top, python, how, asked))
    if len({row["report"] for row in runs}) > 1:
        sys.exit("reports differ")
    size = sum(item.size for item in weights)
    results = {
        "machine": machine(), "rate": options.rate, "layer_bytes": size / LAYERS,
        "reading": PASSES * size / options.rate, "other": "before" if options.before else "due", "runs": runs,
    }  # fmt: skip
    options.out.mkdir(exist_ok=True)
    (options.out / "ahead.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "ahead.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
