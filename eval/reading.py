"""Values read from JSON that anybody may have edited: each is checked before it is believed."""

import json
import math
from collections.abc import Collection
from typing import Any, NoReturn

from .._errors import InputError


def parse(text: str) -> Any:
    """A JSON text's value.

    Raises:
        InputError: It is no JSON, has NaN or an infinity in it, or is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise InputError("it is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"it is not JSON: {' '.join(str(error).split())}") from error


def mapping(value: Any, needed: Collection[str], optional: Collection[str] = ()) -> dict[str, Any]:
    """A mapping with the needed keys, perhaps the optional ones, and no other.

    Raises:
        InputError: It is something else.
    """
    found = anything(value)
    if missing := [key for key in needed if key not in found]:
        raise InputError(f"it has no {missing[0]!r}")
    if extra := [key for key in found if key not in needed and key not in optional]:
        raise InputError(f"it has {extra[0]!r:.60}, which is not known here")
    return found


def anything(value: Any) -> dict[str, Any]:
    """A mapping with any keys."""
    if not isinstance(value, dict):
        raise InputError(f"wanted a mapping, found {value!r:.60}")
    return value


def items(value: Any) -> list[Any]:
    """A list of anything."""
    if not isinstance(value, list):
        raise InputError(f"wanted a list, found {value!r:.60}")
    return value


def text(value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise InputError(f"wanted a text, found {value!r:.60}")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """A list of texts."""
    return tuple(map(text, items(value)))


def digest(value: Any, digits: int) -> str:
    """So many hexadecimal digits, in lower case."""
    if len(text(value)) != digits or set(value) - set("0123456789abcdef"):
        raise InputError(f"wanted {digits} hexadecimal digits, found {value!r:.60}")
    return str(value)


def number(value: Any) -> float:
    """A finite number."""
    if type(value) not in (int, float) or not abs(value) < 1e300 or not math.isfinite(value):
        raise InputError(f"wanted a number, found {value!r:.60}")
    return float(value)


def whole(value: Any) -> int:
    """A whole number of 0 or more."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise InputError(f"wanted a whole number of 0 or more, found {value!r:.60}")
    return value


def yes_or_no(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise InputError(f"wanted true or false, found {value!r:.60}")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")
