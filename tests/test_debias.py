"""Debiasing by votes: its arithmetic written out, and the loop on a real pipeline."""

from collections.abc import Sequence
from typing import Any

import numpy
import pytest
import torch

from unsee._errors import InputError
from unsee.erasers.debias import Debias
from unsee.pipelines import Erasure, parts_of
from unsee.prompts import Concept
from unsee.records import Debiased

HALVES = {"cat": 0.5, "dog": 0.5}
KNIFE = Concept("knife", keep=("hammer",))


def fit(
    pipe: Any, vote: Any, attributes: dict[str, float] = HALVES, seed: int = 0, **settings: Any
) -> Erasure:
    quick = Debias(**{"images": 4, "steps": 2, "rounds": 3, **settings})
    return quick.fit(parts_of(pipe), [KNIFE], attributes, vote, seed=seed)


def debiased(erasure: Erasure) -> Debiased:
    assert erasure.measured.debias is not None
    return erasure.measured.debias


def brightness(images: Sequence[Any]) -> list[float]:
    return [float(numpy.asarray(image).mean()) for image in images]


@pytest.mark.filterwarnings("ignore:After 3 rounds")
def test_each_round_is_an_edit_of_the_original_with_all_differences_so_far(pipe: Any) -> None:
    votes = iter(
        [
            ["cat", "cat", "cat", "cat"],
            ["cat", "cat", "cat", None],
            ["cat", "cat", "cat", "dog"],
            ["cat", "dog", "dog", "dog"],
        ]
    )
    erasure = fit(pipe, lambda images: next(votes), {"dog": 0.4, "cat": 0.6})
    found = debiased(erasure)
    assert [s["knife"]["cat"] for s in found.observed] == [1.0, 1.0, 0.75, 0.25]
    # The round that came nearest was the third: two edits of 0.4 each had gone before it.
    assert found.pushes["knife"] == pytest.approx({"dog": 0.8, "cat": -0.8})
    parts = parts_of(pipe)
    knife, dog, cat, hammer = (
        parts.encode([text]).first[0, parts.streams()[0].position(text)].double()
        for text in ("knife", "dog", "cat", "hammer")
    )
    v = knife + 0.8 * dog - 0.8 * cat
    for name, layer in parts.readers()["sequence"].layers.items():
        w = layer.weight.detach().double()
        left = 0.5 * w + torch.outer(w @ v, knife) + torch.outer(w @ hammer, hammer)
        right = torch.outer(knife, knife) + torch.outer(hammer, hammer)
        want = left @ torch.linalg.inv(right + 0.5 * torch.eye(len(knife)).double())
        a, b = (erasure.tensors[f"unet.{name}.lora_{side}.weight"].double() for side in "AB")
        torch.testing.assert_close(w + b @ a, want, rtol=0, atol=2e-5)


def test_the_votes_end_it_and_the_pipeline_is_left_as_it_was(pipe: Any) -> None:
    before = {name: t.clone() for name, t in pipe.unet.state_dict().items()}
    asked = []

    def vote(images: Sequence[Any]) -> list[str]:
        asked.append(brightness(images))
        # The edit shows in the images, and the detector takes the change for the dog's.
        return ["cat"] * 4 if len(asked) == 1 else ["cat", "dog", "dog", "cat"]

    erasure = fit(pipe, vote)
    assert len(asked) == 2 and asked[0] != asked[1]
    assert debiased(erasure).pushes["knife"] == {"cat": -0.5, "dog": 0.5}
    after = pipe.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], t) for name, t in before.items())


@pytest.mark.filterwarnings("ignore:After 2 rounds")
def test_every_image_of_every_round_has_a_seed_of_its_own(pipe: Any) -> None:
    def drawn(seed: int) -> list[bytes]:
        found: list[bytes] = []

        def vote(images: Sequence[Any]) -> list[str]:
            found.extend(image.tobytes() for image in images)
            return ["cat"] * 4

        # So strong a ridge that all rounds have the base's weights: only seeds tell images apart.
        fit(pipe, vote, rounds=2, ridge=1e12, seed=seed)
        return found

    first = drawn(0)
    assert len(first) == len(set(first)) == 12
    # The rounds go on from the seed that was given, one by one
    assert drawn(4)[:8] == first[4:]


def test_a_share_that_can_be_seen_is_reached(pipe: Any) -> None:
    def draw(text: str) -> Any:
        seeds = [torch.Generator().manual_seed(i) for i in range(16)]
        images = pipe([text] * 16, generator=seeds, num_inference_steps=2).images
        return numpy.stack([numpy.asarray(image, dtype=float) for image in images])

    towards = (draw("dog") - draw("cat")).mean(0)
    most = numpy.quantile((draw("knife") * towards).sum((1, 2, 3)), 0.85)

    def vote(images: Sequence[Any]) -> list[str]:
        return ["dog" if (numpy.asarray(i) * towards).sum() > most else "cat" for i in images]

    erasure = fit(pipe, vote, images=16, rounds=8, step=5, tokens="tail", tolerance=0.125)
    first, *_, last = (s["knife"]["dog"] for s in debiased(erasure).observed)
    assert first < 0.3 and 0.375 <= last <= 0.625
    assert debiased(erasure).pushes["knife"]["dog"] > 0


@pytest.mark.parametrize(
    "attributes, answers, match",
    [
        ({"cat": 1.0}, [], "two attributes or more"),
        ({"cat": 0.5, "dog": 0.6}, [], "add up to 1"),
        (HALVES, ["cat"] * 3, "3 answers for 4 images"),
        (HALVES, ["cat", "dogs", "dog", "cat"], "Did you mean 'dog'"),
        (HALVES, [None] * 4, "saw none of cat, dog in 4 images of 'knife'"),
    ],
)
def test_shares_and_votes_that_cannot_be_are_refused(
    pipe: Any, attributes: dict[str, float], answers: list[str], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        fit(pipe, lambda images: answers, attributes)


@pytest.mark.parametrize(
    "settings", [{"rounds": 0}, {"images": 0}, {"tolerance": -1.0}, {"ridge": 0.0}]
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        Debias(**settings)
