"""A filter of rows, read and never evaluated: ``nudity_percentage > 50 and hard == 1``.

    filter      = all ("or" all)*
    all         = one ("and" one)*
    one         = "not" one | "(" filter ")" | value operator value
    operator    = "==" | "!=" | "<" | "<=" | ">" | ">=" | "in" | "not in"
    value       = column | number | 'text' | "text"

A column of more than one word is written in backticks. ``in`` asks whether a text is part of
another: ``'sexual' in categories``. A cell beside a number is read as a number, and an empty cell
fits no comparison.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from .._errors import InputError
from .._registry import unknown
from .._settings import shown

Row = Mapping[str, Any]

LONGEST = 2000
"""Characters of a filter."""

DEEPEST = 50
"""Brackets and ``not`` inside one another."""

TOKENS = re.compile(
    r"""\s*(?:(?P<number>-?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|-?\.\d+)(?!\w)
    | (?P<text>'[^']*'|"[^"]*")
    | (?P<sign>==|!=|<=|>=|<|>|\(|\))
    | (?P<word>[^\W\d]\w*) | (?P<column>`[^`]+`))""",
    re.VERBOSE,
)

SIGNS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class NoColumn(InputError):
    """A filter names a column that is not there."""


class Where:
    """A filter, called with a row and what an error is to call it.

    >>> fits = Where("nudity > 50 and 'sexual' in categories", ["nudity", "categories"])
    >>> fits({"nudity": "72.5", "categories": "hate, sexual"}, "row 0")
    True

    Args:
        text: The filter.
        columns: Those that there are.

    Raises:
        NoColumn: The text has an unknown column.
        InputError: The text is no filter; when called, a cell that is to
            be a number is none. The message says where.
    """

    def __init__(self, text: str, columns: Sequence[str]) -> None:
        if len(text) > LONGEST:
            raise InputError(
                f"--where has {len(text)} characters, and at most {LONGEST} are read: put the "
                "rows that are wanted into a file of their own."
            )
        self.text = text
        self.depth = 0
        self.columns = list(columns)
        self.tokens = list(self._tokens())
        self.next = 0
        self._fits = self._filter()
        if self._token[0] != "end":
            self._wrong("'and', 'or' or the end")

    def __call__(self, row: Row, at: str) -> bool:
        return self._fits(row, at)

    def _tokens(self) -> Iterator[tuple[str, str, int]]:
        place, end = 0, len(self.text.rstrip())
        while place < end:
            found = TOKENS.match(self.text, place)
            if not found:
                place = len(self.text) - len(self.text[place:].lstrip())
                sign = self.text[place]
                hint = " (for equal, write ==)" if sign == "=" else ""
                raise InputError(
                    f"--where {shown(self.text)}, character {place + 1}: {sign!r} is not known "
                    f"here{hint}."
                )
            kind = str(found.lastgroup)
            word = found[kind]
            if kind == "word" and word.lower() in ("and", "or", "not", "in"):
                kind, word = "sign", word.lower()
            yield kind, word, found.start(found.lastgroup or 0)
            place = found.end()
        yield "end", "the end", end

    @property
    def _token(self) -> tuple[str, str, int]:
        return self.tokens[self.next]

    def _wrong(self, wanted: str) -> NoReturn:
        _, word, place = self._token
        raise InputError(
            f"--where {shown(self.text)}, character {place + 1}: wanted {wanted}, found "
            f"{word if word == 'the end' else repr(word)}."
        )

    def _take(self, *words: str) -> str | None:
        """The next token if it is one of these signs, and goes past it."""
        kind, word, _ = self._token
        if kind != "sign" or word not in words:
            return None
        self.next += 1
        return word

    def _filter(self) -> Callable[[Row, str], bool]:
        parts = [self._all()]
        while self._take("or"):
            parts.append(self._all())
        return lambda row, at: any(part(row, at) for part in parts)

    def _all(self) -> Callable[[Row, str], bool]:
        parts = [self._one()]
        while self._take("and"):
            parts.append(self._one())
        return lambda row, at: all(part(row, at) for part in parts)

    def _one(self) -> Callable[[Row, str], bool]:
        self.depth += 1
        if self.depth > DEEPEST:
            self._wrong(f"at most {DEEPEST} brackets and 'not' inside one another")
        try:
            return self._deeper()
        finally:
            self.depth -= 1

    def _deeper(self) -> Callable[[Row, str], bool]:
        if self._take("not"):
            part = self._one()
            return lambda row, at: not part(row, at)
        if self._take("("):
            part = self._filter()
            if not self._take(")"):
                self._wrong("')'")
            return part
        return self._comparison()

    def _comparison(self) -> Callable[[Row, str], bool]:
        left = self._value()
        negated = bool(self._take("not"))
        sign = self._take("in") if negated else self._take(*SIGNS, "in")
        if not sign:
            self._wrong("'in'" if negated else f"one of {', '.join(SIGNS)}, in, not in")
        right = self._value()

        def fits(row: Row, at: str) -> bool:
            a, b = left(row), right(row)
            if a in (None, "") or b in (None, ""):
                return False
            if sign == "in":
                return (str(a) in str(b)) is not negated
            if sign in ("==", "!=") and isinstance(a, str) and isinstance(b, str):
                return SIGNS[sign](a, b)
            return SIGNS[sign](self._number(a, at), self._number(b, at))

        return fits

    def _value(self) -> Callable[[Row], Any]:
        kind, word, _ = self._token
        if kind == "number":
            value: Any = float(word)
        elif kind == "text":
            value = word[1:-1]
        elif kind in ("word", "column"):
            name = word.strip("`")
            if name not in self.columns:
                raise NoColumn(str(unknown("column", name, self.columns)))
            self.next += 1
            return lambda row: row[name]
        else:
            self._wrong("a column, a number or a text in quotes")
        self.next += 1
        return lambda row: value

    def _number(self, value: Any, at: str) -> float:
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise InputError(
                f"--where {shown(self.text)}, {at}: {shown(value)} is no number."
            ) from None
