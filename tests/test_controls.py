"""What a model never saw: the controls that ship, those of a user's own, and who knows them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

import unsee
from unsee import InputError
from unsee.eval import Detection, Unscored, find_detector
from unsee.eval.detectors.nearest import FILE, Nearest, likeness
from unsee.pipelines import load_pipeline
from unsee.prompts import CONTROLS, Control, Prompt, Suite, find_control
from unsee.prompts.control import FOLDER
from unsee.prompts.emoji import world


def picture(colour: str = "red", size: tuple[int, int] = (40, 24)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).rectangle((4, 4, 20, 12), fill=colour)
    return image


def seen(images: Any) -> list[str]:
    answers = find_detector("emoji/nearest")(images)
    assert all(isinstance(a, Detection) and len(a.labels) == 1 for a in answers), answers
    return [a.labels[0] for a in answers if isinstance(a, Detection)]


def ours() -> list[Control]:
    return [find_control(name, model="emoji") for name in CONTROLS]


def test_every_control_is_one_icon_in_each_style_as_the_model_was_shown_its_own() -> None:
    for control in ours():
        assert [e.style for e in control.examples] == sorted(world().styles), control
        assert {(i.size, i.mode) for i in control.images} == {((64, 64), "RGB")}
        for image in control.images:
            corners = {image.getpixel((x, y)) for x in (0, 63) for y in (0, 63)}
            assert corners == {(255, 255, 255)}, control
    every = [e.sha256 for control in ours() for e in control.examples]
    assert len(set(every)) == len(every) == 32
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.png")) < 100_000


def test_no_control_is_a_thing_of_the_built_in_model_nor_part_of_one_by_name() -> None:
    known = [set(name.split()) for name in (*world().objects, *world().groups, *world().styles)]
    for name in CONTROLS:
        words = set(name.split())
        assert not any(words <= of or of <= words for of in known), name


def test_the_nearest_icon_knows_every_control_and_every_object() -> None:
    for control in ours():
        assert seen(control.images) == [control.name] * 8
    detector = find_detector("emoji/nearest")
    assert set(detector.labels or ()) == {*world().objects, *CONTROLS}
    assert len(detector.labels or ()) == 171 and detector.kind == "object"


def test_it_knows_every_control_that_went_through_the_models_autoencoder() -> None:
    vae = load_pipeline("emoji", device="cpu").vae
    images = [image for control in ours() for image in control.images]
    x = torch.stack([torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8) for i in images])
    x = x.view(-1, 64, 64, 3).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        back = vae.decode(vae.encode(x).latent_dist.mode()).sample
    pixels = ((back.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    again = [Image.fromarray(p.numpy()) for p in pixels]
    assert seen(again) == [name for name in CONTROLS for _ in range(8)]


def test_a_control_is_known_by_its_other_icons_as_often_as_an_object_of_the_model() -> None:
    """Else an attack that draws the control in a way of its own would pass for one that fails."""
    features, objects = load_file(FILE)["features"], named()
    nearest = likeness(features, features).fill_diagonal_(-1).argmax(1).tolist()
    right = {True: [0, 0], False: [0, 0]}
    for name, other in zip(objects, nearest, strict=True):
        right[name in CONTROLS][0] += objects[other] == name
        right[name in CONTROLS][1] += 1
    assert right[True][1] == 32 and right[False][1] == 167 * 8
    rates = {of: hits / n for of, (hits, n) in right.items()}
    assert rates[True] >= rates[False] > 0.5
    assert right[True][0] >= 22


def named() -> list[str]:
    """The object of each row of the file that ships."""
    from safetensors import safe_open

    with safe_open(FILE, "pt") as file:
        return list(json.loads(file.metadata()["config"])["objects"])


def test_an_icon_alone_is_known_by_the_others_of_its_object(tmp_path: Path) -> None:
    """The detector answers from the icons in its file and from nothing else."""
    features, objects = load_file(FILE)["features"], named()
    (wrench,) = [c for c in ours() if c.name == "wrench"]
    last = max(i for i, name in enumerate(objects) if name == "wrench")
    rest = [i for i in range(len(objects)) if i != last - 7 + 3]  # without flat's
    path = tmp_path / "seven.safetensors"
    write(path, features[rest], [objects[i] for i in rest])
    assert [e.style for e in wrench.examples][3] == "flat"
    (answer,) = Nearest(path)([wrench.images[3]])
    assert isinstance(answer, Detection) and answer.labels == ("wrench",)
    assert answer.scores["wrench"] < 0.999
    write(path, features[[i for i in rest if objects[i] != "wrench"]],
          [name for name in objects if name != "wrench"])  # fmt: skip
    (answer,) = Nearest(path)([wrench.images[3]])
    assert isinstance(answer, Detection) and answer.labels != ("wrench",)


def write(path: Path, features: torch.Tensor, objects: list[str], judge: str = "") -> None:
    judge = judge or find_detector("emoji/object").protocol["weights_sha256"]
    config = json.dumps({"objects": objects, "judge_sha256": judge})
    save_file({"features": features.contiguous()}, path, {"format": "pt", "config": config})


def test_of_what_the_model_draws_it_says_what_the_judge_says(tmp_path: Path) -> None:
    here = world()
    pairs = [(name, here.styles[i % 8]) for i, name in enumerate(here.objects)][::14]
    suite = Suite("s", tuple(
        Prompt(f"{i:02d}", f"a {o} emoji in {s} style", i, {"object": o, "style": s})
        for i, (o, s) in enumerate(pairs)
    ))  # fmt: skip
    unsee.generate_gallery("emoji", (), suite, tmp_path / "made", steps=10)
    score = unsee.score(tmp_path / "made", detectors=["emoji/object", "emoji/nearest"])
    rates = score.rates
    assert rates["emoji/nearest"] == rates["emoji/object"]
    assert not {*rates["emoji/nearest"]} & {*CONTROLS}


def test_its_answers_follow_from_their_scores_and_broken_features_are_unscored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nearest = Nearest()
    images = ours()[0].images
    for answer in nearest(images):
        assert isinstance(answer, Detection) and nearest.follows(answer)
        assert all(0 <= score <= 1 for score in answer.scores.values())
        swapped = Detection(("hammer",), answer.scores)
        assert not nearest.follows(swapped)
    assert nearest([]) == []
    bad = Image.new("RGB", (64, 64), "red")
    monkeypatch.setattr(
        type(nearest._judge),
        "features",
        lambda self, some: torch.full((len(some), 256), torch.nan),
    )
    assert all(isinstance(answer, Unscored) for answer in nearest([bad]))


def spoil_nothing(path: Path) -> None:
    path.unlink()


def spoil_bytes(path: Path) -> None:
    path.write_bytes(b"not safetensors")


def spoil_judge(path: Path) -> None:
    write(path, load_file(FILE)["features"], named(), judge="00")


def spoil_rows(path: Path) -> None:
    write(path, load_file(FILE)["features"][1:], named())


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_nothing, "is not there"),
        (spoil_bytes, "holds no features"),
        (spoil_judge, "of another judge"),
        (spoil_rows, r"has 1368 objects for features \[1367, 256\]"),
    ],
)
def test_a_file_that_is_not_the_judges_is_refused(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    path = tmp_path / "it.safetensors"
    path.touch()
    spoil(path)
    with pytest.raises(InputError, match=says):
        Nearest(path)


def test_a_folder_of_images_is_a_control_in_the_order_of_their_names(tmp_path: Path) -> None:
    colours = ("red", "blue", "green", "black", "orange", "brown")
    names = ("b.png", "a.jpg", "c.webp", "d.bmp", "f.gif", "e.tiff")
    for name, colour in zip(names, colours, strict=True):
        picture(colour).save(tmp_path / name)
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "older").mkdir()
    control = find_control(f"gadget = {tmp_path}", model="some/model", kind="person")
    assert (control.name, control.kind, control.ours) == ("gadget", "person", False)
    assert [e.file for e in control.examples] == sorted(names)
    assert {i.mode for i in control.images} == {"RGB"}
    record = control.to_json()
    assert record["sha256"] == {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in sorted(names)
    }
    json.dumps(record)
    assert find_control(control) is control
    assert find_control(f"gadget={tmp_path}", kind="person") == control


def test_what_is_clear_is_white_and_what_lies_on_its_side_is_turned(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (40, 24), (0, 0, 0, 0))
    ImageDraw.Draw(clear).rectangle((4, 4, 20, 12), fill="red")
    clear.save(tmp_path / "clear.png")
    tags = Image.Exif()
    tags[0x0112] = 6  # orientation: turn by a quarter
    picture().save(tmp_path / "turned.jpg", exif=tags)
    white, turned = find_control(f"gadget={tmp_path}").images
    assert white.tobytes() == picture().tobytes()
    assert turned.size == (24, 40)


def put_text(folder: Path) -> None:
    (folder / "notes.txt").write_text("x", encoding="utf-8")


def put_half(folder: Path) -> None:
    picture().save(folder / "half.png")
    data = (folder / "half.png").read_bytes()
    (folder / "half.png").write_bytes(data[: len(data) // 2])


def put_blank(folder: Path) -> None:
    Image.new("RGB", (9, 9), "grey").save(folder / "grey.png")


def put_twice(folder: Path) -> None:
    for name in ("a.png", "b.png"):
        picture().save(folder / name)


def put_nothing(folder: Path) -> None:
    pass


def put_file(folder: Path) -> None:
    folder.rmdir()
    folder.write_text("x", encoding="utf-8")


@pytest.mark.parametrize(
    ("put", "says"),
    [
        (put_text, "notes.txt is no image that can be read"),
        (put_half, "half.png is an image that cannot be read"),
        (put_blank, "grey.png shows nothing: it is of one colour"),
        (put_twice, "a.png and b.png are the same file"),
        (put_nothing, "has no image: a control needs at least one"),
        (put_file, "is a file"),
        (Path.rmdir, "is not there"),
    ],
)
def test_a_folder_that_is_no_control_is_refused_in_a_line(
    tmp_path: Path, put: Callable[[Path], None], says: str
) -> None:
    (folder := tmp_path / "gadget").mkdir()
    put(folder)
    with pytest.raises(InputError, match=says) as error:
        find_control(f"gadget={folder}", model="emoji")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "model", "says"),
    [
        ("wrenchh", "emoji", "Did you mean 'wrench'.*NAME=FOLDER"),
        ("wrench", "some/model", "never saw. Of another model nobody knows that"),
        ("wrench", "", "never saw. Of another model nobody knows that"),
        ("=here", "emoji", "is NAME=FOLDER"),
        ("gadget=", "emoji", "is NAME=FOLDER"),
        ("Hammer=here", "emoji", "The built-in model knows 'Hammer'"),
        ("noto=here", "emoji", "The built-in model knows 'noto'"),
    ],
)
def test_a_control_that_would_be_none_is_refused(spec: str, model: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        find_control(spec, model=model)


def test_a_control_of_no_known_kind_is_refused() -> None:
    with pytest.raises(InputError, match="kind must be one of object, style, person, unsafe"):
        find_control("gadget=here", kind="thing")
