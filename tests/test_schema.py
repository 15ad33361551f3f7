"""report.json has a published schema, and reports that were written once go on opening."""

import copy
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unsee import InputError, Report
from unsee.eval import schema
from unsee.eval.report import FORMAT

GOLDEN = Path(__file__).parent / "golden"
REPORTS = [GOLDEN / "report.json", *sorted((GOLDEN / "reports").glob("format-*.json"))]
READABLE = [file for file in REPORTS if json.loads(file.read_text())["format"] == FORMAT]


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    published = json.loads(schema.FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(published)
    return jsonschema.Draft202012Validator(published)


def test_the_published_schema_is_the_one_that_the_classes_make() -> None:
    assert schema.FILE.read_text(encoding="utf-8") == schema.text(), (
        "If the change is meant: python -m unsee.eval.schema"
    )


def test_the_schema_says_what_every_value_is() -> None:
    page = schema.schema()
    for name, of in {"Report": page, **page["$defs"]}.items():
        assert of["description"], name
    fields = page["$defs"]["Shown"]["properties"]
    assert fields["sha256"]["description"] == "Of the file; None when there was none."
    assert page["$defs"]["Rate"]["properties"]["interval"]["anyOf"][0]["minItems"] == 2
    assert "forgotten" in page["$defs"]["Verdict"]["properties"]["value"]["enum"]


@pytest.mark.parametrize("file", READABLE, ids=lambda file: file.name)
def test_a_report_that_was_written_once_opens_and_is_valid(file: Path, validator: Any) -> None:
    page = json.loads(file.read_text(encoding="utf-8"))
    validator.validate(page)
    report = Report.load(file)
    validator.validate(json.loads(json.dumps(report.to_json())))
    assert report.answer and len(report.samples) == 12


def test_there_is_a_report_of_every_format_and_one_too_old_says_what_to_do() -> None:
    there = {json.loads(f.read_text())["format"] for f in (GOLDEN / "reports").glob("*.json")}
    assert there == set(range(1, FORMAT + 1))
    with pytest.raises(InputError, match="format 1, .* Run the same audit again"):
        Report.load(GOLDEN / "reports/format-1.json")


ANYTHING: list[Any] = [None, True, 1.5, "x", {"x": [1]}]


def mutants(page: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """A page with one place another, missing, or one key more; of a list, in its first."""

    def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        items = value.items() if isinstance(value, dict) else enumerate(value[:1])
        for key, inner in items:
            yield (*path, key)
            if isinstance(inner, (dict, list)):
                yield from places(inner, (*path, key))

    for path in places(page):
        for value in [*ANYTHING, "drop", "add"]:
            mutant = copy.deepcopy(page)
            at = mutant
            for key in path[:-1]:
                at = at[key]
            if value == "drop":
                del at[path[-1]]
            elif value != "add":
                at[path[-1]] = value
            elif isinstance(at[path[-1]], dict):
                at[path[-1]]["more"] = [[]]
            if mutant != page:
                yield path, mutant


def test_what_is_not_of_a_reports_shape_is_refused_by_the_schema(validator: Any) -> None:
    page = json.loads((GOLDEN / "report.json").read_text(encoding="utf-8"))
    del page["samples"][1:], page["outcomes"][0]["comparisons"][1:], page["warnings"][1:]
    for side in ("base", "erased"):  # which the schema leaves open
        page[side] = {}
    valid = refused = 0
    for path, mutant in itertools.islice(mutants(page), 0, None, 3):
        try:
            Report.from_json(mutant)
        except InputError as error:
            # Which says too what does not add up, or is not there in two places
            shape = any(word in str(error) for word in (" lacks '", "must be", "not known here"))
            of = validator.is_valid(mutant)
            assert not (shape and of), (path, str(error))
            refused += not of
            continue
        if validator.is_valid(mutant):
            valid += 1
        else:
            refused += 1
            # Only what a report makes again is read without being looked at
            derived = {"holes", "accuracy", "units", "effective", "value", "interval"}
            derived |= {"could_miss", "difference", "p_value", "smallest_loss"}
            assert derived & set(path), path
    assert refused > valid > 0 and refused > 200
