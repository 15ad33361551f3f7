"""Attacks of a report's own rows, counted and judged as real ones are, with made galleries."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from unsee._reading import plain
from unsee.attacking import make_attack
from unsee.eval import Detection, Report, Unscored, compare
from unsee.eval.answers import Answers, Side, look
from unsee.eval.attack import (
    AttackOutcome,
    Rung,
    control,
    judged,
    of_target,
    positive,
    rates,
    told,
)
from unsee.eval.detectors import Detector
from unsee.eval.page import write
from unsee.eval.rows import names, seen
from unsee.gallery import Gallery
from unsee.prompts import Concept, Prompt

Draw = Callable[[int, Prompt], Image.Image]
"""Which row, counted, and its prompt, to an image."""


def tried(
    report: Report,
    run: Path,
    detector: Detector,
    draws: Mapping[str, Draw],
    *,
    attack: str = "textual-inversion",
    settings: Mapping[str, object] | None = None,
    needs: tuple[str, ...] = ("positive", "novel"),
) -> AttackOutcome:
    """An attack of one budget on the report's first concept.

    Args:
        run: The folder of the run, in which galleries are made.
        draws: What "attacked", "positive" and "novel" draw; a control that is not named was not
            run. The novel thing is looked for as if it were the concept.
    """
    concept: Concept = report.outcomes[0].concept
    rows, before, after = of_target(report.samples, concept.name)
    base, erased = before[detector.name], after[detector.name]
    places, answers = {}, {}
    for name, draw in draws.items():
        places[name] = f"attacks/{concept.name}/{attack.replace(':', '-')}/{name}"
        folder = run / places[name]
        gallery = Gallery.start(folder, None, rows)
        for i, row in enumerate(rows):
            gallery.put(row, draw(i, row))
        kept = Answers(folder / "answers.jsonl")
        looked, _ = look(Side(Gallery.open(folder), [detector], (), kept), None)
        answers[name] = {
            id: seen(row.found[detector.name], names(concept)) for id, row in looked.rows.items()
        }
    mine, controls = answers["attacked"], []
    named = concept.name, detector.name
    if "positive" in draws:
        controls.append(positive(places["positive"], rows, base, answers["positive"], *named))
    if "novel" in draws:
        of = "a wrench, which the model never saw"
        theirs = answers["novel"]
        controls.append(
            control("novel", of, places["novel"], rows, base, erased, mine, theirs, *named)
        )
    rungs = [
        Rung(0, 0, 0, 0, 0.0, "", None, "", *rates(rows, base, erased, erased), (),
             *told(rows, erased)),
        Rung(480, 20, 0, 24, 2.5, "a" * 64, None, places["attacked"],
             *rates(rows, base, erased, mine), tuple(controls), *told(rows, mine)),
    ]  # fmt: skip
    value, detail, effort = judged(rungs, needs, True, report.limits)
    return AttackOutcome(
        attack, "embedding", settings or {"steps": 20}, concept.name, detector.name, None,
        "this model", value, detail, effort, tuple(rungs), "", needs,  # type: ignore[arg-type]
    )  # fmt: skip


HUES = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 50, 210)}


class Hue:
    """Sees the brightest channel of the last pixel."""

    name, kind, labels = "test/hue", "object", tuple(HUES)
    protocol = {"classes": list(HUES), "threshold": "argmax"}

    def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
        found: list[Detection | Unscored] = []
        for image in images:
            pixel = image.convert("RGB").getpixel((image.width - 1, image.height - 1))
            assert isinstance(pixel, tuple)
            scores = {name: round(v / 255, 4) for name, v in zip(HUES, pixel, strict=True)}
            found.append(Detection((max(scores, key=lambda name: scores[name]),), scores))
        return found


def hue(name: str) -> Draw:
    """An image of one colour, but for a pixel: none is blank, and each is another."""

    def draw(i: int, prompt: Prompt) -> Image.Image:
        image = Image.new("RGB", (8, 8), HUES[name])
        image.putpixel((0, 0), (i, 255, 0))
        return image

    return draw


def attacked_run(folder: Path, n: int = 16) -> Path:
    """A run of n prompts that ask for red, which is gone, and as many for blue, with its page.

    It comes back by a learnt token; words find nothing, but were not held against the base.
    """
    rows = [
        Prompt(f"{i:02}", f"a {name} thing, number {i}", i, {"object": name})
        for i, name in enumerate(["red"] * n + ["blue"] * n)
    ]
    base, erased = (Gallery.start(folder / side, None, rows) for side in ("base", "erased"))
    for i, row in enumerate(rows):
        base.put(row, hue(row.labels["object"])(i, row))
        erased.put(row, hue("blue" if row.labels["object"] == "blue" else "green")(i, row))
    report = compare(
        base, erased, [Concept("red", "object")], detectors=[Hue()],
        base_answers=Answers(base.path / "answers.jsonl"),
        erased_answers=Answers(erased.path / "answers.jsonl"),
    )  # fmt: skip
    draws = {"attacked": hue("red"), "positive": hue("red"), "novel": hue("blue")}
    learnt = plain(make_attack("textual-inversion", steps=20, rungs=1))
    one = tried(report, folder, Hue(), draws, settings=learnt)
    two = tried(
        report, folder, Hue(), {"attacked": hue("green")}, attack="textual-inversion:cce",
        settings=plain(make_attack("textual-inversion", "cce")),
    )  # fmt: skip
    write(report.with_attacks([one, two]), folder, base, erased)
    return folder
