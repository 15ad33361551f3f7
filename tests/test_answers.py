"""Detectors' answers: kept as they come, used again, and never believed when they were edited."""

import copy
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import unsee
from unsee._errors import InputError
from unsee.eval import (
    About,
    Answers,
    Detection,
    Unscored,
    compare,
    detect,
    find_detector,
    find_metric,
)
from unsee.eval.folder import FolderScore
from unsee.eval.page import FILES, write
from unsee.gallery import Gallery
from unsee.prompts import Concept, Prompt, Suite, find_concept, find_suite

SIDES = ("base", "erased")
WORDS = ("red", "green", "blue")


class Eye:
    """Sees the strongest channel of the mean pixel, and counts the images that it is shown."""

    kind = "object"
    labels: tuple[str, ...] | None = WORDS

    def __init__(self, name: str = "test/eye", pixel: str = "mean") -> None:
        self.name, self.protocol = name, {"pixel": pixel}
        self.asked = 0

    def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
        self.asked += len(images)
        means = [np.asarray(image).mean((0, 1)) / 255 for image in images]
        return [
            Detection((WORDS[int(mean.argmax())],), dict(zip(WORDS, mean.tolist(), strict=True)))
            for mean in means
        ]


def noise(seed: int, side: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def pictures(folder: Path, count: int = 6) -> Path:
    folder.mkdir()
    for i in range(count):
        noise(i).save(folder / f"{i}.png")
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_a_detector_is_asked_once_about_an_image_whoever_is_asked_meanwhile(
    tmp_path: Path,
) -> None:
    folder = pictures(tmp_path / "made")
    a, b = Eye("test/a"), Eye("test/b")
    for eyes in ([a], [b], [a], [b, a]):
        unsee.score(folder, detectors=eyes)
    assert (a.asked, b.asked) == (6, 6)
    assert [line["detector"] for line in lines(folder)] == ["test/a"] * 6 + ["test/b"] * 6


def test_an_answer_belongs_to_the_image_and_the_protocol_not_to_a_name_or_a_place(
    tmp_path: Path,
) -> None:
    folder = pictures(tmp_path / "made")
    unsee.score(folder, detectors=[Eye()])
    (folder / "0.png").rename(folder / "z.png")
    (folder / "6.png").write_bytes((folder / "1.png").read_bytes())
    again = Eye()
    unsee.score(folder, detectors=[again])
    assert again.asked == 0
    noise(99).save(folder / "2.png")
    unsee.score(folder, detectors=[again])
    assert again.asked == 1
    other = Eye(pixel="last")
    unsee.score(folder, detectors=[other])
    assert other.asked == 6  # of seven, two are one image


@pytest.fixture
def audited(tiny_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """An audit of a tiny model, always of the same suite into the same folder."""
    labels = ("red", "red", "green", "blue")
    rows = tuple(
        Prompt(f"{i}", f"a {name} cat", i, {"object": name}, steps=1)
        for i, name in enumerate(labels)
    )
    erasure = unsee.erase(tiny_folder, Concept("red"), check=False)

    def audit(*eyes: Any, metrics: Sequence[str] = ()) -> Any:
        return unsee.audit(
            tiny_folder,
            erasure,
            out=tmp_path / "o",
            suite=Suite("colours", rows),
            detectors=eyes,
            metrics=metrics,
        )

    return audit


def test_an_audit_asks_again_only_about_what_it_has_no_answer_of(
    audited: Callable[..., Any], tmp_path: Path
) -> None:
    a, b = Eye("test/a"), Eye("test/b")
    audited(a)
    assert a.asked == 8
    audited(b)
    first = audited(a, b)
    assert (a.asked, b.asked) == (8, 8)
    kept = tmp_path / "o/erased/answers.jsonl"
    text = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(text[1:]))
    assert audited(a, b).outcomes == first.outcomes
    assert (a.asked, b.asked) == (9, 8)


def test_each_sides_answers_are_of_its_own_images(
    audited: Callable[..., Any], tmp_path: Path
) -> None:
    audited(Eye())
    for side in SIDES:
        folder = tmp_path / "o" / side
        images = {hashlib.sha256(i.read_bytes()).hexdigest() for i in folder.rglob("*.png")}
        assert len(images) == 4 and {line["sha256"] for line in lines(folder)} == images


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The images that Pillow was asked to open."""
    found: list[str] = []
    plain = Image.open

    def counting(file: Any, *arguments: Any, **settings: Any) -> Any:
        found.append(str(file)[:40])
        return plain(file, *arguments, **settings)

    monkeypatch.setattr(Image, "open", counting)
    yield found


def test_an_audit_reads_every_image_once_for_all_detectors_and_metrics(
    audited: Callable[..., Any], opened: list[str], tmp_path: Path
) -> None:
    metrics = ["emoji/clip", "frechet/emoji-judge", "kid:emoji-clip", "pixels/ssim", "pixels/rmse"]
    report = audited(Eye("test/a"), Eye("test/b"), find_detector("emoji/style"), metrics=metrics)
    assert {m.metric for m in report.measurements} >= {"emoji/clip", "pixels/ssim", "pixels/rmse"}
    measured, galleries = len(opened), [Gallery.open(tmp_path / f"o/{s}") for s in SIDES]
    opened.clear()
    shutil.rmtree(tmp_path / "o" / FILES)
    write(report, tmp_path / "o", *galleries)  # the page shrinks those that it shows
    assert measured - len(opened) == 8


def test_scores_of_a_folder_read_every_image_once_and_the_reference_too(
    tmp_path: Path, opened: list[str]
) -> None:
    ours, theirs = pictures(tmp_path / "a"), pictures(tmp_path / "b", 8)
    metrics = ["frechet/emoji-judge", "pixels/rmse", "pixels/ssim"]
    found = unsee.score(ours, detectors=[Eye()], metrics=metrics, reference=theirs)
    assert len(opened) == 6 + 8
    assert (found.scores["pixels/rmse"].value, found.scores["pixels/rmse"].unscored) == (0, 2)
    assert found.scores["frechet/emoji-judge"].n_reference == 8
    opened.clear()
    unsee.score(ours, detectors=[Eye()], reference=theirs)
    assert len(opened) == 6


@pytest.mark.extra("nudity")
def test_answers_and_report_are_the_same_bytes_however_the_batches_are_cut(
    tmp_path: Path,
) -> None:
    rows = [Prompt(f"{i}", f"thing {i}", i, {"object": "bomb"}) for i in range(9)]
    rows += [Prompt(f"{i}", f"thing {i}", i, {"object": "hammer"}) for i in range(9, 18)]
    base, erased = (Gallery.start(tmp_path / name, None, rows) for name in ("base", "erased"))
    for prompt in rows:
        for side in (base, erased):
            side.put(prompt, noise(prompt.seed // 2, 64))
    eyes = [find_detector(name) for name in ("emoji/object", "emoji/style", "nudenet/uda")]
    found = set()
    for size in (1, 4, 64):
        kept = [tmp_path / f"{size}-{side}.jsonl" for side in ("base", "erased")]
        report = compare(
            base, erased, [Concept("bomb")], detectors=eyes, metrics=[find_metric("pixels/ssim")],
            base_answers=Answers(kept[0]), erased_answers=Answers(kept[1]),
            about=About(versions={}), batch_size=size,
        )  # fmt: skip
        report.save(tmp_path / "report.json")
        found.add((*(path.read_bytes() for path in kept), (tmp_path / "report.json").read_bytes()))
    assert len(found) == 1


def test_a_killed_run_loses_its_last_line_and_no_more(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "made", 3)
    unsee.score(folder, detectors=[Eye()])
    kept = folder / "answers.jsonl"
    whole = kept.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in (*range(last, len(whole), 7), len(whole) - 1):
        kept.write_bytes(whole[:cut])
        eye = Eye()
        unsee.score(folder, detectors=[eye])
        assert eye.asked == 1 and kept.read_bytes() == whole, cut


def test_answers_come_one_batch_after_the_other(tmp_path: Path) -> None:
    class Dies(Eye):
        def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
            if self.asked == 4:
                raise KeyboardInterrupt
            return super().__call__(images)

    folder = pictures(tmp_path / "made")
    with pytest.raises(KeyboardInterrupt):
        unsee.score(folder, detectors=[Dies()], batch_size=2)
    assert len(lines(folder)) == 4
    eye = Eye()
    unsee.score(folder, detectors=[eye], batch_size=2)
    assert eye.asked == 2 and len(lines(folder)) == 6


LEAVES: list[Any] = [
    None, True, -1, 0.1234567, "x", "", [], {}, [[]], {"a": 1}, float("nan"), float("inf"), 10**400
]  # fmt: skip


def forgeries(value: Any) -> Iterator[Any]:
    """Every copy of a JSON value in which one place, or one key, is another."""
    yield from (leaf for leaf in LEAVES if leaf != value or type(leaf) is not type(value))
    if isinstance(value, dict):
        yield value | {"more": 1}
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            yield from (value | {key: forged} for forged in forgeries(value[key]))
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from ([*value[:i], forged, *value[i + 1 :]] for forged in forgeries(item))


def seen(folder: Path, eye: Any) -> tuple[str, ...]:
    gallery = Gallery(folder, None, (Prompt("0", "", 0),))
    (row,) = detect(gallery, [eye], answers=Answers(folder / "answers.jsonl"))
    answer = row.found[eye.name]
    assert isinstance(answer, Detection)
    return answer.labels


@pytest.mark.extra("dev", "nudity")
def test_a_forged_answer_is_one_line_or_asked_again_and_never_believed(tmp_path: Path) -> None:
    eye = find_detector("nudenet/uda")
    made = Gallery.start(tmp_path / "g", None, [Prompt("0", "", 0)])
    from skimage import data

    made.put(made.prompts[0], Image.fromarray(data.astronaut()))
    kept = made.path / "answers.jsonl"
    true = seen(made.path, eye)
    (line,) = lines(made.path)
    assert len(line["found"]["boxes"]) == 1
    refused = 0
    for forged in forgeries(line):
        kept.write_text(json.dumps(forged) + "\n")
        try:
            assert seen(made.path, eye) == true, forged
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and "answers.jsonl, line 1" in str(error)
    assert refused > 300
    for text in ("[" * 200_000, "\xff", '{"id"', "[]", "null", '"a"'):
        kept.write_bytes(text.encode("latin-1") + b"\n")
        with pytest.raises(InputError, match=r"line 1 .*asked about again\.$"):
            seen(made.path, eye)


def edited(page: dict[str, Any], **found: Any) -> dict[str, Any]:
    page = copy.deepcopy(page)
    page["found"] |= found
    return page


def test_labels_that_do_not_follow_from_the_scores_are_refused(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "made", 1)
    unsee.score(folder, detectors=["emoji/object"])
    kept = folder / "answers.jsonl"
    (line,) = lines(folder)
    scores = line["found"]["scores"]
    (best,) = line["found"]["labels"]
    second = sorted(scores, key=lambda label: -scores[label])[1]
    other = {k: v for k, v in scores.items() if k != second}
    for forged in (
        edited(line, labels=[second]),
        edited(line, labels=[]),
        edited(line, labels=[best, second]),
        edited(line, labels=["dragonfly of glass"]),
        edited(line, scores=scores | {second: 0.99999}),
        edited(line, scores=other),
    ):
        kept.write_text(json.dumps(forged) + "\n")
        with pytest.raises(InputError, match="line 1 says that emoji/object sees .* was edited"):
            unsee.score(folder, detectors=["emoji/object"])
    kept.write_text(
        json.dumps(line) + "\n" + json.dumps(edited(line, scores=scores | {best: 1.0}))
    )
    assert unsee.score(folder, detectors=["emoji/object"]).images == 1  # the second has no end
    kept.write_text("".join(json.dumps(x) + "\n" for x in (line, edited(line, labels=[second]))))
    with pytest.raises(InputError, match="line 2 is not line 1's answer"):
        unsee.score(folder, detectors=["emoji/object"])


def test_edited_answers_end_an_audit_before_any_work(
    audited: Callable[..., Any], tmp_path: Path
) -> None:
    kept = tmp_path / "o/base/answers.jsonl"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}\n")
    with pytest.raises(InputError, match="line 1 lacks 'id'"):
        audited(Eye())
    assert not list(tmp_path.rglob("*.png"))


def test_a_folders_scores_come_back_from_their_file_and_forged_ones_do_not(
    tmp_path: Path,
) -> None:
    folder = pictures(tmp_path / "made")
    made = unsee.score(
        folder, detectors=[Eye()], metrics=["pixels/rmse"], reference=folder, concept="red"
    )
    file = folder / "score.json"
    assert FolderScore.load(file) == made
    page = json.loads(file.read_text())
    refused = 0
    for forged in forgeries(page):
        file.write_text(json.dumps(forged))
        try:
            FolderScore.load(file)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 500
    file.write_text("[" * 200_000)
    with pytest.raises(InputError, match="nested too deeply"):
        FolderScore.load(file)


# Blank images


def saved(image: Image.Image, kind: str, **settings: Any) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return kind.lower(), buffer.getvalue()


def is_blank(folder: Path, made: tuple[str, bytes]) -> bool:
    """Whether ``unsee.score`` leaves the image unscored for being blank."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    (folder / f"0.{made[0]}").write_bytes(made[1])
    found = unsee.score(folder, detectors=[Eye()])
    assert bool(found.blank) == any(reason.startswith("blank: ") for reason in found.reasons)
    assert bool(found.blank) == bool(found.holes)
    return bool(found.blank)


def flat(*colour: int, spread: int = 0, side: int = 40) -> Image.Image:
    """One colour, each channel of each pixel up to so many levels brighter."""
    more = np.random.default_rng(0).integers(0, spread + 1, (side, side, len(colour)))
    return Image.fromarray(np.clip(np.array(colour) + more, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (20, 30, 90), (220, 30, 30)])
def test_one_colour_is_unscored_also_with_the_noise_of_jpeg(
    colour: tuple[int, int, int], tmp_path: Path
) -> None:
    for spread in (0, 2):
        image = flat(*colour, spread=spread)
        assert is_blank(tmp_path / "f", saved(image, "PNG"))
        for quality in (30, 50, 75, 95):
            assert is_blank(tmp_path / "f", saved(image, "JPEG", quality=quality)), quality
    assert not is_blank(tmp_path / "f", saved(flat(100, 30, 90, spread=3), "PNG"))


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_an_image_that_varies_in_one_channel_alone_is_not_blank(
    channel: int, tmp_path: Path
) -> None:
    pixels = np.full((40, 40, 3), 90, np.uint8)
    pixels[:20, :, channel] = 120
    assert not is_blank(tmp_path / "f", saved(Image.fromarray(pixels), "PNG"))
    assert not is_blank(tmp_path / "f", saved(Image.fromarray(pixels), "JPEG", quality=75))


def test_what_is_wholly_transparent_is_unscored_and_the_rest_lies_on_white(tmp_path: Path) -> None:
    red, green, blue = noise(0).split()
    for hidden, blank in ((0, True), (1, False), (255, False)):
        alpha = Image.new("L", red.size, hidden)
        alpha.putpixel((5, 5), 255 if hidden else 0)
        image = Image.merge("RGBA", (red, green, blue, alpha))
        assert is_blank(tmp_path / "f", saved(image, "PNG")) == blank
    # White on nothing cannot be seen on a white page, whatever colour the rest once had
    image = Image.merge("RGBA", (red, green, blue, Image.new("L", red.size, 0)))
    image.paste((255, 255, 255, 255), (5, 5, 15, 15))
    assert is_blank(tmp_path / "f", saved(image, "PNG"))
    # A palette's transparency too
    paletted = Image.new("P", (8, 8), 0)
    paletted.putpalette([9, 9, 9, 200, 0, 0])
    paletted.putpixel((1, 1), 1)
    assert is_blank(tmp_path / "f", saved(paletted, "PNG", transparency=bytes([0, 0])))
    assert not is_blank(tmp_path / "f", saved(paletted, "PNG", transparency=bytes([0, 255])))


@pytest.mark.extra("dev")
def test_a_dim_photograph_and_a_faint_drawing_are_no_blank_images(tmp_path: Path) -> None:
    from PIL import ImageDraw
    from skimage import data

    photographs = (data.astronaut(), data.coffee())
    for dim in [Image.fromarray((photo * 0.05).astype(np.uint8)) for photo in photographs]:
        assert not is_blank(tmp_path / "f", saved(dim, "PNG"))
        assert not is_blank(tmp_path / "f", saved(dim, "JPEG", quality=75))
    drawing = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(drawing).ellipse((8, 8, 50, 50), outline=(252, 252, 252))
    assert not is_blank(tmp_path / "f", saved(drawing, "PNG"))
    ImageDraw.Draw(drawing).ellipse((8, 8, 50, 50), outline=(240, 240, 240))
    assert not is_blank(tmp_path / "f", saved(drawing, "JPEG", quality=75))


def test_a_blank_image_leaves_an_audit_incomplete(
    audited: Callable[..., Any], tmp_path: Path
) -> None:
    audited(Eye())
    made = Gallery.open(tmp_path / "o/erased")
    for prompt in made.prompts[:2]:
        Image.new("RGB", (16, 16)).save(made.image_path(prompt))
    report = compare(Gallery.open(tmp_path / "o/base"), made, [Concept("red")], detectors=[Eye()])
    (target,) = [c for c in report.outcomes[0].comparisons if c.role == "target"]
    assert (target.erased.n, target.erased.unscored) == (0, 2)
    assert report.coverage["erased"].blank == 2
    assert report.verdict.value == "incomplete" and report.exit_code == 1


Run = Callable[..., tuple[int, str, str]]


def test_score_exits_with_1_where_an_image_is_blank(run: Run, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "made")
    flat(0, 0, 0).save(folder / "black.png")
    code, out, _ = run("score", str(folder), "--detector", "emoji/object")
    assert code == 1 and "blank: of one colour" in " ".join(out.split())


# Labels that nobody can see


def test_a_misspelt_concept_is_an_error_before_any_work(run: Run, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "made")
    code, out, err = run(
        "score", str(folder), "--detector", "emoji/object", "--concept", "kitchen knif"
    )
    assert code == 2 and "Did you mean 'kitchen knife'?" in " ".join(err.split()), err
    assert not (folder / "score.json").exists() and not (folder / "answers.jsonl").exists()
    code, out, _ = run(
        "score", str(folder), "--detector", "emoji/object", "--concept", "Kitchen  Knife"
    )
    assert code == 0 and "of 6 images" in out


def test_a_label_of_the_table_that_nobody_can_see_is_an_error(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "made")
    (tmp_path / "t.csv").write_text("file,object,person\n0,gren,Nobody\n1,red,Nobody\n")
    with pytest.raises(InputError, match=r"named 'gren'. Did you mean 'green'"):
        unsee.score(folder, table=tmp_path / "t.csv", detectors=[Eye()])
    (tmp_path / "t.csv").write_text("file,object,person\n0,green,Nobody\n1,red,Nobody\n")
    assert (
        unsee.score(folder, table=tmp_path / "t.csv", detectors=[Eye()]).right["test/eye"].n == 2
    )


@pytest.mark.parametrize("wrong", ["target", "keep"])
def test_an_audit_of_a_label_that_nobody_can_see_ends_before_any_image(
    wrong: str, tiny_folder: Path, tmp_path: Path
) -> None:
    target, keep = ("rad", "green") if wrong == "target" else ("red", "gren")
    rows = [Prompt("0", "a", 0, {"object": target}), Prompt("1", "b", 1, {"object": keep})]
    rows.append(Prompt("2", "c", 2, {"style": "a style that nobody reads"}))
    erasure = unsee.erase(tiny_folder, Concept(target, phrases=("cat",)), check=False)
    named = target if wrong == "target" else keep
    with pytest.raises(InputError, match=f"label of test/eye is named '{named}'. Did you mean"):
        unsee.audit(
            tiny_folder, erasure, out=tmp_path / "o", suite=Suite("s", tuple(rows)),
            detectors=[Eye()], metrics=[],
        )  # fmt: skip
    assert not (tmp_path / "o").exists()


def test_a_detector_without_a_word_for_it_has_no_part_in_a_rate(tmp_path: Path) -> None:
    class Narrow(Eye):
        labels = ("red",)

    folder = pictures(tmp_path / "made")
    (tmp_path / "t.csv").write_text("file,object\n0,green\n1,red\n")
    found = unsee.score(
        folder, table=tmp_path / "t.csv", detectors=[Eye(), Narrow("test/narrow")], concept="blue"
    )
    assert list(found.seen) == ["test/eye"]
    assert {name: rate.n for name, rate in found.right.items()} == {
        "test/eye": 2, "test/narrow": 1,
    }  # fmt: skip


@pytest.mark.extra("nudity")
def test_every_nudenet_protocol_can_see_the_concept_nudity() -> None:
    from unsee.eval.detectors import DETECTORS, check_labels, says

    nudity = find_concept("nudity")
    names = [nudity.name, *nudity.phrases]
    for name in [d for d in DETECTORS if d.startswith("nudenet/") and d != "nudenet/person"]:
        eye = find_detector(name)
        assert says(eye, names) and not says(eye, ["violence"])
        check_labels(nudity.kind, names, [eye])
        with pytest.raises(InputError, match=f"No unsafe label of {name} is named 'nudty'. Did"):
            check_labels("unsafe", ["nudty"], [eye])


def test_every_label_of_the_emoji_suites_can_be_seen() -> None:
    from unsee.eval.rows import divide

    eyes = [find_detector(name) for name in ("emoji/object", "emoji/style")]
    for name in ("bomb", "noto"):
        concept = find_concept(name, model="emoji")
        divide([concept], find_suite("emoji", [concept]).prompts, eyes)
