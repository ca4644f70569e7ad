"""One rank that fills its partition of the student, as the stitch does at first: started by `__main__.py`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from model import RandomShards, layer_products
from timing import of_all_ranks, tell, wait
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.models.artifacts import weight_dtype
from trenchcoat_trainer.runtime.devices import any_device
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.runtime.ranks import joined
from trenchcoat_trainer.stages.stitch import zero
from trenchcoat_trainer.stages.stitch.memory import Held
from trenchcoat_trainer.stages.stitch.subject import Subject

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def host_memory_gb(field: str) -> float:
    """Return a field of this process's status, VmRSS now or VmHWM at most, in 10^9 bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024 / 1e9


def main() -> None:
    """Build the student over the ranks and add what the host's memory held to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    spec = Trenchcoat.from_yaml(arguments.spec).spec
    context = open_context(spec, Stage.STITCH, folder=arguments.store)
    device = any_device(context.rank)
    context = RandomShards.of(context, device, weight_dtype(context))
    subject = Subject.of(context)
    deepspeed = zero.import_deepspeed(device)
    with (
        joined(context.rank, context.world_size, device, context.stop),
        zero.process_group(deepspeed, context, device),
    ):
        held = Held(graph=False, weights=False)
        config = zero.zero_config(spec, context.world_size, subject.config, held)
        before = host_memory_gb("VmRSS")
        CLEAR.write_text("5")  # VmHWM begins anew
        began = time.perf_counter()
        model = zero.build_student(deepspeed, context, subject, config, device)
        wait(device)
        seconds = time.perf_counter() - began
        own = sum(weight.ds_tensor.numel() * weight.element_size() for weight in model.parameters()) / 1e9
        kept = own if device.type == "cpu" else 0.0
        beside = of_all_ranks(host_memory_gb("VmHWM") - before - kept, device)
        partitions = of_all_ranks(own, device)
    if context.rank == 0:
        layer = layer_products(subject.config) * torch.finfo(weight_dtype(context)).bits / 8 / 1e9
        tell(
            arguments.out,
            {
                "part": "load",
                "ranks": context.world_size,
                "layers": subject.config.num_hidden_layers,
                "layer_gb": layer,
                "partition_gb": partitions,
                "host_gb_beside": beside,
                "layers_beside": [size / layer for size in beside],
                "seconds": seconds,
            },
        )


if __name__ == "__main__":
    main()
