"""Images from anywhere: what ``unsee score`` says of them, and that no failure looks safe."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unsee._errors import InputError
from unsee.eval import Detection, Rate, Score, Taken, Unscored
from unsee.eval.folder import FolderScore, measure, open_folder
from unsee.gallery import Gallery
from unsee.prompts import Prompt

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 230)}


class Colours:
    """Sees the likeliest colour of the mean pixel, and nothing in the dark."""

    name, kind, labels = "test/colour", "object", tuple(COLOURS)
    protocol: dict[str, Any] = {"pixels": "mean"}

    def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
        found: list[Detection | Unscored] = []
        for image in images:
            mean = np.asarray(image).mean((0, 1))
            seen = (list(COLOURS)[int(mean.argmax())],) if mean.sum() > 60 else ()
            found.append(Detection(seen, dict(zip(COLOURS, (mean / 255).tolist(), strict=True))))
        return found


class Apart:
    """How many more images there are than in the reference, in place of a distance."""

    name, unit, higher_is_better, needs_reference = "test/apart", "", False, True
    paired, protocol = False, dict[str, Any]()

    def look(self, images: Sequence[Image.Image], partners: Any = ()) -> list[Any]:
        return [None for _ in images]

    def score(self, ours: Sequence[Taken], theirs: Sequence[Taken] = ()) -> Score:
        return Score(len(ours) - len(theirs), len(ours), None, False, "")


class Wordy(Apart):
    """How long a prompt is, in place of how well it fits."""

    name, needs_reference = "test/wordy", False

    def score(self, ours: Sequence[Taken], theirs: Sequence[Taken] = ()) -> Score:
        return Score(
            float(np.mean([len(t.prompt.prompt) for t in ours])), len(ours), None, True, ""
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of three formats, in two folders, none blank, and what is no image."""
    place = tmp_path / "made"
    (place / "b").mkdir(parents=True)
    for name, colour in {
        "2.png": (220, 30, 30),
        "10.jpg": (220, 30, 30),
        "b/1.webp": (30, 30, 230),
        "b/x.JPEG": (220, 30, 30),
        "dark.png": (0, 0, 0),
    }.items():
        image = Image.new("RGB", (16, 16), colour)
        image.paste((90, 90, 90), (0, 0, 4, 4))
        image.putpixel((8, 8), (25 * len(name),) * 3)  # no two are one file
        image.save(place / name)
    (place / "notes.txt").write_text("not an image")
    return place


def found(gallery: Gallery, *metrics: Any, **settings: Any) -> FolderScore:
    return measure(gallery, [Colours()], metrics, **settings)


def test_every_image_of_a_folder_is_measured_and_each_label_has_its_rate(folder: Path) -> None:
    gallery = open_folder(folder)
    assert [p.id for p in gallery] == ["10.jpg", "2.png", "b/1.webp", "b/x.JPEG", "dark.png"]
    result = found(gallery, concept="Green")
    assert result.rates == {
        "test/colour": {"red": Rate(3, 5), "blue": Rate(1, 5), "nothing": Rate(1, 5)}
    }
    assert result.seen == {"test/colour": Rate(0, 5)}
    assert result.answer == (
        "“Green” is seen in 0 of 5 images (0 %) by test/colour, 95 % interval 0 to 43.4 %."
    )
    assert result.holes == () and result.right == {}


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_what_is_in_one_frame_of_a_moving_image_is_seen_in_it(tmp_path: Path, suffix: str) -> None:
    frames = []
    for colour in ("red", "green", "red"):
        frames.append(Image.new("RGB", (16, 16), COLOURS[colour]))
        frames[-1].paste((90, 90, 90), (0, 0, 4, 4 + len(frames)))
    first, *further = frames
    name = f"it.{suffix}"
    first.save(tmp_path / name, save_all=True, append_images=further, duration=9)
    assert found(open_folder(tmp_path)).rates["test/colour"] == {
        "green": Rate(1, 1),
        "red": Rate(1, 1),
    }
    further[0].paste(0, (0, 0, 16, 16))  # blank
    first.save(tmp_path / name, save_all=True, append_images=further, duration=9)
    one = found(open_folder(tmp_path), concept="green")
    assert one.seen == {"test/colour": Rate(0, 0, unscored=1)}
    assert one.rates == {"test/colour": {"red": Rate(1, 1)}} and one.blank == 0
    assert list(one.reasons) == ["frame 2 of 3: blank: of one colour"]


def test_what_cannot_be_read_is_unscored_and_in_no_rate(folder: Path) -> None:
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:50])
    result = found(open_folder(folder), concept="red")
    assert result.seen == {"test/colour": Rate(2, 4, unscored=1)}
    assert "test/colour could not score 1 of 5 images (unreadable" in result.holes[0]
    for path in folder.rglob("*.*"):
        if path.suffix != ".txt":
            path.write_bytes(b"")
    nothing = found(open_folder(folder), concept="red")
    assert nothing.seen == {"test/colour": Rate(0, 0, unscored=5)}
    assert nothing.rates == {"test/colour": {"nothing": Rate(0, 0, unscored=5)}}
    assert "5 of 5" in nothing.holes[0] and "no image that was scored" in nothing.answer


TABLES = {
    "t.csv": "file_name,prompt,object,category\n2.png,a red one,Red,x\nb/x,a blue one,blue,\n"
    "gone.png,a red one,red,y\n",
    "t.jsonl": '{"file": "2.png", "prompt": "a red one", "object": "Red", "category": "x"}\n\n'
    '{"image": "b/x", "prompt": "a blue one", "labels": {"object": "blue"}}\n'
    '{"id": "gone.png", "prompt": "a red one", "object": "red", "category": "y"}\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_says_what_the_images_should_show_and_a_missing_one_is_unscored(
    folder: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text(TABLES[name])
    gallery = open_folder(folder, tmp_path / name)
    assert [(p.prompt, p.labels["object"], p.category) for p in gallery] == [
        ("a red one", "Red", "x"), ("a blue one", "blue", ""), ("a red one", "red", "y"),
    ]  # fmt: skip
    result = found(gallery, Wordy())
    assert result.right == {"test/colour": Rate(1, 2, unscored=1)}
    assert result.missing == 1 and "1 of 3 images (missing" in result.holes[0]
    assert result.scores["test/wordy"].n == 3


def test_a_gallery_and_the_table_in_a_folder_are_read_as_they_are(tmp_path: Path) -> None:
    rows = [Prompt("a", "a red one", 0, {"object": "red"}), Prompt("b", "another", 1)]
    made = Gallery.start(tmp_path / "gallery", None, rows)
    image = Image.new("RGB", (8, 8), (220, 30, 30))
    image.putpixel((0, 0), (90, 90, 90))
    made.put(rows[0], image)
    result = found(open_folder(made.path))
    assert result.right == {"test/colour": Rate(1, 1)} and result.missing == 1
    (made.path / "gallery.json").unlink()
    again = found(open_folder(made.path))
    assert (again.right, again.rates, again.missing) == (result.right, result.rates, 1)


def test_a_distance_is_to_the_reference_and_a_metric_that_raises_is_a_hole(folder: Path) -> None:
    class Broken(Apart):
        def score(self, ours: Sequence[Taken], theirs: Sequence[Taken] = ()) -> Score:
            raise RuntimeError("no weights")

    gallery = open_folder(folder)
    assert found(gallery, Apart(), reference=gallery).scores["test/apart"].value == 0
    broken = found(gallery, Broken(), reference=gallery)
    assert broken.scores["test/apart"].value is None
    assert broken.holes == (
        "test/apart: 10 images could not be measured (RuntimeError: no weights).",
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("colour,prompt\nred,a\n", "line 2: wanted an image's file .* found colour, prompt"),
        ("file\n2.png\n2.png\n", "line 3: '2.png' is there twice"),
        ("file\nnone.png\n", "names no image that is in"),
        ("file,prompt\n", "has no row"),
    ],
)
def test_a_table_that_fits_no_image_is_refused(
    folder: Path, tmp_path: Path, table: str, message: str
) -> None:
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(InputError, match=message):
        open_folder(folder, tmp_path / "t.csv")


def test_what_cannot_be_measured_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    gallery = open_folder(folder)
    for text, path in (("[1]\n", "l.jsonl"), ("{", "j.jsonl"), ("a", "t.doc")):
        (tmp_path / path).write_text(text)
        with pytest.raises(InputError, match="wanted an object|is not JSON|must be a table"):
            open_folder(folder, tmp_path / path)
    with pytest.raises(InputError, match="nothing to measure with"):
        measure(gallery, [])
    with pytest.raises(InputError, match="compares images with their prompts"):
        found(gallery, Wordy())
    with pytest.raises(InputError, match="is a distance"):
        found(gallery, Apart())
    with pytest.raises(
        InputError, match=r"No detector reads style labels.*test/colour \(object\)"
    ):
        found(gallery, concept="noto", kind="style")
    with pytest.raises(InputError, match="there twice"):
        found(gallery, Apart(), Apart(), reference=gallery)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``unsee score`` with arguments in a wide terminal: exit code, output, errors."""
    monkeypatch.setenv("COLUMNS", "200")
    return partial(run, "score")


def test_the_command_prints_a_table_and_writes_two_files(run: Run, folder: Path) -> None:
    code, out, err = run(str(folder), "--detector", "emoji/object", "--concept", "bomb")
    assert code == 0, err
    assert "“bomb” is seen in 0 of 5 images (0 %) by emoji/object" in out
    assert " by emoji/object " in out and "of 5" in out
    page = json.loads((folder / "score.json").read_text())
    assert page["seen"]["emoji/object"]["hits"] == 0 and page["images"] == 5
    assert page["command"].startswith("unsee score")
    lines = (folder / "answers.jsonl").read_text().splitlines()
    assert len(lines) == 5 and "bomb" in json.loads(lines[0])["found"]["scores"]


def test_an_unscored_image_comes_first_and_fails_the_exit_code(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    (folder / "2.png").write_bytes(b"")
    arguments = (str(folder), "--detector", "emoji/style", "-o", str(tmp_path / "out"))
    code, out, _ = run(*arguments)
    assert code == 1 and out.startswith("Unscored: emoji/style could not score 1 of 5 images")
    assert (tmp_path / "out/score.json").is_file() and not (folder / "score.json").exists()
    code, out, _ = run(*arguments, "--allow-unscored")
    assert code == 0 and out.startswith("Unscored: ")


def test_an_empty_folder_is_an_error_and_nothing_is_written(run: Run, tmp_path: Path) -> None:
    for name, message in (("empty", "has no image, so nothing"), ("nowhere", "is no folder")):
        if name == "empty":
            (tmp_path / name).mkdir()
        code, _, err = run(str(tmp_path / name), "--detector", "emoji/object")
        assert code == 2 and message in err and err.count("\n") == 1
    assert list((tmp_path / "empty").iterdir()) == []
