"""A curve to look at: smoothed, and thinned to what a screen can show."""

import math
from collections.abc import Sequence

from musubitraining.run_fields import LARGEST


def is_drawable(value: float) -> bool:
    """Whether a value can have its place in a chart: neither NaN nor so large that arithmetic would overflow."""
    return abs(value) <= LARGEST


def smoothed(values: Sequence[float]) -> list[float]:
    """An exponential moving average over about a twentieth of the values, unbiased at the beginning.

    What cannot be drawn stays as it is, and the average goes on behind it.
    """
    keep = 1 - 2 / (max(2.0, len(values) / 20) + 1)
    average, weight, result = 0.0, 0.0, []
    for value in values:
        if is_drawable(value):
            average = keep * average + (1 - keep) * value
            weight = keep * weight + (1 - keep)
            result.append(average / weight)
        else:
            result.append(math.nan)
    return result


def thinned(values: Sequence[float], most: int) -> list[int]:
    """The places of some `most` values that have the shape of all of them: no peak is lost, nor a gap.

    Of each of equal stretches the first, the lowest, the highest and the last one stay, and the first not drawable.
    """
    if len(values) <= most:
        return list(range(len(values)))
    stretches = max(1, most // 5)
    kept: set[int] = set()
    for stretch in range(stretches):
        places = range(stretch * len(values) // stretches, (stretch + 1) * len(values) // stretches)
        drawable = [place for place in places if is_drawable(values[place])]
        kept.update((places[0], places[-1]))
        if drawable:
            kept.update((min(drawable, key=values.__getitem__), max(drawable, key=values.__getitem__)))
        if len(drawable) < len(places):
            kept.add(next(place for place in places if not is_drawable(values[place])))
    return sorted(kept)
