#!/usr/bin/env bash
# triton 3.7.1, with the ptxas that it brings
#
# Flash attention's loop as Triton compiles it for Hopper (sm_90a) leaves its last product in flight while the next
# round begins. With one more tl.dot in the same kernel, before or after that loop and with nothing to do with its
# numbers, ptxas no longer sees that this is safe and waits for every product of the whole kernel, each by itself (its
# note C7515). Triton shows no note of ptxas, the numbers are right, and only the time tells. One would expect the
# loop to be compiled as without that product. What helps is a kernel of its own for it. No GPU is needed to see it.
#
# Output seen:
#   the loop alone: no note
#   a product after the loop: C7515
#   a product before the loop: C7515
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q triton==3.7.1
cat > "$folder/show.py" <<'PY'
import re
import subprocess
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def attention(q, k, v, other, out, keys, BEFORE: tl.constexpr, AFTER: tl.constexpr):
    square = tl.arange(0, 64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    rows, second = tl.load(q + square), tl.load(other + square)
    more = tl.zeros([64, 64], tl.float32)
    if BEFORE:
        more = tl.dot(rows, second)
    largest = tl.full([64], float("-inf"), tl.float32)
    total = tl.zeros([64], tl.float32)
    sums = tl.zeros([64, 64], tl.float32)
    for start in tl.range(0, keys, 64):
        scores = tl.dot(rows, tl.trans(tl.load(k + start * 64 + square)))
        values = tl.load(v + start * 64 + square)
        larger = tl.maximum(largest, tl.max(scores, 1))
        scale, weights = tl.exp2(largest - larger), tl.exp2(scores - larger[:, None])
        total = total * scale + tl.sum(weights, 1)
        sums = tl.dot(weights.to(values.dtype), values, sums * scale[:, None])
        largest = larger
    if AFTER:
        more = tl.dot(rows, second)
    tl.store(out + square, sums / total[:, None] + more)


folder = Path(__file__).parent
ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
types = dict.fromkeys(("q", "k", "v", "other"), "*bf16") | {"out": "*fp32", "keys": "i32"}
aligned = {(index,): [["tt.divisibility", 16]] for index in range(6)}
for title, where in (
    ("the loop alone", None),
    ("a product after the loop", "AFTER"),
    ("a product before the loop", "BEFORE"),
):
    fixed = {name: name == where for name in ("BEFORE", "AFTER")}
    asked = ASTSource(attention, types | dict.fromkeys(fixed, "constexpr"), fixed, aligned)
    options = {"num_warps": 4, "num_stages": 2}
    compiled = triton.compile(asked, target=GPUTarget("cuda", 90, 32), options=options)
    (folder / "code.ptx").write_text(compiled.asm["ptx"])
    command = [ptxas, "-v", "--gpu-name=sm_90a", folder / "code.ptx", "-o", folder / "code.cubin"]
    notes = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    print(f"{title}: {', '.join(re.findall(r'C75[0-9]+', notes)) or 'no note'}")
PY
TRITON_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" "$folder/show.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
the loop alone: no note
a product after the loop: C7515
a product before the loop: C7515
SEEN
