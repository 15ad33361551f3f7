"""Detectors over a gallery, failing closed, and their answers as a file.

One line of answers.jsonl is one image: its id, the PNG's SHA-256, and for each detector the
labels, the scores and the boxes, or why there are none. Scores and boxes are those before the
protocol's threshold, so that another threshold needs no second run.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._errors import InputError
from ..gallery import Gallery, write_atomically
from .detectors import Box, Detection, Detector, checked, fingerprint
from .images import Unscored, ask, batches

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many images are done, and of how many."""


@dataclass(frozen=True)
class ImageAnswers:
    """What every detector said of one image.

    Attributes:
        id: The prompt's.
        sha256: Of the PNG; None when there was none.
        blank: Whether all its pixels are the same.
        found: Detector's name to its answer.
        protocols: Detector's name to the fingerprint of the protocol that it answered by.
    """

    id: str
    sha256: str | None
    blank: bool
    found: Mapping[str, Detection | Unscored]
    protocols: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, answer in self.found.items():
            found[name] = {"protocol": self.protocols[name]}
            if isinstance(answer, Unscored):
                found[name]["unscored"] = answer.reason
            else:
                found[name] |= {"labels": list(answer.labels), "scores": dict(answer.scores)}
                if answer.boxes:
                    found[name]["boxes"] = [dataclasses.asdict(box) for box in answer.boxes]
        return {"id": self.id, "sha256": self.sha256, "blank": self.blank, "detectors": found}

    @classmethod
    def from_json(cls, page: Mapping[str, Any]) -> "ImageAnswers":
        return cls(
            page["id"],
            page["sha256"],
            page["blank"],
            {
                name: Unscored(a["unscored"])
                if "unscored" in a
                else checked(
                    Detection(
                        tuple(a["labels"]),
                        a["scores"],
                        tuple(
                            Box(b["label"], b["score"], tuple(b["xywh"]))
                            for b in a.get("boxes", ())
                        ),
                    )
                )
                for name, a in page["detectors"].items()
            },
            {name: a["protocol"] for name, a in page["detectors"].items()},
        )


@dataclass(frozen=True)
class Answers:
    """Every detector's answer on every image of a gallery, in its order."""

    rows: tuple[ImageAnswers, ...]

    def save(self, path: Path) -> None:
        """Writes the whole file or nothing."""
        lines = (json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in self.rows)
        write_atomically(path, "".join(lines))

    @classmethod
    def load(cls, path: Path) -> "Answers":
        """Reads what ``save`` wrote.

        Raises:
            InputError: The file is missing or is something else.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            return cls(tuple(ImageAnswers.from_json(json.loads(line)) for line in lines))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} holds no answers: {error!r}") from error


def detect(
    gallery: Gallery,
    detectors: Sequence[Detector],
    *,
    known: Answers | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Answers:
    """Asks every detector about every image.

    A missing or unreadable image, a detector that raises or answers for another number of images,
    and a score that is not finite are ``Unscored``, each in its place and with its reason.

    Args:
        known: Earlier scores. An answer is taken from them if it was one, of the same PNG by the
            same protocol.

    Raises:
        InputError: Two detectors have one name.
    """
    names = [d.name for d in detectors]
    if len(set(names)) < len(names):
        raise InputError(f"A detector is there twice: {', '.join(names)}. Name each once.")
    protocols = {d.name: fingerprint(d.protocol) for d in detectors}
    earlier = {row.id: row for row in known.rows} if known else {}
    rows: list[ImageAnswers] = []
    for pictures in batches(gallery, batch_size):
        found: list[dict[str, Detection | Unscored]] = [{} for _ in pictures]
        for detector in detectors:
            name, todo = detector.name, []
            for place, picture in enumerate(pictures):
                row = earlier.get(picture.prompt.id)
                answer = row.found.get(name) if row else None
                if (
                    row is not None
                    and isinstance(answer, Detection)
                    and row.protocols[name] == protocols[name]
                    and row.sha256 is not None
                    and row.sha256 == picture.sha256
                ):
                    found[place][name] = answer
                else:
                    todo.append(place)
            answers = ask(detector, [pictures[place] for place in todo])
            for place, new in zip(todo, answers, strict=True):
                found[place][name] = checked(new)
        rows += [
            ImageAnswers(p.prompt.id, p.sha256, p.blank, by_name, protocols)
            for p, by_name in zip(pictures, found, strict=True)
        ]
        if progress:
            progress("detect", len(rows), len(gallery))
    return Answers(tuple(rows))
