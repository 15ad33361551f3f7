"""The JSON schema of report.json, made from the annotations of the classes that write it.

``report-N.schema.json`` beside this file is what ``schema()`` gives, for readers without Python;
a test holds the two together. To write it again: ``python -m unsee.eval.schema``.
"""

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from .._settings import Range, hints_of
from .report import FORMAT, Report

DRAFT = "https://json-schema.org/draft/2020-12/schema"

FILE = Path(__file__).with_name(f"report-{FORMAT}.schema.json")

PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}


def schema() -> dict[str, Any]:
    """The schema of a report's page, in draft 2020-12."""
    defined: dict[str, Any] = {}
    _class(Report, defined)
    whole = defined.pop(Report.__name__)
    whole["properties"]["format"] = {"const": FORMAT}
    return {
        "$schema": DRAFT,
        "$id": f"unsee:report-{FORMAT}",
        "title": f"report.json of unsee, format {FORMAT}",
        **whole,
        "$defs": dict(sorted(defined.items())),
    }


def _class(cls: Any, defined: dict[str, Any]) -> dict[str, str]:
    """What refers to a dataclass, which is defined once."""
    name = cls.__name__
    if name in defined:
        return {"$ref": f"#/$defs/{name}"}
    defined[name] = {}
    hints = hints_of(cls)
    said = _attributes(cls)
    derived = getattr(cls, "derived", ())
    hints |= {key: _given_by(cls, key) for key in derived}
    # What files of the same format may lack
    optional = {*getattr(cls, "later", ()), *(derived if isinstance(derived, Mapping) else ())}
    defined[name] = {
        "description": (cls.__doc__ or "").partition("\n")[0],
        "type": "object",
        "properties": {
            key: _value(hint, defined) | ({"description": said[key]} if key in said else {})
            for key, hint in hints.items()
        },
        "required": [key for key in hints if key not in optional],
        "additionalProperties": False,
    }
    return {"$ref": f"#/$defs/{name}"}


def _attributes(cls: Any) -> dict[str, str]:
    """What a class's docstring says of each attribute."""
    _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")
    found = re.findall(r"^    (\w[\w, ]*): (.+(?:\n {8,}.+)*)", section, re.MULTILINE)
    return {
        name: " ".join(about.split()).replace("``", "")
        for names, about in found
        for name in names.split(", ")
    }


def _given_by(cls: Any, name: str) -> Any:
    """The type of what a class's JSON has under a name beside its fields."""
    if isinstance(cls.derived, Mapping):
        return cls.derived[name]
    there = getattr(cls, name, None)
    if there is None:  # the format, which is the page's
        return int
    function = there.fget if isinstance(there, property) else there
    return get_type_hints(function, include_extras=True)["return"]


def _value(hint: Any, defined: dict[str, Any]) -> dict[str, Any]:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if hint in PLAIN:
        return {"type": PLAIN[hint]}
    if dataclasses.is_dataclass(hint):
        return _class(hint, defined)
    if is_typeddict(hint):
        of = {key: _value(one, defined) for key, one in get_type_hints(hint).items()}
        required = {"required": list(of), "additionalProperties": False}
        return {"type": "object", "properties": of} | required
    if origin is Annotated:
        found = _value(parts[0], defined)
        for part in parts[1:]:
            found |= _range(part) if isinstance(part, Range) else {}
        return found
    if origin is Literal:
        return {"enum": list(parts)}
    if origin in (Union, UnionType):
        return {"anyOf": [_value(part, defined) for part in parts]}
    if origin is tuple and parts[1:] == (...,):
        return {"type": "array", "items": _value(parts[0], defined)}
    if origin is tuple:
        each = [_value(part, defined) for part in parts]
        return {"type": "array", "prefixItems": each, "minItems": len(each), "maxItems": len(each)}
    if origin in (Mapping, dict):
        return {"type": "object", "additionalProperties": _value(parts[1], defined)}
    raise TypeError(f"{hint} has no word in JSON.")


def _range(of: Range) -> dict[str, float]:
    """A range in the schema's words."""
    ends = {
        "exclusiveMinimum": of.above,
        "minimum": of.least,
        "exclusiveMaximum": of.below,
        "maximum": of.most,
        "multipleOf": of.of if of.of > 1 else None,
    }
    return {word: end for word, end in ends.items() if end is not None}


def text() -> str:
    """The file's text."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
