"""A run as a card in a notebook."""

from __future__ import annotations

from musubitraining.loss_curve import smoothed, thinned
from musubitraining.report import OUTCOMES, charts, wording
from musubitraining.report.markup import Markup, joined, tag
from musubitraining.run_record import TrainingRun

# Read well on white and on black: a notebook says nothing of its colours.
ACCENT = "#158f82"
WRONG = "#d9534a"
MOST_PLACES = 300
MOST_OUTPUTS = 10


def html(run: TrainingRun) -> str:
    """The card: what came of it, how long it took, the loss, the outputs. It takes the notebook's own colours."""
    colour = {"done": ACCENT, "failed": WRONG}.get(run.outcome, "currentColor")
    name = run.trigger_word or run.output_name or "A training run"
    top = tag(
        "div",
        tag("b", tag("bdi", _short(name, 80)), style="font-size:1.15em"),
        " ",
        tag("span", OUTCOMES[run.outcome], style=f"color:{colour};font-weight:600;margin-left:.6em"),
    )
    rest = [top, tag("div", " · ".join(_facts(run)), style="opacity:.75;margin-top:.15em")]
    losses = [point.average_loss for point in run.loss]
    if losses:
        curve = smoothed(losses)
        places = thinned(losses, MOST_PLACES)
        line = charts.sparkline([curve[place] for place in places], width=320, height=44, colour=ACCENT)
        rest.append(tag("div", line, style="margin-top:.5em"))
    if run.error is not None:
        said = ": ".join(part for part in (run.error.type, run.error.message) if part)
        rest.append(
            tag("div", tag("bdi", _short(said, 400)), style=f"color:{WRONG};margin-top:.5em;white-space:pre-wrap")
        )
        if run.error.reason:
            rest.append(tag("div", tag("bdi", _short(run.error.reason, 400))))
    rest += [
        tag(
            "div",
            tag("code", tag("bdi", _short(output.path, 300))),
            f" {wording.size(output.bytes)}",
            style="margin-top:.3em",
        )
        for output in run.outputs[:MOST_OUTPUTS]
    ]
    style = (
        f"border-left:3px solid {colour};padding:.5em 0 .5em 1em;font-family:system-ui,sans-serif;"
        "font-variant-numeric:tabular-nums;overflow-wrap:anywhere"
    )
    return str(joined([tag("div", rest, style=style)]))


def _facts(run: TrainingRun) -> list[Markup | str]:
    facts: list[Markup | str] = []
    if run.seconds is not None:
        facts.append(wording.duration(run.seconds))
    if run.loss:
        last = run.loss[-1]
        facts += [wording.some(last.step, "step"), f"loss {wording.loss(last.average_loss)}"]
    if run.photos:
        facts.append(wording.some(len(run.photos), "photo"))
    if run.versions.gpu:
        facts.append(_short(run.versions.gpu, 60))
    if run.warnings:
        facts.append(wording.some(len(run.warnings), "warning"))
    return facts


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
