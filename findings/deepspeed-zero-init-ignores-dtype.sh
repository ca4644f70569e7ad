#!/usr/bin/env bash
# deepspeed 0.19.8, torch 2.13.0
#
# deepspeed.zero.Init(dtype=...) says in its documentation that it takes torch.half and torch.float for the parameters that
# it partitions. Where the accelerator has no fp16, such as a CPU without instructions for it (on one that has them this
# script fails), the argument is not looked at: both become bfloat16, with no word of it. Without the argument, under a
# configuration that names neither format, it is float32.
#
# Output seen:
#   asked for float32: bfloat16
#   asked for float16: bfloat16
#   asked for nothing: float32
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 setuptools==84.2.1 \
  wheel==0.48.0 packaging==26.3 ninja==1.13.2 psutil==7.2.2 py-cpuinfo==9.0.0
DS_BUILD_OPS=0 DS_ACCELERATOR=cpu "$folder/venv/bin/pip" install -q --no-build-isolation deepspeed==0.19.8
cat > "$folder/show.py" <<'PY'
import deepspeed
import torch

deepspeed.init_distributed(dist_backend="gloo")
config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
for name in ("float32", "float16", "nothing"):
    asked = {} if name == "nothing" else {"dtype": getattr(torch, name)}
    with deepspeed.zero.Init(config_dict_or_path=config, **asked):
        layer = torch.nn.Linear(4, 4)
    got = str(layer.weight.ds_tensor.dtype).removeprefix("torch.")
    print(f"SEEN asked for {name}: {got}")
PY
export DS_ACCELERATOR=cpu RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29513
export TORCH_EXTENSIONS_DIR=$folder/extensions
"$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" | sed -n 's/^SEEN //p' | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
asked for float32: bfloat16
asked for float16: bfloat16
asked for nothing: float32
SEEN
