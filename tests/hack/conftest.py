"""hack/cluster runs before any environment exists, so its package is on no path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "hack" / "cluster"))
