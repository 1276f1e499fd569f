"""What `train` and `plan` are told: from flags, from a TOML file, from the record of a run."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from musubitraining import DatasetLimits, MusubiTraining, dataset_toml
from musubitraining._native import Models
from musubitraining.cli.arguments import SETTING
from musubitraining.cli.failure import UsageError
from musubitraining.dataset_options import DatasetOptions
from musubitraining.training_options import LaunchOptions, PresetName, TrainingOptions

# Settings by table, as the TOML file has them; those outside of a table are in "".
Values = dict[str, dict[str, Any]]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One thing that can be said, by a flag or in the TOML file.

    Attributes:
        table: of the TOML file, "" outside of all.
        name: in it.
        flag: of the command line.
        about: the help.
        read: a word of the command line to the value.
        metavar: what a word is called in the help.
        is_switch: it is true or false, and takes no word.
        takes_several: it takes as many words as there are.
        is_optional: the word "none" says that there is no value.
        choices: the words that it takes, where these are all.
    """

    table: str
    name: str
    flag: str
    about: str
    read: Callable[[str], Any] = str
    metavar: str = "TEXT"
    is_switch: bool = False
    takes_several: bool = False
    is_optional: bool = False
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What it is called in what has been parsed."""
        return f"{self.table}.{self.name}"

    def value_of(self, found: Any) -> Any:
        """What flags, or the TOML file, say, as the library takes it."""
        if self.is_optional and found in ("none", ["none"]):
            return None
        if isinstance(found, list):
            # "all" stands for itself where it may, and one pixel number for a square.
            return found[0] if found == ["all"] or (self.name == "resolution" and len(found) == 1) else tuple(found)
        return found


@dataclass(frozen=True, kw_only=True)
class Group:
    """Settings that stand together in the help."""

    title: str
    settings: tuple[Setting, ...]


def _paragraphs(docstring: str | None, section: str) -> dict[str, str]:
    """What the section of a docstring says of each name."""
    text = inspect.cleandoc(docstring or "")
    found = re.search(rf"^{section}:\n((?:[ \t]+.*\n?|\n)+)", text, re.MULTILINE)
    about: dict[str, str] = {}
    name = ""
    for line in found[1].splitlines() if found else ():
        begins = re.match(r" {4}(\w+)(?: \(.*?\))?: (.*)", line)
        if begins:
            name, about[begins[1]] = begins[1], begins[2]
        elif name:
            about[name] += f" {line.strip()}"
    return {name: said.strip() for name, said in about.items()}


def _number_or_word(word: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(word: str) -> Any:
        return word if word == "none" else kind(word)

    # It is in what argparse says of a word that cannot be read.
    read.__name__ = kind.__name__
    return read


def _taken(annotation: Any) -> dict[str, Any]:
    """How a value of this type is said on a command line."""
    is_union = get_origin(annotation) in (Union, UnionType)
    kinds = [kind for kind in (get_args(annotation) if is_union else (annotation,)) if kind is not type(None)]
    is_optional = is_union and type(None) in get_args(annotation)
    origins = [get_origin(kind) for kind in kinds]
    taken: dict[str, Any] = {"is_optional": is_optional}
    if bool in kinds:
        return {"is_switch": True}
    if Sequence in origins:
        has_numbers = get_args(kinds[origins.index(Sequence)]) == (int,)
        return taken | {"takes_several": True, **({"read": _number_or_word, "metavar": "N"} if has_numbers else {})}
    if os.PathLike in origins:
        return taken | {"metavar": "PATH"}
    if Literal in origins:
        words = get_args(kinds[origins.index(Literal)])
        return taken | {"choices": (*words, "none") if is_optional else words}
    if str in kinds:
        return taken | ({"read": _number_or_word} if float in kinds else {})
    (kind,) = kinds
    return taken | {"read": _or_none(kind) if is_optional else kind, "metavar": "N" if kind is int else "X"}


def _for_command_line(about: str, names: Iterable[str]) -> str:
    """What a docstring says, for one who reads of flags."""
    about = re.sub(r" ?\(bool(?:, default (?:True|False))?\)", "", about).strip(" .,;:")
    known = {"max_train_steps", *names}

    def as_flag(found: re.Match[str]) -> str:
        return _flag(found[1]) + found[2].lower() if found[1] in known else found[0]

    return re.sub(r"`(\w+)((?:=\w+)?)`", as_flag, about).replace("None", "none")


def _flag(name: str) -> str:
    return f"--{name.lower().replace('_', '-')}"


def _of_dataclass(kind: type[Any], table: str, flags: Mapping[str, str] | None = None) -> dict[str, Setting]:
    """A setting for each field, in the order of the docstring."""
    hints = get_type_hints(kind)
    about = _paragraphs(kind.__doc__, "Attributes")
    order = list(about)
    names = sorted((one.name for one in fields(kind)), key=lambda name: order.index(name) if name in order else -1)
    found = {}
    for name in names:
        taken = _taken(hints[name])
        if name == "extra_args":
            # One word of a shell, which may begin with "--".
            taken = {"read": shlex.split, "metavar": "WORDS"}
        found[name] = Setting(
            table=table,
            name=name,
            flag=(flags or {}).get(name, _flag(name)),
            about=_for_command_line(about.get(name, ""), order),
            **taken,
        )
    return found


def _of_function(function: Callable[..., Any], table: str, leave_out: Iterable[str]) -> dict[str, Setting]:
    """A setting for each parameter by keyword whose default says of which type it is."""
    about = _paragraphs(function.__doc__, "Args")
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or name in leave_out:
            continue
        kind = type(parameter.default)
        default = "" if kind in (bool, tuple) else f" ({parameter.default})"
        taken = {"takes_several": True, "read": int, "metavar": "N"} if kind is tuple else _taken(kind)
        said = re.sub(r"[,;] default [^.;]+", "", _for_command_line(about.get(name, ""), about))
        found[name] = Setting(table=table, name=name, flag=_flag(name), about=said + default, **taken)
    return found


# Where a new heading stands among the training options, which are many.
TRAINING_HEADINGS = {
    "attention": "training: precision and memory",
    "timestep_sampling": "training: noise levels",
    "optimizer_type": "training: optimizer and learning rate",
    "network_module": "training: what is trained",
    "text_encoder_batch_size": "training: caching, loading, compiling",
    "save_every_n_steps": "training: saving and resuming",
    "sample_prompts": "training: sample images",
    "logging_dir": "training: logs",
    "training_comment": "training: metadata of the LoRA",
    "ddp_timeout": "training: several processes, further words",
}

# What is said by other settings, or is the caller's.
_NOT_SAID = ("options", "launch_options", "dataset_options", "on_event", "progress")


def groups() -> list[Group]:
    """Everything that `train` and `plan` can be told."""

    def top(name: str, about: str, metavar: str = "PATH", flag: str | None = None) -> Setting:
        return Setting(table="", name=name, flag=flag or _flag(name), about=about, metavar=metavar)

    models = {"base_weights": "--base-weights-file"}
    training = _of_dataclass(TrainingOptions, "options")
    preset = Setting(
        table="options",
        name="preset",
        flag="--preset",
        about="settings to begin with, by the GPU's memory or whose they are; other flags change them",
        choices=get_args(PresetName),
    )
    file = Setting(
        table="dataset",
        name="file",
        flag="--dataset-toml",
        metavar="FILE",
        about="Musubi Tuner's dataset configuration, in the place of all of these",
    )
    found = [
        Group(
            title="where",
            settings=(
                top("models", "the folder of the weight files", "DIR"),
                top("training_folder", "where the dataset is built and the run recorded", "DIR"),
                top("output", "where the LoRA is written", "DIR"),
                top("musubi_tuner", "a clone of Musubi Tuner", "DIR"),
            ),
        ),
        Group(
            title="what",
            settings=(
                top("photos", "a zip of photos, by its http(s) URL or path, or a folder of them", "URL|PATH"),
                top("trigger_word", "the caption of every photo, or a part of it", "WORD"),
                *_of_function(MusubiTraining.train, "", _NOT_SAID).values(),
            ),
        ),
        Group(
            title="weights: their names in the models folder",
            settings=tuple(_of_dataclass(Models, "weights", models).values()),
        ),
        Group(
            title="photos and captions",
            settings=tuple(_of_dataclass(DatasetOptions, "dataset_options").values()),
        ),
        Group(
            title="dataset",
            settings=(file, *_of_function(dataset_toml, "dataset", ()).values()),
        ),
    ]
    pending, title = [preset], "training"
    for name, setting in training.items():
        if name in TRAINING_HEADINGS:
            found.append(Group(title=title, settings=tuple(pending)))
            pending, title = [], TRAINING_HEADINGS[name]
        pending.append(setting)
    found.append(Group(title=title, settings=tuple(pending)))
    launch = _of_dataclass(LaunchOptions, "launch_options", {"extra_args": "--launch-extra-args"})
    found.append(Group(title="launch: accelerate", settings=tuple(launch.values())))
    found.append(
        Group(
            title="limits of what a zip may bring",
            settings=tuple(_of_dataclass(DatasetLimits, "dataset_limits").values()),
        )
    )
    return found


# What a trainer is made with, outside of the tables.
FOLDERS = ("models", "training_folder", "output", "musubi_tuner")
# What a run is made of besides.
MATERIAL = ("photos", "trigger_word")


def of_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """What flags have said, by the key of each setting."""
    return {name.removeprefix(SETTING): said for name, said in vars(arguments).items() if name.startswith(SETTING)}


class Settings:
    """What has been told; what is told later goes before."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.values: Values = {}
        # The training folder that a record's dataset configuration names.
        self._content_is_of: str | None = None

    def take(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Take further values in.

        Raises:
            UsageError: they contradict each other.
        """
        for table, told in values.items():
            before = self.values.setdefault(table, {})
            whole = {"file", "content"} & told.keys()
            if table == "dataset" and whole and len(told) > 1:
                raise UsageError(
                    f"--dataset-toml is the whole of the dataset's configuration: expected it without "
                    f"{', '.join(_flag(name) for name in told if name not in whole)}"
                )
            if (table == "options" and "preset" in told) or (table == "dataset" and told and whole):
                before.clear()
            elif table == "dataset" and told:
                before.pop("file", None)
                before.pop("content", None)
            before.update(told)

    def take_flags(self, parsed: Mapping[str, Any], known: Iterable[Setting]) -> None:
        """Take what was said by flags."""
        told: Values = {}
        for setting in known:
            if setting.key in parsed:
                told.setdefault(setting.table, {})[setting.name] = setting.value_of(parsed[setting.key])
        self.take(told)

    def take_file(self, path: str, known: Iterable[Setting]) -> None:
        """Take what a TOML file says.

        Raises:
            UsageError: it cannot be read, or has a name that is not known.
        """
        try:
            # TOML is UTF-8; some editors put a mark before it.
            text = Path(path).read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--config {path} cannot be read: {error}") from None
        try:
            found = MusubiTraining._validate_toml_str(None, text)  # type: ignore[arg-type]
        except ValueError as error:
            raise UsageError(f"--config {path} is no TOML: {error.__cause__ or error}") from None
        by_place = {(setting.table, setting.name): setting for setting in known}
        tables = {table for table, _ in by_place}
        told: Values = {}
        for table, name, value in _entries(found, tables):
            setting = by_place.get((table, name))
            if setting is None:
                where = f" in [{table}]" if table else ""
                raise UsageError(f"--config {path} has {name!r}{where}: {_expected_instead(table, name, by_place)}")
            told.setdefault(table, {})[name] = setting.value_of(value)
        self.take(told)

    def take_record(self, path: str) -> None:
        """Take what the record of a run was told.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is none.
            OSError: it cannot be read.
        """
        from musubitraining.run_record import TrainingRun

        run = TrainingRun.load(path)
        arguments = run.arguments
        top = {
            "models": arguments.get("absolute_path_models"),
            "training_folder": run.folders.training,
            "output": run.folders.output,
            "musubi_tuner": arguments.get("absolute_path_musubi_tuner"),
            "photos": arguments.get("images_zip_url"),
            **{
                name: arguments.get(name)
                for name, parameter in inspect.signature(MusubiTraining.train).parameters.items()
                if name == "trigger_word" or (parameter.kind is parameter.KEYWORD_ONLY and name not in _NOT_SAID)
            },
        }
        tables = {"weights": "models_for_training", "dataset_limits": "dataset_limits"}
        told: Values = {
            "": {name: value for name, value in top.items() if value is not None},
            **{table: found for table, name in tables.items() if isinstance(found := arguments.get(name), dict)},
            "dataset_options": run.dataset_options or {},
            "launch_options": run.launch_options or {},
            "options": run.options or {},
        }
        if isinstance(arguments.get("dataset_toml_content"), str):
            told["dataset"] = {"content": arguments["dataset_toml_content"]}
            self._content_is_of = run.folders.training
        self.take(told)

    def need(self, *names: str) -> None:
        """See that these have been told.

        Raises:
            UsageError: some have not.
        """
        top = self.values.get("", {})
        missing = [_flag(name) for name in names if top.get(name) is None]
        if missing:
            raise UsageError(f"expected {', '.join(missing)} too, as a flag or in the --config file")

    def trainer(self) -> MusubiTraining:
        """The trainer for them.

        Raises:
            UsageError: a value is none that its setting takes.
            FileNotFoundError: a folder does not exist.
        """
        top = self.values[""]
        names = self._made(Models, "weights") or Models()
        limits = self._made(DatasetLimits, "dataset_limits")
        trainer = MusubiTraining(top["models"], names, top["training_folder"], top["output"], top["musubi_tuner"])
        if limits is not None:
            trainer.dataset_limits = limits
        return trainer

    def call(self) -> dict[str, Any]:
        """The arguments of `train` and `plan`.

        Raises:
            UsageError: a value is none that its setting takes.
            RuntimeError: the preset "auto" finds no GPU that it has options for.
        """
        top = self.values.get("", {})
        keywords = {name: value for name, value in top.items() if name not in (*FOLDERS, *MATERIAL)}
        return {
            "dataset_toml_content": self._dataset_toml(),
            "images_zip_url": top.get("photos"),
            "trigger_word": top.get("trigger_word"),
            **keywords,
            "options": self._training_options(),
            "launch_options": self._made(LaunchOptions, "launch_options"),
            "dataset_options": self._made(DatasetOptions, "dataset_options"),
        }

    def _training_options(self) -> TrainingOptions | None:
        told = dict(self.values.get("options", {}))
        preset = told.pop("preset", None)
        if preset is None:
            return self._made(TrainingOptions, "options")
        try:
            chosen = TrainingOptions.preset(preset)
        except ValueError as error:
            raise UsageError(str(error)) from None
        return _checked(lambda: replace(chosen, **told))

    def _dataset_toml(self) -> str | None:
        told = dict(self.values.get("dataset", {}))
        if not told:
            return None
        if "file" in told:
            path = told["file"]
            try:
                return Path(path).read_text("utf-8")
            except (OSError, UnicodeDecodeError, TypeError) as error:
                raise UsageError(f"--dataset-toml {path} cannot be read: {error}") from None
        if "content" in told:
            content: str = told["content"]
            for name in ("images", "cache") if self._content_is_of else ():
                # A run that is repeated in another folder has its photos there.
                now = os.path.join(os.path.abspath(self.values[""]["training_folder"]), name)
                content = content.replace(f'"{os.path.join(self._content_is_of or "", name)}"', f'"{now}"')
            return content
        return _checked(lambda: dataset_toml(self.values[""]["training_folder"], **told))

    def _made(self, kind: type[T], table: str) -> T | None:
        told = self.values.get(table)
        return _checked(lambda: kind(**told)) if told else None


def _checked(make: Callable[[], T]) -> T:
    try:
        return make()
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None


def _entries(found: Mapping[str, Any], tables: Iterable[str]) -> Iterator[tuple[str, str, Any]]:
    for name, value in found.items():
        if isinstance(value, dict) and name in tables:
            yield from ((name, inner, content) for inner, content in value.items())
        else:
            yield "", name, value


def _expected_instead(table: str, name: str, known: Iterable[tuple[str, str]]) -> str:
    import difflib

    places = list(known)
    elsewhere = sorted({f"[{other}]" for other, same in places if same == name and other} - {f"[{table}]"})
    if elsewhere:
        return f"expected it in {' or '.join(elsewhere)}"
    if any((other, name) == ("", same) for other, same in places):
        return "expected it before the first table"
    tables = list(dict.fromkeys(other for other, _ in places if other))
    if not table and name in tables:
        return f"expected a table, [{name}]"
    siblings = [same for other, same in places if other == table]
    near = difflib.get_close_matches(name, siblings if table else [*siblings, *tables], 1)
    if near:
        return f"expected {near[0]!r}, perhaps"
    return f"there is no such setting; the tables are {', '.join(f'[{other}]' for other in tables)}"
