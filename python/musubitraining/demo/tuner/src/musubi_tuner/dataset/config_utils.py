"""The dataset file: read, checked key by key and type by type, made into datasets.

Musubi Tuner checks with voluptuous, whose messages and exception names these are: whoever reads the output of one reads
that of the other.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from musubi_tuner.dataset.image_video_dataset import ImageDataset

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

logger = logging.getLogger(__name__)

Config = dict[str, Any]
Trail = tuple[Any, ...]


class MultipleInvalid(Exception):
    """The dataset file holds a key that is not known, or a value of another type."""

    __module__ = "voluptuous.error"

    def __init__(self, message: str, trail: Trail) -> None:
        """Says what was expected, and where."""
        super().__init__(message + (f" @ data[{']['.join(map(repr, trail))}]" if trail else ""))


class TomlDecodeError(ValueError):
    """The file is no TOML, or more of it than the old parser of Musubi Tuner reads."""

    __module__ = "toml.decoder"


# --- Types. Python's `isinstance`: true passes for a whole number, 1 for no bool, 16 for no float.

Check = Callable[[Any, Trail], Any]


def _is_a(kind: type) -> Check:
    def check(value: Any, trail: Trail) -> Any:
        if not isinstance(value, kind):
            raise MultipleInvalid(f"expected {kind.__name__} for dictionary value", trail)
        return value

    return check


def _whole_numbers(value: Any, trail: Trail) -> Any:
    if not isinstance(value, list):
        raise MultipleInvalid("expected a list for dictionary value", trail)
    for position, number in enumerate(value):
        if not isinstance(number, int):
            raise MultipleInvalid("expected int", (*trail, position))
    return value


def _width_and_height(value: Any, trail: Trail) -> tuple[int, int]:
    match value:
        case int():
            return value, value
        case [int() as width, int() as height]:
            return width, height
    raise MultipleInvalid("expected int for dictionary value", trail)


_GENERAL: dict[str, Check] = {
    "caption_extension": _is_a(str),
    "batch_size": _is_a(int),
    "num_repeats": _is_a(int),
    "resolution": _width_and_height,
    "enable_bucket": _is_a(bool),
    "bucket_no_upscale": _is_a(bool),
}
_IMAGE: dict[str, Check] = _GENERAL | {
    "image_directory": _is_a(str),
    "image_jsonl_file": _is_a(str),
    "cache_directory": _is_a(str),
    "control_directory": _is_a(str),
    "multiple_target": _is_a(bool),
    "fp_latent_window_size": _is_a(int),
    "fp_1f_clean_indices": _whole_numbers,
    "fp_1f_target_index": _is_a(int),
    "fp_1f_no_post": _is_a(bool),
    "no_resize_control": _is_a(bool),
    "control_resolution": _width_and_height,
}
_VIDEO: dict[str, Check] = _GENERAL | {
    "video_directory": _is_a(str),
    "video_jsonl_file": _is_a(str),
    "control_directory": _is_a(str),
    "target_frames": _whole_numbers,
    "frame_extraction": _is_a(str),
    "frame_stride": _is_a(int),
    "frame_sample": _is_a(int),
    "max_frames": _is_a(int),
    "cache_directory": _is_a(str),
    "source_fps": _is_a(float),
    "fp_latent_window_size": _is_a(int),
}
_DEFAULTS: Config = dict.fromkeys(_IMAGE) | {
    "resolution": (960, 544),
    "batch_size": 1,
    "num_repeats": 1,
    "enable_bucket": False,
    "bucket_no_upscale": False,
    "multiple_target": False,
    "fp_latent_window_size": 9,
    "fp_1f_no_post": False,
    "no_resize_control": False,
}
_RENAMED = {
    "flux_kontext_no_resize_control": "no_resize_control",
    "qwen_image_edit_no_resize_control": "no_resize_control",
    "qwen_image_edit_control_resolution": "control_resolution",
}


def load_datasets(path: str | Path) -> list[ImageDataset]:
    """The datasets of a dataset file."""
    config = read_user_config(path)
    try:
        config = check_user_config(config)
    except MultipleInvalid:
        logger.error("Invalid user config / ユーザ設定の形式が正しくないようです")
        raise
    general = config.get("general", {})
    datasets = [ImageDataset(_DEFAULTS | general | table) for table in config.get("datasets", [])]
    if len({dataset.cache_directory for dataset in datasets}) != len(datasets):
        raise ValueError(
            "cache directory should be unique for each dataset (note that cache directory is image/video directory "
            "if not specified) / cache directory は各データセットごとに異なる必要があります"
        )
    descriptions = (f"[Dataset {number}]\n{dataset.describe()}" for number, dataset in enumerate(datasets))
    logger.info("".join(descriptions))
    assert datasets, "datasets should not be an empty iterable"
    return datasets


def read_user_config(path: str | Path) -> Config:
    """What a `.toml` or `.json` file says, outdated names of keys replaced."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"file not found / ファイルが見つかりません: {file}")
    kind = file.suffix.lower()
    if kind not in {".toml", ".json"}:
        raise ValueError(f"not supported config file format / 対応していない設定ファイルの形式です: {file}")
    try:
        text = file.read_text(encoding="utf-8")
        config: Config = json.loads(text) if kind == ".json" else parse_toml(text)
    except Exception:
        logger.error(f"Error on parsing {kind[1:].upper()} config file. Please check the format. : {file}")
        raise
    tables = config.get("datasets", [])
    named = {"general": config.get("general")}
    named |= {f"datasets[{i}]": table for i, table in enumerate(tables if isinstance(tables, list) else [])}
    for name, table in named.items():
        if isinstance(table, dict):
            _rename_outdated(table, name)
    return config


def parse_toml(text: str) -> Config:
    """Parses TOML and refuses what the parser of Musubi Tuner refuses too: arrays of mixed types."""
    try:
        config: Config = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", str(error), re.DOTALL)
        message, line, column = found.groups() if found else (str(error), str(text.count("\n") + 1), "1")
        position = sum(len(text_line) + 1 for text_line in text.split("\n")[: int(line) - 1]) + int(column) - 1
        raise TomlDecodeError(f"{message} (line {line} column {column} char {position})") from error
    _refuse_mixed_arrays(config)
    return config


def _refuse_mixed_arrays(value: Any) -> None:
    if isinstance(value, list) and len({type(element) for element in value}) > 1:
        raise TomlDecodeError("Not a homogeneous array (line 1 column 1 char 0)")
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        _refuse_mixed_arrays(child)


def _rename_outdated(table: Config, name: str) -> None:
    for old, new in _RENAMED.items():
        if old not in table:
            continue
        value = table.pop(old)
        if new in table:
            logger.warning(f"Deprecated config key '{old}' is ignored because '{new}' is already set in {name}.")
        else:
            table[new] = value
            logger.warning(f"Deprecated config key '{old}' found in {name}; use '{new}' instead.")


def check_user_config(config: Config) -> Config:
    """The same settings with sizes as pairs; raises `MultipleInvalid` for the first key or type that does not fit."""
    return _check_table(config, {"general": _check_general, "datasets": _check_datasets}, ())


def _check_general(value: Any, trail: Trail) -> Config:
    return _check_table(value, _GENERAL, trail)


def _check_datasets(value: Any, trail: Trail) -> list[Config]:
    if not isinstance(value, list):
        raise MultipleInvalid("expected a list for dictionary value", trail)
    return [_check_dataset(table, (*trail, number)) for number, table in enumerate(value)]


def _check_dataset(table: Any, trail: Trail) -> Config:
    is_video = "video_directory" in table or "video_jsonl_file" in table
    return _check_table(table, _VIDEO if is_video else _IMAGE, trail)


def _check_table(table: Any, schema: dict[str, Check], trail: Trail) -> Config:
    if not isinstance(table, dict):
        raise MultipleInvalid(
            "expected a dictionary" + (" for dictionary value" if trail == ("general",) else ""), trail
        )
    checked = {}
    for key, value in table.items():
        if key not in schema:
            raise MultipleInvalid("extra keys not allowed", (*trail, key))
        checked[key] = schema[key](value, (*trail, key))
    return checked
