"""What a page is made of. All text in it is plain: whoever renders it escapes it.

A page is a list of sections, a section a list of parts. A section whose files are not there says which, and the others
are as they would be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from components.core.errors import UserError, first_line, printable

Spec: TypeAlias = Mapping[str, object]  # a Vega-Lite chart

ELLIPSIS = "\u2026"


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer of a page or a section, in words; `good` is None where it is neither good nor bad."""

    text: str
    good: bool | None = None


@dataclass(frozen=True, slots=True)
class Fact:
    """A figure with its name: a tile at the top of a page, or a row of a list."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Tiles:
    """The few figures that matter most, in large type."""

    facts: Sequence[Fact]


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values, one a row; `code` for values that somebody may copy."""

    facts: Sequence[Fact]
    code: bool = False


@dataclass(frozen=True, slots=True)
class Key:
    """An entry of a legend: a colour of the style sheet (`c1`, `c2`, `pale`, `ink`), the mark and its meaning."""

    color: str
    mark: str
    """`bar`, `line`, `dot` or `dash`."""
    label: str


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its title, the unit and direction of its scale, and where its figures are."""

    title: str
    unit: str
    spec: Spec


@dataclass(frozen=True, slots=True)
class Figures:
    """Charts side by side, as many as fit, under one legend; `data` names the file that has their figures."""

    figures: Sequence[Figure]
    legend: Sequence[Key] = ()
    caption: str = ""
    data: str = ""
    narrow: bool = False
    """Small charts, three or more beside each other."""


@dataclass(frozen=True, slots=True)
class Column:
    """A heading of a table; numbers are aligned at their last digit."""

    title: str
    number: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    strong: Sequence[int] = ()
    """Indices of the rows to stress, such as a sum."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A text from the data under its name, such as `response`."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Texts that belong together: a record, or a prompt with several responses."""

    title: str
    facts: str
    passages: Sequence[Passage]


@dataclass(frozen=True, slots=True)
class Excerpts:
    title: str
    items: Sequence[Excerpt]
    empty: str
    """What is said where there is no item."""


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to read or to type as they are."""

    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Missing:
    """What could not be shown, and the remedy."""

    text: str


Part: TypeAlias = Text | Verdict | Tiles | Facts | Figures | Table | Excerpts | Code | Missing


@dataclass(frozen=True, slots=True)
class Section:
    anchor: str
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Page:
    title: str
    subtitle: str
    top: Sequence[Part]
    sections: Sequence[Section]
    footer: str = field(default="")


def parts_or_missing(make: Callable[[], Iterable[Part]]) -> list[Part]:
    """The parts; where a file of theirs is missing or not readable, the ones before it and what is wrong."""
    parts: list[Part] = []
    try:
        parts.extend(make())
    except UserError as error:
        parts += [Missing(line) for line in error.mistakes]
    except (KeyError, ValueError) as error:
        parts.append(Missing(f"a file of another version, or a broken one ({first_line(error)}): `dvc repro` makes it"))
    return parts


def section(anchor: str, title: str, make: Callable[[], Iterable[Part]]) -> Section:
    """The section, with what is missing of it."""
    return Section(anchor, title, parts_or_missing(make))


def visible(text: str, characters: int | None = None, lines: int | None = None) -> str:
    """A text of the data for a page: line ends stay, any other control or format character becomes its escape.

    At most so many characters and lines are left, with an ellipsis and the full length where something was cut off.
    """
    whole = text.replace("\r\n", "\n").replace("\t", "    ").strip("\n")
    rows = whole.split("\n")
    kept = "\n".join(rows[:lines])[:characters]
    shown = "\n".join(printable(row) for row in kept.split("\n"))
    return shown if kept == whole else f"{shown.rstrip()} {ELLIPSIS} ({len(text):,} characters)"
