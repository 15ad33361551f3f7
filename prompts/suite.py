"""A suite: the prompts of a measurement, each with its seed and with what it should show."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._errors import InputError
from .concept import read_mapping


@dataclass(frozen=True)
class Prompt:
    """One image to be made.

    Attributes:
        id: Unique in its suite, and a file name's stem.
        prompt: The text.
        seed: Of the initial noise.
        labels: What the image should show, by kind: ``{"object": "bomb", "style": "noto"}``.
            A row is a target's row when the label of the target's kind is the target's name.
        category: A group over which rates can be taken.
        guidance: Scale of classifier-free guidance; None is the model's default.
        steps: Denoising steps; None is the model's default.
        width, height: In pixels; None is the model's default.
    """

    id: str
    prompt: str
    seed: int
    labels: Mapping[str, str] = field(default_factory=dict)
    category: str = ""
    guidance: float | None = None
    steps: int | None = None
    width: int | None = None
    height: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Its attributes, without those that are unset."""
        values = dataclasses.asdict(self)
        unset = {"labels": {}, "category": ""} | dict.fromkeys(
            ("guidance", "steps", "width", "height")
        )
        return {k: v for k, v in values.items() if k not in unset or v != unset[k]}


@dataclass(frozen=True)
class Suite:
    """Prompts to measure a model on.

    Raises:
        InputError: It has no prompt, or two with one id.
    """

    name: str
    prompts: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError(f"Suite {self.name!r} has no prompts: nothing would be measured.")
        most_common, count = Counter(p.id for p in self.prompts).most_common(1)[0]
        if count > 1:
            raise InputError(f"Suite {self.name!r} has the id {most_common!r} {count} times.")

    @property
    def sha256(self) -> str:
        """Hash of every prompt with all its settings."""
        rows = "\n".join(json.dumps(p.to_json(), sort_keys=True) for p in self.prompts)
        return hashlib.sha256(rows.encode()).hexdigest()

    @classmethod
    def load(cls, path: Path) -> "Suite":
        """Reads a suite from YAML: ``name`` and ``prompts``, a list of ``Prompt``'s attributes.

        ``id`` may be left out (the row's number stands in) and so may ``seed`` (0).

        Raises:
            InputError: Something in the file is not a suite's; the message names the row.
        """
        values = read_mapping(path, {"name", "prompts"})
        rows = values.get("prompts")
        if not isinstance(rows, list):
            raise InputError(f"{path} must list its prompts under 'prompts'.")
        return cls(
            name=str(values.get("name", path.stem)),
            prompts=tuple(_prompt(path, i, row) for i, row in enumerate(rows)),
        )


def _prompt(path: Path, number: int, row: Any) -> Prompt:
    where = f"{path}, prompt {number}"
    known = {f.name for f in dataclasses.fields(Prompt)}
    if isinstance(row, str):
        row = {"prompt": row}
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise InputError(f"{where}: wanted a text under 'prompt', found {row!r}.")
    if extra := sorted(set(row) - known):
        raise InputError(f"{where}: {extra[0]!r} is not known. Known: {', '.join(sorted(known))}.")
    row = {"id": f"{number:05d}", "seed": 0} | row
    for key, types in (
        ("seed", int),
        ("labels", dict),
        ("guidance", (int, float)),
        ("steps", int),
    ):
        if key in row and (not isinstance(row[key], types) or isinstance(row[key], bool)):
            raise InputError(f"{where}: {key} cannot be {row[key]!r}.")
    row["id"] = str(row["id"])
    if not row["id"] or set(row["id"]) & set('/\\:*?"<>|') or row["id"].startswith("."):
        raise InputError(f"{where}: the id {row['id']!r} cannot be a file's name.")
    return Prompt(**row)
