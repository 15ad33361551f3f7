"""Reading what others may have written: JSON and YAML values into frozen dataclasses, checked.

``loads`` is the one function that parses JSON, ``read`` the one that makes a typed value of what
was parsed, and ``plain`` the way back. Whatever is wrong is one InputError line that says where.
"""

import base64
import binascii
import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

from ._errors import InputError

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

    Annotations may be str, bool, int, float (finite), bytes (base64), None, Any, Literal, unions,
    ``tuple[X, ...]``, ``Mapping[str, X]``, and dataclasses of such.

    Args:
        cls: A dataclass. What its ``__post_init__`` raises as InputError is passed on.
        value: What was parsed.
        where: What it is, for the message.
        defaults: Whether a field that has a default may be left out. What we write ourselves is
            whole; what people write need not be.

    Raises:
        InputError: A field is missing, not known, or not of its type.
    """
    return typing.cast(T, _dataclass(cls, value, where, defaults))


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
    if extra := sorted(set(page) - set(fields)):
        raise InputError(
            f"{where} has {_shown(extra[0])}, which is not known here: wanted {', '.join(fields)}."
        )
    given = {}
    hints = _hints(cls)
    for name, field in fields.items():
        if name in page:
            given[name] = _value(hints[name], page[name], f"{where}: {name}", defaults, 0)
            continue
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if not (defaults and optional):
            raise InputError(f"{where} lacks {name!r}.")
    try:
        return cls(**given)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


@functools.lru_cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _value(hint: Any, value: Any, where: str, defaults: bool, depth: int) -> Any:
    if hint is Any:
        return _anything(value, where, depth)
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, where, defaults)
    if origin is typing.Annotated:
        return _value(arguments[0], value, where, defaults, depth)
    if origin in (typing.Union, types.UnionType):
        others = [a for a in arguments if a is not types.NoneType]
        if value is None and len(others) < len(arguments):
            return None
        if len(others) == 1:
            return _value(others[0], value, where, defaults, depth)
        for other in others:
            try:
                return _value(other, value, where, defaults, depth)
            except InputError:
                continue
        raise _wrong(where, "another value", value)
    if origin is Literal:
        # 1 == True: their types count too
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            raise _wrong(where, f"one of {', '.join(map(str, arguments))}", value)
        return value
    if origin is tuple:
        items = _list(value, where)
        if arguments[1:] == (...,):
            of = [arguments[0]] * len(items)
        elif len(items) == len(arguments):
            of = list(arguments)
        else:
            raise _wrong(where, f"{len(arguments)} values", value)
        return tuple(
            _value(one, item, f"{where}[{place}]", defaults, depth)
            for place, (one, item) in enumerate(zip(of, items, strict=True))
        )
    if origin is not None and issubclass(origin, Mapping):
        return {
            key: _value(arguments[1], item, f"{where}: {_shown(key)}", defaults, depth)
            for key, item in _mapping(value, where).items()
        }
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is types.NoneType and value is None:
        return None
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        if not -(2**63) <= value < 2**64:
            raise InputError(f"{where} is a number of more than 64 bits.")
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found):
            raise InputError(f"{where} is a number that is not finite.")
        return found
    if hint is str and isinstance(value, str):
        return _text(value, where)
    if hint is bytes and isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise InputError(f"{where} is no base64: it was cut or changed.") from None
    names = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
    raise _wrong(where, names.get(hint, "a text of base64" if hint is bytes else "nothing"), value)


def _anything(value: Any, where: str, depth: int) -> Any:
    """What JSON may say, nested no deeper than ``DEEPEST``, and every number finite."""
    if depth > DEEPEST:
        raise InputError(f"{where} is nested too deeply.")
    if isinstance(value, Mapping):
        page = _mapping(value, where).items()
        return {key: _anything(item, f"{where}: {_shown(key)}", depth + 1) for key, item in page}
    if isinstance(value, (list, tuple)):
        return [_anything(item, where, depth + 1) for item in value]
    if value is None or isinstance(value, bool):
        return value
    for hint in (str, int, float):
        if isinstance(value, hint):
            return _scalar(hint, value, where)
    raise _wrong(where, "a text, a number, a list or a mapping", value)


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no file can hold
        raise InputError(f"{where} has a character that is none.") from None
    return value


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(where, "a mapping", value)
    for key in value:
        if not isinstance(key, str):
            raise _wrong(f"A key of {where}", "a text", key)
        _text(key, f"A key of {where}")
    return value


def _list(value: Any, where: str) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(where, "a list", value)
    return value


def _wrong(where: str, wanted: str, value: Any) -> InputError:
    return InputError(f"{where} is {_shown(value)}; wanted {wanted}.")


def _shown(value: Any) -> str:
    """A value in a message: on one line, and cut where it is long."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a number of more than 64 bits"
    said = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return said if len(said) <= 60 else f"{said[:57]}…"
