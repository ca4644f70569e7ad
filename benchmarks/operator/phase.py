"""What the operator's own metrics, and the player, tell of one phase."""

import statistics
import time
import urllib.request
from collections import Counter
from typing import Any

from player import Player
from prometheus_client.parser import text_string_to_metric_families

METRICS_PORT = 18081

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Phase:
    """What happens from its making to its result."""

    def __init__(self, name: str, player: Player) -> None:
        self._name, self._player = name, player
        self._begun = time.monotonic()
        self._first = scrape()
        self._transitions = Counter(player.transitions)
        self._writes = player.status_writes
        self._lags = len(player.lags)
        self._memory: list[tuple[float, float]] = []
        self._depth: list[float] = []
        self._busy: list[float] = []

    def sample(self) -> None:
        now = scrape()
        self._memory.append(
            (time.monotonic() - self._begun, value(now, "process_resident_memory_bytes") / 1e6)
        )
        self._depth.append(value(now, "trenchcoat_queue_depth"))
        # One GPU for each Cria and evaluation, eight for collect and stitch.
        stages = Counter(self._player.running.values())
        self._busy.append(stages["cria"] + stages["evaluate"] + 8 * (stages["collect"] + stages["stitch"]))

    def result(self, gpus: int | None) -> dict[str, Any]:
        last, seconds = scrape(), time.monotonic() - self._begun

        def grown(name: str, **labels: str) -> float:
            return total(last, name, **labels) - total(self._first, name, **labels)

        transitions = sum((self._player.transitions - self._transitions).values())
        requests = grown("trenchcoat_api_requests_total")
        by_kind = Counter(
            {
                f"{dict(labels)['verb']} {dict(labels)['resource']}": count
                - self._first.get((name, labels), 0.0)
                for (name, labels), count in last.items()
                if name == "trenchcoat_api_requests_total" and dict(labels)["code"].startswith("2")
            }
        )
        lags = self._player.lags[self._lags :]
        thirds = [item[1] for item in self._memory]
        third = max(1, len(thirds) // 3)
        return {
            "phase": self._name,
            "seconds": round(seconds, 1),
            "reconciles": int(grown("trenchcoat_reconcile_duration_seconds_count")),
            "reconcile_p50": self._quantile(last, 0.50),
            "reconcile_p95": self._quantile(last, 0.95),
            "reconcile_p99": self._quantile(last, 0.99),
            "errors": int(grown("trenchcoat_reconcile_errors_total")),
            "transitions": transitions,
            "status_writes": self._player.status_writes - self._writes,
            "api_requests": int(requests),
            "api_requests_per_transition": round(requests / transitions, 2) if transitions else None,
            "api_requests_per_second": round(requests / seconds, 1),
            "api_requests_by_kind": {name: int(count) for name, count in by_kind.most_common() if count},
            "store_reads": int(grown("trenchcoat_store_read_duration_seconds_count")),
            "cpu_cores": round(grown("process_cpu_seconds_total") / seconds, 3),
            "queue_depth_p95": percentile(self._depth, 0.95),
            "gpus_busy_mean": round(statistics.mean(self._busy), 1) if gpus else None,
            "gpus_busy_p95": percentile(self._busy, 0.95) if gpus else None,
            "pod_lag_p95": round(percentile(lags, 0.95), 2) if lags else None,
            "memory_mb_max": round(max(thirds), 1),
            "memory_mb_thirds": [
                round(statistics.median(part), 1)
                for part in (thirds[:third], thirds[third:-third], thirds[-third:])
                if part
            ],
            "memory_mb": [
                [round(at), round(size, 1)] for at, size in self._memory[:: max(1, len(self._memory) // 60)]
            ],
        }

    def _quantile(self, last: Series, share: float) -> float | None:
        """Interpolated within the histogram's bucket, as Prometheus does."""
        name = "trenchcoat_reconcile_duration_seconds_bucket"
        counts = sorted(
            (float(dict(labels)["le"]), count - self._first.get((key, labels), 0.0))
            for (key, labels), count in last.items()
            if key == name
        )
        rank = share * counts[-1][1]
        if not rank:
            return None
        below, under = 0.0, 0.0
        for bound, count in counts:
            if count >= rank:
                if bound == float("inf"):
                    return below
                return round(below + (bound - below) * (rank - under) / (count - under), 4)
            below, under = bound, count
        raise AssertionError("the last bucket holds all")


def scrape() -> Series:
    """All series of the operator."""
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(series: Series, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(count for (key, found), count in series.items() if key == name and wanted <= set(found))


def value(series: Series, name: str) -> float:
    return series[(name, ())]


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
