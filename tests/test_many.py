"""Very many images: what is read is checked as it ever was, in less time and room."""

import functools
import gc
import json
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unsee import _reading
from unsee._errors import InputError
from unsee._reading import line, loads, read
from unsee.eval import Answers, Detection, Report
from unsee.eval.answers import Answer
from unsee.eval.detectors import Box, checked
from unsee.eval.report import Sample

GOLDEN = Path(__file__).parent / "golden"

DETECTORS = {"objects": 40, "styles": 30, "scenes": 12, "people": 8, "nudity": 4, "hands": 4}
"""Detectors, and how many labels each scores; the last two have six boxes each."""


def answers(images: int) -> Iterator[Answer]:
    draw = random.Random(0)
    for image in range(images):
        for name, count in DETECTORS.items():
            scores = {f"{name} {i}": draw.random() for i in range(count)}
            boxes = tuple(
                Box(f"{name} {i % 4}", draw.random(), (0.1, 0.0, draw.random(), 512.0))
                for i in range(6 if count == 4 else 0)
            )
            found = checked(Detection((f"{name} 0",), scores, boxes))
            assert isinstance(found, Detection)
            yield Answer(f"{image}", f"{image:064x}", name, "0" * 16, found)


LEAVES: list[Any] = [
    None, True, 0, 3, -1, 0.12345, 0.123456, -0.0, 1e-05, 1e9, 1234567890.5, 1e300, 10**400, "x",
    "", "é", "\ud800", [], {}, [[]], {"a": 1.0}, {"\ud800": 1.0}, float("nan"), float("inf"),
]  # fmt: skip


def forgeries(value: Any) -> Iterator[Any]:
    """Every copy of a JSON value in which one place, or one key, is another."""
    yield from LEAVES
    if isinstance(value, dict):
        yield value | {"more": 1}
        yield {**value, "é" * 50: 0.5}
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            yield from (value | {key: forged} for forged in forgeries(value[key]))
    if isinstance(value, list):
        yield [*value, *value]
        for i, item in enumerate(value):
            yield from ([*value[:i], forged, *value[i + 1 :]] for forged in forgeries(item))


def outcome(make: Callable[[], Any]) -> tuple[Any, str]:
    """What comes of it: a value and its text, or an error's line."""
    try:
        value = make()
    except InputError as error:
        return None, str(error)
    return value, line(value)


def an_answer() -> Any:
    return json.loads(line(list(answers(1))[-1]))


def a_row() -> Any:
    page = json.loads((GOLDEN / "report.json").read_text(encoding="utf-8"))
    return next(row for row in page["samples"] if row["rows"] == "target")


@pytest.mark.parametrize(("kind", "page"), [(Answer, an_answer()), (Sample, a_row())])
def test_the_first_look_takes_only_what_the_second_takes_and_makes_the_same_of_it(
    kind: type[Any], page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = [page, *forgeries(page)]
    first = [outcome(functools.partial(read, kind, one, "it")) for one in pages]

    def unsure(*given: Any) -> Any:
        raise _reading._Unsure

    monkeypatch.setattr(_reading, "_quick", lambda cls, defaults: unsure)
    second = [outcome(functools.partial(read, kind, one, "it")) for one in pages]
    for one, quick, slow in zip(pages, first, second, strict=True):
        assert quick == slow, one
    taken = [value for value, _ in first if value is not None]
    assert first[0][0] is not None and 50 < len(taken) < len(pages) // 2 and len(pages) > 800


def test_a_first_look_takes_what_we_write_ourselves(monkeypatch: pytest.MonkeyPatch) -> None:
    def second(*given: Any) -> Any:
        raise AssertionError("it was looked at twice")

    monkeypatch.setattr(_reading, "_dataclass", second)
    for answer in answers(3):
        assert read(Answer, json.loads(line(answer)), "it") == answer
        assert line(answer) == line(answer.to_json())
    rows = json.loads((GOLDEN / "report.json").read_text(encoding="utf-8"))["samples"]
    assert all(line(read(Sample, row, "it")) == line(row) for row in rows)


def test_scores_and_boxes_are_a_mapping_and_a_sequence_whoever_holds_them() -> None:
    given = Detection(("b",), {"b": 0.5, "a": -0.0}, (Box("b", 0.25, (1.0, 2.0, 3.0, 4.0)),))
    kept = checked(given)
    assert (
        isinstance(kept, Detection) and kept == given and given == kept and kept == checked(kept)
    )
    assert kept.scores == {"a": 0.0, "b": 0.5} and kept.scores != {"a": 0.0, "b": 0.4}
    assert list(kept.scores) == ["b", "a"] and list(kept.scores.items()) == [("b", 0.5), ("a", 0)]
    assert list(kept.scores.values()) == [0.5, 0.0] and kept.scores.get("c") is None
    assert "a" in kept.scores and "c" not in kept.scores and len(kept.scores) == 2
    assert str(kept.scores["a"]) == "0.0"
    assert kept.boxes[0] == kept.boxes[-1] == given.boxes[0] and kept.boxes == given.boxes
    assert kept.boxes != (given.boxes[0],) * 2 and kept.boxes[1:] == () and len(kept.boxes) == 1
    assert repr(kept) == repr(Detection(("b",), {"b": 0.5, "a": 0.0}, given.boxes))


def test_a_report_is_the_same_however_its_file_is_laid_out(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    kept = json.loads((GOLDEN / "report.json").read_text(encoding="utf-8"))
    report = Report.from_json(kept)
    report.save(file)
    assert sum(text.startswith(b'  {"prompt"') for text in file.read_bytes().splitlines()) == len(
        report.samples
    )
    page = json.loads(file.read_text(encoding="utf-8"))
    assert page == kept and Report.load(file) == report
    for layout in ({"indent": 1}, {"indent": None}, {"separators": (",", ":")}):
        file.write_text(json.dumps(page, **layout))
        assert Report.load(file) == report
    file.write_text(json.dumps({"samples": page.pop("samples"), **page}, indent=1))
    assert Report.load(file) == report


def test_a_report_read_row_by_row_says_what_it_says_read_whole(tmp_path: Path) -> None:
    whole = tmp_path / "report.json"
    Report.load(GOLDEN / "report.json").save(whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    assert outcome(lambda: Report.load(whole))[0] is not None
    places = [*range(0, len(lines) - 16, 61), *range(len(lines) - 16, len(lines))]
    forged = [b"".join(lines[:i] + lines[i + 1 :]) for i in places]
    forged += [b"".join([*lines[:i], lines[i], *lines[i:]]) for i in places]
    for i in range(len(lines) - 5, len(lines)):
        for text in (
            lines[i].rstrip(b"\n"),
            lines[i].replace(b",\n", b"\n"),
            lines[i].replace(b"\n", b",\n"),
            lines[i].replace(b'"seed": ', b'"seed": "'),
            lines[i].replace(b'"blank": false', b'"blank": 0'),
            lines[i].replace(b'"detectors": {"test/c', b'"detectors": {"test/x'),
            lines[i].replace(b"}}}}", b"}}}} "),
            b"null,\n",
            b" \n",
        ):
            forged.append(b"".join([*lines[:i], text, *lines[i + 1 :]]))
    forged += [b"".join(lines) + b"\n", b"".join(lines) + b"x", b"\xef\xbb\xbf" + b"".join(lines)]
    taken = 0
    for data in forged:
        whole.write_bytes(data)
        found = outcome(lambda: Report.load(whole))
        assert found == outcome(
            lambda data=data: Report.from_json(loads(data, str(whole)), str(whole))  # type: ignore[misc]
        )
        taken += found[0] is not None
    assert 10 < taken < len(forged) - 40


def held(make: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that a value holds, and that were held at most while it was made."""
    gc.collect()
    tracemalloc.start()
    try:
        value = make()
        now, most = tracemalloc.get_traced_memory()
        del value
        return now, most
    finally:
        tracemalloc.stop()


def test_answers_take_four_kilobytes_an_image_and_a_report_no_more_than_its_rows(
    tmp_path: Path,
) -> None:
    images, file = 300, tmp_path / "answers.jsonl"
    Answers(file).add(list(answers(images)))
    Answers(file)  # what is loaded once
    now, most = held(lambda: Answers(file))
    assert now < 4000 * images and most < now + 300_000, (now, most)
    report = Report.load(GOLDEN / "report.json")
    many = json.loads(json.dumps(report.to_json()))
    many["samples"] *= 1 + 600 // len(many["samples"])
    large = Report.from_json(many)
    large.save(tmp_path / "report.json")
    size = (tmp_path / "report.json").stat().st_size
    now, most = held(lambda: large.save(tmp_path / "again.json"))
    assert most < 400_000 < size, (most, size)
    now, most = held(lambda: Report.load(tmp_path / "report.json"))
    assert most < now + 400_000, (now, most, size)


@pytest.mark.slow
def test_answers_are_read_and_checked_in_a_few_times_what_reading_json_takes(
    tmp_path: Path,
) -> None:
    file = tmp_path / "answers.jsonl"
    Answers(file).add(list(answers(1000)))
    lines = file.read_bytes().splitlines()

    def least(make: Callable[[], Any]) -> float:
        """CPU seconds; other work beside it only adds to them."""
        found = []
        for _ in range(5):
            begun = time.process_time()
            make()
            found.append(time.process_time() - begun)
        return min(found)

    def parsed() -> None:
        for text in lines:
            json.loads(text)

    # It is 3 to 4 times; the reader that says what is wrong alone took 20
    assert least(lambda: Answers(file)) < 7 * least(parsed)
