"""Charts in SVG that fit any width: lines are stretched with the box they are in, words and marks are not."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from musubitraining.loss_curve import is_drawable
from musubitraining.report.markup import Markup, tag

HEIGHT = 240
# Of the words under the chart, and above its highest line.
FOOT = 24
HEAD = 18
# The inside of the box that is stretched.
INSIDE = 1000


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line: `values` at the chart's places, NaN for a gap; `look` is its class in the style sheet."""

    name: str
    values: Sequence[float]
    look: str
    filled: bool = False


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Something that happened at a place."""

    place: float
    name: str
    look: str


@dataclass(frozen=True)
class Axis:
    """How the values of an axis are told, on it and where one is pointed at, and the steps between those on it."""

    name: str
    tell: Callable[[float], str]
    tell_exactly: Callable[[float], str] | None = None
    steps: Sequence[float] = ()


def ticks(least: float, most: float, number: int, steps: Sequence[float] = ()) -> list[float]:
    """About so many round values from `least` to `most`, the first not above and the last not below them.

    Args:
        least: the lowest value.
        most: the highest value.
        number: how many steps there should be.
        steps: between two of them, rising; by default 1, 2, 2.5 and 5 times a power of ten.
    """
    raw = max((most - least or abs(most) or 1.0) / number, 1e-290)
    power = 10.0 ** math.floor(math.log10(raw))
    decimal = [power * factor for factor in (1, 2, 2.5, 5, 10)]
    step = next((step for step in (*steps, *decimal) if step >= raw * 0.999), 10 * power)
    first = math.floor(least / step + 1e-9)
    last = max(first + 1, math.ceil(most / step - 1e-9))
    return [place * step for place in range(first, last + 1)]


def lines(
    *,
    title: str,
    description: str,
    places: Sequence[float],
    series: Sequence[Series],
    across: Axis,
    up: Axis,
    marks: Sequence[Mark] = (),
    from_zero: bool = False,
    name: str,
) -> Markup:
    """A chart of lines over a common axis.

    Args:
        title: what it is, for those who do not see it.
        description: what is to be seen, for the same.
        places: on the axis across, rising.
        series: the lines, each as long as `places`.
        across: the axis of the places.
        up: the axis of the values.
        marks: what is marked on the axis across.
        from_zero: begin the axis up at zero.
        name: an identifier in the document.
    """
    shown = [value for one in series for value in one.values if is_drawable(value)]
    heights = ticks(0.0 if from_zero else min(shown, default=0.0), max(shown, default=1.0), 4, up.steps)
    low, high = heights[0], heights[-1]
    left, right = places[0], places[-1]

    def x(place: float) -> float:
        return (place - left) / ((right - left) or 1)

    def y(value: float) -> float:
        return HEAD + (HEIGHT - HEAD - FOOT) * (1 - (value - low) / ((high - low) or 1))

    labels = [tag("text", up.tell(value), x="100%", dx=-8, y=f"{y(value) + 4:.1f}") for value in heights]
    grid = [tag("line", x1=0, x2="100%", y1=f"{y(value):.1f}", y2=f"{y(value):.1f}") for value in heights]
    drawn = [_line(one, [x(place) * INSIDE for place in places], y, y(low)) for one in series]
    gaps = [
        tag("rect", x=f"{100 * x(start):.2f}%", width=f"{max(0.4, 100 * (x(end) - x(start))):.2f}%", y=HEAD,
            height=HEIGHT - HEAD - FOOT)
        for start, end in _gaps(places, series[0].values)
    ]  # fmt: skip
    picture = tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", description, id=f"{name}-desc"),
        tag("g", grid, class_="grid"),
        tag("g", gaps, class_="gap"),
        tag("svg", drawn, viewBox=f"0 0 {INSIDE} {HEIGHT}", preserveAspectRatio="none", width="100%", height=HEIGHT),
        tag("g", [_mark(mark, x(mark.place)) for mark in marks], class_="marks"),
        tag("g", _words_across(left, right, x, across), class_="across"),
        tag("g", tag("line", y1=HEAD, y2=HEIGHT - FOOT), [tag("circle", r=4, class_=one.look) for one in series],
            class_="cursor", visibility="hidden"),
        role="img", aria_labelledby=f"{name}-title {name}-desc", width="100%", height=HEIGHT, class_="area",
    )  # fmt: skip
    values = tag("script", _values(places, series, x, y, across, up), type="application/json")
    box = tag(
        "div", picture, values, class_="plot", tabindex=0, role="group", aria_label=f"{title}. Arrow keys read values."
    )
    return tag(
        "div",
        tag("svg", tag("g", labels), width="100%", height=HEIGHT, aria_hidden="true", class_="up"),
        box,
        class_="chart",
    )


def _gaps(places: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    gaps = []
    for drawable, stretch in itertools.groupby(zip(places, values, strict=True), key=lambda one: is_drawable(one[1])):
        if not drawable:
            missing = [place for place, _ in stretch]
            gaps.append((missing[0], missing[-1]))
    return gaps


def _line(one: Series, across: Sequence[float], y: Callable[[float], float], floor: float) -> Markup:
    pieces = []
    places = zip(across, one.values, strict=True)
    for drawable, stretch in itertools.groupby(places, key=lambda place: is_drawable(place[1])):
        if not drawable:
            continue
        points = [(place, y(value)) for place, value in stretch]
        if len(points) == 1:
            # A line of no length is drawn as a dot where its ends are round.
            points *= 2
        path = "M" + "L".join(f"{place:.1f} {height:.1f}" for place, height in points)
        if one.filled:
            closed = f"{path}L{points[-1][0]:.1f} {floor:.1f}L{points[0][0]:.1f} {floor:.1f}Z"
            pieces.append(tag("path", d=closed, class_="filled"))
        pieces.append(tag("path", d=path, class_="line", vector_effect="non-scaling-stroke"))
    return tag("g", pieces, class_=one.look)


def _mark(mark: Mark, place: float) -> Markup:
    """Samples stand on the axis, checkpoints above the highest line: both may be of one step."""
    is_sample = mark.look == "sample"
    shape = tag("circle", r=4) if is_sample else tag("path", d="M0 -5L5 0L0 5L-5 0Z")
    height = HEIGHT - FOOT if is_sample else HEAD - 8
    # What overflows a nested picture is shown only where it says so.
    inside = tag("svg", tag("title", mark.name), shape, x=f"{100 * place:.2f}%", y=height, overflow="visible")
    return tag("g", inside, class_=mark.look)


def _words_across(left: float, right: float, x: Callable[[float], float], axis: Axis) -> list[Markup]:
    inner = [place for place in ticks(left, right, 4, axis.steps) if 0.12 < x(place) < 0.86]
    words = [(left, "start"), *((place, "middle") for place in inner), *([(right, "end")] if right > left else [])]
    return [
        tag("text", axis.tell(place), x=f"{100 * x(place):.2f}%", y=HEIGHT - 4, text_anchor=anchor)
        for place, anchor in words
    ]


def _values(
    places: Sequence[float],
    series: Sequence[Series],
    x: Callable[[float], float],
    y: Callable[[float], float],
    across: Axis,
    up: Axis,
) -> Markup:
    """What is told where somebody points: `[place in percent, word, [height or null, word] …]` for each place."""
    tell = up.tell_exactly or up.tell
    rows = [
        [
            round(100 * x(place), 2),
            f"{across.name} {(across.tell_exactly or across.tell)(place)}",
            *(
                [round(y(value), 1) if is_drawable(value) else None, f"{one.name} {tell(value)}"]
                for one, value in ((one, one.values[number]) for one in series)
            ),
        ]
        for number, place in enumerate(places)
    ]
    # The end of a script element, and nothing else, must not be found in a script element.
    return Markup(json.dumps(rows, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def sparkline(values: Sequence[float], *, width: int, height: int, colour: str) -> Markup:
    """A line without axes."""
    shown = [value for value in values if is_drawable(value)]
    if not shown:
        return Markup("")
    low, high = min(shown), max(shown)

    def y(value: float) -> float:
        return 2 + (height - 4) * (1 - (value - low) / (high - low or 1))

    across = [place * width / max(1, len(values) - 1) for place in range(len(values))]
    series = Series(name="loss", values=values, look="loss")
    line = _line(series, across, y, height)
    return tag(
        "svg", line, role="img", aria_label="the loss", viewBox=f"0 0 {width} {height}", width=width, height=height,
        fill="none", stroke=colour, stroke_width=1.5, stroke_linejoin="round", stroke_linecap="round",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Span:
    """A row of a timeline; without an end it goes on."""

    name: str
    start: float
    end: float
    told: str
    look: str = ""


def timeline(spans: Sequence[Span], *, whole: float) -> Markup:
    """A bar for each span, where it lies in the whole."""
    rows = []
    for span in spans:
        start = min(100.0, max(0.0, 100 * span.start / whole)) if whole > 0 else 0.0
        share = min(100 - start, max(0.0, 100 * (span.end - span.start) / whole)) if whole > 0 else 0.0
        # A step that took next to nothing is still there, at the end too.
        share = max(share, 0.5)
        start = min(start, 100 - share)
        bar = tag("rect", x=f"{start:.3f}%", width=f"{share:.3f}%", y=3, height=12, rx=2)
        back = tag("rect", x=0, width="100%", y=3, height=12, rx=2, class_="back")
        rows.append(
            tag(
                "tr",
                tag("th", span.name, scope="row"),
                tag(
                    "td", tag("svg", back, bar, width="100%", height=18, aria_hidden="true"), class_=f"bar {span.look}"
                ),
                tag("td", span.told, class_="number"),
            )
        )
    head = tag("tr", [tag("th", name, scope="col") for name in ("Step", "When", "Took")])
    columns = tag("colgroup", [tag("col", class_=name) for name in ("name", "bar", "number")])
    return tag("table", columns, tag("thead", head, class_="unseen"), tag("tbody", rows), class_="timeline")
