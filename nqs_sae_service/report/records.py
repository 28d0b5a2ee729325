"""The plain records of a report: tables of text and verdicts. Terminal and HTML render the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

# good: shown beyond its error; bad: the numbers say the opposite; open: the error bars decide nothing;
# note: something to keep in mind; fault: something went wrong, and numbers may not be trusted
Kind = Literal["good", "bad", "open", "note", "fault"]


@dataclass(frozen=True)
class Verdict:
    """One finding in one sentence."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Table:
    """A table of text. The first ``group`` columns are headings: each is printed once, above the rows that share it.

    ``definitions`` explains columns (or rows, in a table of quantities) in one line each.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    group: int = 0
    definitions: Mapping[str, str] = field(default_factory=dict)

    def groups(self) -> list[tuple[str, list[Sequence[str]]]]:
        """Heading and remaining cells of each block of rows; one block without heading when nothing is grouped."""
        blocks: list[tuple[str, list[Sequence[str]]]] = []
        for row in self.rows:
            heading = " · ".join(row[: self.group])
            if not blocks or blocks[-1][0] != heading:
                blocks.append((heading, []))
            blocks[-1][1].append(row[self.group :])
        return blocks

    @property
    def body(self) -> Sequence[str]:
        """Names of the columns that are not headings."""
        return self.columns[self.group :]


@dataclass(frozen=True)
class Section:
    """What belongs together under a heading of its own: verdicts, tables, and which kinds of figures."""

    title: str
    verdicts: Sequence[Verdict]
    tables: Sequence[Table]
    figures: Sequence[str] = ()


@dataclass(frozen=True)
class Summary:
    """Everything the report says in words and numbers about a run or a sweep."""

    title: str
    verdicts: Sequence[Verdict]
    tables: Sequence[Table]
    sections: Sequence[Section] = ()
