"""The architectures, a file each: what differs from one diffusers pipeline to another."""

from importlib import import_module
from typing import Any

FAMILIES = {
    "StableDiffusionPipeline": ".stable_diffusion:StableDiffusion",
    "StableDiffusionImg2ImgPipeline": ".stable_diffusion:StableDiffusion",
    "StableDiffusionInpaintPipeline": ".stable_diffusion:StableDiffusion",
    "StableDiffusionXLPipeline": ".stable_diffusion_xl:StableDiffusionXL",
    "StableDiffusion3Pipeline": ".stable_diffusion_3:StableDiffusion3",
    "FluxPipeline": ".flux:Flux",
    "ChromaPipeline": ".chroma:Chroma",
    "Flux2KleinPipeline": ".flux_2_klein:Flux2Klein",
    "Lumina2Pipeline": ".lumina_2:Lumina2",
    "QwenImagePipeline": ".qwen_image:QwenImage",
    "ZImagePipeline": ".z_image:ZImage",
}
"""The class of a pipeline, or one that it is derived from, to the class that describes it."""


def family_of(pipeline: type) -> Any:
    """The class that describes a pipeline's class; None if there is none."""
    for cls in pipeline.__mro__:
        if cls.__name__ in FAMILIES:
            module, _, attribute = FAMILIES[cls.__name__].partition(":")
            return getattr(import_module(module, __package__), attribute)
    return None
