"""How far off is the time left that a stage tells, once a tenth of it is done?

    trenchcoat run examples/tiny.yaml --store build/store
    python benchmarks/progress build/store/logs

    kubectl get trenchcoat NAME -o json --show-managed-fields --watch > watched.json
    python benchmarks/progress watched.json

It reads the logs of a run, or the status of one on a cluster, whose row `cria` is all Crias together: of each
stage the first time left that was told after a tenth, and what then came.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import watched

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
    complete = False
    for line in log.read_text().splitlines():
        if not (match := _LINE.match(line)):
            continue
        hours, minutes, seconds = (int(part) for part in match.groups()[:3])
        at = hours * 3600 + minutes * 60 + seconds
        began = began or at
        share, left = _SHARE.search(match[4]), _LEFT.search(match[4])
        if complete := line.endswith(": complete"):
            break  # what follows is no part of the stage
        if first is None and share and left and int(share[1]) >= 100 * TENTH:
            first = at, int(share[1]) / 100, float(left[1])
    if first is None or not complete or (at - first[0]) % _DAY < 1:
        return None
    return Told(log.stem, (at - began) % _DAY, first[1], first[2], (at - first[0]) % _DAY)


def of_status(file: Path) -> list[Told]:
    """The same by what a Trenchcoat's status told, row by row."""
    found = []
    for row in watched.read(file):
        first = next((told for told in row.told if told[1] >= TENTH and told[0] < row.ended), None)
        if first is not None:
            at, share, left = first
            found.append(Told(row.name, round(row.ended - row.began), share, left, round(row.ended - at)))
    return found


def table(found: list[Told]) -> str:
    """Markdown."""
    rows = [
        f"| {item.name} | {item.took} | {item.share:.0%} | {item.told:.0f} | {item.was} | {item.off:+.0%} |"
        for item in found
    ]
    head = "| stage | seconds | done | told, s | then took, s | off |"
    return "\n".join([head, "|" + "---|" * 6, *rows, ""])


def main() -> None:
    """Print the table."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    place = Path(sys.argv[1])
    if place.is_file():
        found = of_status(place)
    else:
        found = [told for log in sorted(place.glob("*.log")) if (told := read(log)) is not None]
    if not found:
        sys.exit(
            f"nothing in {place} tells of time left: give the folder logs/ in the store of a run, or what "
            "kubectl get --watch printed of one on a cluster"
        )
    sys.stdout.write(table(found))


if __name__ == "__main__":
    main()
