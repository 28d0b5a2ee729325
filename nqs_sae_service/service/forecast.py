"""The plan as a table, for ``run --dry-run``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .durations import duration
from .plan import PointPlan


def print_plans(plans: Sequence[PointPlan], console: Console) -> None:
    """One table per point: stage, key, whether and why it runs, time, memory and disk; then the totals."""
    for plan in plans:
        console.print(_table(plan))
    running = [step.cost for plan in plans for step in plan.steps if step.runs]
    seconds, disk = sum(cost.seconds for cost in running), sum(cost.disk for cost in running)
    memory = max((cost.memory for cost in running), default=0.0)
    total = f"runs: {len(plans)}, stages to compute: {len(running)}, about {duration(seconds)} on 2 cores, "
    total += f"{size(memory)} of memory, {size(disk)} on disk"
    if plans:
        free = free_space(plans[0].store.directory)
        total += f" ({size(free)} free{'' if disk < free else ': not enough'})"
    console.print(total, markup=False, highlight=False, soft_wrap=True)


def free_space(directory: Path) -> int:
    """Bytes that can be written to a directory, which need not exist yet."""
    return shutil.disk_usage(
        next(path for path in (directory, *directory.absolute().parents) if path.exists())
    ).free


def _table(plan: PointPlan) -> Table:
    table = Table(title=Text(str(plan.directory)), title_justify="left")
    for heading in ("stage", "key", "runs", "why"):
        table.add_column(heading, no_wrap=heading != "why")
    for heading in ("time", "memory", "disk"):
        table.add_column(heading, justify="right", no_wrap=True)
    for step in plan.steps:
        cost = (
            (duration(step.cost.seconds), size(step.cost.memory), size(step.cost.disk))
            if step.runs
            else ("", "", "")
        )
        cells = (step.stage.name, step.key[:12], "yes" if step.runs else "no", step.reason, *cost)
        table.add_row(*map(Text, cells))
    return table


def size(count: float) -> str:
    """A number of bytes for people: ``12 kB``, ``3.4 MB``, ``1.2 GB``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
