"""How a model's images come out of noise: two schedules, for all that diffusers has.

*Diffusion* mixes x_t = √ᾱ x₀ + √(1 − ᾱ) ε, and the denoiser predicts ε, or v = √ᾱ ε − √(1 − ᾱ) x₀,
or x₀; its deterministic sampler is DDIM. *Flow* mixes x_t = (1 − σ) x₀ + σ ε with σ = t/1000, the
denoiser predicts ε − x₀, and its sampler is Euler's. Both count t from 1000 (noise) to 0 (image).

A flow model's σ at each step differ by pipeline (shifted by the number of the image's tokens, or
evenly spaced): so the pipeline itself is asked, by a call that ends before its first prediction.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .._errors import InputError

SPAN = 1000
"""How many times t there are, from 0 on, at which models are trained."""


class Schedule(Protocol):
    """A deterministic sampler on a model's noise schedule.

    Attributes:
        times: t of each step, from noise on, shape (steps,).
        start: What the first noise is multiplied by.
    """

    @property
    def times(self) -> Tensor: ...

    @property
    def start(self) -> float: ...

    def step(self, i: int, prediction: Tensor, x: Tensor) -> Tensor:
        """The latents after step i, from 0, from those before it and the prediction for them."""
        ...

    def noised(self, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of images (n, …) and noise (n, …), for t of shape (n,) in [0, ``SPAN``)."""
        ...

    def truth(self, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a perfect denoiser predicts of ``noised`` images, in the model's own terms.

        Raises:
            InputError: It predicts something that is not known.
        """
        ...


class Diffusion:
    """DDIM on another scheduler's noise schedule."""

    def __init__(self, own: Any, steps: int) -> None:
        self.ddim = ddim(own)
        self.ddim.set_timesteps(steps)
        self.times: Tensor = self.ddim.timesteps
        self.start = float(self.ddim.init_noise_sigma)

    def step(self, i: int, prediction: Tensor, x: Tensor) -> Tensor:
        found: Tensor = self.ddim.step(prediction, self.times[i], x).prev_sample
        return found

    def noised(self, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.ddim.add_noise(images, noise, t)
        return found

    def truth(self, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        kind = self.ddim.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            velocity: Tensor = self.ddim.get_velocity(images, noise, t)
            return velocity
        if kind == "sample":
            return images
        raise InputError(
            f"The model predicts {kind!r}, and what is known are 'epsilon', 'v_prediction' and "
            "'sample'."
        )


class Flow:
    """Euler on a flow model's own σ."""

    start = 1.0

    def __init__(self, sigmas: Tensor, times: Tensor) -> None:
        self.sigmas = sigmas.detach().float().cpu()
        # As its denoiser is given them, which some schedulers round.
        self.times = times.detach().float().cpu()

    def step(self, i: int, prediction: Tensor, x: Tensor) -> Tensor:
        length = float(self.sigmas[i + 1] - self.sigmas[i])
        # In float32 as diffusers does: a half loses the small steps.
        return (x.float() + length * prediction.float()).to(prediction.dtype)

    def noised(self, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        sigma = (t / SPAN).view(-1, *(1 for _ in images.shape[1:])).to(images)
        return (1 - sigma) * images + sigma * noise

    def truth(self, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise - images


def flows(own: Any) -> bool:
    """Whether a scheduler is of a flow model; its class alone does not tell."""
    config = own.config
    return (
        type(own).__name__.startswith("FlowMatch")
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )


def eps_scale(own: Any, t: Tensor) -> Tensor:
    """Δε for a difference Δ of two predictions at t, by a model's own scheduler.

    A flow model's is 1 − σ, of one that predicts v it is √ᾱ, and of one that predicts the image
    −√ᾱ/√(1 − ᾱ): ε itself is 1.

    Args:
        own: The scheduler.
        t: Any shape, in [0, ``SPAN``).
    """
    if flows(own):
        return 1 - t.float() / SPAN
    kind = own.config.get("prediction_type", "epsilon")
    if kind == "epsilon":
        return torch.ones_like(t, dtype=torch.float32)
    alphas = own.alphas_cumprod.to(t.device)[t.long().clamp(0, len(own.alphas_cumprod) - 1)]
    root: Tensor = alphas.float().sqrt()
    if kind == "v_prediction":
        return root
    noise: Tensor = (1 - alphas.float()).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    return -root / noise


def asked(pipe: Any, denoiser: nn.Module, arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The σ that a pipeline goes through in a call with these arguments, and t of its steps.

    Shapes (steps + 1,) and (steps,).
    """

    def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
        raise _Reached

    handle = denoiser.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        pipe(**arguments)
    except _Reached:
        return pipe.scheduler.sigmas.clone(), pipe.scheduler.timesteps.clone()
    finally:
        handle.remove()
    raise RuntimeError("The pipeline came to its end without its denoiser.")


class _Reached(Exception):
    """The first call of the denoiser."""


def ddim(own: Any) -> Any:
    """A DDIM scheduler on another's noise schedule, which goes where that one goes.

    What the other's class has no setting for would else be DDIM's default, which clips the
    predicted image to [-1, 1]: right for pixels, and noise for latents.

    Raises:
        InputError: The other's noise schedule is not one of DDPM's kind.
    """
    from diffusers import DDIMScheduler

    takes = inspect.signature(type(own).__init__).parameters

    def setting(name: str, otherwise: Any) -> Any:
        return own.config[name] if name in takes else otherwise

    sampler = DDIMScheduler.from_config(
        own.config,
        clip_sample=setting("clip_sample", False),
        clip_sample_range=setting("clip_sample_range", 1.0),
        # Those without the setting end at the image itself, unless they say otherwise.
        set_alpha_to_one=setting(
            "set_alpha_to_one", setting("final_sigmas_type", "zero") != "sigma_min"
        ),
        steps_offset=setting("steps_offset", 0),
    )
    alphas = getattr(own, "alphas_cumprod", None)
    # 1e-6: at zero terminal SNR some put 2⁻²⁴ in the place of 0
    if (
        setting("use_flow_sigmas", False)
        or alphas is None
        or alphas.shape != sampler.alphas_cumprod.shape
        or not torch.allclose(alphas.cpu(), sampler.alphas_cumprod, rtol=0, atol=1e-6)
    ):
        raise other_schedule(own)
    return sampler


def other_schedule(own: Any) -> InputError:
    """The error for a scheduler that is not of the model's kind."""
    return InputError(
        f"The pipeline's {type(own).__name__} has another noise schedule than the model was "
        "trained with: set pipe.scheduler to the one that the model came with."
    )
