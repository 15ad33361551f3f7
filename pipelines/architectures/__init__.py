"""The architectures, a file each: what differs from one diffusers pipeline to another."""

from importlib import import_module
from typing import Any

FAMILIES = {
    "AuraFlowPipeline": ".aura_flow:AuraFlow",
    "ChromaPipeline": ".chroma:Chroma",
    "Flux2KleinPipeline": ".flux_2_klein:Flux2Klein",
    "FluxPipeline": ".flux:Flux",
    "HunyuanDiTPipeline": ".hunyuan_dit:HunyuanDiT",
    "Lumina2Pipeline": ".lumina_2:Lumina2",
    "PixArtSigmaPipeline": ".pixart_sigma:PixArtSigma",
    "QwenImagePipeline": ".qwen_image:QwenImage",
    "SanaPipeline": ".sana:Sana",
    "StableDiffusion3Pipeline": ".stable_diffusion_3:StableDiffusion3",
    "StableDiffusionImg2ImgPipeline": ".stable_diffusion:StableDiffusion",
    "StableDiffusionInpaintPipeline": ".stable_diffusion:StableDiffusion",
    "StableDiffusionPipeline": ".stable_diffusion:StableDiffusion",
    "StableDiffusionXLPipeline": ".stable_diffusion_xl:StableDiffusionXL",
    "WanPipeline": ".wan:Wan",
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
