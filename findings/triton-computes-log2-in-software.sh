#!/usr/bin/env bash
# triton 3.7.1
#
# tl.exp2 of fp32 becomes one instruction of the GPU's unit for such functions (ex2.approx), so that tl.log2 may be
# taken for its pair. It is not: it becomes libdevice's logarithm, a polynomial after the exponent has been taken apart,
# some twenty instructions with a dozen fused multiplications among them, though the GPU has lg2.approx.
# In an attention kernel that takes a logarithm of every pair of tokens this was more than a third of all
# instructions issued, and issuing them what the kernel waited for. tl.inline_asm_elementwise with lg2.approx.ftz.f32 gives the one
# instruction, to 2^-22. No GPU is needed to see it: Triton compiles for one that is not there.
#
# Output seen:
#   exp2: approximations 1, fused multiplications none
#   log2: approximations 0, fused multiplications 10 or more
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q triton==3.7.1
cat > "$folder/show.py" <<'PY'
import re
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def exp2(source, to):
    tl.store(to, tl.exp2(tl.load(source)))


@triton.jit
def log2(source, to):
    tl.store(to, tl.log2(tl.load(source)))


for kernel in (exp2, log2):
    asked = ASTSource(kernel, {"source": "*fp32", "to": "*fp32"}, {})
    code = triton.compile(asked, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    fused = len(re.findall(r"\bfma\.rn\S*f32", code))
    print(kernel.fn.__name__, fused, "fused", file=sys.stderr)
    told = "none" if fused == 0 else "10 or more" if fused >= 10 else str(fused)
    approximations = len(re.findall(r"\b(?:ex2|lg2)\.approx", code))
    print(f"{kernel.fn.__name__}: approximations {approximations}, fused multiplications {told}")
PY
TRITON_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" "$folder/show.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
exp2: approximations 1, fused multiplications none
log2: approximations 0, fused multiplications 10 or more
SEEN
