"""The import path of TechTrash_MusubiTraining: every public name lives here."""

from musubitraining._native import GPUMonitor, MusubiTraining

__all__ = ["GPU", "GPUMonitor", "Models", "MusubiTraining", "logger"]

# What `typing` has, which is slow to import.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from musubitraining.deferred import GPU, Models, logger
else:

    def __getattr__(name):
        """Return a name that is not needed before it is used."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from musubitraining import deferred

        return getattr(deferred, name)


def __dir__() -> list[str]:
    return __all__
