"""Numbers as people read them."""

from __future__ import annotations

import math


def duration(seconds: float | None) -> str:
    """`34 ms`, `0.2 s`, `48 s`, `2 min 03 s`, `1 h 20 min`."""
    if seconds is None:
        return "–"
    if 0 < seconds < 0.095:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02} min"


# Between two times on an axis.
CLOCK_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


def clock(seconds: float) -> str:
    """`0:08`, `22:20`, `1:03:00`."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def size(count: int | None) -> str:
    """`812 B`, `86.2 KiB`, `1.4 GiB`."""
    if count is None:
        return "–"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def loss(value: float) -> str:
    """`0.731`."""
    if not math.isfinite(value):
        return "not a number"
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"


def some(number: int, name: str) -> str:
    """`1 photo`, `1,200 photos`."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def rate(seconds_per_step: float) -> str:
    """Of slow steps the seconds that each takes, of fast ones how many a second."""
    return (
        f"{seconds_per_step:.2f} s/step"
        if seconds_per_step >= 1 or seconds_per_step <= 0
        else f"{1 / seconds_per_step:.1f} steps/s"
    )


def per_hundred(part: float, whole: float) -> str:
    """`93 %`, `< 1 %`."""
    share = 100 * part / whole if whole > 0 else 0.0
    return "< 1 %" if 0 < share < 1 else f"{share:.0f} %"
