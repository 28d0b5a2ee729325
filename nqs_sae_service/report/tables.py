"""The summary of a run in the terminal.

A table that does not fit the width of the terminal is written as one short paragraph per row instead, so that nothing is
cut off and no number is folded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from .numbers import NOTHING
from .reading import read
from .records import Kind, Table, Verdict
from .summary import summarise

MARKS: dict[Kind, tuple[str, str]] = {
    "good": ("+", "bold green"),
    "bad": ("-", "bold magenta"),
    "open": ("o", "bold yellow"),
    "note": ("i", "bold cyan"),
    "fault": ("!", "bold red"),
}
GAP = 2  # spaces between columns
INDENT = 4  # of a paragraph


def show(run_dir: Path | str, console: Console) -> None:
    """Print verdicts and tables of a run or sweep directory. Raises ``UserError`` when it is neither."""
    summary = summarise(read(run_dir))
    console.print(Text(summary.title, style="bold"))
    for verdict in summary.verdicts:
        console.print(_line(verdict))
    for section in summary.sections:
        console.print()
        console.print(Text(section.title, style="bold underline"))
        for verdict in section.verdicts:
            console.print(_line(verdict))
        _print_tables(section.tables, console)
    _print_tables(summary.tables, console)


def _print_tables(tables: Sequence[Table], console: Console) -> None:
    for table in tables:
        console.print()
        console.print(Text(table.title, style="bold"))
        widths = _widths(table)
        if sum(widths) + GAP * (len(widths) - 1) <= console.width:
            _print_grid(table, widths, console)
        else:
            _print_paragraphs(table, console)


def _line(verdict: Verdict) -> Grid:
    """Mark and sentence, wrapped beside each other."""
    mark, style = MARKS[verdict.kind]
    line = Grid.grid(padding=(0, 1))
    line.add_row(Text(mark, style=style), Text(verdict.text))
    return line


def _widths(table: Table) -> list[int]:
    """Width of each column that is not a heading."""
    body = [row[table.group :] for row in table.rows]
    return [max(len(text) for text in column) for column in zip(table.body, *body, strict=True)]


def _print_grid(table: Table, widths: Sequence[int], console: Console) -> None:
    console.print(_row(table.body, widths, "dim"))
    for heading, rows in table.groups():
        if heading:
            console.print(Text(heading, style="italic"))
        for row in rows:
            console.print(_row(row, widths))


def _row(cells: Sequence[str], widths: Sequence[int], style: str = "") -> Text:
    """The first cell to the left, the others to the right."""
    first, *others = (
        text.rjust(width) if i else text.ljust(width)
        for i, (text, width) in enumerate(zip(cells, widths, strict=True))
    )
    return Text((" " * GAP).join([first, *others]).rstrip(), style=style, no_wrap=True)


def _print_paragraphs(table: Table, console: Console) -> None:
    for heading, rows in table.groups():
        if heading:
            console.print(Text(heading, style="italic"))
        for row in rows:
            console.print(Text(f"  {row[0]}", style="bold"))
            for line in _flow(table.body[1:], row[1:], console.width - INDENT):
                console.print(Padding(line, (0, 0, 0, INDENT), expand=False))


def _flow(names: Sequence[str], cells: Sequence[str], width: int) -> list[Text]:
    """``name value`` pairs packed into lines of at most ``width``, no pair broken; what is not known is left out."""
    lines: list[Text] = []
    for name, text in zip(names, cells, strict=True):
        if text == NOTHING:
            continue
        pair = Text.assemble((f"{name} ", "dim"), text)
        if lines and lines[-1].cell_len + 3 + pair.cell_len <= width:
            lines[-1].append("   ").append_text(pair)
        else:
            lines.append(pair)
    return lines
