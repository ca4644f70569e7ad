"""hack/cluster runs before any environment exists, so its package is on no path; nor is the demo."""

import sys
from pathlib import Path

HACK = Path(__file__).parents[2] / "hack"
sys.path[:0] = [str(HACK / "cluster"), str(HACK)]
