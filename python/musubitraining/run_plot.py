"""The loss of a run as a matplotlib figure."""

from __future__ import annotations

import io

from musubitraining.loss_curve import is_drawable, smoothed
from musubitraining.run_record import TrainingRun

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError('plot() needs matplotlib: pip install "TechTrash_MusubiTraining[plot]"') from error

ACCENT = "#0b7a6f"
GRAY = "#8a8f94"


class RunFigure(Figure):
    """A figure that shows itself in a notebook, whatever pyplot is set to."""

    def _repr_png_(self) -> bytes:
        """The picture."""
        picture = io.BytesIO()
        self.savefig(picture, format="png", dpi=110)
        return picture.getvalue()


def figure(run: TrainingRun) -> Figure:
    """The loss over the training steps, raw and smoothed, with checkpoints and samples."""
    picture = RunFigure(figsize=(8, 4.2), layout="constrained")
    axes = picture.add_subplot()
    steps = [point.step for point in run.loss]
    losses = [point.average_loss if is_drawable(point.average_loss) else float("nan") for point in run.loss]
    axes.plot(steps, losses, color=GRAY, linewidth=0.9, alpha=0.7, label="loss")
    axes.plot(steps, smoothed(losses), color=ACCENT, linewidth=2, label="smoothed")
    for label, marks, marker in (("checkpoint", run.checkpoints, "D"), ("sample", run.samples, "o")):
        at = sorted({mark.step for mark in marks if mark.step is not None})
        if at:
            # On the lower edge, whatever the loss is.
            axes.plot(
                at, [0] * len(at), marker, color=ACCENT, markersize=5, clip_on=False, label=label,
                transform=axes.get_xaxis_transform(), markerfacecolor="white" if marker == "o" else ACCENT,
            )  # fmt: skip
    if not run.loss:
        axes.text(0.5, 0.5, "no loss recorded", ha="center", va="center", color=GRAY, transform=axes.transAxes)
    else:
        axes.legend(frameon=False, loc="upper right")
    axes.set_xlabel("training step")
    axes.set_ylabel("average loss")
    axes.grid(axis="y", color=GRAY, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return picture
