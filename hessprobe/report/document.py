"""What a page is made of before it is HTML: sections of paragraphs, cards, tables and pictures, all of plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

SortKey = float | str | None


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what stands in it.
        sort: what its column is sorted by; the text where None. Cells without a value go last.
        kind: ``"text"``, ``"name"`` (the row's header), ``"number"``, ``"error"``, ``"code"`` or ``"verdict"``.
        note: a second, smaller line.
        said: a last line that judges the value, in the color of ``tone``.
        link: id on the page that the text leads to, or nothing.
        tone: ``"good"``, ``"bad"``, ``"weak"`` or nothing, for verdicts; the text says the same in words.
    """

    text: str
    sort: SortKey = None
    kind: str = "text"
    note: str = ""
    link: str = ""
    tone: str = ""
    said: str = ""


@dataclass(frozen=True)
class Column:
    """One column: its header, how its cells are set, and how many cells it covers."""

    name: str
    kind: str = "text"
    span: int = 1


@dataclass(frozen=True)
class Table:
    """A table that can be sorted by every column.

    Attributes:
        caption: what it is.
        columns, rows: as many cells in a row as the columns cover.
        notes: sentences that a reader needs to understand it.
        remarks: sentences about single rows, folded away.
        stacks: whether a phone shows every row as a block of lines, a cell each, so that nothing has to be scrolled.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    stacks: bool = False
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Bar:
    """A value with its errors on a common scale, in percent of its width; ``zero`` is where 0 lies.

    Attributes:
        value: where it lies.
        low, high: ends of the measurement's error as it is printed: one standard error, or a bracket.
        zero: where 0 lies.
        data: ends of the error from the data being a sample; None where it is not known.
    """

    value: float
    low: float
    high: float
    zero: float
    data: tuple[float, float] | None = None


@dataclass(frozen=True)
class Reading:
    """One line of a card.

    Attributes:
        name: of the checkpoint.
        value, error: as text; the error of the measurement with its sign, empty where there is none.
        data: the error from the data being a sample, with its sign; empty where it is not known.
        interval, cost: in words.
        bar: None where there is no finite value.
        source: id of the record on the page.
        label: name of the record.
        remarks: what is weak about the number.
    """

    name: str
    value: str
    error: str
    data: str
    interval: str
    cost: str
    bar: Bar | None
    source: str
    label: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Card:
    """One quantity and what it is on every checkpoint."""

    title: str
    meaning: str
    unit: str
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class Cards:
    """Cards side by side."""

    cards: tuple[Card, ...]
    kind: str = field(default="cards", init=False)


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        title: a few words.
        alt: a sentence with the numbers.
        uri: ``data:`` address of the image.
        width, height: in CSS pixels.
        links: id and name of each record that it is made from.
        dark: ``data:`` address of the image on a dark page; empty where ``uri`` follows the colors of the page.
        covered: whether another picture of the page puts it beside those of other records.
    """

    title: str
    alt: str
    uri: str
    width: int
    height: int
    links: tuple[tuple[str, str], ...]
    dark: str = ""
    covered: bool = False


@dataclass(frozen=True)
class Pictures:
    """Figures side by side."""

    pictures: tuple[Picture, ...]
    kind: str = field(default="pictures", init=False)


@dataclass(frozen=True)
class Text:
    """Paragraphs; ``listed`` makes a list of them, ``alert`` sets them apart."""

    paragraphs: tuple[str, ...]
    listed: bool = False
    alert: bool = False
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Command:
    """A record and how it is made again.

    Attributes:
        id: on the page.
        label: ``R1``, ``R2``, ...
        title: command and checkpoint.
        facts: pairs of name and value.
        lines: the command to type, or nothing where this version has no such command.
        state: ``"finished"``, ``"interrupted"`` or ``"failed"``.
    """

    id: str
    label: str
    title: str
    facts: tuple[tuple[str, str], ...]
    lines: str
    state: str = "finished"


@dataclass(frozen=True)
class Commands:
    """Records, one after the other."""

    commands: tuple[Command, ...]
    kind: str = field(default="commands", init=False)


Block = Table | Cards | Pictures | Text | Commands


@dataclass(frozen=True)
class Section:
    """A part of the page with a place in the table of contents; one that is folded shows its title alone at first."""

    id: str
    title: str
    blocks: tuple[Block, ...]
    lead: str = ""
    folded: bool = True


def section(
    name: str, title: str, blocks: Sequence[Block | None], lead: str = "", *, folded: bool = True
) -> Section | None:
    """Return a section of the blocks that are there, or None where none is."""
    present = tuple(block for block in blocks if block is not None)
    return Section(name, title, present, lead, folded) if present else None
