"""Files that somebody else wrote, names that a system cannot hold, and places to write to."""

import hashlib
import json
import shutil
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unsee import erase, generate_gallery
from unsee._errors import InputError
from unsee._files import LARGEST, check_file, check_folder, file_stem, is_file_name
from unsee.erasers.leco import leco
from unsee.eval import find_detector
from unsee.gallery import Gallery
from unsee.prompts import Concept, Prompt, Suite, check_suite, find_concept, find_suite
from unsee.prompts.where import Where

Run = Callable[..., tuple[int, str, str]]

ALIASES = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)
)
BOMBS = {
    "aliases": ALIASES + "phrases: *a59\n",
    "prompts of aliases": ALIASES + "prompts: *a59\n",
    "brackets": "phrases: " + "[" * 100_000,
    "closed brackets": "phrases: " + "[" * 3000 + "]" * 3000,
    "braces": "prompts: " + "{a: " * 100_000,
    "lists of lists": "prompts:\n" + "\n".join("  " * n + "-" for n in range(1, 1000)),
    "a number": "prompts: " + "9" * 5000,
    "no such day": "prompts: 2024-13-45",
    "a date of no calendar": "prompts: !!timestamp x",
    "a truth that is none": "prompts: !!bool x",
    "a key that is a list": "? [a]\n: b",
    "no UTF-8": "prompts: \udcff",
    "a control character": "prompts: \x00",
    "ten prompts and a hundred MiB": "x" * (LARGEST + 1),
}
READERS: dict[str, Callable[[Path], Any]] = {
    "concept": Concept.load,
    "suite": lambda path: find_suite(str(path)),
    "check": lambda path: check_suite(str(path)),
    "detector": lambda path: find_detector(str(path)),
    "leco": leco,
}


def refused(call: Callable[[], Any]) -> str:
    """The line by which a call is refused, in bounded time."""
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        call()
    # Of the order, not a speed: the aliases took 100 s
    assert time.monotonic() - start < 10
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def test_aliases_take_no_memory(tmp_path: Path) -> None:
    (tmp_path / "it.yaml").write_text(BOMBS["aliases"])
    tracemalloc.start()
    try:
        line = refused(lambda: Concept.load(tmp_path / "it.yaml"))
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20  # it took 2.4 GB
    finally:
        tracemalloc.stop()
    assert "write out what it stands for" in line


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_in_yaml_is_one_line(bomb: str, reader: str, tmp_path: Path) -> None:
    path = tmp_path / "it.yaml"
    path.write_bytes(BOMBS[bomb].encode("utf-8", "surrogateescape"))
    if reader == "check" and bomb in ("a number", "no such day"):
        path.write_bytes(path.read_bytes() + b"\n")
    assert str(path) in refused(lambda: READERS[reader](path))


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    for name in ("none.yaml", "folder.yaml"):
        (tmp_path / "folder.yaml").mkdir(exist_ok=True)
        for read in READERS.values():
            assert "cannot be read" in refused(partial(read, tmp_path / name))


def test_yaml_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "it.yaml").write_bytes(b"\xef\xbb\xbfphrases: [caf\xc3\xa9]\n")
    assert find_concept(str(tmp_path / "it.yaml")).phrases == ("café",)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 3000 + "a > 1" + ")" * 3000,
        "not " * 300 + "a > 1",
        "(" * 60 + "a > 1" + ")" * 60,
        "a > 1 and " * 100_000 + "a > 1",
    ],
)
def test_a_filter_is_as_long_and_as_deep_as_a_person_writes(text: str) -> None:
    assert "--where" in refused(lambda: Where(text, ["a"]))


def test_a_filter_of_ten_brackets_is_read() -> None:
    fits = Where("(" * 10 + "a > 1" + ")" * 10 + " or not not a == 0", ["a"])
    assert fits({"a": "2"}, "row 0") and fits({"a": 0}, "row 0") and not fits({"a": 1}, "row 0")


def test_a_cell_of_thousands_of_digits_is_no_number() -> None:
    assert "digits is no number" in refused(
        lambda: Where("a > 1", ["a"])({"a": 10**4000}, "row 0")
    )


@pytest.mark.parametrize("line", ['{"prompt": ' + "[" * 100_000, '{"seed": ' + "9" * 5000 + "}"])
def test_a_bomb_in_json_lines_is_one_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "it.jsonl").write_text(line)
    assert "line 1" in refused(lambda: find_suite(str(tmp_path / "it.jsonl")))


BAD_IDS = [
    "../x",
    "/x",
    "a/b",
    "a\\b",
    "CON",
    "nul.a",
    "a\n",
    "a\x1b[2J",
    "",
    " ",
    ".",
    "a.",
    "a ",
    "x" * 300,
    "a\0",
    "COM1",
    "\udcff",
]


@pytest.mark.parametrize("id_", BAD_IDS)
def test_an_id_that_is_no_files_name_is_refused_however_it_comes(
    id_: str, pipe: Any, tmp_path: Path
) -> None:
    assert not is_file_name(id_)
    out = tmp_path / "a" / "b" / "c"
    with pytest.raises(InputError, match="id must be a text that can be a file's name"):
        generate_gallery(pipe, [], Suite("it", (Prompt(id_, "a cat", 0),)), out, steps=1)
    assert not out.exists() and not list(tmp_path.rglob("*.png"))


def test_ids_that_differ_in_case_alone_are_refused() -> None:
    with pytest.raises(InputError, match="has the id 'A' 2 times, once as 'a'"):
        Suite("it", (Prompt("A", "a cat", 0), Prompt("a", "a dog", 0)))


@pytest.mark.parametrize(
    "field, value",
    [("seed", -1), ("seed", 2**64), ("seed", True), ("guidance", float("nan")), ("steps", 0),
     ("steps", 5000), ("width", 12), ("width", 10**9), ("height", 0)],
)  # fmt: skip
def test_a_prompt_that_cannot_be_drawn_is_refused_in_python_too(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"prompt 'a': {field} must be"):
        Suite("it", (Prompt(**{"id": "a", "prompt": "a cat", "seed": 0, field: value}),))


NAMES = ["Dr. Seuss", "St. Ives", "St. Paul", "AC/DC", "AC", "DC", "kitchen knife", "CON", "nul.x",
         "a\\b", "宮崎駿", "Ōkami", "Vol. 2.", ".hidden", "-o", "What?"]  # fmt: skip


def test_names_of_files_are_distinct_and_hold_everywhere() -> None:
    stems = [file_stem([name]) for name in NAMES]
    assert len({stem.casefold() for stem in stems}) == len(NAMES)
    assert all(is_file_name(stem) and " " not in stem for stem in stems)
    assert stems[:4] == ["Dr.-Seuss", "St.-Ives", "St.-Paul", "AC-DC"]


def test_the_default_file_is_named_after_the_concept(
    run: Run, tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "my.style.yaml").write_text("name: van gogh\nkind: style\n")
    for concept in ("dog. cat", "dog. hat", "a/cat", "my.style.yaml"):
        code, out, err = run("erase", str(tiny_folder), concept, "--no-check")
        assert code == 0, err
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == [
        "a-cat.safetensors",
        "dog.-cat.safetensors",
        "dog.-hat.safetensors",
        "my.style.safetensors",
    ]


def test_only_an_erasure_of_the_same_concepts_is_written_over(
    run: Run, tiny_folder: Path, tmp_path: Path
) -> None:
    erase_ = ("erase", str(tiny_folder), "--no-check", "-o", "it.safetensors")
    file = tmp_path / "it.safetensors"
    assert run(*erase_, "cat")[0] == 0
    first = file.read_bytes()
    assert run(*erase_, "cat", "--set", "ridge=0.1")[0] == 0 and file.read_bytes() != first
    first = file.read_bytes()
    code, _, err = run(*erase_, "dog")
    assert code == 2 and "erases 'cat'" in err and "--force" in err
    assert file.read_bytes() == first
    assert run(*erase_, "dog", "--force")[0] == 0 and file.read_bytes() != first
    file.write_text("notes of mine")
    code, _, err = run(*erase_, "dog", "--force")
    assert code == 2 and "is no erasure that could be replaced" in err
    assert file.read_text() == "notes of mine"


def test_a_place_that_cannot_be_written_is_known_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for check in (check_file, check_folder):
        for path, line in {
            tmp_path / "file" / "x": "is a file and no folder",
            tmp_path / ("x" * 300): "300 bytes",
            tmp_path / "a\0": "a character in it",
            Path("/proc/x"): "cannot be written",
        }.items():
            with pytest.raises(InputError, match=line):
                check(path)
        check(tmp_path / "new" / "deep" / "it")
    with pytest.raises(InputError, match="is a folder"):
        check_file(tmp_path)
    with pytest.raises(InputError, match="is a file: name a folder"):
        check_folder(tmp_path / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("", (), {"total": 9, "free": 1}))
    with pytest.raises(InputError, match="the disk has 0 MiB left"):
        check_file(tmp_path / "it")


@pytest.mark.parametrize(
    "arguments, value, line",
    [
        ({"concepts": None}, None, "concepts is None; it must be a text"),
        ({"concepts": []}, None, "There is no concept"),
        ({"concepts": [None]}, None, "concepts is .None.; it must be"),
        ({"concepts": " , "}, None, "is empty"),
        ({"concepts": "cat, dog"}, None, "unsee erase .* cat dog"),
        ({"keep": "hammer"}, None, "keep is 'hammer'; it must be a list"),
        ({"keep": ["cat, dog"]}, None, "--keep cat --keep dog"),
        ({"keep": [""]}, None, "is empty"),
        ({"keep": [1]}, None, "keep is .1.; it must be a list, each of it a text"),
        ({"anchor": 1}, None, "anchor is 1; it must be a text, or none"),
        ({"seed": -1}, None, "seed is -1; it must be a whole number from 0"),
        ({"seed": 2**64}, None, "seed is 18446744073709551616"),
        ({"seed": 1.5}, None, "seed is 1.5"),
        ({"seed": True}, None, "seed is True"),
        ({"check": "no"}, None, "check is 'no'; it must be true or false"),
        ({"progress": 1}, None, "progress is 1; it must be a function"),
        ({"kind": "thing"}, None, "wanted one of object"),
        ({"model": None}, None, "model is None; it must be a name, a folder or a"),
    ],
)  # fmt: skip
def test_an_argument_that_cannot_be_is_one_line_before_any_work(
    arguments: dict[str, Any], value: Any, line: str
) -> None:
    given = {"model": "none/of/this/name", "concepts": "cat"} | arguments
    with pytest.raises(InputError, match=line):
        erase(given.pop("model"), given.pop("concepts"), **given)


@pytest.mark.parametrize(
    "arguments, line",
    [
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"guidance": float("inf")}, "guidance is inf"),
        ({"guidance": -1}, "guidance is -1; it must be a number from 0 to 1000"),
        ({"steps": 0}, "steps is 0; it must be a whole number from 1 to 1000"),
        ({"steps": 5000}, "steps is 5000"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.0}, "batch_size is 2.0"),
        ({"erasures": None}, "erasures is None"),
        ({"suite": "emoji"}, "suite is 'emoji'"),
        ({"out": None}, "out is None; it must be a text, or a Path"),
    ],
)
def test_a_gallerys_arguments_are_looked_at_before_the_model(
    arguments: dict[str, Any], line: str, tmp_path: Path
) -> None:
    suite = Suite("it", (Prompt("a", "a cat", 0),))
    given: dict[str, Any] = {"erasures": [], "suite": suite, "out": tmp_path / "o"} | arguments
    with pytest.raises(InputError, match=line):
        generate_gallery("none/of/this/name", **given)
    assert not (tmp_path / "o").exists()


def test_more_steps_than_the_scheduler_knows_are_refused_before_any_image(
    pipe: Any, tmp_path: Path
) -> None:
    pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, num_train_timesteps=10)
    suite = Suite("it", (Prompt("a", "a cat", 0), Prompt("b", "a dog", 0, steps=11)))
    with pytest.raises(InputError, match="steps is 11; it must be at most 10, .* DDIMScheduler"):
        generate_gallery(pipe, [], suite, tmp_path / "o", steps=2)
    assert not (tmp_path / "o").exists()


def test_a_folder_with_a_report_of_somebody_else_is_left_alone(
    run: Run, tiny_folder: Path, tmp_path: Path
) -> None:
    assert run("erase", "emoji", "bomb", "--no-check")[0] == 0
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "report.html").write_text("<p>my report")
    code, _, err = run("audit", "emoji", "-e", "bomb.safetensors", "-o", "runs")
    assert code == 2 and "report.html is there already and is no report" in err
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["report.html"]


def test_a_score_or_an_erasure_of_somebody_else_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.effect_noise((64, 64), 80).convert("RGB").save(tmp_path / "images" / "a.png")
    mine = tmp_path / "images" / "score.json"
    mine.write_text("my notes", encoding="utf-8")
    score = ("score", "images", "--detector", "emoji/object")
    code, _, err = run(*score)
    assert code == 2 and "score.json is there already and is no score of unsee" in err
    assert mine.read_text(encoding="utf-8") == "my notes"
    mine.unlink()
    assert run(*score)[0] == run(*score)[0] == 0
    (tmp_path / "esd.safetensors").write_bytes(b"my weights")
    code, _, err = run("demo", "-o", ".")
    assert code == 2 and "esd.safetensors is there already" in err
    assert (tmp_path / "esd.safetensors").read_bytes() == b"my weights"
    assert not (tmp_path / "uce.safetensors").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--images", "99999999999"),
        ("--images", "600000", "-p", "a dog"),
        ("--seed", "-1"),
        ("--seed", str(2**70)),
    ],
)
def test_more_images_than_anybody_can_make_are_refused_before_they_are_listed(
    run: Run, options: tuple[str, ...]
) -> None:
    start = time.monotonic()
    code, _, err = run("generate", "emoji", "-p", "a cat", "-o", "it", *options)
    assert code == 2 and "must be a whole number from" in err
    assert time.monotonic() - start < 5


def test_a_gallery_whose_files_are_of_another_kind_is_one_line(tmp_path: Path) -> None:
    prompts = [Prompt("a", "a cat", 0)]
    for name in ("images", "images.jsonl"):
        gallery = Gallery.start(tmp_path / name, None, prompts)
        place = gallery.path / name
        if name == "images":
            place.rmdir()
            place.write_bytes(b"")
        else:
            place.unlink()
            place.mkdir()
        with pytest.raises(InputError, match=f"{name} is no f(older|ile), as it is in a gallery"):
            Gallery.start(gallery.path, None, prompts)


def test_galleries_ids_are_looked_at_when_they_are_opened(tmp_path: Path) -> None:
    gallery = Gallery.start(tmp_path / "g", None, [Prompt("a", "a cat", 0)])
    lines = gallery.path / "samples.jsonl"
    before, forged = lines.read_bytes(), lines.read_bytes().replace(b'"a"', b'"../../a"')
    lines.write_bytes(forged)
    with pytest.raises(InputError, match="has been changed since it was written"):
        Gallery.open(gallery.path)
    head = gallery.path / "gallery.json"
    old, new = (hashlib.sha256(data).hexdigest() for data in (before, forged))
    head.write_text(head.read_text().replace(old, new))
    with pytest.raises(InputError, match="file's name"):
        Gallery.open(gallery.path)


@pytest.mark.parametrize("text", ["\ud800", "a cat \udcff"])
def test_half_of_a_character_is_refused_wherever_a_text_is_read(text: str, tmp_path: Path) -> None:
    """As a terminal gives what is no UTF-8, and YAML what is escaped."""
    for field in ("name", "phrases", "keep", "anchor"):
        value = (text,) if field in ("phrases", "keep") else text
        with pytest.raises(InputError, match="text|list of phrases"):
            Concept(**({"name": "cat", "kind": "object"} | {field: value}))  # type: ignore[arg-type]
    for field in ("prompt", "category", "unit", "labels"):
        values: dict[str, Any] = {"id": "a", "prompt": "a cat", "seed": 1}
        page = values | {field: {"object": text} if field == "labels" else text}
        with pytest.raises(InputError, match=f"{field} must be a"):
            Suite("it", (Prompt(**page),))
        file = tmp_path / "it.yaml"
        file.write_text(json.dumps({"prompts": [page]}), encoding="utf-8")
        _, problems = check_suite(str(file))
        assert len(problems) == 1 and f"{field} must be a" in problems[0]


def test_a_key_that_is_there_twice_is_refused_in_all_yaml(tmp_path: Path) -> None:
    """PyYAML drops the first in silence: half of what a concept keeps."""
    file = tmp_path / "it.yaml"
    file.write_text("name: cat\nkind: object\nkeep: [dog]\nkeep: [fox]\n", encoding="utf-8")
    with pytest.raises(InputError, match="'keep' is there twice .*line 4"):
        Concept.load(file)
    file.write_text("prompts:\n- {prompt: a cat, seed: 1, prompt: a dog}\n", encoding="utf-8")
    with pytest.raises(InputError, match="'prompt' is there twice .*line 2"):
        Suite.load(file)


def test_a_file_that_is_not_there_is_named_once(tmp_path: Path) -> None:
    file = tmp_path / "nope.yaml"
    with pytest.raises(InputError) as error:
        Concept.load(file)
    assert str(error.value) == f"{file} cannot be read: there is no such file."
