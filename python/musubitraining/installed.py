"""What an interpreter has installed, by metadata alone: nothing of it is imported.

`python installed.py JSON`, with the distributions and the packages that are asked for: run by the interpreter that is
to run Musubi Tuner's scripts, in their environment. Standard library alone, any Python from 3.8.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata, util


def version_of(distribution: str) -> str | None:
    """Return the version of a distribution, or None where there is none that can be read."""
    try:
        return metadata.version(distribution)
    except Exception:
        return None


def place_of(package: str) -> str | None:
    """Return the folder or file of a top-level package, or None where there is none."""
    try:
        spec = util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    places = [*(spec.submodule_search_locations or ()), spec.origin]
    return next((place for place in places if place), "built in")


def main() -> None:
    """Print one line of JSON."""
    # This file's folder: a script of Musubi Tuner's does not have it.
    del sys.path[0]
    distributions, packages = json.loads(sys.argv[1])
    answer = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": {name: version for name in distributions if (version := version_of(name)) is not None},
        "modules": {name: place for name in packages if (place := place_of(name)) is not None},
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
