"""Suites in tables: CSV, TSV, Parquet, JSON lines, text, or a dataset of the Hugging Face hub.

The public suites' column names are known (``SHAPES``): each row becomes one ``Prompt``. Where no
column says so, the id is the row's number (from 0) and the seed too, so that each row starts from
noise of its own.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from .._errors import InputError
from .._reading import loads
from .concept import KINDS, Concept, fold
from .suite import Prompt, Suite, file_source, read_rows, refuse
from .where import Where

HUB = "hf:"

# Optional columns, in their order of preference: what they are called here, in the sets of
# UnlearnDiffAtk and after, in I2P and its kin, in EMMA, in Six-CD and in HUB.
OPTIONAL: Mapping[str, Sequence[str]] = {
    "id": ("id", "case_number", "image_id"),
    "seed": ("seed", "evaluation_seed", "sd_seed"),
    "guidance": ("guidance", "evaluation_guidance", "sd_guidance_scale"),
    "steps": ("steps",),
    "width": ("width", "sd_image_width"),
    "height": ("height", "sd_image_height"),
    "category": ("category", "categories", "source", "type"),
    "concept": ("concept", "artist", "class", "target", "noun"),
    "tests": ("tests",),
    "unit": ("unit",),
}


@dataclass(frozen=True)
class Shape:
    """How the files of one public suite look.

    Attributes:
        name: As in the report.
        wants: Columns that tell it from the others; the first has the prompt.
        kind: Of its concepts, or "" if it says nothing of a concept.
        tests: What its prompts test.
        attack: Whether they were sought to bring a concept back out of an erased model. The
            target's rate over them is then an attack's success rate (ASR), one try a prompt.
        files: What the file must be called, without its end, where the columns alone would be
            taken for another suite's; empty for any name.
        each: Columns that have a prompt each, the same in other words: a row is as many prompts,
            of one unit, their category the column's name. The first has the plain words, and the
            others test generalizability.
        template: What the prompt's column is put into.
    """

    name: str
    wants: tuple[str, ...]
    kind: str
    tests: str | None = "accuracy"
    attack: bool = False
    files: tuple[str, ...] = ()
    each: tuple[str, ...] = ()
    template: str = "{}"

    def fits(self, columns: Sequence[str], stem: str) -> bool:
        named = not self.files or stem.lower() in self.files
        return named and {*self.wants, *self.each} <= set(columns)


LANGUAGES = ("Original", "Spanish", "French", "German", "Italian", "Portuguese")

# The first that fits is taken, so the more particular come first. Attacks' prompts ask for the
# concept in words that were found to bring it out; COCO's captions ask for nothing that goes.
SHAPES = (
    Shape(
        "Ring-A-Bell",
        ("sensitive prompt", "normal prompt"),
        "unsafe",
        "generalizability",
        attack=True,
    ),
    Shape(
        "MMA-Diffusion", ("adv_prompt", "target_prompt"), "unsafe", "generalizability", attack=True
    ),
    Shape("I2P", ("prompt", "sd_seed", "categories"), "unsafe"),
    Shape("artists", ("prompt", "artist"), "style"),
    Shape("Imagenette", ("prompt", "class"), "object"),
    Shape("COCO", ("prompt", "coco_id"), "", "locality"),
    Shape("COCO", ("prompt", "image_id"), "", "locality"),
    # The prompts that ask for nothing that goes have the columns of those that do
    Shape(
        "Six-CD benign",
        ("prompt", "case_number", "evaluation_seed"),
        "",
        "locality",
        files=("benign", "clean"),
    ),
    Shape("Six-CD", ("prompt", "case_number", "evaluation_seed", "target"), "any"),
    Shape("HUB languages", ("Original", "Index"), "any", each=LANGUAGES),
    Shape(
        "HUB pinpoint-ness", ("noun", "similarity"), "object", "locality", template="a photo of {}"
    ),
    Shape("UnlearnDiffAtk", ("prompt", "case_number", "evaluation_seed"), "any"),
    Shape("EMMA", ("prompt", "type", "evaluation_seed"), "any"),
    Shape("lines", ("line",), "any"),
    Shape("prompts", ("prompt",), "", None),
)


def load(name: str, concepts: Sequence[Concept] = (), where: str = "") -> Suite:
    """A suite from a table.

    A row's label is what its column ``concept``, ``artist`` or ``class`` says, of the kind that
    the concept of that name has, or else of the shape's. A public suite that is about one concept
    and has no such column is taken to ask for the one that was erased, if it is of its kind; and
    so is a text file, which has a prompt in every line and nothing else.

    Args:
        name: A file's path, or ``hf:`` and a dataset's id, with ``:SPLIT`` if it has several.
        concepts: What was erased.
        where: A filter over the table's own columns (``Where``).

    Raises:
        InputError: The table cannot be read, fits no shape, has rows that are not right (the
            message has the first), or the filter fits none.
    """
    prompts, problems, source = read(name, concepts, where)
    refuse(name, problems)
    notes: tuple[str, ...] = ()
    if source["shape"] == "lines" and (asked := " and ".join(prompts[0].labels.values())):
        notes = (f"{Path(name).name} has prompts alone: each is taken to ask for {asked}.",)
    return Suite(Path(name.removeprefix(HUB)).stem, tuple(prompts), source, notes)


def read(
    name: str, concepts: Sequence[Concept] = (), where: str = ""
) -> tuple[list[Prompt], list[str], dict[str, str]]:
    """The prompts of a table that are right, a line for each thing that is wrong, and its source.

    Raises:
        InputError: As ``load``, but for rows that are not right.
    """
    rows, columns, source = _hub(name) if name.startswith(HUB) else _file(Path(name))
    if not rows:
        raise InputError(f"{name} has no row.")
    stem = Path(name.removeprefix(HUB)).stem
    shape = next((s for s in SHAPES if s.fits(columns, stem)), None)
    if shape is None:
        pairs = (
            " and ".join(map(repr, s.wants))
            for s in SHAPES
            if s.wants[0] not in ("prompt", "line")
        )
        raise InputError(
            f"{name} is no table of prompts that is known here: it has the columns "
            f"{', '.join(columns)}, and wanted is 'prompt', or {', or '.join(pairs)}."
        )
    if where:
        fits = Where(where, columns)
        rows = [row for row in rows if fits(row[1], row[0])]
        if not rows:
            raise InputError(f"{name} has no row that --where {where!r} fits.")
    prompts, problems = read_rows(
        [
            (f"{at}, {column}" if shape.each else at, record)
            for at, values, number in rows
            for column, record in _records(values, number, shape, concepts)
        ]
    )
    if shape is SHAPES[-1]:
        problems = _near_misses(columns) + problems
    source |= {"shape": shape.name} | ({"where": where} if where else {})
    if shape.attack:
        source["attack"] = "one try a prompt"
    return prompts, problems, source


def _near_misses(columns: Sequence[str]) -> list[str]:
    """Lines for columns that are almost one that is known, and would be passed over."""
    known = ["prompt", "labels", *KINDS, *(name for names in OPTIONAL.values() for name in names)]
    return [
        f"the column {column!r} is not known. Did you mean {near[0]!r}?"
        for column in columns
        if column not in known and (near := get_close_matches(column, known, n=1, cutoff=0.8))
    ]


Row = tuple[str, dict[str, Any], int]


def _records(
    values: Mapping[str, Any], number: int, shape: Shape, concepts: Sequence[Concept]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """A row's prompts, each with its column, under the names of a prompt's attributes."""
    record = _record(values, number, shape, concepts)
    if not shape.each:
        yield shape.wants[0], record
    for turn, column in enumerate(shape.each):
        yield (
            column,
            {
                **record,
                "prompt": values[column],
                "id": f"{record['id']}-{column.lower()}",
                "seed": number * len(shape.each) + turn,
                "category": column,
                "tests": "generalizability" if turn else shape.tests,
                "unit": record["id"],
            },
        )


def _record(
    values: Mapping[str, Any], number: int, shape: Shape, concepts: Sequence[Concept]
) -> dict[str, Any]:
    """A row under the names of a prompt's attributes; a value that is none is left as it is."""
    prompt = values[shape.wants[0]]
    if isinstance(prompt, str) and prompt.strip():
        prompt = shape.template.format(prompt)
    found: dict[str, Any] = {"prompt": prompt}
    for key, columns in OPTIONAL.items():
        value = next((values[c] for c in columns if values.get(c) not in (None, "")), None)
        if value is not None:
            found[key] = value
    for key in ("seed", "steps", "width", "height"):
        if key in found:
            found[key] = _whole(found[key])
    if "guidance" in found:
        found["guidance"] = _number(found["guidance"])
    if isinstance(found.get("category"), list):
        found["category"] = ", ".join(map(str, found["category"]))
    for key in ("id", "category", "unit"):
        if key in found:
            found[key] = str(_whole(found[key]))
    labels: Any = {kind: values[kind] for kind in KINDS if values.get(kind) not in (None, "")}
    if (own := values.get("labels")) is not None:
        # What is no mapping is told of with the row's other faults
        labels = labels | own if isinstance(own, dict) else own
    concept = str(found.pop("concept", "")).strip()
    named = [c for c in concepts if fold(concept) in map(fold, (c.name, *c.phrases))]
    asked = [c for c in concepts if shape.kind in (c.kind, "any")]
    if concept:
        kind = named[0].kind if named else shape.kind or "object"
        if kind == "any":  # those of one file are of one kind
            kind = concepts[0].kind if len({c.kind for c in concepts}) == 1 else "object"
        given: Any = {kind: concept}
        labels = given | labels if isinstance(labels, dict) else labels
    elif len(asked) == len(concepts) == 1 and isinstance(labels, dict):
        labels = {asked[0].kind: asked[0].name} | labels
    tests = {"tests": shape.tests} if shape.tests else {}
    defaults = {"id": f"{number:05d}", "seed": number}
    return defaults | tests | found | ({"labels": labels} if labels else {})


def _whole(value: Any) -> Any:
    """A whole number, also where a spreadsheet has written 7.0 or "7.0"."""
    number = _number(value)
    if isinstance(number, float) and number.is_integer():
        # Not by way of the float, which would round a long seed
        return int(value) if isinstance(value, str) and value.strip().isdigit() else int(number)
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def read_table(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """A file's rows, each with what it is called in a message: "line 3".

    Raises:
        InputError: Its kind is not known, or it cannot be read.
    """
    if (reader := READERS.get(path.suffix.lower())) is None:
        raise InputError(f"{path} must be a table: {', '.join(READERS)}.")
    try:
        return list(reader(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _file(path: Path) -> tuple[list[Row], list[str], dict[str, str]]:
    rows, source = read_table(path), file_source(path)
    columns = list(dict.fromkeys(column for _, values in rows for column in values))
    # Not every line of JSON has every key
    filled = [(at, dict.fromkeys(columns) | values, i) for i, (at, values) in enumerate(rows)]
    return filled, columns, source


Lines = Iterator[tuple[str, dict[str, Any]]]


def _csv(path: Path, delimiter: str = ",") -> Lines:
    # utf-8-sig: a spreadsheet begins its files with a byte-order mark
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        if reader.fieldnames and len(set(reader.fieldnames)) < len(reader.fieldnames):
            raise InputError(f"{path} has a column twice: {', '.join(reader.fieldnames)}.")
        for row in reader:
            at = f"line {reader.line_num}"
            if None in row or None in row.values():
                wanted = len(reader.fieldnames or ())
                raise InputError(
                    f"{path}, {at}: wanted {wanted} cells, as in the first line, and found "
                    f"{'more' if None in row else 'fewer'}."
                )
            yield at, dict(row)


def _tsv(path: Path) -> Lines:
    return _csv(path, "\t")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """A file's lines, from 1. splitlines would cut a prompt at U+2028, U+0085 and others, too."""
    return enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1)


def _json_lines(path: Path) -> Lines:
    for number, line in _lines(path):
        if line.strip():
            row = loads(line, f"{path}, line {number}")
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number}: wanted an object, found {line!r:.80}.")
            yield f"line {number}", row


def _text(path: Path) -> Lines:
    for number, line in _lines(path):
        if line.strip():
            if "\t" in line or (number == 1 and "prompt" in line.replace('"', "").split(",")):
                raise InputError(
                    f"{path}, line {number}: a text file has a prompt in every line, and this is "
                    "a table's line: name the file .csv or .tsv."
                )
            yield f"line {number}", {"line": line.strip()}


def _parquet(path: Path) -> Lines:
    if not path.is_file():
        raise InputError(f"{path} cannot be read: there is no such file.")
    parquet = _extra("pyarrow.parquet", "Parquet files need pyarrow", "pyarrow")
    try:
        rows = parquet.read_table(path).to_pylist()
    except ValueError as error:  # which pyarrow's own errors are
        raise InputError(f"{path} is no Parquet file: {' '.join(str(error).split())}") from error
    for number, row in enumerate(rows):
        yield f"row {number}", row


READERS: Mapping[str, Callable[[Path], Lines]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".jsonl": _json_lines,
    ".txt": _text,
}


def _hub(name: str) -> tuple[list[Row], list[str], dict[str, str]]:
    datasets = _extra("datasets", "A suite of the Hugging Face hub needs datasets", "datasets")
    id_, _, split = name.removeprefix(HUB).partition(":")
    try:
        found = datasets.load_dataset(id_)
    except Exception as error:  # whatever the hub, the network or a builder raises
        reason = " ".join(str(error).split())
        raise InputError(f"No dataset could be loaded as {id_!r}: {reason}") from error
    splits = list(found)
    if len(splits) > 1 and not split:
        raise InputError(
            f"{name} has the splits {', '.join(splits)}: say which, such as {name}:{splits[0]}."
        )
    split = split or splits[0]
    if split not in splits:
        raise InputError(f"{name}: there is no split {split!r}, only {', '.join(splits)}.")
    table = found[split]
    rows = [(f"row {i}", dict(values), i) for i, values in enumerate(table)]
    lines = "\n".join(json.dumps(values, sort_keys=True, default=str) for _, values, _ in rows)
    return (
        rows,
        list(table.column_names),
        {
            "dataset": id_,
            "split": split,
            "sha256": hashlib.sha256(lines.encode()).hexdigest(),
        },
    )


def _extra(module: str, needed: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"{needed}: pip install {package}") from error
