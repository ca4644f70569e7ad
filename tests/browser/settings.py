"""What the tests in a browser have in common."""

from pathlib import Path

PICTURES = Path(__file__).parents[2] / "build" / "browser"
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
