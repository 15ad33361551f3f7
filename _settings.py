"""Settings say what they may be in their annotations; here is what reads them.

    ridge: Annotated[float, Range(above=0)] = 0.5
    tokens: Literal["last", "tail"] = "tail"
    rank: Count | None = None

One reading serves Python (``check`` and ``fit``), texts of the command line (``read``) and values
of a YAML file (``read`` too). Annotations may be ``bool``, ``int``, ``float``, ``str``,
``Literal``, ``tuple[..., ...]``, ``Sequence``, ``Mapping``, ``Callable``, unions of these with one
another and None, and these inside ``Annotated``; of any other class only the type is looked at.
NaN and infinity are never a setting, and no bool is a number.
"""

import builtins
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from ._errors import InputError

LENGTH = 80
"""How many characters of a value an error shows."""


@dataclass(frozen=True)
class Range:
    """Where a number must lie.

    Attributes:
        above, below: Ends that do not belong to it.
        least, most: Ends that do.
        of: What a whole number must be a multiple of.
    """

    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None
    of: int = 1

    def __contains__(self, number: float) -> bool:
        return (
            (self.above is None or number > self.above)
            and (self.least is None or number >= self.least)
            and (self.below is None or number < self.below)
            and (self.most is None or number <= self.most)
            and (self.of == 1 or number % self.of == 0)
        )

    def __str__(self) -> str:
        if self.least is not None and (self.most, self.below) != (None, None):
            end = f"below {self.below}" if self.most is None else str(self.most)
            return f"from {self.least} to {end}"
        ends = {
            "above": self.above,
            "of at least": self.least,
            "below": self.below,
            "of at most": self.most,
        }
        return " and ".join(f"{word} {end}" for word, end in ends.items() if end is not None)


Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(least=0, most=1)]
Rest = Annotated[float, Range(least=0, below=1)]
"""A share of something of which at least a little must be left."""
Count = Annotated[int, Range(least=1, most=1_000_000)]
"""Of steps, images or rows: a million is a slip of the finger, not a request."""
Whole = Annotated[int, Range(least=0, most=1_000_000)]
"""As ``Count``, where none is a choice too."""
Seed = Annotated[int, Range(least=0, most=2**63 - 1)]
"""What torch's generators take, with room for the seeds that are counted on from it."""
Size = Annotated[int, Range(least=4, most=1_000_000)]
"""Of a suite that is made to measure."""
Steps = Annotated[int, Range(least=1, most=1000)]
"""Denoising steps: diffusers' models have learnt a thousand times, and no sampler takes more."""
Guidance = Annotated[float, Range(least=0, most=1000)]
"""A scale of classifier-free guidance."""
Weight = Annotated[float, Range(above=0, most=10)]
"""What an erasure or a LoRA is multiplied by; 1 is as it was made."""


def check(settings: Any) -> None:
    """Looks at every field of a frozen dataclass, by its annotation; for its ``__post_init__``.

    A whole number where a float is wanted becomes one, so that equal settings are written alike.

    Raises:
        InputError: A field is not what its annotation says; the line names it.
    """
    for name, hint in hints_of(type(settings)).items():
        object.__setattr__(settings, name, fit(name, getattr(settings, name), hint))


def hints_of(settings: type) -> dict[str, Any]:
    """The annotation of each field of a dataclass."""
    hints = get_type_hints(settings, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(settings)}


def fit(name: str, value: Any, hint: Any) -> Any:
    """A value of Python's as its annotation wants it.

    >>> fit("ridge", 1, Positive)
    1.0
    >>> fit("ridge", float("nan"), Positive)
    Traceback (most recent call last):
    unsee._errors.InputError: ridge is nan; it must be a number above 0.
    >>> fit("rank", True, Count | None)
    Traceback (most recent call last):
    unsee._errors.InputError: rank is True; it must be a whole number from 1 to 1000000, \
or none.

    Args:
        name: What the error is to call it.
        value: What was given.
        hint: The annotation.

    Raises:
        InputError: The value is none that the annotation allows.
    """
    return _fit(name, value, hint, False)


def read(name: str, value: Any, hint: Any) -> Any:
    """A value from the command line or a YAML file, where a text may stand for any type.

    >>> read("rank", "none", Count | None) is None
    True
    >>> read("labels", "cat, dog", tuple[str, ...])
    ('cat', 'dog')
    >>> read("expand", "yes", bool)
    Traceback (most recent call last):
    unsee._errors.InputError: expand is 'yes'; it must be true or false.

    Args:
        name: What the error is to call it.
        value: A text, or what YAML made of one.
        hint: The annotation.

    Raises:
        InputError: The value is none that the annotation allows.
    """
    return _fit(name, value, hint, True)


P = ParamSpec("P")
R = TypeVar("R")


class Unseen:
    """Stands for a class that is only imported when it is needed."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose arguments are looked at, by its annotations, before it begins.

    A class that an annotation names for type checkers alone may be any object, no plain value.

    Raises:
        InputError: An argument is not what its annotation says; the line names it.
    """
    signature = inspect.signature(function)

    class Names(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            return function.__globals__.get(name, getattr(builtins, name, Unseen))

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            parameter = signature.parameters[name]
            hint = parameter.annotation
            if hint is parameter.empty:  # a method's own class
                continue
            if isinstance(hint, str):
                hint = eval(hint, {}, Names())
            if parameter.kind is parameter.VAR_POSITIONAL:
                given.arguments[name] = tuple(fit(name, one, hint) for one in value)
            elif parameter.kind is not parameter.VAR_KEYWORD:
                given.arguments[name] = fit(name, value, hint)
        return function(*given.args, **given.kwargs)

    return call


def is_text(value: object) -> bool:
    """Whether a value is a text that a file can hold, as half of a character cannot be.

    >>> is_text("é"), is_text("\\udce9"), is_text(b"e")
    (True, False, False)
    """
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def shown(value: object) -> str:
    """A value as an error shows it: its repr, cut short.

    >>> shown("a" * 1000)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'"
    """
    if isinstance(value, str):
        # Cut before it is escaped: of a text of a gigabyte only the ends are read.
        value = value if len(value) <= LENGTH else value[:LENGTH] + value[-LENGTH:]
        text = repr(value)
    elif isinstance(value, int) and value.bit_length() > 300:
        return f"a number of about {round(value.bit_length() * math.log10(2))} digits"
    elif isinstance(value, (bool, int, float, type(None))):
        text = repr(value)
    elif isinstance(value, (list, tuple, dict, set, frozenset)) and len(value) > 3:
        return f"a {type(value).__name__} of {len(value)}"
    else:
        try:
            text = " ".join(repr(value).split())
        except Exception:  # a repr of the user's own, or one that nests too deeply
            text = f"a {type(value).__name__}"
    half = LENGTH // 2
    return text if len(text) <= LENGTH else f"{text[: half - 2]}…{text[1 - half - 1 :]}"


def _fit(name: str, value: Any, hint: Any, texts: bool) -> Any:
    try:
        return _read(value, hint, texts)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"{name} is {shown(value)}; it must be {_wanted(hint)}.") from None


def _read(value: Any, hint: Any, texts: bool) -> Any:
    """The value, or one of Python's errors if it is none that the annotation allows."""
    origin, parts = get_origin(hint), get_args(hint)
    text = value if texts and isinstance(value, str) else None
    if origin is Annotated:
        found = _read(value, parts[0], texts)
        for bound in parts[1:]:
            # None and the names beside a number, such as "auto", have no range
            if isinstance(bound, Range) and type(found) in (int, float) and found not in bound:
                raise ValueError
        return found
    if origin in (Union, UnionType):
        # None first: as a text, "none" is it
        for part in sorted(parts, key=lambda part: part is not NoneType):
            try:
                return _read(value, part, texts)
            except (ValueError, TypeError, OverflowError):
                continue
        raise ValueError
    if hint is Any:
        return value
    if hint is Unseen:
        if value is None or isinstance(value, (str, bytes, Real, Mapping, Sequence)):
            raise TypeError
        return value
    if hint is NoneType:
        if value is None or text == "none":
            return None
        raise ValueError
    if origin is Literal:
        for choice in parts:
            if (type(value) is type(choice) and value == choice) or text == str(choice):
                return choice
        raise ValueError
    if hint is bool:
        if text in ("true", "false"):
            return text == "true"
        return _typed(value, bool)
    if hint is int:
        whole = int(text if text is not None else _typed(value, Integral))
        if whole.bit_length() > 64:
            raise OverflowError
        return whole
    if hint is float:
        number = float(text if text is not None else _typed(value, Real))
        if not math.isfinite(number):
            raise ValueError
        return number
    if origin is tuple and parts[1:] == (...,):
        given = [one.strip() for one in text.split(",")] if text is not None else value
        return tuple(_read(one, parts[0], texts) for one in _typed(given, list, tuple))
    if origin is Sequence:
        # A text is a sequence too, of letters, which nobody means
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise TypeError
        return [_read(one, parts[0], texts) for one in value]
    if origin is Callable:
        if not callable(value):
            raise TypeError
        return value
    if origin in (Mapping, dict):
        return {
            _read(key, parts[0], texts): _read(one, parts[1], texts)
            for key, one in _typed(value, Mapping).items()
        }
    return _typed(value, origin or hint)


def _typed(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError
    return value


def _wanted(hint: Any) -> str:
    """What an annotation allows, in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        ranges = [part for part in parts[1:] if isinstance(part, Range)]
        if parts[0] is int and any(r.of > 1 for r in ranges):
            return " ".join([f"a multiple of {ranges[0].of}", *filter(None, map(str, ranges))])
        return " ".join([_wanted(parts[0]), *filter(None, map(str, ranges))])
    if origin in (Union, UnionType):
        return _or([_wanted(p) for p in sorted(parts, key=lambda part: part is NoneType)])
    if origin is Literal:
        return ("one of " if parts[1:] else "") + ", ".join(map(str, parts))
    if origin in (tuple, Sequence):
        return f"a list, each of it {_wanted(parts[0])}"
    if origin is Callable:
        return "a function"
    if hint is Any:
        return "anything"
    if hint is Unseen:
        return "an object of its class"
    if origin in (Mapping, dict):
        return f"a mapping from {_wanted(parts[0])} to {_wanted(parts[1])}, as in a YAML file"
    words = {
        NoneType: "none",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
    }
    return words.get(hint) or f"a {getattr(origin or hint, '__name__', hint)}"


def _or(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])}, or {words[-1]}" if words[1:] else words[0]
