"""Guidance away from a concept: beside diffusers' own, beside the formula, and off again."""

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from unsee._errors import InputError
from unsee.erasers import ERASERS
from unsee.erasers.negative import Negative
from unsee.erasers.sld import SLD, _Guide
from unsee.erasers.uce import UCE
from unsee.flow import erase, make_eraser
from unsee.pipelines import GUIDES, Erasure, load_pipeline, parts_of
from unsee.pipelines.text import Text
from unsee.prompts import Concept

CONCEPT = Concept("van gogh", "style", phrases=("van gogh", "bomb"))
PROMPTS = ["a painting by van gogh", "a photo of a dog"]

every = pytest.mark.parametrize("method", list(GUIDES))

# Few steps of a random model: none would be asked for.
SURE: dict[str, dict[str, Any]] = {"safree": {"validate": False}}


def images(pipe: Any, steps: int = 4, **call: Any) -> Tensor:
    """Two images, shape (2, 3, 16, 16)."""
    made: Tensor = pipe(
        PROMPTS,
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
        num_inference_steps=steps,
        output_type="pt",
        **call,
    ).images
    return made


@pytest.mark.parametrize(
    "preset, tolerance", [("weak", 1e-4), (None, 1e-4), ("strong", 1e-4), ("max", 1e-3)]
)
def test_sld_is_diffusers_own_safe_pipeline(
    pipe: Any, preset: str | None, tolerance: float
) -> None:
    from diffusers.pipelines.deprecated.stable_diffusion_safe import (
        SafetyConfig,
        StableDiffusionPipelineSafe,
    )

    settings = getattr(SafetyConfig, (preset or "medium").upper())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its age
        theirs: Any = StableDiffusionPipelineSafe(
            **{k: v for k, v in pipe.components.items() if k != "image_encoder"},
            requires_safety_checker=False,
        )
        theirs.set_progress_bar_config(disable=True)
        theirs.safety_concept = "van gogh, bomb"
        draws = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        want = theirs(
            PROMPTS, num_inference_steps=50, generator=draws, output_type="np", **settings
        )
    # diffusers' weak strength has 20 where the paper has 200
    own = {"scale": 20.0} if preset == "weak" else {}
    eraser = make_eraser("sld", preset, **own)
    plain = images(pipe, 50)
    with eraser.fit(parts_of(pipe), [CONCEPT]).applied(pipe):
        found = images(pipe, 50)
    expected = torch.from_numpy(want.images).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert (found - plain).abs().max() > 0.05


def test_sld_is_the_papers_formula() -> None:
    settings = SLD(scale=3.0, threshold=0.1, warmup=1, momentum=0.5, momentum_decay=0.7)
    guide = _Guide(settings, Text({"encoder_hidden_states": torch.zeros(1, 1, 1)}), begins=1)
    draw = torch.Generator().manual_seed(0)
    past = torch.zeros(2, 4, 3, 3)
    for step in range(4):
        empty, prompt, concept = torch.randn(3, 2, 4, 3, 3, generator=draw)
        mu = torch.zeros_like(prompt)
        for place in torch.cartesian_prod(*(torch.arange(n) for n in prompt.shape)):
            at = tuple(place)
            if prompt[at] - concept[at] < 0.1:
                mu[at] = min(1.0, 3.0 * float((prompt[at] - concept[at]).abs()))
        g = mu * (concept - empty) + 0.5 * past
        past = 0.7 * past + 0.3 * g
        first, second = guide.after(step, empty, prompt, [concept])
        assert torch.equal(first, empty)
        torch.testing.assert_close(second, prompt - g if step >= 1 else prompt)


def test_sld_of_next_to_no_scale_and_no_momentum_is_plain_guidance(pipe: Any) -> None:
    erasure = SLD(scale=1e-9, momentum=0.0, warmup=0).fit(parts_of(pipe), [CONCEPT])
    plain = images(pipe)
    with erasure.applied(pipe):
        torch.testing.assert_close(images(pipe), plain, rtol=0, atol=1e-5)


def test_negative_is_the_pipelines_own_negative_prompt(pipe: Any) -> None:
    want = images(pipe, negative_prompt=["van gogh, bomb"] * 2)
    plain = images(pipe)
    with Negative().fit(parts_of(pipe), [CONCEPT]).applied(pipe):
        found = images(pipe)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-6)
    assert (found - plain).abs().max() > 0.05


@every
def test_off_again_the_image_is_the_base_models_bit_for_bit(pipe: Any, method: str) -> None:
    plain, kept = images(pipe), dict(vars(pipe))
    erasure = erase(pipe, CONCEPT, method=method, **SURE.get(method, {}))
    with pytest.raises(ZeroDivisionError), erasure.applied(pipe):
        assert not torch.equal(images(pipe), plain)
        1 / 0  # noqa: B018
    assert torch.equal(images(pipe), plain)
    assert not pipe.unet._forward_hooks and not pipe.unet._forward_pre_hooks
    assert vars(pipe).keys() == kept.keys()


@every
@pytest.mark.parametrize("guide_first", [True, False])
def test_off_again_in_any_order_the_image_is_what_is_left_bit_for_bit(
    pipe: Any, method: str, guide_first: bool
) -> None:
    guide = erase(pipe, CONCEPT, method=method, **SURE.get(method, {}))
    weights = erase(pipe, "monet", check=False)
    plain = images(pipe)
    stacked = (guide, weights) if guide_first else (weights, guide)
    alone = []
    for erasure in stacked:
        with erasure.applied(pipe):
            alone.append(images(pipe))
    removes = [erasure.add_to(pipe) for erasure in stacked]
    both = images(pipe)
    removes[0]()
    assert torch.equal(images(pipe), alone[1])
    removes[1]()
    assert torch.equal(images(pipe), plain)
    assert not any(torch.equal(both, other) for other in (*alone, plain))


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "HeunDiscreteScheduler"])
def test_a_trajectory_begins_anew_with_each_call(pipe: Any, scheduler: str, steps: int) -> None:
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    with SLD(warmup=0).fit(parts_of(pipe), [CONCEPT]).applied(pipe):
        first = images(pipe, steps)
        assert torch.equal(images(pipe, steps), first)


@every
def test_the_text_is_put_together_once_a_trajectory(pipe: Any, method: str) -> None:
    read: list[Tensor] = []
    with erase(pipe, CONCEPT, method=method, **SURE.get(method, {})).applied(pipe):
        with pipe.unet.register_forward_pre_hook(
            lambda module, args, kwargs: read.append(kwargs["encoder_hidden_states"]),
            with_kwargs=True,
        ):
            images(pipe)
    assert len(read) == 4 and all(text is read[0] for text in read)


def test_guides_stack_with_each_other_and_with_weights(pipe: Any) -> None:
    parts = parts_of(pipe)
    one = SLD(warmup=0).fit(parts, [Concept("bomb")])
    two = SLD(warmup=0).fit(parts, [Concept("van gogh", "style")])
    weights = UCE().fit(parts, [Concept("monet", "style")])
    plain = images(pipe)
    with one.applied(pipe):
        alone = images(pipe)
        with weights.applied(pipe), two.applied(pipe):
            together = images(pipe)
        assert torch.equal(images(pipe), alone)
    assert torch.equal(images(pipe), plain)
    assert (together - alone).abs().max() > 0.02 and (alone - plain).abs().max() > 0.02


def test_a_guide_is_saved_and_loaded_like_any_other_file(
    pipe: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    erasure = erase(pipe, CONCEPT, method="sld", preset="max")
    erasure.save(tmp_path / "it.safetensors")
    assert Erasure.load(tmp_path / "it.safetensors").record.kind == "guidance"
    with erasure.applied(pipe):
        want = images(pipe)
    assert torch.equal(
        images(load_pipeline(tiny_folder, tmp_path / "it.safetensors", device="cpu")), want
    )


@every
def test_without_classifier_free_guidance_it_says_what_to_set(pipe: Any, method: str) -> None:
    with (
        erase(pipe, CONCEPT, method=method, **SURE.get(method, {})).applied(pipe),
        pytest.raises(InputError, match=f"{method} steers .* set guidance_scale above 1"),
    ):
        images(pipe, guidance_scale=1.0)


@every
def test_a_denoiser_called_from_elsewhere_is_told_of_the_guide(pipe: Any, method: str) -> None:
    latents, text = torch.zeros(2, 4, 8, 8), parts_of(pipe).encode(["bomb", ""]).first
    with erase(pipe, CONCEPT, method=method, **SURE.get(method, {})).applied(pipe):
        images(pipe)
        with pytest.raises(InputError, match=f"{method} steers .* in a call of the pipeline"):
            pipe.unet(latents, 1, encoder_hidden_states=text)


def test_the_first_step_guided_is_a_share_of_the_steps(pipe: Any) -> None:
    """δ = 10 of 50 is 1 of 5: the first step is as without."""
    seen: list[list[Tensor]] = []

    def look(pipe: Any, step: int, t: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        seen[-1].append(given["latents"].clone())
        return given

    for warmup in (None, 0, 10, 20):
        seen.append([])
        guide = None if warmup is None else SLD(warmup=warmup).fit(parts_of(pipe), [CONCEPT])
        with guide.applied(pipe) if guide else nullcontext():
            images(pipe, 5, callback_on_step_end=look)
    plain, *guided = seen
    for begins, latents in enumerate(guided):
        apart = [float((a - b).abs().max()) for a, b in zip(latents, plain, strict=True)]
        assert max(apart[:begins], default=0.0) < 1e-5 < 1e-3 < apart[begins]


PRESETS = [(m, p) for m in GUIDES for p in (None, *ERASERS[m].presets)]


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize("method, preset", PRESETS)
def test_in_however_few_steps_a_guide_acts_on_its_concept(
    pipe: Any, method: str, preset: str | None, scheduler: str
) -> None:
    pipe.scheduler = getattr(diffusers, scheduler).from_config(
        pipe.scheduler.config, **{"skip_prk_steps": True} if "PNDM" in scheduler else {}
    )
    erasure = erase(pipe, CONCEPT, method=method, preset=preset)
    for steps in (1, 2, 3):
        plain = images(pipe, steps)
        with erasure.applied(pipe):
            assert (images(pipe, steps) - plain)[0].abs().max() > 1e-4


@pytest.mark.parametrize(
    "warmup, steps, acts", [(25, 1, True), (26, 1, False), (50, 4, False), (45, 4, False)]
)
def test_a_call_that_ends_before_a_guide_begins_is_refused(
    pipe: Any, warmup: int, steps: int, acts: bool
) -> None:
    """Half of one step is none; 45 of 50 are 4 of 4."""
    erasure = erase(pipe, CONCEPT, method="sld", warmup=warmup)
    refused = f"'van gogh' would do nothing: sld begins after {steps} steps, .* has {steps}. Draw"
    with erasure.applied(pipe):
        with nullcontext() if acts else pytest.raises(InputError, match=refused):
            pipe("bomb", num_inference_steps=steps)


@pytest.mark.parametrize(
    "settings", [{"scale": 0.0}, {"scale": -1.0}, {"momentum_decay": 1.0}, {"warmup": -1}]
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        SLD(**settings)
