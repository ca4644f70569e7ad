#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0
#
# Expected: a forward of a Llama over a plain batch, with neither mask nor cache, only hands kernels to the device. But it
# asks a tensor for a value, once a forward: create_causal_mask wants to know whether positions show several sequences
# packed into one, and branches on the answer. On a GPU the host waits there until all that it had launched is done, so
# that it cannot run ahead from one batch to the next; a loop over the decoder layers themselves, which SDPA has causal
# where no mask is given, asks for nothing and gives the same numbers. What is counted here is the operation behind
# Tensor.item, on a CPU.
#
# Output seen:
#   values asked for by the model: 1
#   values asked for by its layers: 0
#   same numbers: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaModel


class Asked(TorchDispatchMode):
    """Counts values that the host asks tensors for."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(named or {}))


torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2, vocab_size=16,
    attn_implementation="sdpa",
)
model = LlamaModel(config).eval().requires_grad_(False)
tokens = torch.randint(16, (2, 64))
with Asked() as of_model:
    expected = model(tokens, use_cache=False).last_hidden_state
hidden = model.embed_tokens(tokens)
rope = model.rotary_emb(hidden, position_ids=torch.arange(64)[None])
with Asked() as of_layers:
    for layer in model.layers:
        hidden = layer(hidden, position_embeddings=rope, use_cache=False)
    hidden = model.norm(hidden)
print(f"values asked for by the model: {of_model.count}")
print(f"values asked for by its layers: {of_layers.count}")
print(f"same numbers: {torch.equal(hidden, expected)}")
PY
"$folder/venv/bin/python" "$folder/show.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
values asked for by the model: 1
values asked for by its layers: 0
same numbers: True
SEEN
