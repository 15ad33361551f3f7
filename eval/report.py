"""The report of an audit: report.json, which holds everything; ``page`` makes the page of it."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from .._errors import InputError
from .._files import write_atomically
from .._reading import line, loads, many, plain, read
from .._settings import checked
from ..prompts import Concept, Prompt
from . import words
from .attack import AttackOutcome, attacked
from .rows import ACCURACIES, Asked, Comparison, RowRole
from .statistics import Rate, Score
from .verdict import Limits, Verdict, overall

FORMAT = 2
"""Of report.json. A file of another number is refused."""

ROWS, END = b' "samples": [\n', b" ]\n"
"""The lines of report.json before and after its rows."""


@dataclass(frozen=True)
class Measurement:
    """One metric over some rows, before and after.

    Attributes:
        metric: Its name.
        rows: "keep" or "target".
        of: The target, for its rows.
        base: None for a metric whose reference the base is.
        erased: The erased gallery's.
    """

    metric: str
    rows: Literal["keep", "target"]
    of: str
    base: Score | None
    erased: Score

    @property
    def title(self) -> str:
        return f"{self.metric} on " + ("kept rows" if self.rows == "keep" else f"“{self.of}”")

    @property
    def better(self) -> str:
        """Whether a higher or a lower value is better here."""
        # What is to be forgotten should fit its prompt less
        higher = self.erased.higher_is_better == (self.rows == "keep")
        return "higher" if higher else "lower"


@dataclass(frozen=True)
class Outcome:
    """One concept's verdict and rates.

    Attributes:
        concept: What was to be forgotten.
        verdict: Its own.
        comparisons: The target's first, then what was to stay, then by category.
    """

    concept: Concept
    verdict: Verdict
    comparisons: tuple[Comparison, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "concept": self.concept.to_json(),
            "verdict": plain(self.verdict),
            "comparisons": [c.to_json() for c in self.comparisons],
        }


@dataclass(frozen=True)
class SuiteRecord:
    """The suite of an audit.

    Attributes:
        name: As given.
        sha256: Of every prompt with all its settings.
        n, target, keep, aside: Rows: all, those of a target, those kept, those set aside.
        source: The file or data set, its hash, its filter.
    """

    name: str
    sha256: str
    n: int
    target: int
    keep: int
    aside: int
    source: Mapping[str, str]


@dataclass(frozen=True)
class Coverage:
    """How much of a gallery could be measured.

    Attributes:
        images: That there should be.
        scored: Scored by every detector.
        missing: Not there.
        blank: Of one colour.
        unscored: By detector.
    """

    images: int
    scored: int
    missing: int
    blank: int
    unscored: Mapping[str, int]


@dataclass(frozen=True)
class Protocol:
    """A detector's kind and how it measures."""

    kind: str
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class Cost:
    """What an erasure cost to make.

    Attributes:
        name, method: Of the erasure.
        seconds: To make it; None where nobody knows.
        peak_memory: Bytes; None where nobody knows.
        bytes: Of its file.
        weight: What it was multiplied by.
    """

    name: str
    method: str
    seconds: float | None
    peak_memory: int | None
    bytes: int
    weight: float = 1.0

    later: ClassVar[tuple[str, ...]] = ("weight",)


@dataclass(frozen=True, slots=True)
class Said:
    """What one detector said of one image.

    Attributes:
        labels: What it sees.
        scores: Its best, and that of the row's label.
        unscored: Why there is no answer; None where there is one.
    """

    labels: tuple[str, ...]
    scores: Mapping[str, float]
    unscored: str | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """One image of a row.

    Attributes:
        image: Its path in its gallery.
        sha256: Of the file; None when there was none.
        blank: Whether it is of one colour.
        detectors: Name to what the detector said.
    """

    image: str
    sha256: str | None
    blank: bool
    detectors: Mapping[str, Said]


@dataclass(frozen=True, slots=True)
class Sample:
    """One row: a prompt, what was asked of its two images, and what the detectors said.

    Attributes:
        prompt: The row.
        rows: Whose it is: a target's, kept, or set aside.
        asked: What each detector was asked after, and whether it was seen; the rates, the verdict
            and the page all go by this.
        base, erased: The images.
    """

    prompt: Prompt
    rows: RowRole
    asked: tuple[Asked, ...]
    base: Shown
    erased: Shown

    @property
    def shown(self) -> dict[str, Shown]:
        return {"base": self.base, "erased": self.erased}


@dataclass(frozen=True)
class Report:
    """Everything that an audit found, and how to find it again.

    Attributes:
        verdict: Over all concepts.
        warnings: Sentences.
        suite: What was asked.
        coverage: For "base" and "erased".
        outcomes: One a concept.
        measurements: One a metric and set of rows.
        limits: Of the verdict.
        base, erased: What made the galleries, as their records say.
        costs: Of the erasures, as far as the erased gallery's record says.
        detectors: By name.
        metrics: Name to protocol.
        command, date: As given.
        seconds: What took how long, as given.
        peak_bytes: The most memory that was held at once, by where, as given.
        versions: Package to version.
        samples: One a prompt.
        attacks: One an attack and concept.
    """

    verdict: Verdict
    warnings: tuple[str, ...]
    suite: SuiteRecord
    coverage: Mapping[str, Coverage]
    outcomes: tuple[Outcome, ...]
    measurements: tuple[Measurement, ...]
    limits: Limits
    base: Mapping[str, Any]
    erased: Mapping[str, Any]
    costs: tuple[Cost, ...]
    detectors: Mapping[str, Protocol]
    metrics: Mapping[str, Mapping[str, Any]]
    command: str
    date: str
    seconds: Mapping[str, float]
    peak_bytes: Mapping[str, int]
    versions: Mapping[str, str]
    samples: tuple[Sample, ...]
    attacks: tuple[AttackOutcome, ...] = ()

    derived: ClassVar[tuple[str, ...]] = ("format", "holes")
    later: ClassVar[tuple[str, ...]] = ("attacks",)

    @property
    def exit_code(self) -> int:
        """0 when every concept is forgotten, else 1."""
        return 0 if self.verdict.value == "forgotten" else 1

    @property
    def answer(self) -> str:
        """The verdict in words, in one or a few sentences; holes first."""
        hole = f"This report has holes: {self.holes[0]} " if self.holes else ""
        return f"{hole}{self.verdict.headline}. {self.verdict.detail}"

    @property
    def holes(self) -> tuple[str, ...]:
        """What could not be measured, in words; empty when everything was."""
        found = []
        for side, coverage in self.coverage.items():
            for name, n in coverage.unscored.items():
                if n:
                    of = words.count(coverage.images, f"{side} image")
                    found.append(f"{name} could not score {n} of {of}{self._why(side, name)}.")
        for m in self.measurements:
            for side, score in (("base", m.base), ("erased", m.erased)):
                if score is not None and score.unscored:
                    lost = words.count(score.unscored, "image")
                    why = f" ({score.note})" if score.value is None and score.note else ""
                    found.append(f"{m.title}, {side}: {lost} could not be measured{why}.")
        return tuple(found)

    def _why(self, side: str, detector: str) -> str:
        said = (sample.shown[side].detectors[detector].unscored for sample in self.samples)
        reasons = list(dict.fromkeys(why for why in said if why is not None))
        others = words.count(len(reasons) - 2, "other reason")
        more = f", and {others}" if reasons[2:] else ""
        return f" ({'; '.join(reasons[:2])}{more})" if reasons else ""

    def with_attacks(self, outcomes: Sequence[AttackOutcome]) -> "Report":
        """The same with what attacks came to, which its verdicts then take into account."""
        found = tuple(
            dataclasses.replace(
                one,
                verdict=attacked(
                    one.verdict, [o for o in outcomes if o.concept == one.concept.name]
                ),
            )
            for one in self.outcomes
        )
        return dataclasses.replace(
            self,
            verdict=overall([one.verdict for one in found]),
            outcomes=found,
            attacks=tuple(outcomes),
        )

    def to_json(self) -> dict[str, Any]:
        return {**self._head(), "samples": plain(self.samples)}

    def _head(self) -> dict[str, Any]:
        """Everything but the rows."""
        names = (f.name for f in dataclasses.fields(self) if f.name != "samples")
        fields = {name: plain(getattr(self, name)) for name in names}
        fields["outcomes"] = [o.to_json() for o in self.outcomes]
        fields["attacks"] = [o.to_json() for o in self.attacks]
        return {"format": FORMAT, "holes": list(self.holes), **fields}

    @classmethod
    def from_json(cls, page: Any, where: str = "The report") -> "Report":
        """The report that ``to_json`` gave.

        Raises:
            InputError: Something in it is not right, or it is of another format.
        """
        version = page.get("format") if isinstance(page, Mapping) else None
        if type(version) is not int or version < 1:
            raise InputError(f"{where} is no report: it has no format.")
        if version > FORMAT:
            raise InputError(
                f"{where} has format {min(version, 2**64)}; this version of unsee reads "
                f"{FORMAT}. Upgrade unsee."
            )
        if version < FORMAT:
            raise InputError(
                f"{where} has format {version}, whose verdict did not go by intervals. Run the "
                "same audit again; existing images and detector answers are reused."
            )
        try:
            found = read(cls, page, where)
        except InputError:
            raise
        except ValueError as error:  # counts that do not add up
            raise InputError(f"{where} is no report: {error}") from error
        return found._whole(where)

    def _whole(self, where: str) -> "Report":
        """The same, if what is named in one place is there in the others."""
        if set(self.coverage) != {"base", "erased"} or not self.outcomes:
            raise InputError(f"{where} is no report: it lacks a side, or has no concept.")
        if not all(any(c.role == "target" for c in o.comparisons) for o in self.outcomes):
            raise InputError(f"{where} is no report: a concept has no rate of its target.")
        known = set(self.detectors)
        named = {a.detector for s in self.samples for a in s.asked}
        named |= {c.detector for o in self.outcomes for c in o.comparisons}
        there = [set(c.unscored) for c in self.coverage.values()]
        there += [set(shown.detectors) for s in self.samples for shown in s.shown.values()]
        if not named <= known or any(detectors != known for detectors in there):
            raise InputError(f"{where} is no report: its detectors are not the same everywhere.")
        return self

    def save(self, path: Path) -> None:
        """Writes the whole file or nothing.

        Raises:
            ValueError: A number in it is not finite, which JSON has no word for.
        """
        write_atomically(path, self._parts)

    def _parts(self) -> Iterator[str]:
        """The file's text. A row is a line: of very many, one at a time is made, and read."""
        page = {**self._head(), "samples": []}
        head = json.dumps(page, indent=1, ensure_ascii=False, allow_nan=False)
        yield head.removesuffix("]\n}")
        for i, sample in enumerate(self.samples):
            yield (",\n  " if i else "\n  ") + line(sample)
        yield "\n ]\n}\n"

    @classmethod
    @checked
    @many()
    def load(cls, path: str | Path) -> "Report":
        """Reads what ``save`` wrote.

        Raises:
            InputError: The file is missing, is no report, or is of another format.
        """
        try:
            with Path(path).open("rb") as file:
                if (found := cls._by_row(file, str(path))) is not None:
                    return found
                file.seek(0)
                data = file.read()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        return cls.from_json(loads(data, str(path)), str(path))

    @classmethod
    def _by_row(cls, file: Iterable[bytes], where: str) -> "Report | None":
        """The report in a file's lines, if they are as ``save`` writes them, and all is right."""
        lines = iter(file)
        head = b"".join(iter(functools.partial(next, lines, ROWS), ROWS))
        samples, more = [], True
        try:
            for text in lines:
                if text == END:
                    break
                if not more:
                    return None
                text = text.rstrip(b"\n")
                more = text.endswith(b",")
                row = loads(text.removesuffix(b","), where)
                samples.append(read(Sample, row, where))
            if more or b"".join(lines) != b"}\n":
                return None
            found = cls.from_json(loads(head + ROWS + b"]}", where), where)
        except InputError:  # which the reading of the whole says better
            return None
        return dataclasses.replace(found, samples=tuple(samples))._whole(where)


def summary(report: Report) -> list[dict[str, str]]:
    """The report's chief figures in words, one row each: rates, then metrics.

    Every row has ``measure``, ``base``, ``erased``, ``interval`` (95 %, of the erased figure),
    ``n`` (images behind the erased figure) and ``better`` ("lower" or "higher").
    """
    rows = []
    for outcome in report.outcomes:
        for c in outcome.comparisons:
            if c.role not in ("target", "same kind", "other kind", "named keep"):
                continue
            rows.append(
                {
                    "measure": f"{c.title} by {c.detector}",
                    "base": words.share(c.base),
                    "erased": words.share(c.erased),
                    "interval": words.interval(c.erased.interval()),
                    "n": str(c.erased.n),
                    "better": "lower" if c.role == "target" else "higher",
                }
            )
    rows += [
        {
            "measure": ", ".join(filter(None, (m.title, words.paired(m.erased)))),
            "base": words.score(m.base),
            "erased": words.score(m.erased),
            "interval": words.score_interval(m.erased),
            "n": str(m.erased.n),
            "better": m.better,
        }
        for m in report.measurements
    ]
    # Several concepts share what stays
    return [row for i, row in enumerate(rows) if row not in rows[:i]]


def accuracies(outcome: Outcome) -> str:
    """UA, IRA and CRA in a line, by the first detector of each: "UA 97.2 % (base 0 %), …"."""
    found: dict[str, tuple[Rate, Rate]] = {}
    for c in outcome.comparisons:
        if c.accuracy:
            found.setdefault(c.accuracy[0], c.accuracy[1:])
    return ", ".join(
        f"{name} {words.share(found[name][1])} (base {words.share(found[name][0])})"
        for name in ACCURACIES.values()
        if name in found
    )
