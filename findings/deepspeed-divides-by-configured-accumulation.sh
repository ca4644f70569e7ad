#!/usr/bin/env bash
# deepspeed 0.19.8, torch 2.13.0
#
# DeepSpeedEngine.set_gradient_accumulation_boundary lets a loop say by itself when the optimiser steps, so that a step
# may hold fewer micro-batches than gradient_accumulation_steps says. The gradient of each is divided by the configured
# number all the same, not by how many there were: a step of one micro-batch under a configured 4 moves the weights by a
# quarter of what it should, with no word of it. With gradient_accumulation_steps 1 it moves them by the whole gradient.
#
# Output seen:
#   configured 4, boundary after 1: weight -0.25
#   configured 1, boundary after 1: weight -1.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 setuptools==84.2.1 \
  wheel==0.48.0 packaging==26.3 ninja==1.13.2 psutil==7.2.2 py-cpuinfo==9.0.0
DS_BUILD_OPS=0 DS_ACCELERATOR=cpu "$folder/venv/bin/pip" install -q --no-build-isolation deepspeed==0.19.8
cat > "$folder/show.py" <<'PY'
import sys

import deepspeed
import torch


class Slope(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return (self.weight * x).sum()


model = Slope()
configured = int(sys.argv[1])
engine, *_ = deepspeed.initialize(
    model=model,
    optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
    config={"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": configured},
)
engine.set_gradient_accumulation_boundary(True)
engine.backward(engine(torch.ones(1)))
engine.step()
print(f"SEEN configured {configured}, boundary after 1: weight {model.weight.item():.2f}")
PY
export DS_ACCELERATOR=cpu RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29511
for configured in 4 1; do
  "$folder/venv/bin/python" "$folder/show.py" "$configured" 2> "$folder/log" | sed -n 's/^SEEN //p'
done | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
configured 4, boundary after 1: weight -0.25
configured 1, boundary after 1: weight -1.00
SEEN
