"""A forger walks every file that we read and breaks each field in turn, checksums set right.

Whatever comes of it is one line that says what is wrong, or the value that the file now states:
never another exception, and never a value that the file does not hold. A schema is one entry of
``SCHEMAS``; reports and answers have forgers of their own beside their tests.
"""

import copy
import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from unsee._errors import InputError
from unsee._reading import plain
from unsee.erasers.leco import leco
from unsee.gallery import Gallery, MadeBy, Used
from unsee.pipelines import Erasure
from unsee.pipelines.erasure import checksum
from unsee.prompts import Concept, Prompt, Suite
from unsee.records import FORMAT, Model

HERE = Path(__file__).parent / "golden"
BROKEN: list[Any] = [
    None, True, -1, 7, 0.5, math.nan, math.inf, 10**400, 2**64, "", "a", "a\nb", "\ud800",
    "x" * 100_000, [], {}, [None], [[]], {"a": 1}, {"": {}}, [{"a": []}],
]  # fmt: skip
DEEP = "\0deep\0"
SECONDS = 2.0

# What LECO's file asks for and esd does not do is a warning.
pytestmark = pytest.mark.filterwarnings("ignore:.* not taken")


@dataclass(frozen=True)
class Schema:
    """A kind of file.

    Attributes:
        page: What a right one holds, as JSON.
        write: Makes the file of a page in a folder, its checksums right, and returns its path.
        read: What a file holds, as JSON again, or anything else if ``states`` is false.
        states: Whether what is read of a page is the page.
    """

    page: Any
    write: Callable[[Path, Any], Path]
    read: Callable[[Path], Any]
    states: bool = True


def text(page: Any) -> str:
    """JSON, with what stands for deep nesting nested indeed."""
    return json.dumps(page).replace(json.dumps(DEEP), "[" * 200_000 + "]" * 200_000)


def header(path: Path) -> Any:
    with safe_open(path, framework="pt") as file:
        page = json.loads(file.metadata()["unsee"])
    del page["sha256"]
    return page


def erasure(name: str) -> Schema:
    source = HERE / "erasures" / f"{name}.safetensors"
    with safe_open(source, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}

    def write(folder: Path, page: Any) -> Path:
        record = page.get("record") if isinstance(page, dict) else None
        old = isinstance(record, dict) and record.get("format") == 1
        sha256 = checksum(tensors, record if old else page)
        whole = page | {"sha256": sha256} if isinstance(page, dict) else page
        path = folder / "it.safetensors"
        save_file(tensors, path, {"unsee": text(whole)})
        return path

    def read(path: Path) -> Any:
        found = Erasure.load(path)
        again = path.with_name("again.safetensors")
        found.save(again)
        assert plain(Erasure.load(again).record) == plain(found.record)
        return {"record": found.record.to_json(), "measured": found.measured.to_json()}

    page = header(source)
    return Schema(page, write, read, states=page["record"]["format"] == FORMAT)


def gallery(folder: Path, page: Any, samples: bytes | None = None) -> Path:
    (folder / "samples.jsonl").write_bytes(SAMPLES if samples is None else samples)
    (folder / "gallery.json").write_text(text(page))
    return folder


PROMPT = Prompt("a", "a cat", 1, {"object": "cat"}, "pets", 7.5, 20, 512, 512, "accuracy", "cat")
SAMPLES = (json.dumps(PROMPT.to_json()) + "\n").encode()
# Which had no weight, and no number of layers
USED_1 = plain(Used("cat", "uce", {"ridge": 0.5}, "1" * 64, 10, 1.5, 100))
del USED_1["weight"], USED_1["layers"]

HEAD: dict[str, Any] = {
    "format": 2,
    "made_by": plain(
        MadeBy(
            Model("m", "P", "float32", {"unet": "0" * 64}, {"class": "S", "beta": 0.1, "on": [1]}),
            (Used("cat", "uce", {"ridge": 0.5}, "1" * 64, 10, 1.5, 100),),
            7.5,
            20,
            {"torch": "2"},
            {"name": "it"},
            ("a",),
            8,
            "cpu",
        )
    ),
    "samples": hashlib.sha256(SAMPLES).hexdigest(),
}


def head(path: Path) -> Any:
    found = Gallery.open(path)
    return HEAD | {"made_by": plain(found.made_by)}


def sample(folder: Path, page: Any) -> Path:
    line = (text(page) + "\n").encode()
    return gallery(folder, HEAD | {"samples": hashlib.sha256(line).hexdigest()}, line)


def image(folder: Path, page: Any) -> Path:
    (folder / "images.jsonl").write_text(text(page) + "\n")
    return gallery(folder, HEAD)


def made(path: Path) -> Any:
    found = Gallery.open(path)
    assert [*found.unmade(), *found.altered()]  # there is no image, whatever a line says
    return found.remade


def as_yaml(folder: Path, page: Any) -> Path:
    path = folder / "it.yaml"
    dumped = yaml.safe_dump(page, allow_unicode=False)
    path.write_text(dumped.replace(r'"\0deep\0"', "[" * 200_000))
    return path


CONCEPT = Concept("van gogh", "style", ("van gogh", "vincent"), "art", ("monet",), ("by {}",))
LECO = [{"target": "van gogh", "positive": "van gogh", "unconditional": "", "neutral": "art",
         "action": "erase", "guidance_scale": 1.0, "resolution": 512, "batch_size": 1,
         "dynamic_resolution": False}]  # fmt: skip


SCHEMAS: dict[str, Schema] = {
    "an erasure": erasure("format-2/transported"),
    "a guide": erasure("format-2/guidance"),
    "a low-rank erasure": erasure("format-2/residual"),
    "a dense erasure": erasure("format-2/dense"),
    "an erasure of format 1": erasure("format-1/transported"),
    "gallery.json": Schema(HEAD, gallery, head),
    "gallery.json of format 1": Schema(
        {"model": "m", "suite": {"name": "it"}, "batch_size": 8, "guidance": 7.5, "steps": 20,
         "erasures": [USED_1],
         "scheduler": "S", "dtype": "torch.float32", "versions": {"torch": "2"}},
        gallery,
        lambda path: Gallery.open(path).made_by,
        states=False,
    ),
    "samples.jsonl": Schema(
        PROMPT.to_json(), sample, lambda path: Gallery.open(path).prompts, states=False
    ),
    "images.jsonl": Schema({"id": "a", "sha256": "0" * 64}, image, made, states=False),
    "a concept": Schema(
        plain(CONCEPT), as_yaml, lambda path: plain(Concept.load(path)), states=False
    ),
    "a suite": Schema(
        {"name": "it", "prompts": [PROMPT.to_json()]},
        as_yaml,
        lambda path: Suite.load(path).prompts,
        states=False,
    ),
    "LECO's prompts": Schema(
        LECO, as_yaml, lambda path: leco(path, "style"), states=False
    ),
}  # fmt: skip


def places(page: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a page, the page itself first; of a list the first two items."""
    yield at
    if isinstance(page, dict):
        for key, value in page.items():
            yield from places(value, (*at, key))
    elif isinstance(page, list):
        for key, value in enumerate(page[:2]):
            yield from places(value, (*at, key))


def put(page: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    page = copy.deepcopy(page)
    inner = page
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return page


def dropped(page: Any, at: tuple[Any, ...]) -> Any:
    page = copy.deepcopy(page)
    inner = page
    for key in at[:-1]:
        inner = inner[key]
    del inner[at[-1]]
    return page


def get(page: Any, at: tuple[Any, ...]) -> Any:
    for key in at:
        page = page[key]
    return page


def forgeries(schema: Schema, every: int) -> Iterator[tuple[str, Any]]:
    """Copies of a page with one thing broken; of the values that break it, one in ``every``."""
    number = 0
    for at in places(schema.page):
        where = ".".join(map(str, at)) or "all"
        if at:
            yield f"{where} removed", dropped(schema.page, at)
        if isinstance(here := get(schema.page, at), dict):
            yield f"{where} has a key more", put(schema.page, at, here | {"more": 1})
        for value in [*BROKEN, DEEP]:
            number += 1
            if number % every == 0:
                yield f"{where} is {value!r:.40}", put(schema.page, at, value)


def same(found: Any, page: Any) -> bool:
    """Whether two pages are equal, a whole number standing for the float that is nearest."""
    if isinstance(found, dict) and isinstance(page, dict):
        return found.keys() == page.keys() and all(same(found[k], page[k]) for k in found)
    if isinstance(found, list) and isinstance(page, list):
        return len(found) == len(page) and all(map(same, found, page))
    if isinstance(found, float) and isinstance(page, int):
        return found == float(page)
    return bool(found == page)


def check(schema: Schema, folder: Path, what: str, page: Any) -> bool:
    """Whether a forged page was refused; that nothing else comes of it but itself is asserted."""
    start = time.perf_counter()
    try:
        path = schema.write(folder, page)
    except (UnicodeEncodeError, yaml.YAMLError):
        return False  # no such file can be
    try:
        found = schema.read(path)
    except InputError as error:
        message = str(error)
        assert "\n" not in message and 10 < len(message) < 1500, (what, message)
        return True
    finally:
        assert time.perf_counter() - start < SECONDS, what
    # No phrases stand for the concept's name.
    if schema.states and not re.search(r"phrases('\))? is \[\]$", what):
        assert same(found, page) or same(found, schema.page), what
    return False


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_right_file_is_read(tmp_path: Path, name: str) -> None:
    schema = SCHEMAS[name]
    assert not check(schema, tmp_path, "right", schema.page)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_forged_file_is_refused_in_one_line_or_is_what_it_states(
    tmp_path: Path, name: str
) -> None:
    schema = SCHEMAS[name]
    forged = list(forgeries(schema, every=7))
    refused = sum(check(schema, tmp_path, what, page) for what, page in forged)
    assert refused > len(forged) / 4


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_forgery_is_refused_in_one_line_or_is_what_it_states(
    tmp_path: Path, name: str
) -> None:
    schema = SCHEMAS[name]
    for what, page in forgeries(schema, every=1):
        check(schema, tmp_path, what, page)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, schema in SCHEMAS.items() if schema.states])
def test_whatever_hypothesis_puts_anywhere_is_refused_or_read_as_it_is(
    tmp_path: Path, name: str
) -> None:
    schema = SCHEMAS[name]
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    values = st.recursive(leaves, lambda v: st.lists(v) | st.dictionaries(st.text(), v))

    @hypothesis.settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @hypothesis.given(st.sampled_from(list(places(schema.page))), values)
    def run(at: tuple[Any, ...], value: Any) -> None:
        check(schema, tmp_path, f"{at} is {value!r:.40}", put(schema.page, at, value))

    run()
