"""What an erasure moved: laws of the figures, and what they give reason to doubt."""

import dataclasses
import warnings
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from unsee import Concept, erase
from unsee.erasers.effect import doubts, effect
from unsee.pipelines import load_pipeline, parts_of
from unsee.prompts.emoji import world
from unsee.records import Effect

BOMB = Concept("bomb", anchor="cat", keep=("dog", "van gogh"))


@pytest.mark.filterwarnings("ignore:The anchor 'cat'")
def test_half_an_erasure_moves_everything_half_as_far(pipe: Any) -> None:
    whole = erase(pipe, BOMB, keep_scale=1e-6, check=False)

    def moved(share: float) -> Effect:
        tensors = {
            name: t * share if name.endswith("lora_B.weight") else t
            for name, t in whole.tensors.items()
        }
        assert tensors.keys() == whole.tensors.keys() and any("lora_B" in name for name in tensors)
        part = dataclasses.replace(whole, tensors=tensors)
        return effect(parts_of(pipe), part, [BOMB])["bomb"]

    # So small that the predictions are linear in it: the square of one would be a quarter
    one, half = moved(0.02), moved(0.01)
    assert one.kept_moved and half.kept_moved
    assert half.kept_moved / one.kept_moved == pytest.approx(0.5, rel=0.05)
    assert half.moved / one.moved == pytest.approx(0.5, rel=0.05)
    # How near the anchor is, is the base's and no matter of the erasure
    assert half.anchor == one.anchor


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_its_figures_are_the_formulas_on_the_bases_own_trajectories(pipe: Any) -> None:
    concept = dataclasses.replace(BOMB, templates=("a {}", "{} photo", "the {}", "in {}"))
    erasure = erase(pipe, concept, seed=3)
    found = (erasure.measured.effect or {})["bomb"]

    def predictions(prompt: str, points: Any) -> Tensor:
        given = pipe.tokenizer([prompt], padding="max_length", return_tensors="pt")
        with torch.no_grad():
            text = pipe.text_encoder(given.input_ids)[0]
            rows = [pipe.unet(x, t, encoder_hidden_states=text).sample for x, t in points]
        return torch.stack(rows).double()

    def trajectories(prompt: str, seed: int, samples: int) -> list[Any]:
        """Three points each, without guidance, by DDIM of five steps."""
        noise = torch.randn(samples, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        points = []
        for x in noise.split(1):
            scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
            scheduler.set_timesteps(5)
            for t in scheduler.timesteps[:3]:
                points.append((x, t))
                x = scheduler.step(predictions(prompt, [(x, t)])[0].float(), t, x).prev_sample
        return points

    points = trajectories("a bomb", 3, 2)
    prompts = {name: f"a {name}" for name in ("bomb", "cat", "dog", "van gogh")} | {"": ""}
    before = {name: predictions(text, points) for name, text in prompts.items()}
    with erasure.applied(pipe):
        after = {name: predictions(text, points) for name, text in prompts.items()}
    way = before["cat"] - before["bomb"]
    moved = ((after["bomb"] - before["bomb"]) * way).sum() / (way * way).sum()
    assert found.moved == pytest.approx(float(moved), rel=1e-3)
    shift = sum((after[k] - before[k]).square().sum() for k in ("dog", "van gogh"))
    scale = sum((before[k] - before[""]).square().sum() for k in ("dog", "van gogh"))
    assert found.kept_moved == pytest.approx(float(shift / scale) ** 0.5, rel=1e-3)
    nearness = []
    for i, template in enumerate(("a {}", "{} photo", "the {}")):
        own = trajectories(template.format("bomb"), 3 + i, 4)
        c, a, nothing = (
            predictions(text, own) for text in (*map(template.format, ("bomb", "cat")), "")
        )
        nearness.append(float((a - c).norm() / (c - nothing).norm()))
    assert found.anchor == pytest.approx(sum(nearness) / 3, rel=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_seed_draws_the_noise_that_the_effect_is_seen_in(pipe: Any) -> None:
    first, again, other = (erase(pipe, BOMB, seed=seed) for seed in (1, 1, 2))
    assert {name: t.tolist() for name, t in first.tensors.items()} == {
        name: t.tolist() for name, t in other.tensors.items()
    }
    seen = [(e.measured.effect or {})["bomb"] for e in (first, again, other)]
    assert seen[0] == seen[1]
    for field in ("moved", "kept_moved", "anchor"):
        assert getattr(seen[0], field) != getattr(seen[2], field), field


def test_only_an_anchor_in_words_has_a_distance(pipe: Any) -> None:
    for anchor, wanted in ((None, False), ("", False), ("cat", True)):
        concept = dataclasses.replace(BOMB, anchor=anchor)
        erasure = erase(pipe, concept, check=False)
        seen = effect(parts_of(pipe), erasure, [concept])["bomb"]
        assert (seen.anchor is not None) == wanted
        assert seen.anchor is None or seen.anchor > 0


def test_an_anchors_distance_is_the_mean_over_three_templates_in_noise_of_their_own(
    pipe: Any,
) -> None:
    erasure = erase(pipe, BOMB, check=False)

    def anchor(*templates: str, seed: int = 0) -> float:
        concept = dataclasses.replace(BOMB, templates=templates)
        found = effect(parts_of(pipe), erasure, [concept], seed=seed)["bomb"].anchor
        assert found is not None
        return found

    each = [anchor("{}", seed=seed) for seed in (5, 6, 7)]
    assert anchor("{}", "{}", "{}", seed=5) == pytest.approx(sum(each) / 3)
    assert anchor("{}", "{}", "{}", "a {}", seed=5) == pytest.approx(sum(each) / 3)
    assert len(set(each)) == 3


@pytest.mark.parametrize(
    "found, said",
    [
        ([Effect(0.9, 0.4, 0.95)], []),
        ([Effect(0.9, None)], []),
        ([Effect(0.09, 0.1)], ["hardly erased: the prediction moved 9%"]),
        ([Effect(0.9, 0.1, 0.82)], ["The anchor 'cat' may draw '0' itself: it is only 82%"]),
        ([Effect(0.9, 0.6)], ["What must stay is damaged: the predictions on it moved by 60%"]),
        ([Effect(0.9, 0.6), Effect(0.9, 0.2), Effect(0.9, None)], []),
        ([Effect(0.9, 0.8), Effect(0.0, 0.4)], ["'1' is hardly erased", "moved by 60%"]),
    ],
)
def test_what_is_doubtful_is_said(found: list[Effect], said: list[str]) -> None:
    concepts = [Concept(f"{i}", anchor="cat") for i in range(len(found))]
    lines = doubts({c.name: one for c, one in zip(concepts, found, strict=True)}, concepts)
    assert len(lines) == len(said)
    for line, part in zip(lines, said, strict=True):
        assert part in line and "\n" not in line


@pytest.mark.slow
def test_an_anchor_that_draws_the_concept_is_warned_of_and_another_is_not() -> None:
    pipe = load_pipeline("emoji", device="cpu")
    with pytest.warns(UserWarning, match="The anchor 'ball' may draw 'soccer ball' itself"):
        erase(pipe, "soccer ball", anchor="ball")
    with pytest.warns(UserWarning, match="The anchor 'kitchen' may draw 'kitchen knife' itself"):
        erase(pipe, "kitchen knife", anchor="kitchen")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        erase(pipe, "soccer ball", anchor="apple")
        erase(pipe, "soccer ball")


@pytest.mark.slow
def test_that_a_hundred_objects_take_the_rest_with_them_is_said_and_of_ten_is_not() -> None:
    pipe, names = load_pipeline("emoji", device="cpu"), world().objects
    with pytest.warns(UserWarning, match="What must stay is damaged: .* moved by 9.%"):
        erase(pipe, names[:100])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        erase(pipe, names[:10])
