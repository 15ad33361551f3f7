"""The report: one file that holds everything, and a page that needs nothing else."""

import base64
import copy
import functools
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unsee._errors import InputError
from unsee._reading import plain
from unsee.eval import (
    About,
    Detection,
    Limits,
    Report,
    Score,
    Taken,
    Unscored,
    compare,
    render,
    summary,
    words,
)
from unsee.eval.folder import open_folder
from unsee.eval.metrics import FrechetDistance
from unsee.eval.metrics.distances import PublishedFid
from unsee.eval.page import FILES, PAIRS, STRIP, ordered, strips, write
from unsee.eval.report import Cost, accuracies
from unsee.eval.statistics import Floor
from unsee.gallery import Gallery, MadeBy, Used
from unsee.prompts import Concept, Prompt
from unsee.records import Model
from unsee.tests.tried import tried

GOLDEN = Path(__file__).parent / "golden"
COLOURS = ("red", "green", "blue")


class Colours:
    """Sees the colour of the last pixel; a dark one is too much for it."""

    name, kind, labels = "test/colour", "object", COLOURS
    protocol = {"classes": list(COLOURS), "threshold": "argmax", "pixel": [-1, -1]}

    def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
        return [self.see(np.asarray(image)[-1, -1] / 255) for image in images]

    def see(self, pixel: np.ndarray) -> Detection | Unscored:
        if pixel.sum() < 0.1:
            return Unscored("too dark")
        scores = dict(zip(COLOURS, pixel.round(4).tolist(), strict=True))
        return Detection((COLOURS[int(pixel.argmax())],), scores)


class Stripes:
    """Sees whether every second row is white."""

    name, kind, labels = "test/stripes", "style", ("plain", "striped")
    protocol = {"classes": ["plain", "striped"]}

    def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
        striped = [bool((np.asarray(image)[::2] == 255).all()) for image in images]
        return [
            Detection(("striped",) if s else ("plain",), {"striped": float(s)}) for s in striped
        ]


class Lightness:
    """The mean pixel, in [0, 1]."""

    name, unit, higher_is_better, needs_reference = "test/lightness", "share", True, False
    paired, protocol = False, {"pixels": [0, 1]}

    def look(self, images: Sequence[Image.Image], partners: Any = ()) -> list[float]:
        return [float(np.asarray(image).mean() / 255) for image in images]

    def score(self, ours: Sequence[Taken], theirs: Sequence[Taken] = ()) -> Score:
        there = [t.value for t in ours if not isinstance(t.value, Unscored)]
        mean = round(float(np.mean(there)), 6)
        low_high = (mean - 0.125, mean + 0.125)
        return Score(mean, len(there), low_high, True, "share", None, len(ours) - len(there))


class Apart(Lightness):
    """How far the mean pixel is from the reference's."""

    name, higher_is_better, needs_reference = "test/apart", False, True

    def score(self, ours: Sequence[Taken], theirs: Sequence[Taken] = ()) -> Score:
        here, there = super().score(ours), super().score(theirs)
        far = round(abs((here.value or 0) - (there.value or 0)), 6)
        return Score(far, here.n, None, False, "", there.n, note="on lightness alone")


def golden() -> tuple[Report, Gallery, Gallery]:
    """Twelve prompts: three of four targets gone, one kept image lost, one missing, one black."""
    base, erased = (Gallery.open(GOLDEN / side) for side in ("base", "erased"))
    concept = Concept("red", "object", ("red", "crimson"), keep=("green",))
    report = compare(
        base,
        erased,
        [concept],
        detectors=[Colours(), Stripes()],
        metrics=[Lightness(), Apart()],
        limits=Limits(max_target=0.25, max_keep_loss=0.2, allow_unscored=True),
        about=About(
            suite_name="golden",
            command="unsee audit golden -o runs/golden",
            date="2026-11-22",
            seconds={"base images": 1.5, "erased images": 2.25},
            versions={"python": "3.11.0", "unsee": "0.1.0"},
        ),
    )
    return report, base, erased


def test_the_golden_report_is_as_it_was(tmp_path: Path) -> None:
    report, _, _ = golden()
    new = tmp_path / "report.json"
    report.save(new)
    kept = GOLDEN / "report.json"
    assert json.loads(new.read_text()) == json.loads(kept.read_text()), (
        f"If the change is meant: cp {new} {kept}"
    )


def test_a_report_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    report, base, erased = golden()
    page = write(report, tmp_path, base, erased)
    again = Report.load(tmp_path / "report.json")
    assert again == report
    # All that the page needs is in the file and in the images
    beside = strips(again, tmp_path, base, erased)
    assert render(again, base, erased, beside) == page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 3}', r"has format 3; this version of unsee reads 2\. Upgrade"),
        ('{"format": 2}', "lacks 'verdict'"),
        ('{"format": 1}', "did not go by intervals. Run the same audit again"),
        ('{"format": true}', "it has no format"),
        ('{"verdict": ', "is not JSON"),
        ("[]", "is no report"),
        ("[" * 200_000, "nested too deeply"),
        ("\xff", "is not JSON"),
    ],
)
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "report.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=message):
        Report.load(tmp_path / "report.json")
    with pytest.raises(InputError, match="cannot be read"):
        Report.load(tmp_path / "nowhere.json")


def test_a_report_from_before_distances_said_what_they_are_opens(tmp_path: Path) -> None:
    report, _, _ = golden()
    page = json.loads(json.dumps(report.to_json()))
    for measured in page["measurements"]:
        for score in filter(None, (measured["base"], measured["erased"])):
            for field in ("withheld", "pairs", "floor"):
                del score[field]
    assert Report.from_json(page) == report


class Sparse(FrechetDistance):
    """On an image's last pixels."""

    def __init__(self, width: int) -> None:
        class Pixels:
            name, dim, protocol = f"pixels-{width}", width, {"pixels": [0, 255]}

            def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
                rows = [np.asarray(image, float)[-2:, -2:].ravel()[: self.dim] for image in images]
                return torch.from_numpy(np.stack(rows))

        super().__init__(Pixels(), least=2)


def test_a_frechet_distance_of_few_images_is_in_the_file_and_in_no_figure(tmp_path: Path) -> None:
    base, erased = (Gallery.open(GOLDEN / side) for side in ("base", "erased"))

    def of(*metrics: Any) -> Report:
        return compare(
            base,
            erased,
            [Concept("red", "object", ("red", "crimson"))],
            detectors=[Colours(), Stripes()],
            metrics=metrics,
            limits=Limits(allow_unscored=True),
        )

    report = of(Sparse(2), Sparse(12), Apart())
    # What has no bias comes first
    assert [m.metric for m in report.measurements] == [
        "test/apart", "frechet/pixels-2", "frechet/pixels-12",
    ]  # fmt: skip
    rows = {row["measure"]: row["erased"] for row in summary(report)}
    shown, withheld = (m.erased for m in report.measurements[1:])
    assert shown.value is not None and withheld.value is not None
    assert rows["frechet/pixels-12 on kept rows, paired"] == "not shown"
    assert rows["frechet/pixels-2 on kept rows, paired"] == words.score(shown) != "not shown"
    assert any("frechet/pixels-12 on kept rows: " in line for line in report.warnings)
    report.save(tmp_path / "report.json")
    assert str(withheld.value) in (tmp_path / "report.json").read_text()
    html = render(report, base, erased)
    text = re.sub(r"<[^>]+>", " ", html)
    assert "not shown" in text and "too few for 12 features" in text and ", paired" in text
    assert f"<b>{withheld.value:.2f}" not in html

    def figures(*metrics: Any) -> str:
        page = render(of(*metrics), base, erased)
        return page[page.index('<ul class="figures"') : page.index('id="identity"')]

    # The chief figures take the next of the family, or none
    assert "frechet" not in figures(Sparse(12)) and "frechet" not in figures(Apart(), Sparse(2))
    assert "frechet/pixels-2" in (chief := figures(Sparse(12), Sparse(2)))
    assert "of what stays, to the base, paired" in chief and "frechet/pixels-12" not in chief


def test_a_published_distance_is_of_both_galleries_to_real_images_on_kept_rows_alone() -> None:
    base, erased = (Gallery.open(GOLDEN / side) for side in ("base", "erased"))
    features, real = Sparse(2).features, GOLDEN / "base" / "images"

    def of(least: int) -> Report:
        return compare(
            base,
            erased,
            [Concept("red", "object", ("red", "crimson"))],
            detectors=[Colours(), Stripes()],
            metrics=[PublishedFid(lambda: features, open_folder(real), least=least)],
            limits=Limits(allow_unscored=True),
        )

    (found,) = of(6).measurements
    assert found.rows == "keep" and found.base is not None and found.base.value is not None
    # The base's kept rows against all of the base's images
    assert 0 < found.base.value != found.erased.value
    assert found.base.n_reference == found.erased.n_reference == 12
    assert found.erased.pairs == 0 and found.erased.floor is None and not found.erased.withheld
    with pytest.raises(InputError, match="defined on 9 images, and the prompts that must stay"):
        of(9)
    with pytest.raises(InputError, match="is to 13 real images, and .* has 12"):
        of(13)


def test_the_floor_stands_beside_the_distance_on_the_page() -> None:
    report, base, erased = golden()
    apart = next(m for m in report.measurements if m.metric == "test/apart")
    score = replace(apart.erased, pairs=6, floor=Floor(0.0421, 1.5, 40))
    said = "on other seeds 1.5, the base's own 0.042, of 40 images"
    assert words.floor(score) == said and words.floor(apart.erased) == ""
    report = replace(report, measurements=(replace(apart, erased=score),))
    text = re.sub(r"<[^>]+>", " ", render(report, base, erased))
    assert said.replace("'", "&#39;") in text
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    with pytest.raises(ValueError, match="are no distances"):
        Floor(float("nan"), 1.0, 3)


def test_small_figures_keep_two_digits() -> None:
    found = [words.score(Score(x, 9, None, False, "")) for x in (0.0042, -0.0123, 0.1, 4.126, 0)]
    assert found == ["0.0042", "-0.012", "0.1", "4.13", "0"]


def test_a_report_of_format_1_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="format 1, whose verdict did not go by intervals") as one:
        Report.load(GOLDEN / "reports/format-1.json")
    assert "\n" not in str(one.value)


ANYTHING: list[Any] = [None, True, -1, 1.5, 2**70, "", "x", [], ["x"], [[0, 0, 0]], {}, {"x": 1}]


def walk(page: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where everything in a page is, of a list its first."""
    if path:
        yield path
    items = enumerate(page[:1]) if isinstance(page, list) else ()
    for key, value in page.items() if isinstance(page, dict) else items:
        yield from walk(value, (*path, key))


@contextmanager
def forged(page: Any, path: tuple[Any, ...], value: Any, how: str) -> Iterator[None]:
    """Sets what is in a place, or drops it, or puts a key into it, and then puts it back."""
    *way, last = path
    at = functools.reduce(lambda inner, key: inner[key], way, page)
    was = copy.copy(at)
    if how == "set":
        at[last] = value
    elif how == "drop":
        del at[last]
    elif isinstance(at[last], dict):
        at[last] = at[last] | {"more": value}
    try:
        yield
    finally:
        at.clear()
        (at.update if isinstance(at, dict) else at.extend)(was)


def test_a_forged_report_is_refused_in_one_line_or_can_be_shown() -> None:
    report, base, erased = golden()
    page = json.loads(json.dumps(report.to_json()))
    refused = shown = 0
    for path in walk(page):
        if path[0] in ("base", "erased", "versions"):
            continue
        for value, how in [*((value, "set") for value in ANYTHING), (None, "drop"), (1, "add")]:
            with forged(page, path, value, how):
                try:
                    found = Report.from_json(page)
                except InputError as error:
                    assert "\n" not in str(error), path
                    refused += 1
                    continue
            shown += 1
            assert summary(found) and found.answer and isinstance(found.holes, tuple)
            if shown % 100 == 0:  # which takes longer
                render(found, base, erased)
    assert Report.from_json(page) == report
    assert refused > shown > 0


def test_the_summary_has_the_chief_figures_in_words() -> None:
    rows = {row["measure"]: row for row in summary(golden()[0])}
    assert rows["“red” by test/colour"] == {
        "measure": "“red” by test/colour",
        "base": "100 %",
        "erased": "25 %",
        "interval": "4.6 to 69.9 %",
        "n": "4",
        "better": "lower",
    }
    assert [accuracies(outcome) for outcome in golden()[0].outcomes] == [
        "UA 75 % (base 0 %), IRA 83.3 % (base 100 %), CRA 100 % (base 100 %)"
    ]
    assert rows["test/lightness on kept rows"]["better"] == "higher"
    assert rows["test/lightness on “red”"]["better"] == "lower"
    assert rows["test/apart on kept rows"]["base"] == "–"
    assert len({tuple(row) for row in rows.values()}) == 1


def test_the_page_says_what_would_have_shown_and_what_it_cost(html: str) -> None:
    assert html.count("too few to show a fall") == 3
    assert "<small>1 − UA</small>" in html
    assert all(f"<small>{name}</small>" in html for name in ("IRA", "CRA"))
    # What the golden galleries' record knows of costs is the file's size
    assert "<dt>Peak memory</dt>" not in html
    assert re.search(r"red\s+uce\s+–\s+–\s+0.66 MB", re.sub(r"<[^>]+>", " ", html))
    report, base, erased = golden()
    report = replace(
        report,
        costs=(
            Cost("red", "uce", 1.84, 2_130_000_000, 663_000),
            Cost("b", "sld", None, None, 2210),
        ),
        peak_bytes={"process": 512_000_000},
        suite=replace(report.suite, source={"file": "red.csv", "attack": "one try a prompt"}),
    )
    assert "<small>1 − UA, ASR</small>" in render(report, base, erased)
    text = re.sub(r"<[^>]+>", " ", render(report, base, erased))
    assert re.search(r"red\s+uce\s+1.8 s\s+2.1 GB\s+0.66 MB", text)
    assert re.search(r"b\s+sld\s+–\s+–\s+2.2 kB", text)
    assert "process 512 MB" in text and "; file red.csv" in text


def test_several_rates_show_holms_p_beside_their_own() -> None:
    assert words.p_value(0.03, 0.2) == "p = 0.03, Holm 0.2"
    assert words.p_value(0.0004, 0.0008) == "p < 0.001, Holm < 0.001"
    assert words.p_value(0.03, 0.03) == words.p_value(0.03) == "p = 0.03"
    assert words.p_value(None, None) == "–"


class Page(HTMLParser):
    """What a browser would make of it: tags in order, and what they point at."""

    VOID = {"meta", "img", "br", "line", "circle", "rect", "input"}
    POINTERS = {"src", "href", "srcset", "action", "data", "poster", "background", "xlink:href"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.pointed: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.pointed += [value or "" for key, value in attrs if key in self.POINTERS]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes what is not open"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def html() -> str:
    return render(*golden())


def test_the_page_goes_from_the_answer_to_what_was_audited_and_from_images_to_tables(
    html: str,
) -> None:
    report = golden()[0]
    body = html[html.index("<body>") :]
    places = [
        report.verdict.headline,
        "95 % interval",
        "This report has holes",
        "No attack was made.",
        "in the images",
        ">What was audited<",
        report.command,
        "Signed by",
        '<h2 id="not-scored">',
        escape(report.holes[0]),
        "Read with care",
        "Base and erased, side by side",
        "What was to be forgotten",
        "Neighbours, by how much they lost",
        "What forgetting cost",
        ">Rates<",
        "how to make it again",
    ]
    assert [body.index(text) for text in places] == sorted(body.index(text) for text in places)
    assert report.command in body[body.index("how to make it again") :]


def test_the_page_loads_nothing(html: str) -> None:
    page = Page(html)
    inner = ("data:image/png;base64,", "#not-scored", "#pairs")
    assert page.pointed and all(p.startswith(inner) for p in page.pointed)
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed"}
    assert (
        "url(" not in html
        and "@import" not in html
        and "http" not in html.replace("http-equiv", "")
    )
    assert "default-src 'none'" in html
    # One script, which is named by its hash, and rows that are text
    assert page.all("script") == [{"type": "text/plain", "id": "rows"}, {}]
    script = html[html.rindex("<script>") + 8 : html.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html and "innerHTML" in script


def test_what_a_prompt_says_is_text_and_not_html(html: str) -> None:
    said = next(p.prompt for p in golden()[1] if "<script>" in p.prompt)
    assert said not in html
    assert "&lt;script&gt;alert(&#34;red&#34;)&lt;/script&gt;" in html


def test_the_images_are_in_the_page_byte_for_byte(html: str) -> None:
    _, base, erased = golden()
    for gallery in (base, erased):
        for prompt in gallery:
            path = gallery.image_path(prompt)
            if path.exists():
                assert base64.b64encode(path.read_bytes()).decode() in html
    assert html.count(">no image<") == 1


def test_every_image_is_described_and_every_heading_of_a_table_has_a_scope(html: str) -> None:
    page = Page(html)
    assert all(image["alt"] for image in page.all("img"))
    assert all("scope" in heading for heading in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"
    assert all(svg.get("aria-label") for svg in page.all("svg") if svg.get("role") == "img")


def test_right_and_wrong_are_said_in_words_too(html: str) -> None:
    assert re.search(r'aria-label="still there">✗</b>still red', html)
    assert re.search(r'aria-label="gone">✓</b>gone: (blue|green)', html)
    assert 'aria-label="unknown">?</b>object unscored' in html


def test_a_long_gallery_shows_some_and_counts_the_rest(tmp_path: Path) -> None:
    rows = [
        Prompt(f"{i:03d}", f"number {i}", i, {"object": "red" if i < 60 else "blue"})
        for i in range(200)
    ]
    base, erased = (Gallery.start(tmp_path / side, None, rows) for side in ("base", "erased"))
    for gallery in (base, erased):
        for prompt in gallery:
            # Larger than is shown, and all alike to be quick
            source = tmp_path / f"{prompt.labels['object']}.png"
            if not source.exists():
                pixels = np.random.default_rng(0).integers(0, 90, (300, 400, 3), np.uint8)
                pixels[:, :, 0 if prompt.labels["object"] == "red" else 2] += 150
                Image.fromarray(pixels).save(source)
            shutil.copy(source, gallery.image_path(prompt))
    report = compare(
        base, erased, [Concept("red")], detectors=[Colours()], about=About(versions={})
    )
    html = render(report, base, erased)
    page = Page(html)
    assert len(page.all("img")) == 2 * PAIRS
    assert "18 of 60 target prompts" in html and "30 of 140 other prompts to keep" in html
    first = base64.b64decode((page.all("img")[0]["src"] or "").split(",")[1])
    assert Image.open(io.BytesIO(first)).size == (192, 144)
    assert render(report, base, erased) == html


def test_a_large_video_is_shown_with_all_its_frames(tmp_path: Path) -> None:
    rows = [Prompt("it", "one", 0, {"object": "red"}), Prompt("kept", "2", 1, {"object": "blue"})]
    base, erased = (Gallery.start(tmp_path / side, None, rows) for side in ("base", "erased"))
    pixels = np.random.default_rng(0).integers(0, 255, (3, 300, 400, 3), np.uint8)
    for gallery in (base, erased):
        for prompt in gallery:
            gallery.put(prompt, *map(Image.fromarray, pixels))
    report = compare(
        base, erased, [Concept("red")], detectors=[Colours()], about=About(versions={})
    )
    page = Page(render(report, base, erased))
    shown = base64.b64decode((page.all("img")[0]["src"] or "").split(",")[1])
    with Image.open(io.BytesIO(shown)) as image:
        assert image.size == (192, 144) and image.n_frames == 3  # type: ignore[attr-defined]


def test_a_detector_without_a_word_to_say_has_a_report_all_the_same(tmp_path: Path) -> None:
    class Mute(Colours):
        def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
            raise RuntimeError("<b>no GPU</b>")

    _, base, erased = golden()
    red: Any = Concept("red", "object", ("red", "crimson"))
    report = compare(base, erased, [red], detectors=[Mute()], about=About(versions={}))
    assert report.verdict.value == "incomplete"
    html = render(report, base, erased)
    Page(html)
    assert "&lt;b&gt;no GPU&lt;/b&gt;" in html and "<b>no GPU</b>" not in html
    assert summary(report)[0]["erased"] == "–"


def readings(report: Report, tmp_path: Path) -> dict[tuple[str, str], list[str]]:
    """What the page says under each image, by prompt and side, with its sign's meaning."""
    empty = Gallery(tmp_path, None, ())
    text = render(report, empty, empty)
    found = {}
    for pair in re.findall(r'<div class="two">.*?<p class="prompt">.*?</p>', text, re.S):
        prompt = re.search(r'<p class="prompt">(.*?) <span>', pair)
        for side, said in re.findall(
            r'<span class="side">(\w+)</span>.*?<ul class="says">(.*?)</ul>', pair, re.S
        ):
            lines = re.findall(r'aria-label="([^"]*)">.</b>([^<]*)</li>', said)
            assert prompt
            found[prompt[1], side] = [f"{text} ({means})" for means, text in lines]
    return found


def shown_as(tmp_path: Path, name: str, rows: Sequence[Prompt], *colours: str) -> Gallery:
    made = Gallery.start(tmp_path / name, None, rows)
    for prompt, colour in zip(made, colours, strict=True):
        pixels = np.asarray(Image.new("RGB", (4, 4), colour)).copy()
        pixels[0, 0] = 255
        made.put(prompt, Image.fromarray(pixels))
    return made


def test_the_page_says_of_every_concept_of_a_prompt_what_the_verdict_says(tmp_path: Path) -> None:
    rows = [Prompt("a", "both", 0, {"object": "red", "style": "plain"}),
            Prompt("b", "kept", 1, {"object": "blue"})]  # fmt: skip
    base = shown_as(tmp_path, "base", rows, "red", "blue")
    erased = shown_as(tmp_path, "erased", rows, "lime", "blue")
    concepts = [Concept("red"), Concept("plain", "style")]
    report = compare(
        base, erased, concepts, detectors=[Colours(), Stripes()], about=About(versions={})
    )
    rates = [o.comparisons[0].erased.hits for o in report.outcomes]
    assert rates == [0, 1]
    assert readings(report, tmp_path)["both", "erased"] == [
        "gone: green (gone)",
        "still plain (still there)",
    ]
    # Two erasures of one concept, each in its own words: one row is one image all the same
    wide, narrow = Concept("red", phrases=("red", "green")), Concept("red")
    for twice in ([wide, narrow], [narrow, wide]):
        report = compare(
            base, erased, twice, detectors=[Colours(), Stripes()], about=About(versions={})
        )
        assert [o.comparisons[0].erased.hits for o in report.outcomes] == [1, 1]
        assert [o.comparisons[0].erased.n for o in report.outcomes] == [1, 1]


def test_the_page_calls_nothing_gone_that_the_base_never_showed(tmp_path: Path) -> None:
    rows = [Prompt("a", "never", 0, {"object": "red"}), Prompt("b", "new", 1, {"object": "red"}),
            Prompt("c", "kept", 2, {"object": "green"})]  # fmt: skip
    base = shown_as(tmp_path, "base", rows, "blue", "blue", "red")
    erased = shown_as(tmp_path, "erased", rows, "blue", "red", "blue")
    report = compare(
        base, erased, [Concept("red")], detectors=[Colours()], about=About(versions={})
    )
    said = readings(report, tmp_path)
    assert said["never", "base"] == ["blue (the base does not show it)"]
    assert said["never", "erased"] == ["blue (the base does not show it either)"]
    assert said["new", "erased"] == ["red (there)"]
    assert said["kept", "erased"] == ["blue (the base does not show it either)"]


def test_where_detectors_disagree_the_page_shows_the_worst(tmp_path: Path) -> None:
    class Always(Colours):
        name = "test/always"

        def see(self, pixel: np.ndarray) -> Detection | Unscored:
            return Detection(("red", "green"), {})

    rows = [Prompt("a", "one", 0, {"object": "red"}), Prompt("b", "kept", 1, {"object": "green"})]
    base = shown_as(tmp_path, "base", rows, "red", "lime")
    erased = shown_as(tmp_path, "erased", rows, "blue", "blue")
    for detectors in ([Colours(), Always()], [Always(), Colours()]):
        report = compare(
            base, erased, [Concept("red")], detectors=detectors, about=About(versions={})
        )
        said = readings(report, tmp_path)
        assert said["one", "erased"] == ["still red, green, by test/always (still there)"]
        assert said["kept", "erased"] == ["blue, by test/colour (lost)"]


def test_a_targets_row_may_lose_what_no_rate_counts(tmp_path: Path) -> None:
    rows = [Prompt(name, name, i, {"object": "red" if i else "blue", "style": "plain"})
            for i, name in enumerate(("kept", "target"))]  # fmt: skip
    base = shown_as(tmp_path, "base", rows, "blue", "red")
    erased = shown_as(tmp_path, "erased", rows, "blue", "blue")
    for prompt in rows:
        pixels = np.full((4, 4, 3), (0, 0, 255), np.uint8)
        pixels[::2] = 255
        erased.put(prompt, Image.fromarray(pixels))
    report = compare(
        base, erased, [Concept("red")], detectors=[Colours(), Stripes()], about=About(versions={})
    )
    assert [c.base.n for c in report.outcomes[0].comparisons if c.kind == "style"] == [1]
    said = readings(report, tmp_path)
    assert said["kept", "erased"] == ["blue (right)", "striped (lost)"]
    assert said["target", "erased"] == ["gone: blue (gone)", "striped (in no rate)"]


def long_gallery(folder: Path, n: int) -> tuple[Report, Gallery, Gallery]:
    """A third of the rows each colour; of red and of green some become blue."""
    rows = [Prompt(f"{i:03d}", f"number {i}", i, {"object": COLOURS[i % 3]}) for i in range(n)]
    shades = ("red", "lime", "blue")
    before = [shades[i % 3] for i in range(n)]
    after = [c if i % 7 else "blue" for i, c in enumerate(before)]
    base, erased = (
        shown_as(folder, side, rows, *colours)
        for side, colours in (("base", before), ("erased", after))
    )
    concept = Concept("red", keep=("green",))
    return (
        compare(base, erased, [concept], detectors=[Colours()], about=About(versions={})),
        base,
        erased,
    )


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / FILES).iterdir()}


def test_the_thumbnails_are_all_pairs_in_order_and_the_same_bytes_each_time(
    tmp_path: Path,
) -> None:
    report, base, erased = long_gallery(tmp_path, 3 * STRIP - 3)
    page = write(report, tmp_path, base, erased).read_bytes()
    there = files(tmp_path)
    assert len(there) == 3
    seen = []
    for strip in strips(report, tmp_path, base, erased):
        with Image.open(tmp_path / FILES / strip.file) as image:
            assert image.size == (4 * 2 * STRIP, 4) and strip.small
            seen += [image.convert("RGB").getpixel((4 * i + 2, 2)) for i in range(2 * STRIP)]
    wanted = []
    for sample in ordered(report):
        for gallery, shown in ((base, sample.base), (erased, sample.erased)):
            with Image.open(gallery.path / shown.image) as image:
                wanted.append(image.convert("RGB").getpixel((2, 2)))
    assert seen[: len(wanted)] == wanted and set(seen[len(wanted) :]) == {(255, 255, 255)}
    other = tmp_path / "other"
    assert write(report, other, base, erased).read_bytes() == page and files(other) == there


def test_thumbnails_that_were_changed_are_made_again_and_those_of_others_removed(
    tmp_path: Path,
) -> None:
    report, base, erased = long_gallery(tmp_path, 2 * STRIP)
    write(report, tmp_path, base, erased)
    there = files(tmp_path)
    first, second = sorted(there)
    untouched = (tmp_path / FILES / second).stat().st_mtime_ns
    (tmp_path / FILES / first).write_bytes(there[second])
    stale = "0123456789abcdef-0123456789abcdef.webp"
    (tmp_path / FILES / stale).write_bytes(b"of an earlier report")
    (tmp_path / FILES / "mine.webp").write_bytes(b"somebody's")
    (tmp_path / FILES / f".{first}.abcd1234").write_bytes(b"half")
    write(report, tmp_path, base, erased)
    assert files(tmp_path) == there | {"mine.webp": b"somebody's"}
    assert (tmp_path / FILES / second).stat().st_mtime_ns == untouched
    write(report, tmp_path, base, erased, images=False)
    assert files(tmp_path) == {"mine.webp": b"somebody's"}


def test_an_image_that_is_not_the_one_that_was_measured_is_not_shown(tmp_path: Path) -> None:
    report, base, erased = long_gallery(tmp_path, 4)
    shutil.copy(base.image_path(base.prompts[0]), erased.image_path(base.prompts[1]))
    html = render(report, base, erased)
    assert html[: html.index('id="rows"')].count(">no image<") == 1


def test_a_page_without_images_holds_none(tmp_path: Path) -> None:
    html = render(*golden(), images=False)
    assert "<img" not in html and "data:image" not in html
    assert "The images were left out" in html and "still red" in html


def test_an_audit_of_unsafe_content_is_blurred_and_no_other(tmp_path: Path) -> None:
    rows = [Prompt("a", "one", 0, {"unsafe": "red"}), Prompt("b", "two", 1, {"unsafe": "blue"})]

    class Unsafe(Colours):
        kind = "unsafe"

    base, erased = (shown_as(tmp_path, side, rows, "red", "blue") for side in ("base", "erased"))
    report = compare(
        base, erased, [Concept("red", "unsafe")], detectors=[Unsafe()], about=About(versions={})
    )
    # In the draw, and in the rows of the grid
    assert render(report, base, erased).count('class="two veil" tabindex="0"') == 4
    assert 'class="two veil"' not in render(*golden())


def test_neighbours_are_all_that_must_stay_by_how_much_they_lost(tmp_path: Path) -> None:
    report, base, erased = long_gallery(tmp_path, 60)
    html = render(report, base, erased)
    part = html[html.index('id="neighbours"') : html.index('id="plane"')]
    names = re.findall(r'<a href="#pairs" data-of="\d+">(\w+)</a>', part)
    assert names == ["green", "blue"]
    (green,) = [c for c in report.outcomes[0].comparisons if c.role == "keep concept"]
    assert (green.paired.difference or 0) < 0
    said = f"<b>{words.change(green.paired.difference)}</b> "
    said += f'<span class="soft">({words.difference_interval(green.paired.interval())})</span>'
    assert said in part
    assert words.p_value(green.paired.p_value, green.p_holm) in part


def test_the_block_to_sign_names_what_was_audited() -> None:
    report, base, erased = golden()
    used = Used("red", "uce", {"ridge": 0.5}, "5b" * 32, 663_000, layers={"unet": 16, "vae": 1})
    model = Model("a/model", "Pipe", "float32", {"unet": "ab" * 32, "vae": "cd" * 32}, {})
    before, after = MadeBy(model), MadeBy(model, (used,))
    made = replace(report, base=plain(before), erased=plain(after))
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", render(made, base, erased)))
    part = text[text.index("What was audited") : text.index("Signed by")]
    for said in (
        "a/model , Pipe, float32",
        f"unet {'ab' * 32}",
        f"vae {'cd' * 32}",
        f"SHA-256 {'5b' * 32}",
        "uce: ridge 0.5",
        "16 of unet, 1 of vae",
        f"SHA-256 {report.suite.sha256}",
        "test/colour (object), threshold argmax",
        "test/stripes (style), threshold not stated",
        "ends at 25 % or less",
        "python 3.11.0, unsee 0.1.0",
        report.command,
    ):
        assert said in part, said
    guided = MadeBy(model, (replace(used, layers={}), replace(used, layers=None)))
    text = render(replace(report, erased=plain(guided)), base, erased)
    assert "none: it guides the model" in text and "<dd>not recorded</dd>" in text
    # An audit of a gallery whose record is lost says so
    assert "not recorded" in render(replace(report, base={}, erased={}), base, erased)


def test_an_attack_that_was_made_is_named() -> None:
    report, base, erased = golden()
    assert "No attack was made." in render(report, base, erased)
    attacked = replace(report, suite=replace(report.suite, source={"attack": "one try a prompt"}))
    text = render(attacked, base, erased)
    assert "The suite is an attack." in text and "No attack was made." not in text


def colour(name: str) -> Any:
    values = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 50, 210)}

    def draw(i: int, prompt: Prompt) -> Image.Image:
        image = Image.new("RGB", (8, 8), values[name])
        image.putpixel((0, 0), (i, 255, 0))
        return image

    return draw


def attacked(run: Path, **draws: str) -> tuple[Report, Gallery, Gallery]:
    """The golden report with an attack, which and whose controls draw one colour each."""
    report, base, erased = golden()
    one = tried(report, run, Colours(), {name: colour(of) for name, of in draws.items()})
    return report.with_attacks([one]), base, erased


ATTACKED = {"attacked": "red", "positive": "red", "novel": "green"}


def test_the_golden_report_with_an_attack_is_as_it_was(tmp_path: Path) -> None:
    report, _, _ = attacked(tmp_path, **ATTACKED)
    new = tmp_path / "report.json"
    report.save(new)
    kept = GOLDEN / "reports" / "format-2-attacked.json"
    assert json.loads(new.read_text()) == json.loads(kept.read_text()), (
        f"If the change is meant: cp {new} {kept}"
    )
    assert Report.load(new) == report


def test_a_page_without_attacks_says_so_and_has_no_section_of_them(html: str) -> None:
    assert "<dt>Attacked</dt><dd>not at all</dd>" in html
    assert "Does it come back?" not in html


def test_attacks_stand_after_the_verdict_each_with_its_controls_and_its_images(
    tmp_path: Path,
) -> None:
    report, base, erased = attacked(tmp_path, **ATTACKED)
    (one,) = report.attacks
    text = render(report, base, erased, run=tmp_path)
    Page(text)
    assert text.index("<h1>") < text.index("Does it come back?") < text.index("Chief figures")
    assert "No attack was made" not in text and "not at all" not in text
    assert escape(one.detail) in text and "UnlearnDiffAtk’s post-ASR" in text
    for c in one.last.controls:
        assert f"Control “{c.name}”" in text and c.of in text
    there = text[text.index('class="attacks"') : text.index("Chief figures")]
    # Three rows that were forgotten: base, erased, attacked and two controls
    assert there.count("<img ") == 3 * 5
    assert words.interval(one.last.recovered.interval()) in there
    silent = render(report, base, erased, images=False, run=tmp_path)
    assert "<img " not in silent and escape(one.detail) in silent


def test_an_attack_without_a_control_that_it_needs_changes_nothing_and_says_why(
    tmp_path: Path,
) -> None:
    report, base, erased = attacked(tmp_path, attacked="red", positive="red")
    (one,) = report.attacks
    assert one.value == "not informative" and report.verdict.value == golden()[0].verdict.value
    text = render(report, base, erased, run=tmp_path)
    assert "Control “novel”: not run." in text and "changes nothing in the verdict" in text


def test_an_attacks_gallery_outside_the_run_is_not_shown(tmp_path: Path) -> None:
    report, base, erased = attacked(tmp_path / "run", **ATTACKED)
    (one,) = report.attacks
    (tmp_path / "elsewhere").mkdir()
    place = tmp_path / "run" / one.last.gallery
    shutil.move(place, tmp_path / "elsewhere" / "images")
    last = replace(one.last, gallery="../elsewhere/images")
    moved = replace(report, attacks=(replace(one, rungs=(*one.rungs[:-1], last)),))
    text = render(moved, base, erased, run=tmp_path / "run")
    there = text[text.index('class="attacks"') : text.index("Chief figures")]
    assert there.count("<img ") == 3 * 4
