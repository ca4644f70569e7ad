"""How far off is the time left that a stage tells, once a tenth of it is done?

    trenchcoat run examples/tiny.yaml --store build/store
    python benchmarks/progress build/store/logs

It reads the logs of a run: of each stage the first time left that was told after a tenth, and what then came.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

TENTH = 0.1
_DAY = 24 * 3600
_LINE = re.compile(r"(\d\d):(\d\d):(\d\d) \w+ [\w.-]+: (.*)")
_SHARE = re.compile(r", (\d+)%")
_LEFT = re.compile(r"([\d.]+) s left")


@dataclass(frozen=True)
class Told:
    """What a stage told, and what then came, in seconds."""

    name: str
    took: int
    share: float
    told: float
    was: int

    @property
    def off(self) -> float:
        """How far what was told is from what came, in parts of that."""
        return (self.told - self.was) / self.was


def read(log: Path) -> Told | None:
    """The first that was told after a tenth; None of a stage that told none, or is not complete."""
    began = at = 0
    first: tuple[int, float, float] | None = None
    for line in log.read_text().splitlines():
        if not (match := _LINE.match(line)):
            continue
        hours, minutes, seconds = (int(part) for part in match.groups()[:3])
        at = hours * 3600 + minutes * 60 + seconds
        began = began or at
        share, left = _SHARE.search(match[4]), _LEFT.search(match[4])
        if first is None and share and left and int(share[1]) >= 100 * TENTH:
            first = at, int(share[1]) / 100, float(left[1])
    if first is None or not log.read_text().rstrip().endswith(": complete") or (at - first[0]) % _DAY < 1:
        return None
    return Told(log.stem, (at - began) % _DAY, first[1], first[2], (at - first[0]) % _DAY)


def table(found: list[Told]) -> str:
    """Markdown."""
    rows = [
        f"| {item.name} | {item.took} | {item.share:.0%} | {item.told:.0f} | {item.was} | {item.off:+.0%} |"
        for item in found
    ]
    head = "| stage | seconds | done | told, s | then took, s | off |"
    return "\n".join([head, "|" + "---|" * 6, *rows, ""])


def main() -> None:
    """Print the table of a folder of logs."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    logs = sorted(Path(sys.argv[1]).glob("*.log"))
    found = [told for log in logs if (told := read(log)) is not None]
    if not found:
        sys.exit(f"no log in {sys.argv[1]} tells of time left: give the folder logs/ in the store of a run")
    sys.stdout.write(table(found))


if __name__ == "__main__":
    main()
