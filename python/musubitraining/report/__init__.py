"""A run as one HTML page that asks nothing of any network: its pictures, charts, style and script are in it."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from musubitraining.loss_curve import is_drawable, smoothed, thinned
from musubitraining.report import charts, wording
from musubitraining.report.markup import Markup, joined, tag
from musubitraining.report.pictures import Picture, Pictures
from musubitraining.run_record import Photo, Sample, Step, TrainingRun

HERE = Path(__file__).parent

# What a page has room for. The record has all of it.
MOST_PLACES = 1000
MOST_PHOTOS = 120
MOST_PHOTO_BYTES = 6 * 2**20
MOST_NAMES = 1000
MOST_SAMPLES = 60
MOST_SAMPLE_BYTES = 8 * 2**20
MOST_LINES = 300
MOST_CHARACTERS = 20_000

GIB_STEPS = [2.0**power for power in range(-4, 12)]

STEPS = {
    "dataset": "Dataset",
    "precache:latents": "Caching latents",
    "precache:text_encoder": "Caching text",
    "train": "Training",
    "convert:comfyui": "Conversion",
}
OUTCOMES = {"done": "Done", "failed": "Failed", "cancelled": "Cancelled", "running": "No end recorded"}


def html(run: TrainingRun) -> str:
    """The page."""
    style, script = (_own(name) for name in ("report.css", "report.js"))
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{_name(run)} · {OUTCOMES[run.outcome]} · MusubiTraining"),
        tag("style", Markup(style)),
    )
    body = tag("body", _header(run), tag("main", _sections(run)), _footer(run), tag("script", Markup(script)))
    return f'<!DOCTYPE html>\n<html lang="en">{head}{body}</html>\n'


def _own(name: str) -> str:
    return (HERE / name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _name(run: TrainingRun) -> str:
    return _bounded(run.trigger_word or run.output_name or "A training run", 200)


# --- The top


def _header(run: TrainingRun) -> Markup:
    told = [tag("span", tag("bdi", _bounded(one, 200))) for one in (run.versions.gpu, run.output_name) if one]
    return tag(
        "header",
        tag("p", "Training run", class_="kind"),
        tag("h1", tag("bdi", _name(run))),
        tag("p", tag("span", OUTCOMES[run.outcome], class_=f"outcome {run.outcome}"), told, _when(run), class_="under"),
        _error(run),
        tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in _figures(run)], class_="figures"),
    )


def _when(run: TrainingRun) -> Markup | None:
    began, ended = run.started_at, run.ended_at
    if began is None:
        return None
    day = f"{began.day} {began:%b %Y}, "
    if ended is None or ended - began < timedelta(minutes=1):
        return tag("span", day, _clock(began), " UTC")
    other_day = "" if ended.date() == began.date() else f"{ended.day} {ended:%b %Y}, "
    return tag("span", day, _clock(began), f" to {other_day}", _clock(ended), " UTC")


def _clock(at: datetime) -> Markup:
    return tag("time", f"{at:%H:%M}", datetime=at.isoformat())


def _error(run: TrainingRun) -> Markup | None:
    if run.outcome == "running":
        last = f" The last word came after {wording.duration(run.seconds)}." if run.seconds is not None else ""
        return tag(
            "p",
            "No end is recorded: it was still running when this was written, or it was killed.",
            last,
            class_="note",
        )
    error = run.error
    if error is None:
        return None
    where = [" in ", tag("bdi", _step_name(error.step))] if error.step else None
    return tag(
        "div",
        tag("p", tag("strong", tag("bdi", _bounded(error.type or "Error", 200))), where),
        tag("pre", tag("bdi", _bounded(error.message))) if error.message else None,
        tag("p", tag("bdi", _bounded(error.reason)), class_="reason") if error.reason else None,
        class_="wrong box",
    )


def _figures(run: TrainingRun) -> Iterable[tuple[str, str]]:
    """The few numbers that are looked for first."""
    if run.seconds is not None:
        yield "Time", wording.duration(run.seconds)
    wanted = run.arguments.get("max_train_steps")
    if run.loss:
        done = run.loss[-1].step
        wants_more = isinstance(wanted, int) and wanted > done
        yield "Steps", f"{done:,} of {wanted:,}" if wants_more else f"{done:,}"
        curve = [value for value in smoothed([point.average_loss for point in run.loss]) if is_drawable(value)]
        if curve:
            yield "Loss, smoothed", f"{wording.loss(curve[0])} → {wording.loss(curve[-1])}"
    if run.seconds_per_step is not None:
        yield "Speed", wording.rate(run.seconds_per_step)
    if run.gpu:
        yield "GPU memory, peak", wording.size(max(reading.used_bytes for reading in run.gpu))
    if run.photos:
        yield "Photos", f"{len(run.photos):,}"
    if run.outputs and run.outputs[-1].bytes is not None:
        yield "LoRA", wording.size(run.outputs[-1].bytes)


# --- The sections


def _sections(run: TrainingRun) -> list[Markup]:
    settings = [
        ("Warnings", _warnings(run)),
        ("Loss", _loss(run)),
        ("Time", _time(run)),
        ("GPU", _gpu(run)),
        ("Samples", _samples(run)),
        ("Photos", _photos(run)),
        ("Files", _files(run)),
        ("Settings", _settings(run)),
        ("Commands", _commands(run)),
        ("Versions", _versions(run)),
    ]
    return [
        tag("section", tag("h2", name, id=name.lower()), content, aria_labelledby=name.lower())
        for name, content in settings
        if content is not None
    ]


def _warnings(run: TrainingRun) -> Markup | None:
    if not run.warnings:
        return None
    items = [tag("li", tag("bdi", _bounded(warning, 2000))) for warning in run.warnings[:MOST_LINES]]
    return joined([tag("ul", items, class_="warnings"), _more(len(run.warnings) - MOST_LINES, "warning")])


def _loss(run: TrainingRun) -> Markup:
    if not run.loss:
        return tag("p", "No loss recorded: the training had not come to its first step.", class_="none")
    losses = [point.average_loss for point in run.loss]
    curve = smoothed(losses)
    places = thinned(losses, MOST_PLACES)
    number = sum(not is_drawable(loss) for loss in losses)
    bad = next((point.step for point in run.loss if not is_drawable(point.average_loss)), None)
    shown = [(point.step, loss) for point, loss in zip(run.loss, losses, strict=True) if is_drawable(loss)]
    lowest = min(shown, key=lambda one: one[1], default=None)
    told = "No loss was a number."
    if shown and lowest:
        told = (
            f"{wording.loss(shown[0][1])} at step {shown[0][0]:,}, {wording.loss(shown[-1][1])} at step "
            f"{shown[-1][0]:,}, lowest {wording.loss(lowest[1])} at step {lowest[0]:,}."
        )
    marks = [
        charts.Mark(place=step, name=f"{look} at step {step:,}", look=look)
        for look, steps in (
            ("checkpoint", {one.step for one in run.checkpoints}),
            ("sample", {one.step for one in run.samples}),
        )
        for step in sorted(step for step in steps if step is not None)[:MOST_LINES]
        if run.loss[0].step <= step <= run.loss[-1].step
    ]
    chart = charts.lines(
        name="loss-chart",
        title="Loss by training step",
        description=told,
        places=[run.loss[place].step for place in places],
        series=[
            charts.Series(name="loss", values=[losses[place] for place in places], look="raw"),
            charts.Series(name="smoothed", values=[curve[place] for place in places], look="smooth"),
        ],
        across=charts.Axis("step", lambda step: f"{step:,.0f}"),
        up=charts.Axis("loss", lambda loss: f"{loss:.4g}", wording.loss),
        marks=marks,
    )
    if run.learning_rate is not None:
        told += f" Learning rate {run.learning_rate:g}."
    names = {"raw": "average loss, as logged", "smooth": "smoothed", "checkpoint": "checkpoint", "sample": "sample"}
    keys = ["raw", "smooth", *dict.fromkeys(mark.look for mark in marks)]
    wrong = None
    if bad is not None:
        told_wrong = f"{wording.some(number, 'value')} could not be drawn (NaN or infinite), the first at step {bad:,}."
        wrong = tag("p", told_wrong, class_="wrong")
    return joined([tag("p", told), wrong, _key([(key, names[key]) for key in keys]), chart, _numbers(run, curve)])


def _key(keys: Sequence[tuple[str, str]]) -> Markup:
    def swatch(look: str) -> Markup:
        shape = {
            "checkpoint": tag("path", d="M8 1L13 6L8 11L3 6Z"),
            "sample": tag("circle", cx=8, cy=6, r=4),
        }.get(look, tag("path", d="M0 6H16", class_="line"))
        return tag("svg", shape, width=16, height=12, class_=look, aria_hidden="true")

    return tag(
        "div",
        tag("ul", [tag("li", swatch(look), name) for look, name in keys]),
        # An empty one is not announced, and takes its place from the start.
        tag("output", class_="readout"),
        class_="key",
    )


def _numbers(run: TrainingRun, curve: Sequence[float]) -> Markup:
    number = min(11, len(run.loss))
    places = sorted({round(place * (len(run.loss) - 1) / max(1, number - 1)) for place in range(number)})
    rows = [
        tag("tr", tag("td", f"{run.loss[place].step:,}"), tag("td", wording.loss(run.loss[place].average_loss)),
            tag("td", wording.loss(curve[place])), tag("td", wording.duration(run.loss[place].seconds)))
        for place in places
    ]  # fmt: skip
    head = tag("tr", [tag("th", name, scope="col") for name in ("Step", "Loss", "Smoothed", "After")])
    return tag(
        "details",
        tag("summary", "The loss in numbers"),
        tag("table", tag("thead", head), tag("tbody", rows), class_="numbers"),
    )


def _time(run: TrainingRun) -> Markup:
    if not run.steps:
        return tag("p", "No step recorded.", class_="none")
    spans, reached = [], 0.0
    for step in run.steps[:MOST_LINES]:
        start = reached
        if step.started_at is not None and run.started_at is not None:
            start = (step.started_at - run.started_at).total_seconds()
        end = start + step.seconds if step.seconds is not None else max(start, run.seconds or start)
        reached = max(reached, end)
        spans.append((step, start, end))
    whole = max(run.seconds or 0.0, reached)
    rows = [
        charts.Span(name=_step_name(step.step), start=start, end=end, told=_took(step, run), look=_look(step))
        for step, start, end in spans
    ]
    told = f"{wording.duration(run.seconds)} in all" if run.seconds is not None else "Where the time went"
    trained = sum(step.seconds or 0 for step in run.steps if step.step == "train")
    if trained and whole:
        told += f", {wording.per_hundred(trained, whole)} of it training"
    return joined([tag("p", f"{told}."), charts.timeline(rows, whole=whole)])


def _took(step: Step, run: TrainingRun) -> str:
    if step.seconds is None:
        return "runs" if run.outcome == "running" else "no end"
    return wording.duration(step.seconds) + (f", exit code {step.exit_code}" if step.exit_code else "")


def _look(step: Step) -> str:
    return "failed" if step.exit_code else "main" if step.step == "train" else ""


def _step_name(step: str) -> str:
    return STEPS.get(step) or _bounded(step, 100)


def _gpu(run: TrainingRun) -> Markup | None:
    readings = sorted(run.gpu, key=lambda reading: reading.seconds)
    if not readings:
        return None
    used = [float(reading.used_bytes) for reading in readings]
    places = thinned(used, MOST_PLACES)
    gib = 2.0**30
    totals = [reading.total_bytes for reading in readings if reading.total_bytes is not None]
    busy = [reading.utilisation_percent for reading in readings if reading.utilisation_percent is not None]
    told = f"At most {wording.size(int(max(used)))}"
    told += f" of {wording.size(max(totals))} in use" if totals else " in use"
    told += f"; {fmean(busy):.0f} % at work on average." if busy else "."
    series = [charts.Series(name="used", values=[used[place] / gib for place in places], look="smooth", filled=True)]
    if totals:
        total = [float(readings[place].total_bytes or "nan") / gib for place in places]
        series.append(charts.Series(name="of", values=total, look="raw"))
    chart = charts.lines(
        name="gpu-chart",
        title="GPU memory over time",
        description=told,
        places=[readings[place].seconds for place in places],
        series=series,
        across=charts.Axis("after", wording.clock, wording.duration, wording.CLOCK_STEPS),
        up=charts.Axis("GiB", lambda value: f"{value:.3g}", lambda value: f"{value:.1f} GiB", GIB_STEPS),
        from_zero=True,
    )
    keys = [("smooth", "memory in use, GiB"), *([("raw", "memory of the GPU")] if totals else [])]
    return joined([tag("p", told), _key(keys), chart])


# --- Pictures


def _samples(run: TrainingRun) -> Markup | None:
    if not run.samples:
        return None
    pictures = Pictures(most=MOST_SAMPLES, most_bytes=MOST_SAMPLE_BYTES, edge=448)
    groups = [list(group) for _, group in groupby(run.samples, key=lambda sample: (sample.step, sample.epoch))]
    shown = _spread(groups, MOST_SAMPLES)
    parts = []
    for group in shown:
        first = group[0]
        when = [f"Step {first.step:,}"] if first.step is not None else []
        when += [f"epoch {first.epoch:,}"] if first.epoch is not None else []
        sheet = tag("div", [_sample(sample, run, pictures) for sample in group], class_="sheet large")
        parts.append(tag("div", tag("h3", ", ".join(when) or "At an unknown step"), sheet))
    left = len(run.samples) - sum(len(group) for group in shown)
    return joined([parts, _more(left, "sample")])


def _spread(groups: list[list[Sample]], most: int) -> list[list[Sample]]:
    """The first group, the last one, and as many between them, evenly, as leave no more than so many samples."""
    longest = max(len(group) for group in groups)
    number = max(2, most // longest)
    if len(groups) > number:
        groups = [groups[round(place * (len(groups) - 1) / (number - 1))] for place in range(number)]
    return [group[:most] for group in groups]


def _sample(sample: Sample, run: TrainingRun, pictures: Pictures) -> Markup:
    folders = [folder for folder in (run.folders.output, run.folders.training, run.folder) if folder]
    path = Path(sample.path.replace("\0", ""))
    found = None
    for folder in folders:
        found = found or pictures.take(Path(folder) / path, Path(folder))
    words = [tag("bdi", _bounded(sample.prompt, 600))] if sample.prompt else [tag("bdi", _bounded(path.name, 200))]
    return _figure(found, sample.prompt or path.name, words)


def _photos(run: TrainingRun) -> Markup | None:
    if not run.photos:
        return None
    pictures = Pictures(most=MOST_PHOTOS, most_bytes=MOST_PHOTO_BYTES, edge=320)
    others = run.photos[MOST_PHOTOS:]
    changed = sum(bool(photo.done) for photo in run.photos)
    told = wording.some(len(run.photos), "photo")
    told += f", {changed:,} of them changed on the way in." if changed else ", none changed on the way in."
    origins = {photo.caption_from for photo in run.photos}
    if len(origins) == 1 and None not in origins:
        told += f" Captions: {_origin(*origins)}."
    sheet = [_photo(photo, run, pictures, len(origins) > 1) for photo in run.photos[:MOST_PHOTOS]]
    rest = None
    if others:
        names = [tag("li", tag("bdi", _bounded(photo.file, 200))) for photo in others[:MOST_NAMES]]
        rest = tag(
            "details",
            tag("summary", f"{wording.some(len(others), 'photo')} more, by name"),
            tag("ul", names, class_="names"),
            _more(len(others) - MOST_NAMES, "photo"),
        )
    return joined([tag("p", told), tag("div", sheet, class_="sheet"), rest])


def _origin(caption_from: str | None) -> str:
    words = {"trigger": "the trigger word", "file": "from files", "default_caption": "the default caption"}
    return words.get(caption_from or "", _bounded(caption_from, 60))


def _photo(photo: Photo, run: TrainingRun, pictures: Pictures, mixed: bool) -> Markup:
    found = None
    # A name with a folder in it is no name of a photo.
    if run.folder is not None and photo.file == Path(photo.file).name and "\0" not in photo.file:
        images = run.folder / "images"
        found = pictures.take(images / photo.file, images)
    facts = [f"{photo.width:,} × {photo.height:,}"] if photo.width and photo.height else []
    facts += [wording.size(photo.bytes)] if photo.bytes is not None else []
    if photo.caption_from and mixed:
        facts.append(f"caption: {_origin(photo.caption_from)}")
    words = [
        tag("span", tag("bdi", _bounded(photo.caption, 600)), class_="caption") if photo.caption else None,
        tag("span", tag("bdi", _bounded(photo.file, 200)), class_="file"),
        tag("span", " · ".join(facts), class_="facts") if facts else None,
        [tag("span", tag("bdi", _bounded(one, 300)), class_="change") for one in photo.done[:20]],
        [tag("span", tag("bdi", _bounded(one, 300)), class_="wrong") for one in photo.warnings[:20]],
    ]
    return _figure(found, photo.caption or photo.file, words)


def _figure(found: Picture | None, alternative: str, words: Sequence[object]) -> Markup:
    if found is None:
        picture = tag("div", "no picture", class_="frame")
    else:
        image = tag("img", src=found.address, alt=_bounded(alternative, 300), width=found.width, height=found.height)
        picture = tag("div", image, class_="frame")
    return tag("figure", picture, tag("figcaption", words))


# --- What it was told and what it made


def _files(run: TrainingRun) -> Markup | None:
    kinds = {"comfyui": "for ComfyUI", "lora": "as trained"}
    made = [(one.path, kinds.get(one.kind or "", one.kind or ""), one.bytes, one.sha256) for one in run.outputs]
    made += [
        (one.path, "checkpoint" + (f" of step {one.step:,}" if one.step is not None else ""), one.bytes, one.sha256)
        for one in run.checkpoints
        if one.path not in {output.path for output in run.outputs}
    ]
    if not made:
        return tag("p", "No file recorded.", class_="none") if run.outcome == "done" else None
    items = []
    for path, kind, size, sha256 in made[:MOST_LINES]:
        facts = " · ".join(
            fact for fact in (_bounded(kind, 60), wording.size(size) if size is not None else "") if fact
        )
        items.append(
            tag(
                "li",
                tag("strong", tag("bdi", _bounded(path.rpartition("/")[2], 300))),
                tag("span", facts, class_="facts"),
                tag("code", tag("bdi", _bounded(path, 1000))),
                tag("code", "SHA-256 ", _bounded(sha256, 80)) if sha256 else None,
            )
        )
    return joined([tag("ul", items, class_="files"), _more(len(made) - MOST_LINES, "file")])


def _settings(run: TrainingRun) -> Markup:
    groups = [
        ("Arguments of train()", run.arguments),
        ("Training options", run.options),
        ("Launch options", run.launch_options),
        ("Dataset options", run.dataset_options),
    ]
    parts = [tag("div", tag("h3", name), _pairs(found)) for name, found in groups if found]
    return joined(parts) if parts else tag("p", "No setting recorded.", class_="none")


def _versions(run: TrainingRun) -> Markup:
    names = {
        "musubitraining": "MusubiTraining",
        "musubi_tuner": "Musubi Tuner",
        "musubi_tuner_commit": "its commit",
        "python": "Python",
        "torch": "PyTorch",
        "accelerate": "accelerate",
        "driver": "NVIDIA driver",
        "gpu": "GPU",
    }
    return _pairs({name: getattr(run.versions, field) or "not recorded" for field, name in names.items()})


def _pairs(found: dict[str, Any]) -> Markup:
    # Those that take the whole width come last.
    pairs = sorted(found.items(), key=lambda pair: "\n" in str(pair[1]))
    rows = [
        tag("div", tag("dt", tag("bdi", _breakable(name))), tag("dd", _value(value)))
        for name, value in pairs[:MOST_LINES]
    ]
    return joined([tag("dl", rows, class_="settings"), _more(len(pairs) - MOST_LINES, "setting")])


def _breakable(name: str) -> list[Markup | str]:
    """A name that may be broken behind its underscores."""
    *words, last = _bounded(name, 100).split("_")
    return [*(part for word in words for part in (f"{word}_", tag("wbr"))), last]


def _value(value: object) -> Markup:
    if value is None or isinstance(value, bool):
        return tag("span", {None: "none", True: "yes", False: "no"}[value], class_="soft")
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value)) or "none"
    told = _bounded(str(value))
    return tag("pre", tag("bdi", told)) if "\n" in told else tag("bdi", told)


def _commands(run: TrainingRun) -> Markup | None:
    if not run.commands:
        return None
    return joined(
        tag("details", tag("summary", _step_name(step)), tag("pre", tag("bdi", _bounded(_command(argv)))))
        for step, argv in list(run.commands.items())[:MOST_LINES]
    )


def _command(argv: Sequence[str]) -> str:
    """As a shell takes it, each flag on a line of its own."""
    lines = [""]
    for word in argv:
        if word.startswith("--") and lines[-1]:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + shlex.quote(word)
    return " \\\n    ".join(lines)


def _footer(run: TrainingRun) -> Markup:
    version = f" {run.versions.musubitraining}" if run.versions.musubitraining else ""
    where = tag("bdi", _bounded(str(run.folder or run.folders.training or ""), 500))
    return tag(
        "footer",
        tag(
            "p",
            f"MusubiTraining{version}. The whole record is in ",
            tag("code", "run.json"),
            " in ",
            tag("code", where),
            ".",
        ),
    )


def _bounded(text: str | None, most: int = MOST_CHARACTERS) -> str:
    told = text or ""
    return told if len(told) <= most else f"{told[:most]}… ({len(told) - most:,} characters more)"


def _more(number: int, name: str) -> Markup | None:
    return tag("p", f"and {wording.some(number, name)} more", class_="none") if number > 0 else None
