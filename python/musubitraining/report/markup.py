"""HTML and SVG in which nothing can be forgotten to be escaped: only what `tag` has made is taken as it is."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

# What HTML has no place for, a NUL and halves of characters among it.
_CONTROLS = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")

_VOID = {"col", "img", "meta", "wbr"}


class Markup(str):
    """Text that is HTML."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Anything, as text in HTML."""
    return (
        value
        if isinstance(value, Markup)
        else Markup(html.escape(_CONTROLS.sub("\N{REPLACEMENT CHARACTER}", str(value))))
    )


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element.

    Args:
        name: of the element.
        children: escaped unless they are elements; of lists each one; None is left out.
        attributes: `class_` for `class`, `aria_label` for `aria-label`; None and False are left out, True has no value.
    """
    head = "".join(
        _attribute(key, value) for key, value in attributes.items() if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{head}>")
    return Markup(f"<{name}{head}>{joined(children)}</{name}>")


def joined(children: Iterable[object]) -> Markup:
    """Some children one after the other."""
    return Markup("".join(_flat(children)))


def _flat(children: Iterable[object]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, list | tuple):
            yield from _flat(child)
        else:
            yield text(child)


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-") if key not in ("viewBox", "preserveAspectRatio") else key
    return f" {name}" if value is True else f' {name}="{text(str(value))}"'
