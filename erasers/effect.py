"""Whether an erasure did anything, seen in the denoiser's own predictions."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..pipelines.erasure import Erasure
from ..pipelines.parts import Parts
from ..pipelines.text import Text
from ..prompts import Concept
from ..records import Effect, Interference, Moved

HARDLY = 0.1
"""A concept that moved less than this is hardly erased."""

WIDE = 0.5
"""Where what is kept moved more than this, on average over the concepts, much of it is gone.

Measured on the built-in model, as ``lab/effect_thresholds.py`` does it with draws of its own: UCE
of so many objects at once, three draws each, and how often the judge still saw the label in 24
images of objects that were not erased.

    objects    kept_moved       still seen
    1          0.05 to 0.12     71 of 72
    10         0.33 to 0.36     72 of 72
    30         0.69 to 0.72     58 of 72
    60         0.90 to 0.92     23 of 72
    100        0.96 to 0.97      5 of 72

All 34 animals at once: 0.60, and 18 of 24.
"""

GONE = 0.7
"""A concept that moved less than this may be drawn.

Measured on the built-in model: UCE of two objects, put on with weights from 0.3 to 1, and how
often the judge still saw the object in eight images, one a style.

    moved           still seen
    0.10 to 0.33    8, 8, 7 and 6 of 8
    0.44            4 of 8
    0.48            6 of 8
    0.61            2 of 8
    0.73            1 of 8
    0.92            0 of 8
"""

NEAR = 0.9
"""An anchor that is nearer to its concept than this may draw it.

Measured on the built-in model with 44 anchors of 13 objects, eight images each (an image a style);
``lab/effect_thresholds.py`` does it with a list of its own. All 12 anchors up to 0.38 drew the
concept in 8 of 8; "glass" for a wine glass (0.63) in 6; "ball" for a soccer ball (0.82) in 4;
"birthday" for a birthday cake and "shirt" for a T-shirt (0.75) in 1; "phone" for a mobile phone
(0.83) in none; and none of the 27 from 0.98 on in any.
"""


@torch.no_grad()
def effect(
    parts: Parts,
    erasure: Erasure,
    concepts: Sequence[Concept],
    *,
    seed: int = 0,
    samples: int = 2,
    most: int = 16,
) -> dict[str, Effect]:
    """How far the prediction on each concept went towards its anchor's, and on what is kept.

    With ε the base's prediction and ε′ the erased one's, at three points of the base's own
    trajectories under the concept c towards its anchor a:

        moved = Σ⟨ε′(c) − ε(c), ε(a) − ε(c)⟩ / Σ‖ε(a) − ε(c)‖²      0 is untouched, 1 is there
        kept_moved = √(Σ‖ε′(k) − ε(k)‖² / Σ‖ε(k) − ε(∅)‖²)       over what is kept, likewise
        anchor = ‖ε(a) − ε(c)‖ / ‖ε(c) − ε(∅)‖       the mean over three templates

    Args:
        samples: Trajectories a concept, and how many of its kept phrases are looked at. Several
            concepts that keep the same look at others each, evenly spread over all.
        most: How many concepts are looked at: of hundreds, these are evenly spread.

    Returns:
        For each such concept's name, how far it moved.
    """
    chosen = _spread(concepts, most)
    looks, near = {}, {}
    for i, concept in enumerate(chosen):
        near[concept.name] = _anchor(parts, concept, seed) if concept.anchor else None
        keep = _share(concept.keep, i, len(chosen), samples)
        looks[concept.name] = _look(parts, concept, keep, seed, samples)
    with erasure.applied(parts.pipe):
        seen = {name: look() for name, look in looks.items()}
    return {
        name: Effect(float(one.concept), one.kept_moved, near[name]) for name, one in seen.items()
    }


@torch.no_grad()
def together(
    parts: Parts,
    erasures: Sequence[tuple[Erasure, float]],
    *,
    seed: int = 0,
    samples: int = 2,
    most: int = 16,
) -> Interference:
    """How far concepts and what is kept move under several erasures, and under each alone.

    The measures are ``moved`` and, of each kept phrase by itself, ``kept_moved`` of ``effect``, at
    points of the trajectories of the concept that keeps it.

    Args:
        erasures: With their weights.
        samples: Trajectories a concept.
        most: How many concepts are looked at, and of each how many kept phrases, evenly spread.
    """
    pairs = _spread([(i, c) for i, (e, _) in enumerate(erasures) for c in e.record.concepts], most)
    going = {phrase for e, _ in erasures for c in e.record.concepts for phrase in c.phrases}
    # What one erasure keeps, another may be taking away
    keep = {c.name: _spread([k for k in c.keep if k not in going], most) for _, c in pairs}
    looks = [_look(parts, c, keep[c.name], seed, samples) for _, c in pairs]

    def seen(stack: Sequence[tuple[Erasure, float]]) -> list[_Seen]:
        with ExitStack() as on:
            for erasure, weight in stack:
                on.enter_context(erasure.applied(parts.pipe, weight))
            return [look() for look in looks]

    alone, all_ = [seen([one]) for one in erasures], seen(erasures)
    concepts: dict[str, Moved] = {}
    kept: dict[str, Moved] = {}
    for k, (own, concept) in enumerate(pairs):
        concepts[concept.name] = Moved(float(alone[own][k].concept), float(all_[k].concept))
        for j, phrase in enumerate(keep[concept.name]):
            apart = max(one[k].apart(j) for one in alone)
            if phrase not in kept or kept[phrase].together < all_[k].apart(j):
                kept[phrase] = Moved(apart, all_[k].apart(j))
    return Interference(concepts, kept)


def weakened(found: Interference) -> list[str]:
    """What erasures that are on together give reason to doubt, a line each."""
    lines = []
    for name, one in found.concepts.items():
        if one.together < GONE <= one.alone:
            share = round(one.together, 2) + 0.0  # never -0 %
            lines.append(
                f"{name!r} is less erased beside the others: the prediction moves "
                f"{share:.0%} of the way to its anchor's, and {one.alone:.0%} by its own "
                "erasure alone. Give it a greater weight, or erase them in one file."
            )
    damaged = {
        phrase: one for phrase, one in found.kept.items() if one.together > WIDE >= one.alone
    }
    if damaged:
        worst = sorted(damaged, key=lambda phrase: -damaged[phrase].together)
        named = ", ".join(f"{p!r} ({damaged[p].together:.0%})" for p in worst[:8])
        more = f" and {len(worst) - 8} more" if len(worst) > 8 else ""
        lines.append(
            f"Together the erasures move what must stay by more than {WIDE:.0%}, and none does "
            f"alone: {named}{more}. Give them smaller weights, or load fewer at once."
        )
    return lines


def doubts(found: Mapping[str, Effect], concepts: Sequence[Concept]) -> list[str]:
    """What an erasure's effect gives reason to doubt, a line each."""
    lines = []
    anchors = {concept.name: concept.anchor for concept in concepts}
    for name, one in found.items():
        if one.moved < HARDLY:
            lines.append(
                f"{name!r} is hardly erased: the prediction moved {one.moved:.0%} of the way to "
                "its anchor's. Try another preset, or name more phrases."
            )
        if one.anchor is not None and one.anchor < NEAR:
            lines.append(
                f"The anchor {anchors[name]!r} may draw {name!r} itself: it is only "
                f"{one.anchor:.0%} as far from it as no words at all are. Look at the base "
                "model's images of the anchor, or name another."
            )
    kept = [one.kept_moved for one in found.values() if one.kept_moved is not None]
    if kept and (mean := sum(kept) / len(kept)) > WIDE:
        lines.append(
            f"What must stay is damaged: the predictions on it moved by {mean:.0%}, and from "
            f"{WIDE:.0%} on much of it is no longer drawn. Erase fewer concepts at once, or take "
            "a gentler preset, and audit what is left."
        )
    return lines


class _Seen(NamedTuple):
    """What is seen of a concept once it is edited.

    Attributes:
        concept: The share of the way to its anchor's.
        shifts: Of each kept phrase, by how much its prediction moved, squared.
        scales: And how far it was from the empty prompt's, squared.
    """

    concept: Tensor
    shifts: list[Tensor]
    scales: list[Tensor]

    @property
    def kept_moved(self) -> float | None:
        if not self.shifts:
            return None
        return float((sum(self.shifts) / sum(self.scales)) ** 0.5)

    def apart(self, i: int) -> float:
        return float((self.shifts[i] / self.scales[i]) ** 0.5)


def _look(
    parts: Parts, concept: Concept, keep: Sequence[str], seed: int, samples: int
) -> Callable[[], _Seen]:
    """Looks at one concept as the pipeline is, and returns what does when it has been edited."""
    template = concept.templates[0]
    phrase = template.replace("{}", concept.phrases[0])
    kept = [template.replace("{}", phrase) for phrase in keep]
    prompts = [phrase, template.replace("{}", concept.anchor or ""), None, *kept]
    texts = parts.encode(prompts)
    points = _trajectory(parts, texts[:1], seed, samples)
    before = [_predicted(parts, points, texts[i : i + 1]) for i in range(len(texts))]

    def again() -> _Seen:
        # Encoded again: an erasure may listen to the text encoder, as SPM's transport does
        anew = parts.encode(prompts)
        looked = (0, *range(3, len(anew)))
        after = [_predicted(parts, points, anew[i : i + 1]) for i in looked]
        towards = before[1] - before[0]
        length = towards.square().sum().clamp_min(torch.finfo(towards.dtype).tiny)
        moved = ((after[0] - before[0]) * towards).sum() / length
        shifts = [(a - b).square().sum() for a, b in zip(after[1:], before[3:], strict=True)]
        return _Seen(moved, shifts, [(b - before[2]).square().sum() for b in before[3:]])

    return again


def _anchor(parts: Parts, concept: Concept, seed: int, samples: int = 4) -> float:
    """How far the anchor is from the concept, as the concept is from no words at all."""
    found = []
    for i, template in enumerate(concept.templates[:3]):
        said = [
            template.replace("{}", words) for words in (concept.phrases[0], concept.anchor or "")
        ]
        texts = parts.encode([*said, None])
        points = _trajectory(parts, texts[:1], seed + i, samples)
        ours, anchors, empty = (_predicted(parts, points, texts[k : k + 1]) for k in range(3))
        found.append(float((anchors - ours).norm() / (ours - empty).norm()))
    return sum(found) / len(found)


T = TypeVar("T")


def _spread(values: Sequence[T], count: int) -> Sequence[T]:
    return values[:: max(1, len(values) // count)][:count]


def _share(values: Sequence[T], turn: int, of: int, count: int) -> list[T]:
    """So many of the values for one turn, so that all turns together are evenly spread."""
    places = dict.fromkeys(
        (turn + of * i) * len(values) // (of * count) for i in range(count if values else 0)
    )
    return [values[place] for place in places]


def _predicted(parts: Parts, points: Sequence[tuple[Tensor, Tensor]], text: Text) -> Tensor:
    """The predictions at all points under one text, float64."""
    return torch.stack([parts.predict(x, t, text.expand(len(x))) for x, t in points]).double()


def _trajectory(parts: Parts, text: Text, seed: int, samples: int) -> list[tuple[Tensor, Tensor]]:
    """Three latents (samples, *latent_shape) on the way from noise, with their times."""
    noise = torch.randn(
        (samples, *parts.latent_shape()), generator=torch.Generator("cpu").manual_seed(seed)
    )
    schedule = parts.schedule(5)
    x = noise.to(text.first) * schedule.start
    rows, points = text.expand(samples), []
    for i, t in enumerate(schedule.times[:3]):
        points.append((x, t))
        x = schedule.step(i, parts.predict(x, t, rows), x)
    return points
