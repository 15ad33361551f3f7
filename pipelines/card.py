"""The model card of an erased model, written from the erasure's record."""

import json
import re
from collections.abc import Iterable

import yaml

from ..prompts import Concept
from .erasure import Erasure


def card(erasure: Erasure, *, license: str = "unknown") -> str:
    """A README.md as model hubs read it, of a model that has an erasure in its weights.

    Args:
        license: The base model's, by its name on the hub, such as ``openrail++``.
    """
    record = erasure.record
    base = record.base.name
    head: dict[str, object] = {"license": license, "library_name": "diffusers"}
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        head["base_model"] = base
    head["tags"] = ["unsee", "concept-erasure"]
    rows = [
        ("Base model", f"{_text(base) or 'not named'} ({record.base.pipeline})"),
        ("License of the base model", _text(license)),
        ("Method", f"{_text(record.method)}, kind {record.kind}, seed {record.seed}"),
        *(
            (
                f"Concept ({concept.kind})",
                f"{_text(concept.name)}; phrases: {_listed(concept.phrases)}; becomes: "
                f"{_anchor(concept)}; "
                f"kept: {_listed(concept.keep) or 'nothing by name'}",
            )
            for concept in record.concepts
        ),
        ("Made with", ", ".join(f"{n} {v}" for n, v in record.versions.items())),
        ("SHA-256 of the erasure", erasure.sha256),
    ]
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# A model without {_listed(c.name for c in record.concepts)}",
        "",
        "Concepts were erased from the weights of this model with unsee. It loads like its base:",
        "`DiffusionPipeline.from_pretrained(folder)`, with no unsee installed.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {said} |" for name, said in rows),
        "",
        "## Limits",
        "",
        "- An erasure is no promise: other words, a fine-tune or an attack may bring a concept "
        "back. Measure with `unsee audit` on prompts of your own.",
        "- What the base model draws beside the concepts may have changed too.",
        "- The license and the limits of use of the base model hold for this one.",
        "",
        "## Settings",
        "",
        *(
            "    " + line
            for line in json.dumps(dict(record.settings), indent=2, sort_keys=True).splitlines()
        ),
        "",
    ]
    return "\n".join(lines)


def _anchor(concept: Concept) -> str:
    if concept.anchor is None:
        return "what the method takes"
    return _text(concept.anchor) or "the empty prompt"


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(map(_text, texts))


def _text(text: str) -> str:
    """A text as one line that Markdown and HTML read as nothing but text."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(text.split()))
