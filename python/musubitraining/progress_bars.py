"""Progress bars of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from musubitraining.run_events import Event


def of(progress: bool | None) -> Callable[[Event], None] | None:
    """What shows the events of a run as progress bars, or None where none are to be shown."""
    return None
