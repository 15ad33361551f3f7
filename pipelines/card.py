"""The model card of an erasure's file, or of a model that has one in its weights."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..prompts import Concept
from .hub import NAME
from .names import unread

if TYPE_CHECKING:
    from .erasure import Erasure


@dataclass(frozen=True)
class Audited:
    """What an audit says of an erasure, for its card.

    Attributes:
        answer: The verdict in words.
        rows: The chief figures: ``measure``, ``base``, ``erased``, ``interval`` and ``n`` each.
        sha256: Of the report's file.
        suite: Which prompts, in words.
    """

    answer: str
    rows: Sequence[Mapping[str, str]]
    sha256: str
    suite: str


def card(
    erasure: "Erasure",
    file: str | None = None,
    *,
    license: str | None = None,
    audited: Audited | None = None,
) -> str:
    """A README.md as the hub reads it.

    Args:
        file: The name of the erasure's file, beside which it lies; None is that of a model that
            has the erasure in its weights.
        license: By its name on the hub, such as ``openrail++``; None leaves it out.
        audited: What an audit found.
    """
    from huggingface_hub import ModelCardData

    record, measured = erasure.record, erasure.measured
    base = record.base.name
    lora = file is not None and unread(record) is None
    head = ModelCardData(
        base_model=base if re.fullmatch(f"{NAME}/{NAME}", base) else None,
        license=license,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["unsee", "concept-erasure", *(["lora"] if lora else [])],
    )
    effect = measured.effect or {}
    rows = [
        ("Base model", f"{_plain(base) or 'not named'} ({_plain(record.base.pipeline)})"),
        ("License", "of the base model; see there" if license is None else _plain(license)),
        ("Method", f"{_plain(record.method)}, kind {record.kind}, seed {record.seed}"),
        *((f"Concept ({one.kind})", _concept(one)) for one in record.concepts),
        *(
            (f"Moved: {_plain(name)}", f"{seen.moved:.0%} of the way to its anchor's prediction")
            for name, seen in effect.items()
        ),
        ("Made with", ", ".join(f"{name} {v}" for name, v in record.versions.items())),
        ("SHA-256 of the erasure", erasure.sha256),
    ]
    lines = [
        "---",
        head.to_yaml().strip(),
        "---",
        "",
        f"# {_list(one.name for one in record.concepts)}, erased",
        "",
        *(_of_model() if file is None else _of_file(base, file, lora)),
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {said} |" for name, said in rows),
        "",
        "## Audit",
        "",
    ]
    if audited is None:
        lines += ["None was given. Nothing here says how much of the concepts is left.", ""]
    else:
        columns = ("measure", "base", "erased", "interval", "n")
        lines += [
            _plain(audited.answer),
            "",
            f"| {' | '.join(columns)} |",
            "|---" * len(columns) + "|",
            *(f"| {' | '.join(_plain(row[name]) for name in columns)} |" for row in audited.rows),
            "",
            f"Measured on {_plain(audited.suite)}. SHA-256 of report.json: {audited.sha256}",
            "",
        ]
    bound = (
        "- It was made for the weights of its base model, and is refused by unsee on others; "
        "plain diffusers puts it on any model of the same shapes."
    )
    settings = json.dumps(dict(record.settings), indent=2, sort_keys=True).splitlines()
    lines += [
        "## Limits",
        "",
        *([] if file is None else [bound]),
        "- An erasure is no promise: other words, a fine-tune or an attack may bring a concept "
        "back. Measure with `unsee audit` on prompts of your own.",
        "- What the base model draws beside the concepts may have changed too.",
        "- The license and the limits of use of the base model hold for this and for what is "
        "drawn with it.",
        "",
        "## Settings",
        "",
        *(f"    {line}" for line in settings),
        "",
    ]
    return "\n".join(lines)


def _of_model() -> list[str]:
    return [
        "Concepts were erased from the weights of this model with unsee. It loads like its base,",
        "with no unsee installed.",
        "",
        "```python",
        "from diffusers import DiffusionPipeline",
        "",
        'pipe = DiffusionPipeline.from_pretrained("FOLDER")',
        "```",
    ]


def _of_file(base: str, file: str, lora: bool) -> list[str]:
    return [
        "This file makes a text-to-image model forget. It was made with unsee, and holds the "
        "whole record of how.",
        "",
        "```python",
        "import unsee",
        "",
        f'pipe = unsee.load_pipeline({json.dumps(base)}, "OWNER/NAME/{file}")',
        f'pipe.load_lora_weights("OWNER/NAME", weight_name="{file}")  # the same, without unsee'
        if lora
        else "# It needs unsee: diffusers alone does not read it.",
        "```",
    ]


def _concept(concept: Concept) -> str:
    anchor = concept.anchor
    becomes = "what the method takes" if anchor is None else _plain(anchor) or "the empty prompt"
    keep = _list(concept.keep) or "nothing by name"
    return (
        f"{_plain(concept.name)}; phrases: {_list(concept.phrases)}; becomes: {becomes}; kept: "
        f"{keep}"
    )


def _list(texts: Iterable[str]) -> str:
    return ", ".join(map(_plain, texts))


def _plain(text: str) -> str:
    """A text as one line that Markdown and HTML read as nothing but text."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(text.split()))
