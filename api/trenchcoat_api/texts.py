"""Numbers and times as people read them."""

from datetime import UTC, datetime


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
