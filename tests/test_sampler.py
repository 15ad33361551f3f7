"""The sampler by which trajectories are made goes where the model's own scheduler goes."""

import inspect
import logging
from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch

from unsee._errors import InputError
from unsee.pipelines import load_pipeline, parts_of
from unsee.pipelines.schedule import ddim

PROMPTS = ["a dog emoji in noto style", "a pizza emoji in flat style"]
STEPS, GUIDANCE = 20, 3.0

# Every class that a Stable Diffusion model may carry; those that draw noise on the way apart.
STOCHASTIC = ("DDPM", "EulerAncestralDiscrete", "KDPM2AncestralDiscrete", "LCM", "TCD")
DETERMINISTIC = (
    "DDIM",
    "DEISMultistep",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "EulerDiscrete",
    "HeunDiscrete",
    "KDPM2Discrete",
    "LMSDiscrete",
    "PNDM",
    "UniPCMultistep",
)


@pytest.fixture(scope="module")
def emoji() -> Any:
    return load_pipeline("emoji", device="cpu")


@pytest.fixture
def model(emoji: Any) -> Iterator[Any]:
    """The built-in model, which has its own scheduler again afterwards."""
    own = emoji.scheduler
    logging.getLogger("diffusers").setLevel(logging.CRITICAL)
    yield emoji
    emoji.scheduler = own


def born(name: str, config: Any, **more: Any) -> Any:
    """A scheduler that a model is saved with: the model's noise schedule, its class's rest."""
    cls = getattr(diffusers, f"{name}Scheduler")
    takes = inspect.signature(cls.__init__).parameters
    noise = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type")
    return cls(**{key: config[key] for key in noise if key in takes}, **more)


def noise_of(pipe: Any) -> torch.Tensor:
    shape = (len(PROMPTS), *parts_of(pipe).latent_shape())
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def ours(pipe: Any) -> torch.Tensor:
    """Where the sampler ends, by classifier-free guidance."""
    parts = parts_of(pipe)
    schedule, text = parts.schedule(STEPS), parts.encode([None, None, *PROMPTS])
    x = noise_of(pipe) * schedule.start
    for i, t in enumerate(schedule.times):
        empty, prompt = parts.predict(torch.cat([x, x]), t, text).chunk(2)
        x = schedule.step(i, parts.combine(empty, prompt, GUIDANCE), x)
    return x


def theirs(pipe: Any) -> torch.Tensor:
    """Where the pipeline ends, from the same noise."""
    made = pipe(
        PROMPTS,
        latents=noise_of(pipe),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="latent",
    )
    found: torch.Tensor = made.images
    return found


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_sampler_ends_where_the_pipeline_ends(model: Any, name: str) -> None:
    model.scheduler = born(name, model.scheduler.config)
    end = theirs(model)
    # 0.4 % (Euler) to 6.4 % (Heun) by other solvers; clipped where the pipeline does not: 104 %
    assert (ours(model) - end).norm() < 0.1 * end.norm()


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "EulerDiscrete", "PNDM"])
def test_what_another_scheduler_left_in_the_config_changes_nothing(model: Any, name: str) -> None:
    """A config keeps what its present class does not read, such as a clip that it never does."""
    left = diffusers.DDPMScheduler.from_config(model.scheduler.config, clip_sample=True)
    model.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(left.config)
    end = theirs(model)
    assert (ours(model) - end).norm() < 0.1 * end.norm()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", (*DETERMINISTIC, *STOCHASTIC))
def test_noise_schedule_and_prediction_are_the_model_s(
    pipe: Any, name: str, prediction: str
) -> None:
    pipe.scheduler = born(name, {**pipe.scheduler.config, "prediction_type": prediction})
    sampler = ddim(pipe.scheduler)
    torch.testing.assert_close(sampler.alphas_cumprod, pipe.scheduler.alphas_cumprod)
    assert sampler.config.prediction_type == prediction
    assert sampler.config.num_train_timesteps == pipe.scheduler.config.num_train_timesteps


@pytest.mark.parametrize("name", ["DDIM", "EulerDiscrete", "DPMSolverMultistep"])
def test_zero_terminal_snr_is_the_model_s_too(pipe: Any, name: str) -> None:
    pipe.scheduler = born(name, pipe.scheduler.config, rescale_betas_zero_snr=True)
    sampler = ddim(pipe.scheduler)
    assert sampler.alphas_cumprod[-1] < 1e-6


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.EDMEulerScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(),
        diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True
        ),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_another_kind_of_noise_schedule_is_refused(pipe: Any, scheduler: Any) -> None:
    pipe.scheduler = scheduler
    with pytest.raises(InputError, match="has another noise schedule"):
        parts_of(pipe).schedule(5)
