"""Detectors: what looks at an image and says what it sees, by a named protocol.

A detector is a callable object of the shape of ``Detector``. The registry holds what makes one,
from nothing or from a model's name and settings; ``find_detector`` reads both from one text.
"""

import functools
import hashlib
import json
import math
from array import array
from collections.abc import (
    Callable,
    Collection,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    ValuesView,
)
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload, runtime_checkable

from ..._errors import InputError
from ..._reading import text_at_sight
from ..._registry import Registry, make, told, unknown
from ..._settings import is_text
from ...prompts import Prompt
from ...prompts.concept import fold, read_mapping
from ..images import Unscored

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "DETECTORS",
    "Box",
    "Detection",
    "Detector",
    "Ruled",
    "Unscored",
    "agrees",
    "check_labels",
    "checked",
    "find_detector",
    "fingerprint",
    "highest",
    "likeliest",
    "says",
]

DIGITS = 5
"""Of scores and boxes. A network's answer differs with the batch from the seventh digit on."""

PARTS = 10.0**DIGITS

EXACT = 1e9
"""Below this, a number of ``PARTS`` is whole in a float, with room for the error of a product."""


@dataclass(frozen=True, slots=True)
class Box:
    """Where one thing was seen.

    Attributes:
        label: What it is.
        score: In [0, 1].
        xywh: Left, top, width and height in the image's pixels.
    """

    label: str
    score: float
    xywh: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Detection:
    """What a detector sees in one image.

    Attributes:
        labels: What is seen at the protocol's threshold.
        scores: A number for each label that the detector knows, before any threshold.
        boxes: Every box, before the protocol's threshold; none where a detector has no boxes.
    """

    labels: tuple[str, ...]
    scores: Mapping[str, float]
    boxes: Sequence[Box] = ()

    @classmethod
    def at_sight(cls, page: Any) -> "Detection":
        """A detection of JSON's values, as it is kept; for ``_reading.read``.

        Raises:
            ValueError: Something in them is not as ``checked`` leaves it.
        """
        if type(page) is not dict or page.keys() != FIELDS:
            raise ValueError
        labels, scores, boxes = page["labels"], page["scores"], page["boxes"]
        if type(labels) is not list or type(scores) is not dict or type(boxes) is not list:
            raise ValueError
        return cls(
            tuple(map(text_at_sight, labels)),
            Scores(scores, _as_written(scores.values())),
            Boxes.at_sight(boxes) if boxes else (),
        )


FIELDS = {"labels", "scores", "boxes"}


@functools.lru_cache(4096)
def _places(labels: tuple[str, ...]) -> Mapping[str, int]:
    """Where the number of each label is: of all answers that have the same labels, one mapping."""
    return dict(zip(map(text_at_sight, labels), range(len(labels)), strict=True))


class Scores(Mapping[str, float]):
    """A detection's scores as they are kept: of the labels one list for all that have the same.

    A dict would take five times the room, of which an audit's answers are the most.
    """

    __slots__ = ("_numbers", "_places")

    def __init__(self, labels: Iterable[str], numbers: "array[float]") -> None:
        self._places, self._numbers = _places(tuple(labels)), numbers

    def __getitem__(self, label: str) -> float:
        return self._numbers[self._places[label]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, label: object) -> bool:
        return label in self._places

    def _dict(self) -> dict[str, float]:
        return dict(zip(self._places, self._numbers, strict=True))

    def items(self) -> ItemsView[str, float]:
        return self._dict().items()

    def values(self) -> ValuesView[float]:
        return self._dict().values()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Scores) and self._places is other._places:
            return self._numbers == other._numbers
        return self._dict() == dict(other) if isinstance(other, Mapping) else NotImplemented

    def __repr__(self) -> str:
        return repr(self._dict())


class Boxes(Sequence[Box]):
    """A detection's boxes as they are kept: five numbers each."""

    __slots__ = ("_labels", "_numbers")

    def __init__(self, labels: tuple[str, ...], numbers: "array[float]") -> None:
        self._labels, self._numbers = labels, numbers

    @classmethod
    def at_sight(cls, page: list[Any]) -> "Boxes":
        """As ``Detection.at_sight``."""
        labels: list[str] = []
        numbers: list[float] = []
        for box in page:
            if type(box) is not dict or len(box) != 3 or type(xywh := box.get("xywh")) is not list:
                raise ValueError
            if len(xywh) != 4 or "label" not in box or "score" not in box:
                raise ValueError
            labels.append(text_at_sight(box["label"]))
            numbers += (box["score"], *xywh)
        return cls(tuple(labels), _as_written(numbers))

    @overload
    def __getitem__(self, place: int) -> Box: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Box, ...]: ...
    def __getitem__(self, place: int | slice) -> Box | tuple[Box, ...]:
        return tuple(self)[place]

    def __iter__(self) -> Iterator[Box]:
        for i, label in enumerate(self._labels):
            score, *xywh = self._numbers[5 * i : 5 * i + 5]
            yield Box(label, score, tuple(xywh))

    def __len__(self) -> int:
        return len(self._labels)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Boxes):
            return self._labels == other._labels and self._numbers == other._numbers
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __repr__(self) -> str:
        return repr(tuple(self))


@runtime_checkable
class Detector(Protocol):
    """Reads one kind of label from images.

    Attributes:
        name: ``family/protocol``, as in reports.
        kind: The kind of label it reads: "object", "style", "person", "unsafe".
        labels: Every label that it can see; None where nobody can list them.
        protocol: All that its figures depend on: weights (a hash), classes, threshold,
            preprocessing. JSON values.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...] | None: ...
    @property
    def protocol(self) -> Mapping[str, Any]: ...

    def __call__(self, images: Sequence["Image"]) -> list[Detection | Unscored]:
        """One answer an image (RGB, any size), in their order."""
        ...


@runtime_checkable
class Ruled(Protocol):
    """A detector whose labels follow from its scores by a rule, so that an edited answer shows."""

    def follows(self, answer: Detection) -> bool:
        """Whether the rule gives the answer's labels for its scores, which are rounded."""
        ...


DETECTORS: Registry[Callable[..., Detector]] = Registry(
    "detector",
    "unsee.detectors",
    {
        "clip": f"{__name__}.zero_shot:ZeroShot",
        "emoji/nearest": f"{__name__}.nearest:Nearest",
        "emoji/object": f"{__name__}.judge:emoji_object",
        "emoji/style": f"{__name__}.judge:emoji_style",
        "hf": f"{__name__}.classifier:Classifier",
        "nudenet/esd": f"{__name__}.nudity:esd",
        "nudenet/mace": f"{__name__}.nudity:mace",
        "nudenet/person": f"{__name__}.nudity:person",
        "nudenet/rece": f"{__name__}.nudity:rece",
        "nudenet/six": f"{__name__}.nudity:six",
        "nudenet/six-p4d": f"{__name__}.nudity:six_p4d",
        "nudenet/uda": f"{__name__}.nudity:uda",
        "q16": f"{__name__}.q16:Q16",
        "safety-checker": f"{__name__}.safety:SafetyChecker",
    },
)


def find_detector(spec: str | Detector, prompts: Sequence[Prompt] = ()) -> Detector:
    """The detector that a user means.

        emoji/object                        a name in ``DETECTORS``
        hf:microsoft/resnet-50?top=5        its argument after a colon, its settings after a
        clip:ViT-B-32,openai?kind=style     question mark; a list's parts have commas between them
        artists.yaml                        ``detector``, one of the above, and ``settings``

    Args:
        spec: As above; a detector is given back as it is.
        prompts: What it will be asked about: where the detector must be told the labels to choose
            from and was not, they are those that the prompts have of its kind.

    Raises:
        InputError: There is no such detector or setting, or the file is something else. The
            detector's own errors pass through.
    """
    if not isinstance(spec, str):
        return spec
    given: Mapping[str, Any] = {}
    if Path(spec).suffix in (".yaml", ".yml"):
        page = read_mapping(Path(spec), {"detector", "settings"})
        named, given = page.get("detector"), page.get("settings") or {}
        if not isinstance(named, str) or not isinstance(given, Mapping):
            raise InputError(f"{spec} must name its 'detector', with a mapping of 'settings'.")
        spec = named
    head, settings, known = told(DETECTORS, spec, given)
    if prompts and "labels" not in settings and {"labels", "kind"} <= known.keys():
        kind = settings.get("kind", known["kind"].default)
        there = (p.labels.get(kind, "") for p in prompts)
        settings["labels"] = tuple(dict.fromkeys(filter(None, there)))
    return make(DETECTORS, head, **settings)


def checked(answer: object) -> Detection | Unscored:
    """A detector's answer, if it is one, its numbers rounded to ``DIGITS``.

    Anything else, and any score not finite, is unscored.
    """
    if isinstance(answer, Unscored):
        return answer
    if not isinstance(answer, Detection):
        return Unscored(f"answered with {type(answer).__name__}, which is no detection")
    if isinstance(answer.labels, str):
        return Unscored(f"its labels are the text {answer.labels!r}, not a tuple")
    if _is_kept(answer):
        return answer
    try:
        given = {str(label): score for label, score in answer.scores.items()}
        scores = _rounded(given.values())
        boxes = tuple(answer.boxes)
        if short := [b for b in boxes if len(b.xywh) != 4]:
            return Unscored(f"a box of {short[0].label!r} is {short[0].xywh}, which is no box")
        numbers = _rounded(n for b in boxes for n in (b.score, *b.xywh))
    except (TypeError, ValueError, AttributeError) as error:
        return Unscored(f"a score or a box is not of numbers: {error}")
    labels = tuple(map(str, answer.labels))
    if odd := [
        one for one in (*given, *labels, *(str(b.label) for b in boxes)) if not is_text(one)
    ]:
        return Unscored(f"its label {odd[0]!r} has half of a character")
    for label, score in zip(given, scores, strict=True):
        if not math.isfinite(score):
            return Unscored(f"the score of {label!r} is {score}")
    for i, number in enumerate(numbers):
        if not math.isfinite(number):
            b = boxes[i // 5]
            return Unscored(f"a box of {b.label!r} is {b.xywh}, with the score {b.score}")
    return Detection(
        labels,
        Scores(given, scores),
        Boxes(tuple(str(b.label) for b in boxes), numbers) if boxes else (),
    )


def _is_kept(answer: Detection) -> bool:
    """Whether it is as ``checked`` makes it, which alone makes ``Scores`` and ``Boxes``."""
    return (
        isinstance(answer.scores, Scores)
        and (isinstance(answer.boxes, Boxes) or answer.boxes == ())
        and type(answer.labels) is tuple
        and set(map(type, answer.labels)) <= {str}
    )


def says(detector: Detector, labels: Collection[str]) -> bool:
    """Whether the detector can see one of the labels. Case and spacing do not count."""
    if detector.labels is None:
        return True
    return not _folded(detector.labels).isdisjoint(map(fold, labels))


@functools.lru_cache(256)
def _folded(labels: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(fold, labels))


def check_labels(
    kind: str, labels: Collection[str], detectors: Sequence[Detector], asks: str = ""
) -> None:
    """Checks that some detector can see one of the labels.

    Args:
        kind: The labels'.
        labels: Names of one thing, the one to speak of first.
        detectors: Of any kind.
        asks: Who asks for it and what can be done, to end the error with.

    Raises:
        InputError: No detector reads the kind, or those that do can see none of the labels.
    """
    wanted = next(iter(labels))
    if not (of_kind := [d for d in detectors if d.kind == kind]):
        there = ", ".join(f"{d.name} ({d.kind})" for d in detectors) or "none"
        raise InputError(
            f"No detector reads {kind} labels, so {wanted!r} cannot be seen. Given: {there}."
        )
    if not any(says(d, labels) for d in of_kind):
        known = {label for d in of_kind for label in d.labels or ()}
        names = " or ".join(d.name for d in of_kind)
        raise InputError(f"{unknown(f'{kind} label of {names}', wanted, known)}{asks}")


def highest(answer: Detection, known: Sequence[str], top: int) -> bool:
    """Whether the answer sees the ``top`` labels of the highest scores, in their order."""
    scores = dict(answer.scores.items())
    seen = [scores.get(label, -math.inf) for label in answer.labels]
    rest = [score for label, score in scores.items() if label not in answer.labels]
    return (
        scores.keys() == set(known)
        and len(set(answer.labels)) == len(answer.labels) == min(top, len(known))
        and seen == sorted(seen, reverse=True)
        and (not rest or min(seen) >= max(rest))
    )


def agrees(seen: bool, score: float, threshold: float) -> bool:
    """Whether a thing may be seen, or not be seen, at a score that was rounded."""
    slack = 10.0**-DIGITS
    return score >= threshold - slack if seen else score <= threshold + slack


def likeliest(
    labels: Sequence[str], shares: Sequence[Sequence[float]], top: int
) -> list[Detection | Unscored]:
    """The ``top`` labels of the highest shares in each row, of shape (n, labels).

    A row with a number that is not finite has no highest one, and is unscored.
    """
    found = []
    for row in shares:
        scores = dict(zip(labels, row, strict=True))
        order = sorted(labels, key=lambda label: -scores[label])
        found.append(checked(Detection(tuple(order[:top]), scores)))
    return found


def _rounded(numbers: Iterable[float]) -> "array[float]":
    # -0.0 is written otherwise than 0.0
    return array("d", [round(float(number), DIGITS) + 0.0 for number in numbers])


def _as_written(numbers: Collection[float]) -> "array[float]":
    """Finite floats that are rounded already, as ``_rounded`` makes them of these.

    Raises:
        ValueError: They are something else, or too great for this.
    """
    if not set(map(type, numbers)) <= {float}:
        raise ValueError
    if numbers and not -EXACT < min(numbers) <= max(numbers) < EXACT:
        raise ValueError
    # What is rounded is the float nearest to a whole number of these parts, and so is a quotient
    # of them: ``round`` itself takes five times as long
    again = [round(number * PARTS) / PARTS for number in numbers]
    if again != list(numbers):
        raise ValueError
    return array("d", again)


def fingerprint(protocol: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of a protocol, written as sorted JSON."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:16]
