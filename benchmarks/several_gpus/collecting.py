"""One rank of the collect stage's pipeline over random layers: started by `__main__.py`, once a rank."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from alone import products_rate, writing_rate
from model import RandomTeacher, layer_products, shape
from timing import matrix_rate, of_all_ranks, peak_memory_gb, tell, wait
from trenchcoat_api.packing import collected_at_once
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints.teacher import open_teacher
from trenchcoat_trainer.data import TokenData
from trenchcoat_trainer.data.layout import ITEM_BYTES, sequences_per_hidden_object
from trenchcoat_trainer.data.order import Order
from trenchcoat_trainer.runtime.devices import any_device
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.runtime.ranks import joined
from trenchcoat_trainer.stages.collect.pipeline import Pipeline
from trenchcoat_trainer.stages.collect.stage import Worker


def main() -> None:
    """Run the pipeline and add what it reached to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--size", required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--warm-up", type=int, required=True, help="objects before the clock starts")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    spec = Trenchcoat.from_yaml(arguments.spec).spec
    context = open_context(spec, Stage.COLLECT, folder=arguments.store)
    device = any_device(context.rank)
    with joined(context.rank, context.world_size, device, context.stop), torch.inference_mode():
        pipeline = Pipeline(context, device)
        found = open_teacher(spec, context.store)
        teacher = RandomTeacher(found.source, found.store, found.prefix, device)
        tokens = TokenData(context)
        boundaries = {cria.first - 1: cria.index for cria in context.crias[1:]}
        length, config = spec.data.sequence_length, teacher.config
        order = Order(
            tokens.sequences, sequences_per_hidden_object(length, config.hidden_size, spec.dtype), spec.seed
        )
        began = time.perf_counter()
        worker = Worker(context, teacher, tokens, pipeline, boundaries, device)
        worker.run(order, list(range(arguments.warm_up)))
        pipeline.barrier()
        wait(device)
        set_up = time.perf_counter() - began
        rates = of_all_ranks(matrix_rate(device), device)
        groups = list(range(arguments.warm_up, order.groups))
        pipeline.barrier()
        began = time.perf_counter()
        worker.run(order, groups)
        pipeline.barrier()
        wait(device)
        seconds = time.perf_counter() - began
        peaks = of_all_ranks(peak_memory_gb(device) or 0.0, device)
        at_once = collected_at_once(
            spec.collect.batch_size, length, order.group_size, on_gpu=device.type == "cuda"
        )
        products_alone = of_all_ranks(products_rate(config, at_once * length, device), device)
        an_object = torch.randn(order.group_size, length, config.hidden_size).to(torch.bfloat16)
        writing_alone = of_all_ranks(writing_rate(context, an_object), device)
    if context.rank == 0:
        layers = max(boundaries) + 1
        computed = sum(order.length(group) for group in groups) * length
        products = 2 * layer_products(shape(arguments.size, arguments.layers, length)) * layers * computed
        written = computed * len(boundaries) * config.hidden_size * ITEM_BYTES[spec.dtype]
        tell(
            arguments.out,
            {
                "part": "collect",
                "size": arguments.size,
                "ranks": context.world_size,
                "layers": layers,
                "boundaries": len(boundaries),
                "sequences": computed // length,
                "at_once": at_once,
                "tokens_per_second": computed / seconds,
                "seconds": seconds,
                "tflops": products / seconds / 1e12,
                "matrix_tflops_of_all": sum(rates) / 1e12,
                "of_matrix_rates": products / seconds / sum(rates),
                "products_alone_tflops_of_all": sum(products_alone) / 1e12,
                "of_products_alone": products / seconds / sum(products_alone),
                "written_alone_gb_per_second": sum(writing_alone) / 1e9,
                "written_gb_per_second": written / seconds / 1e9,
                "peak_memory_gb": peaks,
                "set_up_s": set_up,
            },
        )


if __name__ == "__main__":
    main()
