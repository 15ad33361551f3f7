"""Reading what others may have written: JSON and YAML values into frozen dataclasses, checked.

``loads`` is the one function that parses JSON, ``read`` the one that makes a typed value of what
was parsed, and ``plain`` the way back. Whatever is wrong is one InputError line that says where.

``read`` looks twice where it must. The first look knows what a class's annotations allow, and no
names for what it finds: it takes what is right, a tenth of the time, and leaves all else to the
second, which says what is wrong.
"""

import base64
import dataclasses
import functools
import gc
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

from ._errors import InputError
from ._settings import fit, hints_of, is_text, shown

DEEPEST = 16
"""How deep values without a type of their own may be nested, such as a method's settings."""

T = TypeVar("T")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def loads(text: str | bytes, where: str) -> Any:
    """What a JSON text says.

    Args:
        where: What the text is, for the message: a file's path, or a part of one.

    Raises:
        InputError: It is not JSON in UTF-8, has NaN or infinity, a number of thousands of digits,
            or is nested too deeply to be read.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))
        return _DECODER.decode(text)
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
    kind: Any = cls
    try:
        return cast(T, _quick(kind, defaults)(value))
    except ValueError:  # Unsure, or what a __post_init__ raises
        return cast(T, _dataclass(cls, value, where, defaults))


@contextmanager
def many() -> Iterator[None]:
    """For making very many values in a row, none of which has itself in it.

    Python's collector looks for such through all of them again and again, which takes a fifth of
    the time.
    """
    watched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if watched:
            gc.enable()


def plain(value: Any) -> Any:
    """A value as JSON has it: dataclasses and mappings as dicts, tuples and what else is in order
    as lists, bytes as base64.

    ``read`` makes an equal value of what this gives.
    """
    if type(value) in _PLAIN:
        return value
    level = _level(value)
    if isinstance(level, dict):
        return {key: plain(item) for key, item in level.items()}
    return [plain(item) for item in level] if isinstance(level, list) else level


def line(value: Any) -> str:
    """The same as JSON's text, in one line.

    Raises:
        ValueError: A number is not finite, which JSON has no word for.
    """
    return _ENCODER.encode(value)


_PLAIN = frozenset((str, float, int, bool, NoneType))


def _level(value: Any) -> Any:
    """A value as JSON has it, but not yet what is in it."""
    kind: Any = type(value)
    if (names := _names(kind)) is not None:
        return {name: getattr(value, name) for name in names}
    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_level)


@functools.cache
def _names(kind: type) -> tuple[str, ...] | None:
    """The fields of a dataclass; None of any other class."""
    if not dataclasses.is_dataclass(kind):
        return None
    return tuple(field.name for field in dataclasses.fields(kind))


# The first look


class _Unsure(ValueError):
    """Leaves a value to the second look."""


_Look = Callable[[Any], Any]

OFTEN = 40
"""Characters: a text up to this may come again and again (a label, a key), and is held once."""


@functools.cache
def _quick(cls: Any, defaults: bool) -> _Look:
    """What makes a dataclass of a page that is right at first sight.

    It takes nothing that ``_dataclass`` would not take, and makes the same of it. A class of which
    there are very many may have a quicker one of its own, ``at_sight``, that does so too and
    raises ValueError for all else.
    """
    if (own := getattr(cls, "at_sight", None)) is not None:
        return cast(_Look, own)
    looks = {name: _look(hint, defaults) for name, hint in hints_of(cls).items()}
    later = getattr(cls, "later", ())
    optional = {
        f.name
        for f in dataclasses.fields(cls)
        if (f.default, f.default_factory) != (dataclasses.MISSING,) * 2
        and (defaults or f.name in later)
    }
    each = tuple(looks.items())
    known = looks.keys() | set(getattr(cls, "derived", ()))

    def made(page: Any) -> Any:
        if type(page) is not dict or not page.keys() <= known:
            raise _Unsure
        given = {}
        for name, look in each:
            if name in page:
                given[name] = look(page[name])
            elif name not in optional:
                raise _Unsure
        return cls(**given)

    return made


def _look(hint: Any, defaults: bool) -> _Look:
    """The same of any annotation."""
    origin, parts = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        kind: Any = hint
        # Found when it is needed: a class may have fields of its own
        return lambda value: _quick(kind, defaults)(value)
    if hint in _LOOKS:
        return _LOOKS[hint]
    if origin in (Union, UnionType) and NoneType in parts and len(parts) == 2:
        look = _look(next(part for part in parts if part is not NoneType), defaults)
        return lambda value: None if value is None else look(value)
    if origin is Literal and all(type(part) is str for part in parts):
        choices = {part: part for part in parts}
        return lambda value: choices.get(text_at_sight(value)) or _refuse()
    if origin is Sequence or (origin is tuple and parts[1:] == (...,)):
        item = _look(parts[0], defaults)
        return lambda value: tuple(map(item, value)) if type(value) is list else _refuse()
    if origin in (Mapping, dict):
        return _numbers if parts[1] is float else _mapped(_look(parts[1], defaults))
    return lambda value: _value(hint, value, "", defaults)


def _refuse() -> Any:
    raise _Unsure


def text_at_sight(value: Any) -> str:
    """A text that a file can hold.

    Raises:
        ValueError: It is none.
    """
    if type(value) is not str:
        raise _Unsure
    if len(value) <= OFTEN:
        value = sys.intern(value)
    if not value.isascii() and not is_text(value):
        raise _Unsure
    return cast(str, value)


def _number(value: Any) -> float:
    if type(value) is not float or not math.isfinite(value):
        raise _Unsure
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or value.bit_length() > 64:
        raise _Unsure
    return value


def _truth(value: Any) -> bool:
    if type(value) is not bool:
        raise _Unsure
    return value


_LOOKS: Mapping[Any, _Look] = {str: text_at_sight, float: _number, int: _whole, bool: _truth}


def _mapped(look: _Look) -> _Look:
    return lambda value: dict(zip(_keys(value), map(look, value.values()), strict=True))


def _numbers(value: Any) -> Any:
    """A mapping to numbers, of which there are many."""
    keys, numbers = _keys(value), value.values()
    if not (set(map(type, numbers)) <= {float} and all(map(math.isfinite, numbers))):
        raise _Unsure
    return dict(zip(keys, numbers, strict=True))


def _keys(value: Any) -> list[str]:
    """The keys of a mapping, each held once however many mappings have it."""
    if type(value) is not dict or not set(map(type, value)) <= {str}:
        raise _Unsure
    keys = list(map(sys.intern, value))
    if not all(map(str.isascii, keys)) and not all(map(is_text, keys)):
        raise _Unsure
    return keys


# The second look


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
    if origin in (tuple, Sequence):
        items = _typed(value, where, list, "a list")
        many = origin is Sequence or parts[1:] == (...,)
        of = [parts[0]] * len(items) if many else list(parts)
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
