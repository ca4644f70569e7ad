"""How fast a Cria Job reads its activations from a real MinIO on this machine, and how much memory it takes.

Run with the project's Python: `python benchmarks/reader.py`. Writes boundaries of two lengths, the second ten
times the first, reads an epoch of each in a fresh process, and prints both speed and peak resident memory.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from trenchcoat_api.artifacts import DataFacts, Facts, ModelFacts
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.data import CriaData
from trenchcoat_trainer.data.layout import (
    HIDDEN,
    TOKENS,
    boundary_path,
    sequences_per_hidden_object,
    sequences_per_token_object,
    token_path,
)
from trenchcoat_trainer.stages.opening import open_context

from tests.trainer.minio_server import ACCESS_KEY, BUCKET, SECRET_KEY, find_minio, running_minio

LENGTH, HIDDEN_SIZE = 1024, 2048


def make_spec(endpoint: str, sequences: int) -> TrenchcoatSpec:
    return TrenchcoatSpec.model_validate(
        {
            "model": {"source": "file:///teacher"},
            "data": {"source": "file:///text", "tokens": sequences * LENGTH, "sequenceLength": LENGTH},
            "store": {
                "endpoint": endpoint,
                "bucket": BUCKET,
                "prefix": f"bench-{sequences}",
                "credentialsSecretRef": {"name": "minio"},
            },
        }
    )


def write(spec: TrenchcoatSpec, sequences: int) -> None:
    """Complete tokenize and collect artifacts of random content."""
    context = open_context(spec, Stage.TOKENIZE)
    size = sequences_per_token_object(LENGTH)
    for index in range(-(-sequences // size)):
        ids = torch.randint(0, 1000, (min(size, sequences - index * size), LENGTH), dtype=torch.int32)
        context.writer.write_tensors(token_path("train", index), {TOKENS: ids})
    sizes = {"heads": 16, "kv_heads": 16, "head_dim": 128, "intermediate_size": 1, "vocab_size": 1}
    model = ModelFacts(layers=18, hidden_size=HIDDEN_SIZE, parameters=1, **sizes)
    tokens = sequences * LENGTH
    data = DataFacts(
        documents=1, sequences=sequences, tokens=tokens, held_out_documents=1, held_out_sequences=1
    )
    context.writer.finish(Facts(model=model, data=data))
    context = open_context(spec, Stage.COLLECT)
    size = sequences_per_hidden_object(LENGTH, HIDDEN_SIZE, spec.dtype)
    for index in range(-(-sequences // size)):
        count = min(size, sequences - index * size)
        hidden = torch.randn(count, LENGTH, HIDDEN_SIZE).bfloat16()
        context.writer.write_tensors(boundary_path(1, index), {HIDDEN: hidden})
    context.writer.finish()


def read(spec: TrenchcoatSpec) -> dict[str, float]:
    """Read an epoch of one Cria's inputs as a Cria Job does."""
    context = open_context(spec, Stage.CRIA, cria=1)
    assert context.cria is not None
    data = CriaData(context, context.cria, lambda ids: ids, with_targets=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, size = time.perf_counter(), 0
    for batch in data.batches(epoch=0, batch_size=8):
        size += batch.inputs.nbytes
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "gigabytes": size / 1e9,
        "gigabytes_per_second": size / 1e9 / seconds,
        "peak_megabytes": after / 1e3,
        "growth_megabytes": (after - before) / 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=80, help="of the shorter boundary (4 MiB each)")
    parser.add_argument("--read", nargs=2, metavar=("ENDPOINT", "SEQUENCES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    if arguments.read:
        endpoint, sequences = arguments.read
        print(json.dumps(read(make_spec(endpoint, int(sequences)))))
        return
    program = find_minio()
    if program is None:
        sys.exit("no MinIO program: set TRENCHCOAT_MINIO, or build the cluster's components")
    with tempfile.TemporaryDirectory() as folder, running_minio(program, Path(folder)) as server:
        for sequences in (arguments.sequences, arguments.sequences * 10):
            write(make_spec(server.endpoint, sequences), sequences)
            command = [sys.executable, __file__, "--read", server.endpoint, str(sequences)]
            print(
                sequences, subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
            )


if __name__ == "__main__":
    main()
