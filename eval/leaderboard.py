"""Several audits beside each other: one leaderboard, and who is certainly better than whom.

An entry is one report, or several that are pooled (the same method on several concepts). What
stands in one column was measured alike: on the same suites, bases, sampling settings, detectors
and metrics. Where it was not, nothing is compared, and the error says what differs.

An attack has a column of its own, by the name that it was asked for by, settings included: another
setting is another column, and one name of two settings is an error. Attacks are never averaged.
"""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .._errors import InputError
from .._files import write_atomically
from .._reading import plain
from .._settings import shown
from . import words
from .attack import Rung, Way
from .report import Report
from .rows import CHIEF, Comparison, unit
from .statistics import Between, Rate, Score, between
from .verdict import SEVERITY, Value

FORMAT = 1
"""Of compare.json."""

RATES: Mapping[str, str] = {
    "target": "target seen",
    "same kind": "same kind kept",
    "other kind": "other kind kept",
    "named keep": "named keep kept",
}
"""The roles that have columns, and what the columns are called."""


@dataclass(frozen=True)
class Cell:
    """One figure.

    Attributes:
        value: In the column's unit; None where nothing was measured.
        interval: 95 %; None where there is none.
        n: Images behind it.
        note: What it is of, or why there is none; of an attack what it says, and for what effort.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    n: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Column:
    """What one column holds.

    Attributes:
        key: Unique: ``target:emoji/object``, ``attack:words``.
        title: In words.
        unit: "share" (of 1), "points" (of 100), "s", "bytes", or the metric's own.
        better: Which way.
        by: The detector or metric; empty where nobody measures.
    """

    key: str
    title: str
    unit: str
    better: Literal["lower", "higher"]
    by: str = ""

    @property
    def role(self) -> str:
        """Of the rate that it holds; empty where it holds something else."""
        role = self.key.partition(":")[0]
        return role if role in RATES else ""

    @property
    def attack(self) -> str:
        """The attack whose figure it holds; empty where it holds something else."""
        kind, _, name = self.key.partition(":")
        return name if kind == "attack" else ""


@dataclass(frozen=True)
class Entry:
    """One line of the leaderboard.

    Attributes:
        name: Of its run.
        methods: Of its erasures, or what was judged where none was.
        concepts: What was to go.
        verdict: The worst of its reports'.
        cells: By the columns' keys.
        lost: By how much what must stay fell that fell most, of what the verdict goes by, paired
            with the base; None where nothing that must stay was measured.
        front: Whether no other entry is at least as good in all of target, same kind, other kind
            and, where all have one, the attack that brings back most, and better in one, by the
            figures as they stand.
    """

    name: str
    methods: tuple[str, ...]
    concepts: tuple[str, ...]
    verdict: Value
    cells: Mapping[str, Cell]
    lost: Cell
    front: bool = False


@dataclass(frozen=True)
class Test:
    """What the paired test says of two entries in one column."""

    column: str
    between: Between


@dataclass(frozen=True)
class Leaderboard:
    """All of it.

    Attributes:
        columns: In their order.
        base: The base's own figures, where it has some.
        entries: As they were given.
        tests: Of each rate, each entry beside each other one, with Holm's p over the column.
        alike: What all of them have in common, in words.
    """

    columns: tuple[Column, ...]
    base: Mapping[str, Cell]
    entries: tuple[Entry, ...]
    tests: tuple[Test, ...]
    alike: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **plain(self)}

    def rows(self) -> list[list[str]]:
        """The table in words: a head, the base, and a line an entry."""
        head = ["", *(f"{c.title} {'↓' if c.better == 'lower' else '↑'}" for c in self.columns)]
        base = ["base", *(said(self.base.get(c.key), c) for c in self.columns)]
        lines = [
            ["★ " * e.front + e.name, *(said(e.cells[c.key], c) for c in self.columns)]
            for e in self.entries
        ]
        return [head, base, *lines]

    def markdown(self) -> str:
        """The table in Markdown, with what the star means."""
        rows = [[cell.replace("|", "\\|") for cell in row] for row in self.rows()]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        lines.insert(1, "|---" * len(rows[0]) + "|")
        return "\n".join([*lines, "", FRONT, ""])

    def csv(self) -> str:
        """Figures as numbers: of each column the value, the ends of its interval, and n.

        An attack has what it says in words as well.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        parts = ("", " low", " high", " n")
        writer.writerow(["name", "method", "concept", "verdict", "front"] + [
            f"{c.key}{part}"
            for c in self.columns
            for part in (*parts, *[" says"] * bool(c.attack))
        ])  # fmt: skip

        def numbers(cells: Mapping[str, Cell]) -> list[Any]:
            found: list[Any] = []
            for c in self.columns:
                cell = cells.get(c.key, Cell(None))
                found += [cell.value, *(cell.interval or (None, None)), cell.n]
                found += [cell.note] * bool(c.attack)
            return found

        writer.writerow(["base", "", "", "", "", *numbers(self.base)])
        for e in self.entries:
            about = [e.name, "+".join(e.methods), "; ".join(e.concepts), e.verdict, int(e.front)]
            writer.writerow([*about, *numbers(e.cells)])
        return out.getvalue()

    def said_tests(self) -> list[str]:
        """What the paired tests say, a sentence each; those that tell nothing apart in one."""
        found, alike = [], 0
        titles = {c.key: c.title for c in self.columns}
        for t in self.tests:
            b = t.between
            if b.p_holm is None or b.p_holm > 0.05 or b.paired.difference is None:
                alike += 1
                continue
            found.append(
                f"{titles[t.column]}: {b.second} {words.change(b.paired.difference)} points "
                f"against {b.first} ({words.difference_interval(b.paired.interval())}; "
                f"{words.p_value(b.paired.p_value, b.p_holm)})."
            )
        if alike:
            found.append(
                f"{alike} of {len(self.tests)} pairs cannot be told apart at 5 % (paired tests on "
                "the same prompts, Holm's correction over each column)."
            )
        return found

    def save(self, folder: Path) -> None:
        """Writes compare.json, .csv, .md and .html, each whole or not at all."""
        from .board_page import render

        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(folder / "compare.json", text + "\n")
        write_atomically(folder / "compare.csv", self.csv())
        write_atomically(folder / "compare.md", self.markdown())
        write_atomically(folder / "compare.html", render(self))


FRONT = (
    "★: no other is at least as good in all of target, same kind, other kind and, where all have "
    "one, the attack that brings back most, and better in one. That is by the figures as they "
    "stand; intervals are of 95 %."
)


ATTACKED = (
    "what was forgotten and comes back, at the greatest budget, on rows that nothing was fitted "
    "on; attacks are never averaged"
)
"""What the columns of attacks hold."""


def leaderboard(reports: Mapping[str, Sequence[Report]]) -> Leaderboard:
    """Several runs beside each other.

    Args:
        reports: An entry's name to its reports, one or several, which are pooled.

    Raises:
        InputError: There are fewer than two, or they were not measured alike; the line says what
            differs.
    """
    if len(reports) < 2:
        raise InputError("A comparison needs at least two runs: name another.")
    for name, some in reports.items():
        if not some:
            raise InputError(f"{name} has no report: audit it first.")
    names = list(reports)
    ordered = {name: sorted(some, key=lambda r: r.suite.sha256) for name, some in reports.items()}
    for name in names[1:]:
        _check_alike(names[0], ordered[names[0]], name, ordered[name])
    _check_attacks(ordered)
    first = ordered[names[0]]
    columns = _columns(first) + _attack_columns(ordered.values())
    entries = [_entry(name, some, columns) for name, some in ordered.items()]
    return Leaderboard(
        tuple(columns),
        {c.key: _base_cell(first, c) for c in columns},
        tuple(_with_front(entries, columns)),
        tuple(_tests(ordered, columns)),
        _alike(first, any(c.attack for c in columns)),
    )


def said(cell: Cell | None, column: Column) -> str:
    """A figure with its interval in words."""
    text, ends, note = parts(cell, column)
    return " ".join(part for part in (text, f"({ends})" if ends else "", note) if part)


def parts(cell: Cell | None, column: Column) -> tuple[str, str, str]:
    """A figure, its interval and its note in words; each may be empty, but for the figure."""
    if cell is None or cell.value is None:
        return "–", "", "" if cell is None else cell.note
    ends = ""
    if column.unit == "share" and (column.role or column.attack):
        ends = words.interval(cell.interval) if cell.interval else ""
        text = words.percent(cell.value)
    elif column.unit == "points":
        ends = words.difference_interval(cell.interval) if cell.interval else ""
        text = words.change(cell.value)
    elif column.unit == "bytes":
        text = words.bytes_(int(cell.value))
    elif column.unit == "s":
        text = f"{cell.value:.1f} s"
    else:
        ends = "{:.4g} to {:.4g}".format(*cell.interval) if cell.interval else ""
        text = f"{cell.value:.4g}"
    return text, ends, cell.note


def _check_alike(one: str, mine: Sequence[Report], other: str, theirs: Sequence[Report]) -> None:
    """Makes sure that two entries were measured alike.

    Raises:
        InputError: They were not; the line says by what.
    """
    if [r.suite.sha256 for r in mine] != [r.suite.sha256 for r in theirs]:
        suites = [", ".join(r.suite.name or "?" for r in some) for some in (mine, theirs)]
        raise InputError(
            f"{one} and {other} were not asked the same: the prompts of {suites[0]} and of "
            f"{suites[1]} differ. Audit both on one suite."
        )
    for ours, yours in zip(mine, theirs, strict=True):
        for what, a, b in zip(_PARTS, _measured(ours), _measured(yours), strict=True):
            if a != b:
                name = next((k for k in (*a, *b) if a.get(k) != b.get(k)), "")
                raise InputError(
                    f"{one} and {other} were not measured alike: the {what} differ, first "
                    f"{name}: {shown(a.get(name))} and {shown(b.get(name))}. Audit both with the "
                    "same."
                )


def _check_attacks(runs: Mapping[str, Sequence[Report]]) -> None:
    """Makes sure that what is called by one name is one attack.

    Raises:
        InputError: It is not; the line says by what setting.
    """
    known: dict[tuple[str, bool], tuple[str, Mapping[str, Any]]] = {}
    for name, some in runs.items():
        for one in (o for r in some for o in r.attacks):
            mine = plain(one.settings)
            # What was found on something else is one thing, which is tried on all
            if transfer := one.fitted_on != THIS:
                mine["file"] = one.last.sha256
            first, theirs = known.setdefault((one.attack, transfer), (name, mine))
            if what := next((k for k in (*theirs, *mine) if theirs.get(k) != mine.get(k)), None):
                values = shown(theirs.get(what)), shown(mine.get(what))
                raise InputError(
                    f"{first} and {name} were attacked by another {one.attack}: its {what} is "
                    f"{values[0]} and {values[1]}. Attack both with the same, or say the setting "
                    "in the attack's name, which gives it a column of its own."
                )


THIS = "this model"
"""What an attack was fitted on that is no transfer."""

_PARTS = ("bases", "sampling settings", "detectors", "metrics", "targets")


def _measured(report: Report) -> tuple[Mapping[str, Any], ...]:
    """All that a figure depends on beside what is judged, in the order of ``_PARTS``."""
    model = report.base.get("model") or {}
    base = {k: v for k, v in model.items() if k not in ("name", "scheduler", "components")}
    base |= {str(k): v for k, v in (model.get("components") or {}).items()}
    settings = {k: report.base.get(k) for k in ("guidance", "steps")}
    return (
        {**base, **{f"scheduler's {k}": v for k, v in (model.get("scheduler") or {}).items()}},
        settings,
        {name: plain(protocol) for name, protocol in report.detectors.items()},
        {name: plain(protocol) for name, protocol in report.metrics.items()},
        {o.concept.name: o.concept.kind for o in report.outcomes},
    )


def _columns(reports: Sequence[Report]) -> list[Column]:
    found: dict[str, Column] = {}
    for role, title in RATES.items():
        for c in (c for r in reports for o in r.outcomes for c in o.comparisons):
            if c.role == role:
                key = f"{role}:{c.detector}"
                better: Literal["lower", "higher"] = "lower" if role == "target" else "higher"
                found[key] = Column(key, title, "share", better, c.detector)
    counted: dict[str, int] = {}
    for column in found.values():
        counted[column.title] = counted.get(column.title, 0) + 1
    columns = [
        dataclasses.replace(c, title=f"{c.title} ({c.by})") if counted[c.title] > 1 else c
        for c in found.values()
    ]
    if any(_neighbours(r) for r in reports):
        columns.append(Column("worst neighbour", "worst neighbour", "points", "higher"))
    for m in (m for r in reports for m in r.measurements if m.rows == "keep"):
        column = Column(f"metric:{m.metric}", m.metric, m.erased.unit, m.better, m.metric)  # type: ignore[arg-type]
        if column not in columns:
            columns.append(column)
    if any(r.costs for r in reports):
        columns.append(Column("seconds", "seconds", "s", "lower"))
        columns.append(Column("bytes", "size", "bytes", "lower"))
    return columns


def _attack_columns(runs: Iterable[Sequence[Report]]) -> list[Column]:
    names = dict.fromkeys(o.attack for some in runs for r in some for o in r.attacks)
    return [Column(f"attack:{name}", f"back by {name}", "share", "lower") for name in names]


def _entry(name: str, reports: Sequence[Report], columns: Sequence[Column]) -> Entry:
    methods = [m for r in reports for m in (c.method for c in r.costs)]
    judged = [str((r.erased.get("model") or {}).get("name", "images")) for r in reports]
    worst = min((r.verdict.value for r in reports), key=SEVERITY.index)
    return Entry(
        name,
        tuple(dict.fromkeys(methods or judged)),
        tuple(dict.fromkeys(o.concept.name for r in reports for o in r.outcomes)),
        worst,
        {c.key: _cell(reports, c) for c in columns},
        _lost(reports),
    )


def _lost(reports: Sequence[Report]) -> Cell:
    kept = [
        c
        for r in reports
        for o in r.outcomes
        for c in o.comparisons
        if c.role in CHIEF and c.paired.difference is not None
    ]
    most = min(kept, key=lambda c: c.paired.difference or 0.0, default=None)
    if most is None:
        return Cell(None)
    low, high = most.paired.interval() or (-1.0, 1.0)
    return Cell(-(most.paired.difference or 0.0), (-high, -low), most.paired.n, most.title)


def _comparisons(reports: Sequence[Report], role: str, detector: str) -> list[Comparison]:
    """Those of a role; several concepts of one report may share one, which counts once."""
    found = []
    for r in reports:
        every = [c for o in r.outcomes for c in o.comparisons]
        some = [c for c in every if (c.role, c.detector) == (role, detector)]
        found += some if role == "target" else some[:1]
    return found


def _spent(rung: Rung) -> tuple[int, int, float]:
    return rung.rows, rung.looks, rung.seconds


def _attack_cell(reports: Sequence[Report], attack: str) -> Cell:
    """What one attack brought back of all concepts, at its greatest budget."""
    ours = [o for r in reports for o in r.attacks if o.attack == attack]
    concepts = sum(len(r.outcomes) for r in reports)
    if not ours:
        return Cell(None, note="not tried")
    if len(ours) < concepts:
        return Cell(None, note=f"tried on {len(ours)} of {concepts} concepts alone")
    ways = [o.value for o in ours]
    one = len(ours) == 1
    silent: tuple[Way, ...] = ("not informative", "probe")
    if way := next((w for w in silent if w in ways), None):
        return Cell(None, note=way if one else f"{way} on {ways.count(way)} of {len(ours)}")
    back = [o for o in ours if o.value == "comes back"]
    said = "held" if not back else "comes back" if one else f"{len(back)} of {len(ours)} come back"
    least = min(
        (o.rungs[o.effort] for o in back if o.effort is not None), key=_spent, default=None
    )
    said += (
        f"{'' if one else ', the first'} for {least.cost}" if least else f" to {ours[0].last.cost}"
    )
    others = dict.fromkeys(o.fitted_on for o in ours if o.fitted_on != THIS)
    said += "".join(f"; fitted on {other}" for other in others)
    rate = Rate.pooled([o.last.recovered for o in ours])
    return Cell(rate.value, rate.interval(), rate.n, said)


def _cell(reports: Sequence[Report], column: Column) -> Cell:
    if column.attack:
        return _attack_cell(reports, column.attack)
    if column.role:
        return _rate(c.erased for c in _comparisons(reports, column.role, column.by))
    if column.key == "worst neighbour":
        every = [n for r in reports for n in _neighbours(r)]
        worst = min(every, key=lambda c: c.paired.difference or 0.0, default=None)
        if worst is None:
            return Cell(None)
        return Cell(
            worst.paired.difference, worst.paired.interval(), worst.paired.n, f"{worst.of}"
        )
    if column.key.startswith("metric:"):
        return _score([m.erased for m in _of_metric(reports, column.by)])
    costs = [c for r in reports for c in r.costs]
    if column.key == "bytes":
        return Cell(sum(c.bytes for c in costs) / len(reports) if costs else None)
    seconds = [c.seconds for c in costs if c.seconds is not None]
    known = costs and len(seconds) == len(costs)
    return Cell(math.fsum(seconds) / len(reports) if known else None)


def _base_cell(reports: Sequence[Report], column: Column) -> Cell:
    if column.role:
        return _rate(c.base for c in _comparisons(reports, column.role, column.by))
    if column.key.startswith("metric:"):
        scores = [m.base for m in _of_metric(reports, column.by)]
        return _score([s for s in scores if s is not None])
    return Cell(None)


def _rate(rates: Iterable[Rate]) -> Cell:
    some = list(rates)
    if not some:
        return Cell(None)
    rate = Rate.pooled(some)
    return Cell(rate.value, rate.interval(), rate.n)


def _of_metric(reports: Sequence[Report], metric: str) -> list[Any]:
    return [m for r in reports for m in r.measurements if (m.rows, m.metric) == ("keep", metric)]


def _score(scores: Sequence[Score]) -> Cell:
    """The mean of several reports' scores, its interval as of independent ones."""
    values = [s.value for s in scores if s.value is not None]
    if not scores or len(values) < len(scores):
        return Cell(None)
    mean = math.fsum(values) / len(values)
    halves = [(s.interval[1] - s.interval[0]) / 2 for s in scores if s.interval]
    n = sum(s.n for s in scores)
    if len(scores) == 1:
        return Cell(mean, scores[0].interval, n)
    if len(halves) < len(scores):
        return Cell(mean, None, n)
    half = math.sqrt(math.fsum(h * h for h in halves)) / len(halves)
    return Cell(mean, (mean - half, mean + half), n)


def _neighbours(report: Report) -> list[Comparison]:
    """What was named to be kept, one by one, as far as a loss of it was measured."""
    return [
        c
        for o in report.outcomes
        for c in o.comparisons
        if c.role == "keep concept" and c.paired.difference is not None
    ]


def _with_front(entries: Sequence[Entry], columns: Sequence[Column]) -> list[Entry]:
    """The same, those on the Pareto front of what the verdict goes by marked."""
    counted = [c for c in columns if c.role in ("target", "same kind", "other kind")]
    attacks = [
        c for c in columns if c.attack and all(e.cells[c.key].value is not None for e in entries)
    ]

    def values(entry: Entry) -> list[float] | None:
        found = []
        for c in counted:
            value = entry.cells[c.key].value
            if value is None:
                return None
            found.append(value if c.better == "lower" else -value)
        # The worst of them, and no mean
        found += [max(entry.cells[c.key].value or 0.0 for c in attacks)] if attacks else []
        return found

    def beaten(entry: Entry) -> bool:
        mine = values(entry)
        # Of what says nothing nobody knows where it lies
        if mine is None or entry.verdict in ("incomplete", "not informative"):
            return True
        for other in entries:
            theirs = values(other)
            if other is entry or theirs is None:
                continue
            pairs = list(zip(theirs, mine, strict=True))
            if all(a <= b for a, b in pairs) and any(a < b for a, b in pairs):
                return True
        return False

    return [dataclasses.replace(e, front=not beaten(e)) for e in entries]


def _tests(reports: Mapping[str, Sequence[Report]], columns: Sequence[Column]) -> list[Test]:
    """Every two entries on the same rows, of each rate."""
    found = []
    for column in columns:
        if not column.role:
            continue
        judged = {name: _judged(some, column.role, column.by) for name, some in reports.items()}
        if all(judged.values()):
            found += [Test(column.key, b) for b in between(judged)]
    return found


def _judged(
    reports: Sequence[Report], role: str, detector: str
) -> dict[str, tuple[str, bool | None]]:
    """What each row of a role says of the erased image, by the row's id, with its unit."""
    found: dict[str, tuple[str, bool | None]] = {}
    for i, report in enumerate(reports):
        kinds = {o.concept.kind for o in report.outcomes}
        kept = {phrase for o in report.outcomes for phrase in map(words.fold, o.concept.keep)}
        for sample in report.samples:
            if role != "target" and sample.rows != "keep":
                continue
            for a in sample.asked:
                roles = {
                    "target": a.target,
                    "same kind": not a.target and a.kind in kinds,
                    "other kind": not a.target and a.kind not in kinds,
                    "named keep": not a.target and words.fold(a.of) in kept,
                }
                if a.detector == detector and roles[role]:
                    key = f"{i} {sample.prompt.id} {a.of}"
                    found[key] = (f"{i} {unit(sample.prompt)}", a.erased)
    return found


def _alike(reports: Sequence[Report], attacked: bool) -> dict[str, str]:
    first = reports[0]
    model = first.base.get("model") or {}
    images = sum(r.suite.n for r in reports)
    return {
        "base": str(model.get("name", "images from folders")),
        "suite": ", ".join(dict.fromkeys(r.suite.name or "unnamed" for r in reports)),
        "prompts": f"{images} prompts, each with the same seed for all",
        "detectors": ", ".join(first.detectors),
        "metrics": ", ".join(first.metrics) or "none",
        "attack": ATTACKED
        if attacked
        else "no attack was made: every figure is of the suite as it stands",
    }


def load_runs(paths: Sequence[str | Path]) -> dict[str, list[Report]]:
    """The reports of runs, by the runs' names.

    Args:
        paths: Folders with report.json, or with runs in folders of their own, which are pooled.

    Raises:
        InputError: One has no report, or two have one name.
    """
    found: dict[str, list[Report]] = {}
    folders = set()
    for path in map(Path, paths):
        if path.resolve() in folders:
            raise InputError(f"{path} is named twice: name each run once.")
        folders.add(path.resolve())
        name = path.name or str(path)
        if name in found:  # runs/a/knife and runs/b/knife
            name = path.as_posix()
        if (path / "report.json").is_file():
            found[name] = [Report.load(path / "report.json")]
            continue
        files = sorted(path.glob("*/report.json"))
        if not files:
            raise InputError(f"{path} has no report.json: wanted a folder that an audit wrote.")
        found[name] = [Report.load(file) for file in files]
    return found
