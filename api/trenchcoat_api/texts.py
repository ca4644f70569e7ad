"""Numbers and times as people read them."""

from datetime import UTC, datetime
from decimal import Decimal


def timestamp(moment: datetime | None) -> str:
    """RFC 3339 with whole seconds, as the API server writes it; empty for none."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if moment else ""


def duration(seconds: float) -> str:
    """Such as 45s, 4m10s, 2h05m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"


def percent(fraction: float) -> str:
    """Whole percent, rounded down, so that 100% means done."""
    return f"{int(fraction * 100)}%"


def size(count: int) -> str:
    """Bytes in decimal units."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


_UNITS = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BINARY = {f"{unit.upper()}i": 1024**power for power, unit in enumerate("kMGTP", 1)}


def fault(error: Exception) -> str:
    """What to tell of an error: of one of the system the file that it is about, and no number."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def quantity(text: str) -> int:
    """Bytes of a quantity as Kubernetes writes it, such as 512Mi or 64G (`strings.Bytes`)."""
    for unit, factor in {**_BINARY, **_UNITS}.items():
        if text.endswith(unit):
            return int(Decimal(text.removesuffix(unit)) * factor)
    return int(Decimal(text))
