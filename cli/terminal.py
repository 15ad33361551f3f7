"""What the commands have in common: the terminal, its tables, bars and warnings."""

import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..records import Measured

console = Console()

WARNINGS = 4
"""How many of a report's warnings the terminal has."""


def print_report(report: Any) -> None:
    from ..eval import words
    from ..eval.report import accuracies, summary

    console.print(f"\n[bold]{escape(report.answer)}[/]", soft_wrap=True)
    rows = summary(report)
    table = figures(rows[0])
    for row in rows:
        table.add_row(*(escape(value) for value in row.values()))
    console.print(table)
    for outcome in report.outcomes:
        of = f" of “{outcome.concept['name']}”" if len(report.outcomes) > 1 else ""
        if line := accuracies(outcome):
            console.print(f"{line}{escape(of)}", soft_wrap=True)
    for erasure in report.erased["erasures"]:
        took = f"{erasure['seconds']:.1f} s, " if erasure["seconds"] is not None else ""
        what = escape(f"{erasure['method']} of {erasure['name']}")
        console.print(f"{what}: {took}{words.bytes_(erasure['bytes'])}", soft_wrap=True)
    for warning in report.warnings[:WARNINGS]:
        console.print(f"[yellow]With care:[/] {escape(warning)}", soft_wrap=True)
    if (more := len(report.warnings) - WARNINGS) > 0:
        console.print(f"[dim]{more} more in the report.[/]")


def effects(measured: Measured) -> list[str]:
    """How far each concept moved, a line each; none where nobody looked."""
    lines = []
    for name, seen in (measured.effect or {}).items():
        kept = seen.kept_moved
        rest = "" if kept is None else f"; what is kept moved by {kept:.0%}"
        lines.append(
            f"The prediction on {name} went {seen.moved:.0%} of the way to its anchor's{rest}."
        )
    return lines


def figures(columns: Iterable[str]) -> Table:
    """A table of what was measured, its first column ``measure``; figures are never broken."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        left = column == "measure"
        table.add_column(column, justify="left" if left else "right", no_wrap=not left)
    return table


@contextmanager
def progress() -> Iterator[Callable[..., None]]:
    """A progress bar for each thing that is going on, with the time that is left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: float, total: int, note: str = "") -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total, note="")
            bars.start()
        bars.update(tasks[what], completed=done, note=note)

    try:
        yield show
    finally:
        if tasks:
            bars.stop()


@contextmanager
def warnings_in_words() -> Iterator[None]:
    """What our functions warn of, as a line of the output, after the work."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        if warning.category is UserWarning:
            console.print(
                f"[bold yellow]Warning:[/] {escape(str(warning.message))}", soft_wrap=True
            )


def hush() -> None:
    """Our progress bars stand for those of the libraries."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def command() -> str:
    return shlex.join(["unsee", *sys.argv[1:]])


def next_(command: str) -> None:
    console.print(f"[dim]Next:[/] {escape(command)}", soft_wrap=True, highlight=False)
