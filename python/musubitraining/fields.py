"""Fields of options: each says what it takes, and refuses anything else at construction."""

import operator
import os
from collections.abc import Callable
from dataclasses import field, fields
from typing import Any

# What a field's metadata has: `(value) -> value`, which raises TypeError or ValueError with what was expected.
Check = Callable[[Any], Any]


class Options:
    """A frozen dataclass whose fields are checked, and brought to their own type, when it is made."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            TypeError: a value is of a type that a field does not take.
            ValueError: a value is out of a field's range.
        """
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            try:
                object.__setattr__(self, one.name, one.metadata["check"](value))
            except (TypeError, ValueError) as error:
                where = f"{type(self).__name__}.{one.name}"
                raise type(error)(f"{where}={value!r}: expected {error}") from None


def option(default: Any, check: Check, *, optional: bool = False, **metadata: Any) -> Any:
    """A field; with `optional`, None is taken too."""

    def checked(value: Any) -> Any:
        if optional and value is None:
            return None
        try:
            return check(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error}, or None" if optional else str(error)) from None

    return field(default=default, metadata={"check": checked, **metadata})


def flag() -> Check:
    """True or False."""

    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError("True or False")
        return value

    return check


def integer(least: int | None = None, most: int | None = None) -> Check:
    """A whole number in a range; NumPy's too, a bool not."""
    expected = f"an int{_range(least, most)}"

    def check(value: Any) -> int:
        if isinstance(value, bool):
            raise TypeError(expected)
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(expected) from None
        if (least is not None and number < least) or (most is not None and number > most):
            raise ValueError(expected)
        return number

    return check


def number(least: float | None = None, most: float | None = None, *, above: float | None = None) -> Check:
    """A finite number in a range, as a float; `above` is a bound that is not itself in it."""
    expected = f"a number{f' above {above:g}' if above is not None else _range(least, most)}"
    if above is not None and most is not None:
        expected += f" and at most {most:g}"

    def check(value: Any) -> float:
        if isinstance(value, bool | str | bytes):
            raise TypeError(expected)
        try:
            found = float(value)
        except (TypeError, OverflowError):
            raise TypeError(expected) from None
        too_low = (least is not None and found < least) or (above is not None and found <= above)
        # A NaN is in no range.
        if not found - found == 0 or too_low or (most is not None and found > most):
            raise ValueError(expected)
        return found

    return check


def choice(*values: str) -> Check:
    """One of these words."""
    expected = f"one of {', '.join(map(repr, values))}"

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(expected)
        if value not in values:
            raise ValueError(expected)
        return value

    return check


def text(expected: str = "a str that is not empty", *, empty: bool = False) -> Check:
    """A string, without NUL characters."""

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(expected)
        if "\0" in value or not (value or empty):
            raise ValueError(expected)
        return value

    return check


def path(expected: str = "a path, as a str or an os.PathLike") -> Check:
    """A path, as a str."""

    def check(value: Any) -> str:
        try:
            found = os.fspath(value)
        except TypeError:
            raise TypeError(expected) from None
        found_text: str = text(expected)(found)
        return found_text

    return check


def each(check: Check, expected: str) -> Check:
    """A sequence of such values, as a tuple; a single string is none."""

    def check_each(value: Any) -> tuple[Any, ...]:
        if isinstance(value, str | bytes):
            raise TypeError(expected)
        try:
            values = tuple(value)
        except TypeError:
            raise TypeError(expected) from None
        try:
            return tuple(check(one) for one in values)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{expected}, each {error}") from None

    return check_each


def _range(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}" if isinstance(least, float) else f" from {least} to {most}"
    if least is not None:
        return f" of at least {least}"
    return f" of at most {most}" if most is not None else ""
