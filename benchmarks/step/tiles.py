#!/usr/bin/env python3
"""Try how the attention's kernels may be cut into tiles, at one model's heads: milliseconds of each way.

    python benchmarks/step/tiles.py --heads 32 --kv-heads 8 --head-dim 64 --batch 8

Kernels are compiled beforehand, by as many processes as there are cores; the first line of each kernel is how
`choose_tiles` cuts it, and what follows is faster than that, the fastest first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

import torch
from shapes import FEATURE_DIM, WINDOW, detached, random_maps
from trenchcoat_trainer.students import Heads, LossWeights
from trenchcoat_trainer.students.lolcats.form import LolcatsLayer
from trenchcoat_trainer.students.lolcats.kernels import backward as backward_module
from trenchcoat_trainer.students.lolcats.kernels import cross_entropy as cross_entropy_module
from trenchcoat_trainer.students.lolcats.kernels import forward as forward_module
from trenchcoat_trainer.students.lolcats.kernels.launch import Tiles, choose_tiles

ROWS_KEYS = {
    "below": [(64, 32), (64, 64)],
    "forward": [(64, 32), (64, 64)],
    "query": [(64, 32), (64, 64)],
    "key": [(32, 64), (64, 64)],
}
MODES = ("transfer", "layerwise", "student")


def ways(kernel: str) -> Iterator[Tiles]:
    for (rows, keys), warps, stages in itertools.product(ROWS_KEYS[kernel], (4, 8), (1, 2, 3)):
        yield Tiles(rows, keys, warps, stages)


class Attention:
    """Attention of random heads, with the cut of one kernel set from outside."""

    def __init__(self, args: argparse.Namespace, mode: str) -> None:
        self.mode, self.cut = mode, {}
        self.layer = LolcatsLayer(
            args.heads, args.kv_heads, args.heads, args.head_dim, FEATURE_DIM, WINDOW, "triton"
        )
        self.maps, self.weights = random_maps(args.heads, args.head_dim), LossWeights()

        def new(heads: int) -> torch.Tensor:
            size = (args.batch, args.tokens, heads, args.head_dim)
            return torch.randn(size, device="cuda", dtype=torch.bfloat16).transpose(1, 2)

        self.teacher = Heads(new(args.heads), new(args.kv_heads), new(args.kv_heads))
        own = Heads(*(x.detach().clone().requires_grad_() for x in self.teacher))
        # Adapters stand on q and v by default; without a teacher's stream beside it k changes all the same.
        self.student = own if mode == "student" else own._replace(k=self.teacher.k)
        self.gradient = torch.randn_like(self.teacher.q)
        self.install()

    def install(self) -> None:
        for module in (backward_module, cross_entropy_module, forward_module):
            module.choose_tiles = self.choose

    def choose(self, kernel: str, x: object) -> Tiles:
        return self.cut.get(kernel) or choose_tiles(kernel, x)

    def run(self) -> None:
        if self.mode == "transfer":
            self.layer.transfer_loss(self.teacher, self.maps, self.weights).loss.backward()
        elif self.mode == "layerwise":
            frozen = detached(self.maps)
            self.layer.distill_loss(self.student, self.teacher, frozen, self.weights).loss.backward()
        else:
            self.layer.attend(self.student, detached(self.maps)).backward(self.gradient)

    def milliseconds(self, rounds: int = 7) -> float:
        times = []
        for _ in range(rounds):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
            torch.cuda._sleep(10_000_000)  # launches queue up behind this
            begin.record()
            self.run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return statistics.median(times)


def main() -> None:
    """Compile in parallel, then time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("heads", 32), ("kv-heads", 8), ("head-dim", 64), ("batch", 8), ("tokens", 1024)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--compile", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    every = [(m, kernel, way) for m in args.modes for kernel in ROWS_KEYS for way in ways(kernel)]
    if args.compile:
        first, step = args.compile
        attentions = {mode: Attention(args, mode) for mode in args.modes}
        for mode, kernel, way in every[first::step]:
            one = attentions[mode]
            one.install()
            one.cut = {kernel: way}
            attempt(one.run)
        return
    cores = max(1, (os.cpu_count() or 2) - 1)
    command = [sys.executable, *sys.argv, "--compile"]
    children = [subprocess.Popen([*command, json.dumps([i, cores])]) for i in range(cores)]
    for child in children:
        child.wait()
    for mode in args.modes:
        one = Attention(args, mode)
        one.run()
        for kernel in ROWS_KEYS:
            one.cut = {}
            usual, found = one.milliseconds(), []
            for way in ways(kernel):
                one.cut = {kernel: way}
                ms = attempt(one.milliseconds)
                if ms is not None and ms < usual:
                    found.append((ms, way))
            best = [(round(ms, 3), *way) for ms, way in sorted(found)[:4]]
            print(mode, kernel, f"{usual:.3f}", best, flush=True)


def attempt(function: object) -> float | None:
    """Return what `function` does, None where the GPU has too little of something for it."""
    from triton.runtime.errors import OutOfResources

    try:
        return function()
    except OutOfResources:
        return None


if __name__ == "__main__":
    main()
