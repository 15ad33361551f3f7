"""Reading what others may have written: JSON and YAML values into frozen dataclasses, checked.

``loads`` is the one function that parses JSON, ``read`` the one that makes a typed value of what
was parsed, and ``plain`` the way back. Whatever is wrong is one InputError line that says where.
"""

import base64
import dataclasses
import json
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin

from ._errors import InputError
from ._settings import fit, hints_of, is_text, shown

DEEPEST = 16
"""How deep values without a type of their own may be nested, such as a method's settings."""

T = TypeVar("T")


def loads(text: str | bytes, where: str) -> Any:
    """What a JSON text says.

    Args:
        where: What the text is, for the message: a file's path, or a part of one.

    Raises:
        InputError: It is not JSON in UTF-8, has NaN or infinity, a number of thousands of digits,
            or is nested too deeply to be read.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise InputError(f"{where} is nested too deeply to be read.") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are among them
        raise InputError(f"{where} is not JSON: {error}.") from None


def read(cls: type[T], value: Any, where: str, *, defaults: bool = False) -> T:
    """A dataclass from what JSON or YAML gave, every field checked against its annotation.

    Annotations may be those of settings (``unsee._settings``), bytes (base64 in JSON), Any (what
    JSON may say), a ``tuple`` or a ``Mapping`` from texts, and dataclasses of such.

    Args:
        cls: A dataclass. What its ``__post_init__`` raises as InputError is passed on.
        value: What was parsed.
        where: What it is, for the message.
        defaults: Whether a field that has a default may be left out. What we write ourselves is
            whole; what people write need not be.

    Raises:
        InputError: A field is missing, not known, or not of its type.
    """
    return cast(T, _dataclass(cls, value, where, defaults))


def plain(value: Any) -> Any:
    """A value as JSON has it: dataclasses and mappings as dicts, tuples as lists, bytes as base64.

    ``read`` makes an equal value of what this gives.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


def _dataclass(cls: Any, value: Any, where: str, defaults: bool) -> Any:
    page = _mapping(value, where)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    # What is written for readers, and follows from the fields, is not read back: names, or names
    # to types where what is written is not what the class gives by the name, or not always there
    derived = getattr(cls, "derived", ())
    if extra := sorted(set(page) - set(fields) - set(derived)):
        raise InputError(
            f"{where} has {shown(extra[0])}, which is not known here: wanted {', '.join(fields)}."
        )
    given = {}
    hints = hints_of(cls)
    for name, field in fields.items():
        if name in page:
            given[name] = _value(hints[name], page[name], f"{where}: {name}", defaults)
            continue
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        # What files of the same format lack that were written before there was such a field
        later = getattr(cls, "later", ())
        if not (optional and (defaults or name in later)):
            raise InputError(f"{where} lacks {name!r}.")
    try:
        return cls(**given)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _value(hint: Any, value: Any, where: str, defaults: bool) -> Any:
    if hint is Any:
        return _anything(value, where, 0)
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, where, defaults)
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        others = [part for part in parts if part is not NoneType]
        if value is None and len(others) < len(parts):
            return None
        if len(others) == 1:
            return _value(others[0], value, where, defaults)
    if origin is tuple:
        items = _typed(value, where, list, "a list")
        of = [parts[0]] * len(items) if parts[1:] == (...,) else list(parts)
        if len(items) != len(of):
            raise InputError(f"{where} has {len(items)} values; it must have {len(of)}.")
        return tuple(
            _value(one, item, f"{where}[{place}]", defaults)
            for place, (one, item) in enumerate(zip(of, items, strict=True))
        )
    if origin is not None and origin in (Mapping, dict):
        page = _mapping(value, where)
        return {k: _value(parts[1], v, f"{where}: {shown(k)}", defaults) for k, v in page.items()}
    if hint is bytes:
        try:
            return base64.b64decode(fit(where, value, str), validate=True)
        except ValueError:
            raise InputError(f"{where} is no base64: it was cut or changed.") from None
    return _written(fit(where, value, hint), where)


def _anything(value: Any, where: str, depth: int) -> Any:
    """What JSON may say, nested no deeper than ``DEEPEST``, and every number finite."""
    if depth > DEEPEST:
        raise InputError(f"{where} is nested too deeply.")
    if isinstance(value, Mapping):
        page = _mapping(value, where)
        return {k: _anything(v, f"{where}: {shown(k)}", depth + 1) for k, v in page.items()}
    if isinstance(value, (list, tuple)):
        return [_anything(item, where, depth + 1) for item in value]
    # As what it is: one of several types, a whole number of more than 64 bits would be a float.
    known = next((hint for hint in (bool, int, float, str, NoneType) if type(value) is hint), None)
    return _written(fit(where, value, known or bool | int | float | str | None), where)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    page: Mapping[str, Any] = _typed(value, where, Mapping, "a mapping")
    for key in page:
        _written(_typed(key, f"a key of {where}", str, "a text"), f"a key of {where}")
    return page


def _typed(value: Any, where: str, kind: type, wanted: str) -> Any:
    if not isinstance(value, kind):
        raise InputError(f"{where} is {shown(value)}; it must be {wanted}.")
    return value


def _written(value: Any, where: str) -> Any:
    """A value, if it is a text, made sure that a file can hold it."""
    if isinstance(value, str) and not is_text(value):
        raise InputError(f"{where} is {shown(value)}, half of a character.")
    return value
