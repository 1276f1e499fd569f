"""`MusubiTraining.train` for programs that have an event loop."""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from musubitraining._native import MusubiTraining

# Between two requests to a run that has been cancelled before it had begun.
_AGAIN = 0.05


async def train_async(trainer: MusubiTraining, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> str:
    """Train in a thread; a cancelled caller leaves when nothing of the run is left."""
    context = contextvars.copy_context()
    call = partial(context.run, trainer.train, *args, **(kwargs or {}))
    executor = ThreadPoolExecutor(1, thread_name_prefix="musubitraining")
    try:
        run = asyncio.get_running_loop().run_in_executor(executor, call)
        try:
            return await asyncio.shield(run)
        except asyncio.CancelledError:
            while not run.done():
                trainer.cancel()
                await _settled(run)
            if not run.cancelled():
                # Its end is known, and is not what the caller is told.
                run.exception()
            raise
    finally:
        executor.shutdown(wait=False)


async def _settled(run: asyncio.Future[str]) -> None:
    """Wait a moment for the run, whatever else is asked of this task meanwhile."""
    try:
        await asyncio.wait([run], timeout=_AGAIN)
    except asyncio.CancelledError:
        return
