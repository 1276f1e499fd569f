"""Fields of what a run writes down: each reads what it can, and is its default where that is missing or another thing.

A record is read long after it was written, by other versions, and may be torn: nothing here raises for what it finds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import MISSING, field, fields, is_dataclass
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

# Further from zero is nothing that is recorded, and arithmetic would overflow.
LARGEST = 1e30

# What JSON had, to what the field holds; None where it is not that.
Reader = Callable[[Any], Any]

_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?(?:(Z)|([+-])(\d\d):?(\d\d))?", re.ASCII
)


def one(reader: Reader, *, default: Any = None, key: str | None = None) -> Any:
    """A field that may be missing; `key` is its name in JSON where that cannot be the one in Python."""
    return field(default=default, metadata={"read": reader, "key": key})


def needed(reader: Reader) -> Any:
    """A field without which the object is passed over."""
    return field(metadata={"read": reader, "key": None})


def many(reader: Reader) -> Any:
    """A list; elements that cannot be read are left out."""
    return one(each(reader), default=())


def objects(reader: Reader | None = None) -> Any:
    """A JSON object: as it is, or of values that are all of a kind."""
    return field(default_factory=dict, metadata={"read": each_named(reader) if reader else mapping, "key": None})


def read(kind: type[T], found: object) -> T | None:
    """An object of the dataclass `kind`; None where `found` is no JSON object or lacks a field that is needed."""
    if not isinstance(found, dict):
        return None
    values = {}
    for name, key, reader, is_needed in _members(kind):  # type: ignore[arg-type]
        value = reader(found[key]) if key in found else None
        if value is not None:
            values[name] = value
        elif is_needed:
            return None
    return kind(**values)


@cache
def _members(kind: type[Any]) -> list[tuple[str, str, Reader, bool]]:
    """Of each field that is read: its name, the one in JSON, its reader, and whether it is needed."""
    return [
        (
            one.name,
            one.metadata["key"] or one.name,
            one.metadata["read"],
            one.default is MISSING and one.default_factory is MISSING,
        )
        for one in fields(kind)
        if "read" in one.metadata
    ]


def written(value: Any) -> Any:
    """The same for JSON: what `read` makes this object of."""
    if is_dataclass(value) and not isinstance(value, type):
        return {key: written(getattr(value, name)) for name, key, _, _ in _members(type(value))}
    if isinstance(value, dict):
        return {str(key): written(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [written(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
    # JSON knows neither NaN nor infinity.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def text(found: Any) -> str | None:
    """A string."""
    return found if isinstance(found, str) else None


def word(*words: str) -> Reader:
    """One of these strings."""
    return lambda found: found if isinstance(found, str) and found in words else None


def number(found: Any) -> float | None:
    """A number, finite and not beyond `LARGEST`."""
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    try:
        value = float(found)
    except OverflowError:
        return None
    return value if abs(value) <= LARGEST else None


def count(found: Any) -> int | None:
    """A whole number from 0 that fits into 64 bits."""
    value = integer(found)
    return value if value is not None and 0 <= value < 2**63 else None


def integer(found: Any) -> int | None:
    """A whole number."""
    value = number(found)
    return int(found) if value is not None and value.is_integer() else None


def mapping(found: Any) -> dict[str, Any] | None:
    """A JSON object as it is."""
    return found if isinstance(found, dict) else None


def time(found: Any) -> datetime | None:
    """An ISO 8601 time, with an offset or in UTC."""
    parts = _TIME.fullmatch(found) if isinstance(found, str) else None
    if parts is None:
        return None
    *date, fraction, _, sign, hours, minutes = parts.groups()
    try:
        offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0)) * (-1 if sign == "-" else 1)
        microseconds = int(f"{fraction or 0:0<6}"[:6])
        at = datetime(*map(int, date), microseconds, tzinfo=timezone(offset))  # type: ignore[arg-type,misc]
        return at.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None


def each(reader: Reader) -> Reader:
    """A list, as a tuple, of what can be read of it."""

    def read_each(found: Any) -> tuple[Any, ...] | None:
        if not isinstance(found, list | tuple):
            return None
        return tuple(value for value in map(reader, found) if value is not None)

    return read_each


def each_named(reader: Reader) -> Reader:
    """A JSON object whose values are all of a kind."""

    def read_each(found: Any) -> dict[str, Any] | None:
        if not isinstance(found, dict):
            return None
        values = {name: reader(value) for name, value in found.items()}
        return {name: value for name, value in values.items() if value is not None}

    return read_each


def a(kind: type[Any]) -> Reader:
    """An object of a dataclass."""
    return lambda found: read(kind, found)
