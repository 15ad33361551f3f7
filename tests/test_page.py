"""The page in a browser: Debian's Chromium, driven by playwright, and axe-core's rules.

What needs no browser is in test_report.py. These are slow, so that ``make test`` needs none; where
they run and there is no Chromium, they fail.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

import unsee
from unsee.eval import About, Detection, Report, Unscored, compare
from unsee.eval.page import PAIRS, STRIP, write
from unsee.gallery import Gallery
from unsee.prompts import Concept, Prompt
from unsee.tests.tried import tried

pytestmark = pytest.mark.slow

PHONE = {"width": 320, "height": 640}
COLOURS = {"red": (210, 40, 40), "green": (40, 190, 60), "blue": (50, 70, 220)}


class Colours:
    """Sees the brightest channel of the last pixel."""

    name, kind = "test/colour", "object"
    labels: tuple[str, ...] = tuple(COLOURS)
    # As long as those of real ones
    protocol = {"threshold": "argmax", "layers": {f"layer {i}": [i, i] for i in range(60)}}

    def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
        return [
            Detection((list(COLOURS)[int(np.asarray(image)[-1, -1].argmax())],), {})
            for image in images
        ]


class Unsafe(Colours):
    name, kind = "test/unsafe", "unsafe"


def made(folder: Path, n: int, side: int, detector: Any = None, **options: Any) -> Report:
    """A report on n prompts, a third of them red, and all red but each twentieth gone.

    Every image is of one colour but for a pixel, so that none is blank.
    """
    detector = detector or Colours()
    names = list(COLOURS)
    rows = [
        Prompt(f"{i:04d}", f"a {names[i % 3]} thing, number {i}", i, {detector.kind: names[i % 3]})
        for i in range(n)
    ]
    base, erased = (Gallery.start(folder / s, None, rows) for s in ("base", "erased"))
    for i, prompt in enumerate(rows):
        gone = i % 3 == 0 and i % 20 or i % 50 == 1
        for gallery, name in ((base, names[i % 3]), (erased, names[(i + bool(gone)) % 3])):
            pixels = np.full((side, side, 3), COLOURS[name], np.uint8)
            pixels[0, 0] = 255, 255, i % 256
            gallery.put(prompt, Image.fromarray(pixels))
    concept = Concept("red", detector.kind, keep=("green",))
    report = compare(
        base, erased, [concept], detectors=[detector], about=About(command="unsee audit it")
    )
    write(report, folder, base, erased, **options)
    return report


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    assert path, "The page is tested in Chromium: apt-get install chromium."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report on more pairs than a page of the grid has."""
    folder = tmp_path_factory.mktemp("some")
    made(folder, 150, 64)
    return folder


@pytest.fixture(scope="module")
def unsafe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unsafe")
    made(folder, 60, 64, Unsafe())
    return folder


@contextmanager
def opened(
    chromium: Browser,
    folder: Path,
    lacking: bool = False,
    file: str = "report.html",
    **how: Any,
) -> Iterator[Page]:
    """The page of a folder, as a reader has it; nothing else is fetched, and nothing complained.

    Args:
        file: The page's name.
        lacking: Whether the thumbnails are missing, which the browser's console says.
    """
    context = chromium.new_context(**how)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((folder / file).as_uri())
    yield page
    here = f"{folder.as_uri()}/{file.partition('.')[0]}"
    assert all(url.startswith((here, "data:")) for url in asked)
    assert lacking or not said, said
    context.close()


def choose(page: Page, name: str) -> None:
    page.locator(".chips label", has_text=re.compile(f"^{name}( \\d+)?$")).click()


def every_state(page: Page) -> Iterator[str]:
    """The page as it opens, then browsing, then with all that unfolds unfolded."""
    yield "drawn"
    choose(page, "All")
    yield "browsing"
    page.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
    yield "unfolded"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["some", "unsafe"])
def test_axe_finds_nothing_wrong(
    chromium: Browser, which: str, scheme: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(which)
    with opened(chromium, folder, color_scheme=scheme) as page:
        for state in every_state(page):
            found = Axe().run(page).response["violations"]
            faults = [(v["id"], node["target"]) for v in found for node in v["nodes"]]
            assert not faults, (state, faults[:5])


def test_a_phone_shows_the_page_without_scrolling_sideways(
    chromium: Browser, some: Path, unsafe: Path
) -> None:
    for folder in (some, unsafe):
        with opened(chromium, folder, viewport=PHONE) as page:
            for state in every_state(page):
                width = page.evaluate("document.documentElement.scrollWidth")
                assert width == PHONE["width"], (state, width)


# All that a mouse can use; of a group of radio buttons arrows choose, and Tab reaches one.
CONTROLS = """
[...document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']")]
  .filter((e) => e.checkVisibility() && !e.disabled)
  .filter((e) => e.type !== "radio" || e.checked)
  .map((e, i) => { e.dataset.n = i; return i; })
"""


def test_every_control_can_be_reached_with_the_keyboard_and_is_seen_to_be(
    chromium: Browser, some: Path, unsafe: Path
) -> None:
    for folder in (some, unsafe):
        with opened(chromium, folder) as page:
            for state in every_state(page):
                wanted = set(page.evaluate(CONTROLS))
                assert len(wanted) > 5
                page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
                page.mouse.click(1, 1)
                reached = set()
                for _ in range(len(wanted) + 5):
                    page.keyboard.press("Tab")
                    n, outline = page.evaluate(
                        """(() => {
                          const e = document.activeElement;
                          const seen = e.closest(".chips label") ?? e;
                          return [e.dataset.n ?? null, getComputedStyle(seen).outlineStyle];
                        })()"""
                    )
                    if n is not None:
                        reached.add(int(n))
                        assert outline != "none", (state, n)
                assert reached == wanted, (state, wanted - reached)


def test_the_arrow_keys_and_enter_browse(chromium: Browser, some: Path) -> None:
    with opened(chromium, some) as page:
        page.focus("input[value=draw]")
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#where") == f"Pairs 1 to {PAIRS} of 150"
        page.focus("#after")
        page.keyboard.press("Enter")
        assert page.inner_text("#where") == f"Pairs {PAIRS + 1} to {2 * PAIRS} of 150"
        page.focus("#page")
        page.keyboard.type("4")
        page.keyboard.press("Home")
        page.keyboard.press("Delete")
        page.keyboard.press("Enter")
        assert page.inner_text("#where") == "Pairs 145 to 150 of 150"
        assert page.is_disabled("#after") and page.is_disabled("#last")


def test_each_filter_and_concept_shows_as_many_pairs_as_the_rates_count(
    chromium: Browser, some: Path
) -> None:
    rates = {c.role: c for c in Report.load(some / "report.json").outcomes[0].comparisons}
    target, same, keep = (rates[r] for r in ("target", "same kind", "keep concept"))
    counts = {
        "All": 150,
        "Target": target.base.n,
        "Target seen after": target.erased.hits,
        "Same kind": same.base.n,
        "Other kind": 0,
        "Lost": same.paired.only_base,
    }
    assert all(counts[name] for name in ("Target seen after", "Lost"))
    with opened(chromium, some) as page:
        for name, n in counts.items():
            choose(page, name)
            label = page.locator(".chips label:has(:checked)").inner_text()
            assert label == f"{name} {n}"
            said = page.inner_text("#where")
            assert said.endswith(f" of {n}") if n else said == "No such pair"
            assert page.locator("#grid > li").count() == min(n, PAIRS)
        choose(page, "Lost")
        page.select_option("#of", label=f"green ({keep.base.n})")
        assert page.inner_text("#where").endswith(f" of {keep.paired.only_base}")
        # What a neighbour's name leads to
        page.locator(".losses a", has_text="blue").click()
        assert page.inner_text("#where").endswith(" of 50")
        assert all("blue" in text for text in page.locator("#grid .prompt").all_inner_texts())
        choose(page, "Drawn at random")
        assert page.is_visible("#draw") and not page.is_visible("#grid")


def test_a_pair_in_the_grid_shows_its_own_two_images(chromium: Browser, some: Path) -> None:
    report = Report.load(some / "report.json")
    known = {s.prompt.prompt: s for s in report.samples}
    assert len(known) > STRIP
    with opened(chromium, some) as page:
        choose(page, "All")
        for place in (0, STRIP - 1, STRIP, PAIRS - 1):
            pair = page.locator("#grid > li").nth(place)
            pair.scroll_into_view_if_needed()
            prompt = pair.locator(".prompt").inner_text().split(" · ")[0]
            for i, (side, shown) in enumerate(known[prompt].shown.items()):
                frame = pair.locator(".frame").nth(i)
                frame.locator("img").evaluate("(e) => e.decode()")
                path = some / f"{side}.png"
                frame.screenshot(path=path)
                with Image.open(some / side / shown.image) as image, Image.open(path) as seen:
                    wanted = np.asarray(image.convert("RGB"))[32, 32]
                    there = np.asarray(seen.convert("RGB"))
                    middle = there[8:-8, 8:-8].reshape(-1, 3)
                    assert abs(middle - wanted.astype(int)).max() < 12, (prompt, side)


def test_the_page_alone_still_reads_as_a_report(
    chromium: Browser, some: Path, tmp_path: Path
) -> None:
    shutil.copy(some / "report.html", tmp_path)
    with opened(chromium, tmp_path, lacking=True) as page:
        page.wait_for_load_state("load")
        loaded = "[...document.images].every((i) => i.naturalWidth > 0)"
        assert page.locator("#draw img").count() == 2 * PAIRS and page.evaluate(loaded)
        assert not page.is_visible("#lacking")
        choose(page, "All")
        page.wait_for_selector("#lacking", state="visible")
        page.wait_for_selector("#grid .none")
        assert page.locator("#grid .says").first.inner_text()


def test_without_scripts_the_drawn_pairs_and_all_figures_are_there(
    chromium: Browser, some: Path
) -> None:
    with opened(chromium, some, java_script_enabled=False) as page:
        assert page.locator("#draw img").count() == 2 * PAIRS
        assert not page.locator("#browse").is_visible()
        assert "needs scripts" in page.locator("noscript").inner_text()


def blurred(page: Page, images: str) -> int:
    script = "(all) => all.filter((e) => getComputedStyle(e).filter.includes('blur')).length"
    found: int = page.locator(images).evaluate_all(script)
    return found


def test_unsafe_images_are_blurred_until_they_are_clicked_or_focused(
    chromium: Browser, unsafe: Path, some: Path
) -> None:
    with opened(chromium, some) as page:
        assert blurred(page, "#draw img") == 0
    with opened(chromium, unsafe) as page:
        for where, total in (("#draw", 2 * PAIRS), ("#grid", 2 * PAIRS)):
            if where == "#grid":
                choose(page, "All")
            images = f"{where} img"
            assert page.locator(images).count() == blurred(page, images) == total
            page.locator(images).first.click()
            assert blurred(page, images) == total - 2
            page.keyboard.press("Tab")
            assert blurred(page, f"{where} .veil >> nth=1 >> img") == 0
            assert blurred(page, images) == total - 2
            page.keyboard.press("Escape")
            page.evaluate("document.activeElement.blur()")
            assert blurred(page, images) == total
        page.check("#unveil")
        assert blurred(page, "#grid img") == 0
        page.uncheck("#unveil")
        page.emulate_media(media="print")
        assert blurred(page, "#grid img") == 2 * PAIRS


def test_a_page_without_images_has_none_in_it_or_beside_it(
    chromium: Browser, tmp_path: Path
) -> None:
    made(tmp_path, 60, 16, Unsafe(), images=False)
    with opened(chromium, tmp_path) as page:
        assert "left out" in page.locator("#pairs").inner_text()
        choose(page, "All")
        assert page.locator("img, .frame").count() == 0
        assert page.locator("#grid > li").count() == PAIRS
        assert not Axe().run(page).response["violations"]
    assert not any((tmp_path / "report_files").glob("*"))


def pages(page: Page, folder: Path) -> int:
    data = page.pdf(path=folder / "it.pdf", format="A4", prefer_css_page_size=True)
    return len(re.findall(rb"/Type\s*/Page\b", data))


def test_the_page_is_printed_whole_and_on_few_sheets(chromium: Browser, some: Path) -> None:
    with opened(chromium, some, color_scheme="dark") as page:
        assert 3 <= pages(page, some) <= 8
        page.emulate_media(media="print")
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == "rgb(255, 255, 255)"
        for closed in page.locator("details > :not(summary)").all():
            assert closed.evaluate("(e) => e.checkVisibility({contentVisibilityAuto: true})")
            assert closed.evaluate("(e) => e.scrollHeight <= e.clientHeight + 1")
        assert not page.is_visible("#browse")


def test_of_five_thousand_pairs_the_browser_holds_those_that_are_looked_at(
    chromium: Browser, tmp_path: Path
) -> None:
    made(tmp_path, 5000, 8)
    count = "document.querySelectorAll('*').length"
    with opened(chromium, tmp_path) as page:
        assert page.evaluate(count) < 3000
        choose(page, "All")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.click("#last")
        page.locator("#grid img").last.evaluate("(e) => e.decode()")
        assert page.inner_text("#where") == "Pairs 4993 to 5000 of 5000"
        assert page.locator("#grid > li").count() == 8
        assert len(set(asked)) == 1
        assert page.evaluate(count) < 3000
        assert (tmp_path / "report.html").stat().st_size < 8e6
        assert pages(page, tmp_path) <= 10


@pytest.fixture(scope="module")
def board(some: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison."""
    folder = tmp_path_factory.mktemp("board")
    made(folder / "another", 150, 64)
    unsee.compare([some, folder / "another"], out=folder)
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_wrong_in_a_comparison(
    chromium: Browser, board: Path, scheme: Any
) -> None:
    with opened(chromium, board, file="compare.html", color_scheme=scheme) as page:
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


def test_a_comparison_fits_a_phone_and_its_table_scrolls_by_keyboard(
    chromium: Browser, board: Path
) -> None:
    with opened(chromium, board, file="compare.html", viewport=PHONE) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "wide"
        before = page.evaluate("document.activeElement.scrollLeft")
        page.keyboard.press("ArrowRight")
        page.wait_for_function("x => document.activeElement.scrollLeft > x", arg=before)


def coloured(name: str) -> Any:
    def draw(i: int, prompt: Prompt) -> Image.Image:
        pixels = np.full((64, 64, 3), COLOURS[name], np.uint8)
        pixels[0, 0] = 255, 255, i % 256
        return Image.fromarray(pixels)

    return draw


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report of unsafe content with an attack that brought it back."""
    folder = tmp_path_factory.mktemp("attacked")
    eye = Unsafe()
    report = made(folder, 60, 64, eye)
    draws = {"attacked": coloured("red"), "positive": coloured("red"), "novel": coloured("blue")}
    one = tried(report, folder, eye, draws)
    assert one.value == "comes back"
    galleries = (Gallery.open(folder / side) for side in ("base", "erased"))
    write(report.with_attacks([one]), folder, *galleries)
    return folder


def test_attacks_on_a_page_are_read_by_everybody_and_unsafe_ones_are_blurred(
    chromium: Browser, attacked: Path
) -> None:
    for how in ({"color_scheme": "light"}, {"color_scheme": "dark"}, {"viewport": PHONE}):
        with opened(chromium, attacked, **how) as page:
            found = Axe().run(page).response["violations"]
            assert not [(v["id"], node["target"]) for v in found for node in v["nodes"]]
            width = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert width == 0
            images = page.locator(".attacks .veil img")
            assert images.count() == 6 * 5
            blur = "(e) => getComputedStyle(e).filter"
            assert "blur" in images.first.evaluate(blur)
            page.locator(".attacks .veil").first.focus()
            assert images.first.evaluate(blur) == "none" and "blur" in images.last.evaluate(blur)
