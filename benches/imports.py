"""What `import musubitraining.main` costs over a Python that does nothing, and the size of the wheel."""

from collections.abc import Iterator
from statistics import median

from measure import Bench, Contender, Sample, Table, interleaved, spread

ROUNDS = 31
NAMES = "from musubitraining.main import GPU, GPUMonitor, Models, MusubiTraining, logger"
IMPORTS = {
    "original": ("original", "import musubitraining.main"),
    "this library": ("this library", "import musubitraining.main"),
    "original, every name": ("original", NAMES),
    "this library, every name": ("this library", NAMES),
}


def tables(bench: Bench) -> Iterator[Table]:
    """Wall and peak memory of the import, as what they add to `python -c pass` of the same environment."""
    libraries = {"original": bench.original, "this library": bench.ours}
    contenders = [
        Contender(f"{name}: {code}", [str(python), "-c", code])
        for name, python in libraries.items()
        for code in ("pass", "import musubitraining.main", NAMES)
    ]
    # The first of each reads from the disk and writes .pyc files.
    interleaved(contenders, 1)
    samples = interleaved(contenders, ROUNDS)
    added = {
        row: _added(samples[f"{library}: {code}"], samples[f"{library}: pass"])
        for row, (library, code) in IMPORTS.items()
    }
    rows = []
    for name, costs in added.items():
        against = [one.seconds / other.seconds for one, other in zip(costs, added["original"], strict=True)]
        milliseconds = median(cost.seconds for cost in costs) * 1e3
        memory = median(cost.peak_bytes for cost in costs) / 1e6
        rows.append([name, *spread(against), f"{milliseconds:.1f}", f"{memory:.1f}"])
    yield Table(
        "import musubitraining.main",
        f"Each over `python -c pass` of the same round, in fresh processes; medians of {ROUNDS} interleaved rounds.",
        ["", "wall, × original", "min–max", "wall, ms", "peak memory, MB"],
        rows,
    )
    if bench.wheel:
        size = bench.wheel.stat().st_size / 1e6
        yield Table("The wheel", "As pip downloads it.", ["", "MB"], [[bench.wheel.name, f"{size:.2f}"]])


def _added(samples: list[Sample], bare: list[Sample]) -> list[Sample]:
    return [
        Sample(one.seconds - other.seconds, one.cpu_seconds - other.cpu_seconds, one.peak_bytes - other.peak_bytes, "")
        for one, other in zip(samples, bare, strict=True)
    ]
