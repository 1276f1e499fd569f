"""What `MusubiTraining.plan` returns: every check with its verdict, and the commands that a run would start."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any, Literal

__all__ = ["Check", "Plan"]

_MARKS = {"ok": "✓", "warning": "!", "error": "✗"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        verdict: "ok"; "warning", when the run may go wrong or not do what is meant; "error", when it will fail.
        found: what there is.
        expected: what there should be.
        mend: what to do; empty where all is well.
    """

    name: str
    verdict: Literal["ok", "warning", "error"]
    found: str
    expected: str
    mend: str

    def __str__(self) -> str:
        """A line; where all is not well, what was expected and what to do under it."""
        line = f"{_MARKS[self.verdict]} {self.name}: {self.found}"
        if self.verdict == "ok":
            return line
        return f"{line}\n    expected: {self.expected}\n    mend: {self.mend}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What can be known before a run.

    Attributes:
        checks: all of them, in the order of a run.
        commands: the words of each step's command, by the step's name, as `train` with the same arguments runs them.
    """

    checks: tuple[Check, ...]
    commands: dict[str, list[str]] = field(hash=False)

    @property
    def ok(self) -> bool:
        """Whether there is no error; there may be warnings."""
        return not self.errors

    @property
    def errors(self) -> tuple[Check, ...]:
        """What the run will fail of."""
        return tuple(check for check in self.checks if check.verdict == "error")

    @property
    def warnings(self) -> tuple[Check, ...]:
        """What may go wrong, or not do what is meant."""
        return tuple(check for check in self.checks if check.verdict == "warning")

    def raise_if_not_ok(self) -> None:
        """Raise when there is an error.

        Raises:
            ValueError: with each error, what was expected, and its mend.
        """
        if self.errors:
            raise ValueError("\n".join([f"this run would fail ({self._count()}):", *map(str, self.errors)]))

    def to_dict(self) -> dict[str, Any]:
        """The same in what JSON has."""
        return {"ok": self.ok, **asdict(self), "checks": [asdict(check) for check in self.checks]}

    def __str__(self) -> str:
        """A line for each check, aligned; then the commands."""
        width = max((len(check.name) for check in self.checks), default=0)
        lines = [f"plan: {self._count()}"]
        for check in self.checks:
            lines.append(f"{_MARKS[check.verdict]} {check.name:<{width}}  {check.found}")
            if check.verdict != "ok":
                lines.append(f"  {'':<{width}}  expected: {check.expected}")
                lines.append(f"  {'':<{width}}  mend: {check.mend}")
        lines += [f"[{step}] {shlex.join(words)}" for step, words in self.commands.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        # Colours that read on white and on black, the rest as the notebook has it.
        colours = {"ok": "#2e9e4f", "warning": "#c77f00", "error": "#e04848"}
        rows = []
        for check in self.checks:
            mark = f'<b style="color:{colours[check.verdict]}">{_MARKS[check.verdict]}&nbsp;{check.verdict}</b>'
            cells = [mark, *(escape(text) for text in (check.name, check.found, check.expected, check.mend))]
            rows.append(f"<tr>{''.join(f'<td style={_CELL!r}>{cell}</td>' for cell in cells)}</tr>")
        heads = "".join(f"<th style={_CELL!r}>{head}</th>" for head in ("", "check", "found", "expected", "mend"))
        commands = "".join(
            f"<details><summary>{escape(step)}</summary><code>{escape(shlex.join(words))}</code></details>"
            for step, words in self.commands.items()
        )
        return f"<p>plan: {escape(self._count())}</p><table><tr>{heads}</tr>{''.join(rows)}</table>{commands}"

    def _count(self) -> str:
        parts = [
            f"{len(found)} {name}{'' if len(found) == 1 else 's'}"
            for name, found in (("error", self.errors), ("warning", self.warnings))
            if found
        ]
        return f"{', '.join(parts) or 'ok'}, {len(self.checks)} checks"


_CELL = "text-align:left;vertical-align:top"
