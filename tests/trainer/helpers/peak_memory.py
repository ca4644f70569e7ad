"""The largest memory that this process had resident; read by programs that tests run.

`ru_maxrss` of getrusage(2) would not do: it outlives exec(2), so that a new program begins with the peak of
whoever started it, and what it needs itself shows only beyond that.
"""

import re
from pathlib import Path


def peak() -> int:
    """Bytes, of this program alone."""
    found = re.search(r"^VmHWM:\s*([0-9]+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError("/proc/self/status tells no VmHWM: this needs Linux's /proc")
    return int(found[1]) * 1024
