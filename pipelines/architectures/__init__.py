"""The architectures, a file each: what differs from one diffusers pipeline to another."""

from importlib import import_module
from typing import Any

FAMILIES = {
    "AuraFlowPipeline": ".aura_flow:AuraFlow",
    "StableDiffusionPipeline": ".stable_diffusion:StableDiffusion",
    "StableDiffusionImg2ImgPipeline": ".stable_diffusion:StableDiffusion",
    "StableDiffusionInpaintPipeline": ".stable_diffusion:StableDiffusion",
    "StableDiffusionXLPipeline": ".stable_diffusion_xl:StableDiffusionXL",
    "StableDiffusion3Pipeline": ".stable_diffusion_3:StableDiffusion3",
    "FluxPipeline": ".flux:Flux",
    "HunyuanDiTPipeline": ".hunyuan_dit:HunyuanDiT",
    "PixArtSigmaPipeline": ".pixart_sigma:PixArtSigma",
    "SanaPipeline": ".sana:Sana",
    "WanPipeline": ".wan:Wan",
}
"""The class of a pipeline, or one that it is derived from, to the class that describes it."""


def family_of(pipeline: type) -> Any:
    """The class that describes a pipeline's class; None if there is none."""
    for cls in pipeline.__mro__:
        if cls.__name__ in FAMILIES:
            module, _, attribute = FAMILIES[cls.__name__].partition(":")
            return getattr(import_module(module, __package__), attribute)
    return None
