"""The terminal: everything that the commands print goes through here.

What is printed may come from a file that somebody else wrote. So no text is read as markup, and
its control characters are shown and not sent: ``plain`` sees every word.
"""

import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..eval.folder import FolderScore
    from ..eval.leaderboard import Leaderboard
    from ..eval.report import Report
    from ..eval.verify import Verified
    from ..plans import Plan
    from ..records import Measured

Part = str | tuple[str, str]
"""A text, or a text and its style, such as ``("done", "bold")``."""

# Characters that Python calls unprintable and that words of some languages, and emoji, need.
_HARMLESS = "\u00a0\u00ad\u200c\u200d\u202f"

LABELS = 20
"""How many labels of a detector a table in the terminal has."""

SUITES = {
    "object": ("objects",),
    "style": ("artists",),
    "person": ("figures",),
    "unsafe": ("unsafe", "neutral"),
}
"""The suites that ask after a kind of concept in any model."""

DETECTORS = {"unsafe": ("nudenet/rece", "nudenet/person")}
"""Detectors of a kind; of the others, a zero-shot detector among the suite's own labels."""

DIFFERENCES = 40
"""How many things that differ in a run the terminal has."""

WARNINGS = 4
"""How many of a report's warnings the terminal has."""


class Terminal(Console):
    """A console whose reader may go away (``unsee list methods | head -1``)."""

    def on_broken_pipe(self) -> None:
        # rich's own exit code for it, 1, would be an audit's verdict
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(3)


console = Terminal()
errors = Terminal(stderr=True)


def plain(text: object) -> str:
    r"""A text with nothing in it that a terminal would obey.

    >>> plain("a\x1b[2Jb\n[/]")
    'a\\x1b[2Jb\\n[/]'
    """
    return "".join(
        c if c.isprintable() or c in _HARMLESS else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def text(*parts: Part) -> Text:
    """Parts as one text for rich, each plain."""
    pairs = (part if isinstance(part, tuple) else (part, "") for part in parts)
    return Text.assemble(*((plain(words), style) for words, style in pairs))


def say(*parts: Part, to: Console = console) -> None:
    """Prints one line, however long."""
    to.print(text(*parts), soft_wrap=True)


def next_(*words: str | Path) -> None:
    """Says which command comes next, so that it can be pasted as it stands."""
    say(("Next:", "dim"), " ", command_line(words))


def look_at(path: Path, *, browser: bool = False) -> None:
    """Says where what was made is."""
    say(("Next:", "dim"), " look at ", (str(path), "bold"), " in a browser" if browser else "")


def command_line(words: Iterable[str | Path]) -> str:
    """Words as a shell of this system takes them.

    >>> command_line(["unsee", "erase", "emoji", "a $(id)"])
    "unsee erase emoji 'a $(id)'"
    """
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)


def command() -> str:
    """The command that is running."""
    return command_line(["unsee", *sys.argv[1:]])


def pairs(rows: Iterable[tuple[str, str]], style: str = "") -> None:
    """Prints names with what is said of each."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, about in rows:
        table.add_row(text((name, style)), text(about))
    console.print(table)


def figures(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints what was measured; of the columns the first is text, and no figure is broken."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for i, column in enumerate(columns):
        left = i == 0
        table.add_column(column, justify="left" if left else "right", no_wrap=not left)
    for row in rows:
        table.add_row(*map(text, row))
    console.print(table)


def print_plan(plan: "Plan") -> None:
    from ..eval import words

    say(f"{words.count(plan.images, 'image')}, {plan.there} of them there already.")
    if plan.seconds is None or plan.bytes is None:
        say("Nothing is to be made.")
        return
    minutes, seconds = divmod(round(plan.seconds), 60)
    took = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    say(
        f"To make the other {plan.images - plan.there}: {took} at the rate of {plan.measured} "
        f"that were made now, and {words.bytes_(plan.bytes)} of disk; detectors and metrics come "
        "on top."
    )


def print_leaderboard(board: "Leaderboard") -> None:
    from ..eval.leaderboard import FRONT

    pairs(board.alike.items(), "dim")
    rows = board.rows()
    for table in (rows, [list(column) for column in zip(*rows, strict=True)]):
        widths = [max(map(len, column)) + 2 for column in zip(*table, strict=True)]
        if sum(widths) <= console.width:
            figures(table[0], table[1:])
            break
    else:  # no room for a table: each run by itself
        for name, *cells in rows[1:]:
            say((name, "bold"))
            pairs(zip((f"  {title}" for title in rows[0][1:]), cells, strict=True))
    for entry in board.entries:
        say((entry.name, "bold"), f": {entry.verdict}")
    for line in board.said_tests():
        say(line)
    say((FRONT, "dim"))


def print_report(report: "Report") -> None:
    from ..eval import words
    from ..eval.report import accuracies, summary

    console.print()
    say((report.answer, "bold"))
    rows = summary(report)
    figures(rows[0], (list(row.values()) for row in rows))
    for outcome in report.outcomes:
        of = f" of “{outcome.concept.name}”" if len(report.outcomes) > 1 else ""
        if line := accuracies(outcome):
            say(line, of)
    for cost in report.costs:
        took = f"{cost.seconds:.1f} s, " if cost.seconds is not None else ""
        times = f", times {cost.weight}" if cost.weight != 1 else ""
        say(f"{cost.method} of {cost.name}{times}: {took}{words.bytes_(cost.bytes)}")
    print_attacks(report)
    for warning in report.warnings[:WARNINGS]:
        say(("With care:", "yellow"), " ", warning)
    if (more := len(report.warnings) - WARNINGS) > 0:
        say((f"{more} more in the report.", "dim"))


TONES = {"comes back": "bold red", "held": "green", "not informative": "yellow", "probe": "dim"}
"""Of what an attack says."""


def print_attacks(report: "Report") -> None:
    """What each attack came to, a line each."""
    several = len({one.concept for one in report.attacks}) > 1
    for one in report.attacks:
        of = f" of “{one.concept}”" if several else ""
        say((f"{one.title}{of}: {one.value}.", TONES[one.value]), " ", one.detail)
        if one.effort is not None:
            say(("  The least that brings it back:", "dim"), " ", one.rungs[one.effort].cost, ".")


def print_score(found: "FolderScore") -> None:
    from ..eval import words

    for hole in found.holes:
        say(("Unscored:", "bold yellow"), " ", hole)
    if found.answer:
        say((found.answer, "bold"))
    rows: list[tuple[str, str, str, str]] = []

    def row(what: str, rate: Any) -> None:
        interval = words.interval(rate.interval())
        rows.append((what, words.share(rate), interval, f"{rate.hits} of {rate.n}"))

    for name, rate in found.right.items():
        row(f"as labelled, by {name}", rate)
    for name, rates in found.rates.items():
        for label in list(rates)[:LABELS]:
            row(f"{label} by {name}", rates[label])
        if (more := len(rates) - LABELS) > 0:
            rows.append((f"{more} other labels by {name}: in score.json", "", "", ""))
    for name, value in found.scores.items():
        what = ", ".join(filter(None, (name, words.paired(value))))
        rows.append((what, words.score(value), words.score_interval(value), str(value.n)))
    figures(("measure", "value", "interval", "n"), rows)
    for name, value in found.scores.items():
        if value.withheld:
            say(("With care:", "yellow"), f" {name}: {value.withheld}. It is in score.json alone.")


def print_verified(found: "Verified") -> None:
    for line in found.differences[:DIFFERENCES]:
        say(("Differs:", "bold red"), " ", line)
    if (more := len(found.differences) - DIFFERENCES) > 0:
        say(f"{more} more things differ.")
    for line in found.recorded:
        say(("Not checked:", "yellow"), " ", line)
    if found.checked:
        say("Checked: ", "; ".join(found.checked))
    n = len(found.differences)
    thing = "1 thing differs" if n == 1 else f"{n} things differ"
    say((f"{found.run}: {thing if n else 'all that was checked holds'}.", "bold"))


def audit_of(model: str, erasure: str | Path, kinds: Sequence[str]) -> list[str | Path]:
    """The command that audits an erasure, with what a model of one's own has to be told.

    Args:
        model: The erasure's base.
        erasure: The file.
        kinds: Of the concepts.
    """
    words: list[str | Path] = ["unsee", "audit", model, "--erasure", erasure]
    for kind in dict.fromkeys(kinds) if model != "emoji" else ():
        for suite in SUITES[kind]:
            words += ["--suite", suite]
        for detector in DETECTORS.get(kind, (f"clip:ViT-B-32,openai?kind={kind}",)):
            words += ["--detector", detector]
    return [*words, "-o", f"runs/{Path(erasure).stem}"]


def effects(measured: "Measured") -> list[str]:
    """How far each concept moved, a line each; none where nobody looked."""
    lines = []
    for name, seen in (measured.effect or {}).items():
        rest = "" if seen.kept_moved is None else f"; what is kept moved by {seen.kept_moved:.0%}"
        lines.append(
            f"The prediction on {name} went {seen.moved:.0%} of the way to its anchor's{rest}."
        )
    return lines


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
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=errors,
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: float, total: int, note: str = "") -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(plain(what), total=total, note="")
            bars.start()
        bars.update(tasks[what], completed=done, note=plain(note))

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
            say(("Warning:", "bold yellow"), " ", str(warning.message))


def hush() -> None:
    """Our progress bars stand for those of the libraries."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
