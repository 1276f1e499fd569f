"""A process with a library imported and `faults.c` preloaded, which forks itself for every run.

`python faults_host.py FOLDER`, a job a line on stdin, how it ended a line on stdout. Imports nothing but the standard
library, since the original's environment has nothing else.
"""

import ctypes
import json
import logging
import os
import signal
import sys
from contextlib import suppress
from typing import Any


class _Log(logging.Handler):
    def __init__(self, lines: list[list[str]]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append([record.levelname, record.getMessage()])


def run(root: str, job: dict[str, str], kind: int, step: int, error: int) -> dict[str, Any]:
    from musubitraining.main import Models, MusubiTraining, logger

    report: dict[str, Any] = {"log": []}
    logger.addHandler(_Log(report["log"]))
    logger.propagate = False

    class Trainer(MusubiTraining):
        def _run_cmd(self, step, cmd, *, cwd):
            with open(cmd[cmd.index("--base_weights") + 1], "rb") as adapter:
                report["adapter"] = adapter.read().hex()

    folders = [os.path.join(root, name) for name in ("models", "output", "musubi")]
    trainer = Trainer(folders[0], Models(), job["training"], folders[1], folders[2])
    notes = os.fsencode(os.path.join(root, "steps"))
    ctypes.CDLL(None).faults_arm(os.fsencode(job["place"]), notes, kind, ctypes.c_long(step), error)
    try:
        if job["url"]:
            trainer._prepare_dataset(job["toml"], job["url"], "new word")
        else:
            trainer._launch_training(os.path.join(job["training"], "dataset.toml"))
    except Exception as raised:
        report["error"] = {
            "bases": [kind.__name__ for kind in type(raised).__mro__],
            "errno": getattr(raised, "errno", None),
            "message": str(raised),
        }
    return report


def main() -> None:
    # Imported once, here, and forked with all the rest.
    import musubitraining.main  # noqa: F401

    with suppress(ImportError):
        import requests  # noqa: F401

    root = sys.argv[1]
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            report = run(root, *json.loads(line))
            with open(os.path.join(root, "report"), "w") as file:
                json.dump(report, file)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
