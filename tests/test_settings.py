"""Settings: one checker, whoever gives them."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pytest

from unsee._errors import InputError
from unsee._settings import Count, Positive, Range, Rest, Seed, check, fit, hints_of, read, shown
from unsee.erasers import ERASERS
from unsee.erasers.debias import Debias
from unsee.eval import find_detector
from unsee.flow import make_eraser

CLASSES: list[Any] = [*(ERASERS[name] for name in ERASERS), Debias]
FIELDS = [(cls, name) for cls in CLASSES for name in hints_of(cls)]

every_field = pytest.mark.parametrize("cls, name", FIELDS, ids=lambda v: getattr(v, "__name__", v))


def numbers(hint: Any) -> bool:
    """Whether an annotation allows a number."""
    return hint in (int, float) or any(map(numbers, get_args(hint)))


def ranges(hint: Any) -> list[Range]:
    return [r for part in get_args(hint) for r in ([part] if isinstance(part, Range) else [])] + [
        r for part in get_args(hint) for r in ranges(part)
    ]


@every_field
def test_what_is_no_setting_is_one_line_that_names_it(cls: Any, name: str) -> None:
    hint = hints_of(cls)[name]
    wrong: list[Any] = [math.nan, math.inf, -math.inf, [1], {}, b"x", 10**400, 10**6000, 1j]
    if hint is not bool:
        wrong += [True, False]
    if hint is bool:
        wrong += [0, 1, "true"]
    if numbers(hint):
        wrong += ["1", "", "auto "]
    elif hint is not bool:
        wrong += [1, 0.5]
    for bound in ranges(hint):
        wrong += [end for end in (bound.above, bound.below) if end is not None]
        wrong += [bound.least - 1] if bound.least is not None else []
        wrong += [bound.most + 1] if bound.most is not None else []
    for value in wrong:
        with pytest.raises(InputError) as caught:
            cls(**{name: value})
        line = str(caught.value)
        assert line.startswith(f"{name} is ") and "; it must be " in line
        assert "\n" not in line and len(line) < 250


@every_field
def test_no_count_is_beyond_what_a_machine_can_do(cls: Any, name: str) -> None:
    default = next(f.default for f in dataclasses.fields(cls) if f.name == name)
    if type(default) is int:
        with pytest.raises(InputError, match=f"{name} is .*; it must be a whole number from"):
            cls(**{name: 10**18})


@every_field
def test_a_text_is_read_as_python_writes_it(cls: Any, name: str) -> None:
    value = next(f.default for f in dataclasses.fields(cls) if f.name == name)
    text = "none" if value is None else str(value).lower() if value in (True, False) else None
    found = read(name, str(value) if text is None else text, hints_of(cls)[name])
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("method", list(ERASERS))
def test_presets_and_defaults_are_settings(method: str) -> None:
    check(make_eraser(method))
    for preset in ERASERS[method].presets:
        check(make_eraser(method, preset))


def test_an_eraser_that_does_not_check_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Careless:
        presets = {"high": {"scale": 1e9}}
        scale: Annotated[float, Range(below=1)] = 0.5

    monkeypatch.setattr(type(ERASERS), "__getitem__", lambda self, name: Careless)
    with pytest.raises(InputError, match="scale is nan; it must be a number below 1"):
        make_eraser("careless", scale=math.nan)
    with pytest.raises(InputError, match="scale is 1000000000.0"):
        make_eraser("careless", "high")


def test_equal_settings_are_written_alike() -> None:
    one, two = make_eraser("uce", ridge=1), make_eraser("uce", ridge=np.float32(1.0))
    assert one == two and repr(one) == repr(two)
    assert type(make_eraser("mace", prompts=np.int64(3)).prompts) is int  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "value, hint, wanted",
    [
        (0, Count, "a whole number from 1 to 1000000"),
        (2.0, Count, "a whole number from 1 to 1000000"),
        (1.0, Rest, "a number from 0 to below 1"),
        (0, Positive, "a number above 0"),
        (-1, Annotated[float, Range(least=0)], "a number of at least 0"),
        (2**63, Seed, "a whole number from 0 to 9223372036854775807"),
        (12, Annotated[int, Range(least=8, of=8)], "a multiple of 8 of at least 8"),
        ("c", Literal["a", "b"], "one of a, b"),
        ("c", Literal["a", "b"] | None, "one of a, b, or none"),
        (1, Literal["1"], "1"),
        (["a", 1], tuple[str, ...], "a list, each of it a text"),
        ("ab", tuple[str, ...], "a list, each of it a text"),
        ({"a": 1}, Mapping[str, str], "a mapping from a text to a text, as in a YAML file"),
        ("x", Path, "a Path"),
    ],
)
def test_the_line_says_what_was_wanted(value: Any, hint: Any, wanted: str) -> None:
    with pytest.raises(InputError) as caught:
        fit("it", value, hint)
    assert str(caught.value) == f"it is {value!r}; it must be {wanted}."


@pytest.mark.parametrize(
    "text, hint, value",
    [
        ("none", str | None, None),
        ("1e-3", float, 1e-3),
        ("7", Count | None, 7),
        ("auto", Literal["auto"] | Count, "auto"),
        ("a, b", tuple[str, ...], ("a", "b")),
        ("1,2", tuple[int, ...], (1, 2)),
        ({"a": "b"}, Mapping[str, str] | None, {"a": "b"}),
        (3, float, 3.0),
    ],
)
def test_texts_are_read_as_the_annotation_wants_them(text: Any, hint: Any, value: Any) -> None:
    found = read("it", text, hint)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["nan", "inf", "1e999", "", "0x10", "1" * 5000, "True"])
def test_texts_that_are_no_number_are_refused(text: str) -> None:
    for hint in (Positive, Count):
        with pytest.raises(InputError, match="^it is "):
            read("it", text, hint)


def test_a_value_is_shown_on_one_short_line_whatever_it_is() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    for value in ("x" * 10**7, "\x1b[2J\n", 10**10_000, Odd(), nested, list(range(10**6))):
        assert len(shown(value)) <= 80 and shown(value).isprintable()
    while nested:  # so that freeing it does not recurse
        nested = nested[0]


@pytest.mark.parametrize(
    "query, line",
    [
        ("threshold=nan", "q16's threshold is 'nan'; it must be a number from 0 to below 1"),
        ("threshold=1", "q16's threshold is '1'; it must be a number from 0 to below 1"),
    ],
)
def test_a_detectors_settings_are_checked_alike(query: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=line):
        find_detector(f"q16:none.safetensors?{query}")
    key, _, value = query.partition("=")
    (tmp_path / "it.yaml").write_text(
        f"detector: q16:none.safetensors\nsettings: {{{key}: '{value}'}}"
    )
    with pytest.raises(InputError, match=line):
        find_detector(str(tmp_path / "it.yaml"))
