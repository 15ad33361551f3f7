"""Galleries looked at: every image is read once, and detectors and metrics are asked about it.

What detectors say is kept as it comes, in answers.jsonl: one line is what one detector said of one
image, with the labels, the scores and the boxes. Scores and boxes are those before the protocol's
threshold, so that another threshold needs no second run.

An answer belongs to the image's bytes (their SHA-256), the detector's name and its protocol's
fingerprint; where the image lies and what it is called do not count. So a detector that was asked
is not asked again about the same image, whoever else was asked meanwhile. What could not be
measured is not in the file, and is tried again the next time. Of a video there is an answer for
each of its frames, by the SHA-256 of its size and pixels.

A run that was killed leaves at most the last line without its end: that line is dropped, and the
image asked about again. Any other line that is not as it was written is an error that names it,
and so is an answer whose labels do not follow from its own scores (``Ruled``): somebody edited the
file. Mending that in silence would hide an edit that had changed what was reported before. Who
changes labels, scores and boxes alike, by the rule, is not found out: the file is no proof.

Of 5,000 images with six detectors, 98 scores and 12 boxes each, JSON lines are written in 0.5 s of
CPU and read in 0.6 s, Arrow's stream in 1.0 and 0.6 s, SQLite in 1.4 and 0.7 s; the files have 20,
6 and 24 MB (``lab.bench_rows``). Lines are as quick as any and can be read and repaired by hand;
every line checked, and held in 3.3 kB an image, they are read in 0.9 s.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._errors import InputError
from .._files import append
from .._reading import line, loads, many
from .._reading import read as read_value
from ..gallery import Gallery
from ..prompts import Prompt
from .detectors import Detection, Detector, checked, fingerprint
from .images import Picture, Taken, Unscored, ask, beside, describe, read
from .statistics import Score

if TYPE_CHECKING:
    from .metrics import Metric
    from .metrics.shared import SharedFeatures

AGAIN = "Remove the line, and its image is asked about again."

_HEXADECIMAL = re.compile("[0-9a-f]+").fullmatch

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many images are done, and of how many."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one detector said of one image: a line of answers.jsonl.

    Attributes:
        id: What the image was called. It is only a label.
        sha256: Of the image's file; of a video's frame as ``Picture`` has it.
        detector: Its name.
        protocol: The fingerprint of its protocol.
        found: What it saw, its numbers rounded as ``checked`` does.
    """

    id: str
    sha256: str
    detector: str
    protocol: str
    found: Detection

    def __post_init__(self) -> None:
        for what, digits in ((self.sha256, 64), (self.protocol, 16)):
            if len(what) != digits or not _HEXADECIMAL(what):
                raise InputError(f"{what!r:.60} is not {digits} hexadecimal digits.")
        if (again := checked(self.found)) != self.found:
            why = again.reason if isinstance(again, Unscored) else "a number is not rounded"
            raise InputError(f"{why}.")
        object.__setattr__(self, "found", again)  # the same, as it is kept

    def to_json(self) -> dict[str, Any]:
        found = self.found
        return {
            "id": self.id,
            "sha256": self.sha256,
            "detector": self.detector,
            "protocol": self.protocol,
            "found": {
                "labels": list(found.labels),
                "scores": dict(found.scores.items()),
                "boxes": [
                    {"label": box.label, "score": box.score, "xywh": list(box.xywh)}
                    for box in found.boxes
                ],
            },
        }

    @classmethod
    def from_json(cls, page: Any, where: str) -> "Answer":
        """The answer that ``to_json`` gave the values of.

        Raises:
            InputError: They are no answer's; ``where`` says which.
        """
        return read_value(cls, page, where)


class Answers:
    """Detectors' answers by image, detector and protocol, in a file that grows as they come.

    Args:
        path: Of the file, which need not be there yet; None keeps the answers in memory alone.
        shared: By an image's SHA-256 the file of what detectors said of it in any run; None shares
            nothing.

    Raises:
        InputError: The file cannot be read, or a line in it is no answer.
    """

    def __init__(
        self, path: Path | None = None, shared: Callable[[str], Path] | None = None
    ) -> None:
        self._path = path
        self._shared = shared
        self._known: dict[tuple[str, str], dict[str, Detection]] = {}
        """By detector and protocol, and then by an image's SHA-256."""
        self._others: dict[str, dict[tuple[str, str], Detection]] = {}
        """By an image what other runs know of it: by detector and protocol."""
        if path is not None:
            self._read(path)

    @many()
    def _read(self, path: Path) -> None:
        for number, answer in self._lines(path):
            known = self._known.setdefault((answer.detector, answer.protocol), {})
            # Six detectors' answers of one image hold its hash once
            first = known.setdefault(sys.intern(answer.sha256), answer.found)
            if first is not answer.found and first != answer.found:
                earlier = self._line(answer.sha256, answer.detector, answer.protocol)
                raise InputError(
                    f"{path}, line {number} is not line {earlier}'s answer, of the same image and "
                    f"detector. {AGAIN}"
                )

    def _lines(self, path: Path) -> Iterator[tuple[int, Answer]]:
        """The answers in a file and the numbers of their lines; none of a file that is not there.

        The half of a line at the end is left out.
        """
        try:
            with path.open("rb") as file:
                for number, text in enumerate(file, 1):
                    if text.endswith(b"\n"):
                        where = f"{path}, line {number}"
                        try:
                            yield number, Answer.from_json(loads(text[:-1], where), where)
                        except InputError as error:
                            raise InputError(f"{error} {AGAIN}") from error
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}") from error

    def _line(self, *key: str) -> int:
        """The number of the line that has an image's answer by a detector and its protocol."""
        assert self._path is not None
        found = ((n, (a.sha256, a.detector, a.protocol)) for n, a in self._lines(self._path))
        return next(number for number, one in found if one == key)

    def of(self, sha256: str, detector: Detector, protocol: str) -> Detection | None:
        """What a detector said of an image; None where it was not asked.

        Args:
            protocol: The fingerprint of the detector's protocol.

        Raises:
            InputError: The labels are not the detector's, or do not follow from the scores.
        """
        found = self._known.get((detector.name, protocol), {}).get(sha256)
        if found is None:
            return self._of_another_run(sha256, detector, protocol)
        if not _follows(found, detector):
            sees = ", ".join(found.labels) or "nothing"
            number = self._line(sha256, detector.name, protocol)
            raise InputError(
                f"{self._path}, line {number} says that {detector.name} sees {sees:.60}, which "
                f"does not follow from the scores beside it: the line was edited. {AGAIN}"
            )
        return found

    def _of_another_run(self, sha256: str, detector: Detector, protocol: str) -> Detection | None:
        """What a detector of ours said of the image in another run, if it was asked there.

        A line that is no answer, or does not follow, is as if it were not there.
        """
        if self._shared is None or not _ours(detector):
            return None
        if sha256 not in self._others:
            self._others[sha256] = _read(self._shared(sha256), sha256)
        found = self._others[sha256].get((detector.name, protocol))
        return None if found is None or not _follows(found, detector) else found

    def has(self, sha256: str, detector: str, protocol: str) -> bool:
        """Whether a detector's answer of an image is in the file.

        Args:
            detector: Its name.
        """
        return sha256 in self._known.get((detector, protocol), {})

    def protocols(self, sha256: str, detector: str) -> tuple[str, ...]:
        """The fingerprints of the protocols by which there are a detector's answers of an image.

        Args:
            detector: Its name.
        """
        return tuple(
            protocol
            for (name, protocol), known in self._known.items()
            if name == detector and sha256 in known
        )

    def add(self, answers: Sequence[Answer], detectors: Sequence[Detector] = ()) -> None:
        """Keeps answers, at the file's end.

        Args:
            detectors: Whose they are; what those of ours say is kept for other runs too.
        """
        lines: list[str] = []
        for_others: dict[str, list[str]] = {}
        common = {detector.name for detector in detectors if _ours(detector)}
        for answer in answers:
            key = (answer.detector, answer.protocol)
            known = self._known.setdefault(key, {})
            if answer.sha256 in known:
                continue
            known[sys.intern(answer.sha256)] = answer.found
            text = line(answer.to_json()) + "\n"
            lines.append(text)
            theirs = self._others.get(answer.sha256, {}).get(key)
            if answer.detector in common and theirs != answer.found:
                for_others.setdefault(answer.sha256, []).append(text)
        if self._path is not None and lines:
            append(self._path, "".join(lines))
        if self._shared is not None:
            for sha256, some in for_others.items():
                with suppress(OSError):  # of a store that cannot be written to
                    append(self._shared(sha256), "".join(some))


def _read(shared: Path, sha256: str) -> dict[tuple[str, str], Detection]:
    """The last answers about an image in a file that runs share; no other line counts."""
    try:
        lines = shared.read_bytes().splitlines()
    except OSError:
        return {}
    found = {}
    for text in lines:
        with suppress(InputError):
            answer = Answer.from_json(loads(text, "a line"), "a line")
            if answer.sha256 == sha256:
                found[answer.detector, answer.protocol] = answer.found
    return found


def _follows(found: Detection, detector: Detector) -> bool:
    """Whether an answer can be a detector's: its labels are, and follow from its scores."""
    if detector.labels is not None and not all(map(detector.labels.__contains__, found.labels)):
        return False
    # isinstance(detector, Ruled) takes longer than the rule
    rule = getattr(detector, "follows", None)
    return rule is None or bool(rule(found))


def _ours(detector: Detector) -> bool:
    """Whether a detector's protocol says all that its answers depend on, as those of ours do.

    Of one that somebody writes, two versions may have one protocol.
    """
    return type(detector).__module__.startswith("unsee.")


@dataclass(frozen=True, slots=True)
class ImageAnswers:
    """What every detector said of one image.

    Attributes:
        id: The prompt's.
        sha256: Of the image's file; None when there was none.
        blank: Whether it is of one colour or wholly transparent, and so unscored.
        found: Detector's name to its answer.
    """

    id: str
    sha256: str | None
    blank: bool
    found: Mapping[str, Detection | Unscored]


def each_once(detectors: Sequence[Detector], metrics: "Sequence[Metric]") -> None:
    """Raises an ``InputError`` where two detectors, or two metrics, have one name."""
    for what, those in (("detector", detectors), ("metric", metrics)):
        names = [one.name for one in those]
        if len(set(names)) < len(names):
            raise InputError(f"A {what} is there twice: {', '.join(names)}. Name each once.")


@dataclass(frozen=True)
class Side:
    """A gallery to look at: who is asked, and where answers and features are kept."""

    gallery: Gallery
    detectors: Sequence[Detector] = ()
    metrics: "Sequence[Metric]" = ()
    answers: Answers = field(default_factory=Answers)
    features: "SharedFeatures | None" = None

    def __post_init__(self) -> None:
        each_once(self.detectors, self.metrics)


@dataclass(frozen=True)
class Seen:
    """What was found in a gallery's images.

    Attributes:
        rows: A prompt's id to what the detectors said of its image.
        taken: Metric's name, and then a prompt's id, to what the metric took from its image.
    """

    rows: Mapping[str, ImageAnswers]
    taken: Mapping[str, Mapping[str, Taken]]

    def score(
        self,
        metric: "Metric",
        prompts: Sequence[Prompt],
        reference: "Seen | None" = None,
        theirs: Sequence[Prompt] = (),
    ) -> Score:
        """A metric's score over the images of some prompts, beside the reference's of others.

        Where it has no value, its note says why images are unscored. When the metric raises, there
        is none, and every image is unscored.
        """
        if metric.paired:
            ids = {prompt.id for prompt in prompts}
            theirs = [prompt for prompt in theirs if prompt.id not in ids]
        elif not metric.needs_reference:
            theirs = ()
        ours, others = self._of(metric, prompts), (reference or self)._of(metric, theirs)
        try:
            score = metric.score(ours, others)
        except InputError:
            raise
        except Exception as error:
            n = len(ours) + len(others)
            score = Score(None, 0, None, metric.higher_is_better, metric.unit, None, n)
            return replace(score, note=describe(error))
        reasons = [t.value.reason for t in (*ours, *others) if isinstance(t.value, Unscored)]
        if score.value is None and reasons:
            often = max(reasons, key=reasons.count)
            return replace(score, note="; ".join(filter(None, (score.note, often))))
        return score

    def _of(self, metric: "Metric", prompts: Sequence[Prompt]) -> list[Taken]:
        taken = self.taken.get(metric.name, {})
        alone = Unscored("no image of its id is on the other side")
        return [taken.get(prompt.id, Taken(prompt, alone)) for prompt in prompts]


def look(
    ours: Side,
    theirs: Side | None,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> tuple[Seen, Seen]:
    """Asks detectors and metrics about a gallery and its reference, reading every image once.

    Images are held a batch at a time, on both sides those of the same ids. A missing, unreadable
    or blank image, a detector or metric that raises or answers for another number of images, and a
    score that is not finite are ``Unscored``, each in its place and with its reason.

    Args:
        ours: The gallery. Its metrics that are ``paired`` look at an image beside its partner.
        theirs: The reference, if there is one.
        batch_size: Images on each side at a time.
        progress: Told how many images of both sides are done.

    Returns:
        What was found on each side; of no reference, nothing.

    Raises:
        InputError: Two detectors or metrics have one name, or an answer that is kept was edited.
    """
    if batch_size < 1:
        raise ValueError(f"A batch of {batch_size} holds nothing.")
    left = {p.id: p for p in theirs.gallery} if theirs else {}
    done, total = 0, len(ours.gallery) + len(left)
    here, there = _Looking(ours), _Looking(theirs or Side(replace(ours.gallery, prompts=())))
    for prompts in _parts(ours.gallery.prompts, batch_size):
        partners = there.read([left.pop(p.id) for p in prompts if p.id in left])
        here.ask(here.read(prompts), partners)
        there.ask(partners)
        done += len(prompts) + len(partners)
        if progress:
            progress("images measured", done, total)
    for prompts in _parts(tuple(left.values()), batch_size):
        there.ask(there.read(prompts))
        done += len(prompts)
        if progress:
            progress("images measured", done, total)
    return here.seen, there.seen


def detect(
    gallery: Gallery,
    detectors: Sequence[Detector],
    *,
    answers: Answers | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> tuple[ImageAnswers, ...]:
    """Asks every detector about every image, as ``look`` does: an answer for each, in order.

    Args:
        answers: Those that are there already, to which the new ones are added.
        progress: Told how many images are done.

    Raises:
        InputError: As ``look``.
    """
    side = Side(gallery, detectors, answers=answers or Answers())
    seen, _ = look(side, None, batch_size=batch_size, progress=progress)
    return tuple(seen.rows[prompt.id] for prompt in gallery)


def take(
    metric: "Metric",
    gallery: Gallery,
    reference: Gallery | None = None,
    *,
    batch_size: int = 64,
) -> Score:
    """One metric's score over all images of a gallery, as ``look`` finds it.

    Raises:
        InputError: It needs a reference, and there is none.
    """
    if metric.needs_reference and reference is None:
        raise InputError(f"{metric.name} is a distance: name a folder of images as reference.")
    other = (
        None if reference is None else Side(reference, metrics=() if metric.paired else (metric,))
    )
    ours, theirs = look(Side(gallery, metrics=(metric,)), other, batch_size=batch_size)
    return ours.score(metric, gallery.prompts, theirs, reference.prompts if reference else ())


class _Looking:
    """One side of ``look``, and what was found there so far."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._protocols = {d.name: fingerprint(d.protocol) for d in side.detectors}
        shared = side.features
        self._known = {m.name: shared.by(m) for m in side.metrics} if shared else {}
        self._rows: dict[str, ImageAnswers] = {}
        self._taken: dict[str, dict[str, Taken]] = {metric.name: {} for metric in side.metrics}
        self.seen = Seen(self._rows, self._taken)

    def read(self, prompts: Sequence[Prompt]) -> list[Picture]:
        return [read(self._side.gallery, prompt) for prompt in prompts]

    def ask(self, pictures: Sequence[Picture], partners: Sequence[Picture] = ()) -> None:
        """Asks everybody about the pictures; partners are the reference's of the same ids."""
        looks = [look for p in pictures for look in p.looks]
        found = {detector.name: self._detect(detector, looks) for detector in self._side.detectors}
        self._side.answers.add(
            [
                Answer(p.prompt.id, p.sha256, name, self._protocols[name], answer)
                for i, p in enumerate(looks)
                for name, answers in found.items()
                if isinstance(answer := answers[i], Detection)
                and p.sha256 is not None
                and not self._side.answers.has(p.sha256, name, self._protocols[name])
            ],
            self._side.detectors,
        )
        each = {name: iter(answers) for name, answers in found.items()}
        for p in pictures:
            by_name = {
                name: together([next(answers) for _ in p.looks]) for name, answers in each.items()
            }
            self._rows[p.prompt.id] = ImageAnswers(p.prompt.id, p.sha256, p.blank, by_name)
        for metric in self._side.metrics:
            values = self._take(metric, pictures, partners)
            self._taken[metric.name] |= {
                p.prompt.id: Taken(p.prompt, value)
                for p, value in zip(pictures, values, strict=True)
            }

    def _detect(
        self, detector: Detector, pictures: Sequence[Picture]
    ) -> list[Detection | Unscored]:
        """What a detector says of each picture; it is asked once about each that is not known."""
        known: dict[str, Detection | Unscored] = {}
        new: dict[str, Picture] = {}
        for p in pictures:
            if p.sha256 is not None and not isinstance(p.image, Unscored):
                answer = self._side.answers.of(p.sha256, detector, self._protocols[detector.name])
                if answer is not None:
                    known[p.sha256] = answer
                else:
                    new.setdefault(p.sha256, p)
        answers = ask(detector, list(new.values()))
        known |= dict(zip(new, map(checked, answers), strict=True))
        return [
            p.image if isinstance(p.image, Unscored) else known[str(p.sha256)] for p in pictures
        ]

    def _take(
        self, metric: "Metric", pictures: Sequence[Picture], partners: Sequence[Picture]
    ) -> list[Any]:
        """What a metric takes from each picture, or from each picture and its partner."""
        if known := self._known.get(metric.name):
            return known.of(pictures)
        if not metric.paired:
            return ask(metric.look, pictures)
        by_id = {p.prompt.id: p for p in partners}
        fitting = [beside(p, by_id.get(p.prompt.id)) for p in pictures]
        # ask hands on our images; each leads to its partner's
        partner = {id(p.image): by_id[p.prompt.id].image for p in fitting if p.prompt.id in by_id}
        return ask(
            lambda images: metric.look(images, [partner[id(image)] for image in images]),  # type: ignore[misc]
            fitting,
        )


def together(answers: Sequence[Detection | Unscored]) -> Detection | Unscored:
    """What is seen in a video: all that one of its frames shows.

    A label's score is its highest. With a frame that could not be measured the video is unscored,
    but for what was seen in the others.
    """
    if len(answers) == 1:
        return answers[0]
    scored = [answer for answer in answers if isinstance(answer, Detection)]
    labels = tuple(dict.fromkeys(label for answer in scored for label in answer.labels))
    for number, answer in enumerate(answers, 1):
        if isinstance(answer, Unscored):
            return Unscored(f"frame {number} of {len(answers)}: {answer.reason}", labels)
    scores: dict[str, float] = {}
    for answer in scored:
        for label, score in answer.scores.items():
            scores[label] = max(score, scores.get(label, score))
    return Detection(labels, scores, tuple(box for answer in scored for box in answer.boxes))


def _parts(prompts: Sequence[Prompt], size: int) -> list[Sequence[Prompt]]:
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]
