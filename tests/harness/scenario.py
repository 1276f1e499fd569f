"""Runs one scenario in a process of its own, under either library, and writes down what happened.

`python scenario.py JSON`: imports nothing but the standard library, since the original's environment has nothing else.
"""

import __future__

import json
import logging
import os
import sys
import traceback
from typing import Any

# For the library alone: its steps must not find it in their environment.
TRAIN_OPTIONS = json.loads(os.environ.pop("TRAIN_OPTIONS", "{}"))


class Work:
    """What a scenario is given: its folders, the URL of its zip, and short ways to the library."""

    def __init__(self, root: str, url: str, toml: str, extra: dict[str, Any]) -> None:
        self.root = root
        self.url = url
        self.toml = toml
        self.extra = extra
        self.trigger_word = "my_trigger_word"

    def path(self, *parts: str) -> str:
        return os.path.join(self.root, *parts)

    def arguments(self, **changes: Any) -> dict[str, Any]:
        from musubitraining.main import Models

        return {
            "absolute_path_models": self.path("models"),
            "models_for_training": Models(),
            "absolute_path_training_folder": self.path("training"),
            "absolute_path_output": self.path("output"),
            "absolute_path_musubi_tuner": self.path("musubi"),
            **changes,
        }

    def trainer(self, kind: Any = None, **changes: Any) -> Any:
        from musubitraining.main import MusubiTraining

        return (kind or MusubiTraining)(**self.arguments(**changes))

    def train(self, trainer: Any = None, **options: Any) -> Any:
        options = TRAIN_OPTIONS | options
        return (trainer or self.trainer()).train(self.toml, self.url, self.trigger_word, **options)

    def attempt(self, call: Any) -> Any:
        """The result, or what was raised: for scenarios that try several things."""
        try:
            return {"result": call()}
        except Exception as error:
            return {"error": describe(error)}


def describe(error: BaseException) -> dict[str, Any]:
    requests = sys.modules.get("requests")
    command = getattr(error, "cmd", None)
    return {
        "type": type(error).__name__,
        "bases": [kind.__name__ for kind in type(error).__mro__],
        "message": str(error),
        "cause": type(error.__cause__).__name__ if error.__cause__ else None,
        "returncode": getattr(error, "returncode", None),
        "cmd": [os.fspath(word) for word in command] if isinstance(command, list) else command,
        "is_request_exception": bool(requests) and isinstance(error, requests.RequestException),
        "traceback": "".join(traceback.format_exception(type(error), error, error.__traceback__)),
    }


class _Notes(logging.Handler):
    """Every record, at once: the process may be killed."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.file = open(path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115

    def emit(self, record: logging.LogRecord) -> None:
        note = [record.levelname, record.getMessage(), record.threadName]
        self.file.write(json.dumps(note) + "\n")


def main() -> None:
    spec = json.loads(sys.argv[1])
    namespace: dict[str, Any] = {"__name__": "__main__", "__file__": __file__}
    # Annotations are not looked up: the names of the test module are not here.
    code = compile(spec["source"], "<scenario>", "exec", flags=__future__.annotations.compiler_flag)
    exec(code, namespace)
    # Classes that a scenario defines are pickled by reference to this module.
    sys.modules["__main__"].__dict__.update(namespace)
    logging.getLogger("musubitraining").addHandler(_Notes(spec["log"]))
    report: dict[str, Any] = {"result": None, "error": None, "executable": sys.executable}
    try:
        report["result"] = namespace[spec["name"]](Work(spec["root"], spec["url"], spec["toml"], spec["extra"]))
    except BaseException as error:
        report["error"] = describe(error)
    with open(spec["report"] + ".new", "w", encoding="utf-8") as file:
        json.dump(report, file, default=lambda value: f"<{type(value).__name__}> {value}")
    os.rename(spec["report"] + ".new", spec["report"])


if __name__ == "__main__":
    main()
