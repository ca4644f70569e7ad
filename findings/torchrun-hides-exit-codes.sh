#!/usr/bin/env bash
# torch 2.13.0
#
# torchrun ends with 1 whatever its workers ended with: a worker's own exit code is in its report and nowhere else. So
# what Kubernetes goes by when a container ends (restartPolicy ExitCode of a PyTorchJob, onExitCodes of a Job's
# podFailurePolicy) cannot tell a worker that asks for another try from one that never can succeed. A torchrun that is
# told to end by SIGTERM, as every pod that is taken away, passes the signal on and ends with 1 too, though each worker
# has saved its state and ended with 0: a Job counts the eviction as a failure of the program.
#
# Output seen:
#   a worker ends with 75: torchrun ends with 1
#   SIGTERM, all workers end with 0: torchrun ends with 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.3.5
cat > "$folder/worker.py" <<'PY'
import os
import signal
import sys
import time
from pathlib import Path

rank = int(os.environ["RANK"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if sys.argv[1] == "asks":
    sys.exit(75 if rank == 0 else 0)
Path(sys.argv[2], f"ready-{rank}").touch()
time.sleep(120)
sys.exit("nobody sent SIGTERM")
PY
torchrun=("$folder/venv/bin/torchrun" --nproc-per-node 2 "$folder/worker.py")

asked=0
"${torchrun[@]}" asks > "$folder/log" 2>&1 || asked=$?
"${torchrun[@]}" waits "$folder" >> "$folder/log" 2>&1 &
launcher=$!
until [ -e "$folder/ready-0" ] && [ -e "$folder/ready-1" ]; do
    kill -0 "$launcher" || { cat "$folder/log"; exit 1; }
    sleep 0.2
done
kill -TERM "$launcher"
stopped=0
wait "$launcher" || stopped=$?
{
    echo "a worker ends with 75: torchrun ends with $asked"
    echo "SIGTERM, all workers end with 0: torchrun ends with $stopped"
} | tee "$folder/seen"
diff - "$folder/seen" <<'SEEN'
a worker ends with 75: torchrun ends with 1
SIGTERM, all workers end with 0: torchrun ends with 1
SEEN
