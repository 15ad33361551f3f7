"""The architectures, a file each: what differs from one diffusers pipeline to another."""

from typing import TYPE_CHECKING

from ..._registry import Registry

if TYPE_CHECKING:
    from ..parts import Parts

_OURS = {
    "AuraFlowPipeline": "aura_flow:AuraFlow",
    "ChromaPipeline": "chroma:Chroma",
    "Flux2KleinPipeline": "flux_2_klein:Flux2Klein",
    "FluxPipeline": "flux:Flux",
    "HunyuanDiTPipeline": "hunyuan_dit:HunyuanDiT",
    "Lumina2Pipeline": "lumina_2:Lumina2",
    "PixArtSigmaPipeline": "pixart_sigma:PixArtSigma",
    "QwenImagePipeline": "qwen_image:QwenImage",
    "SanaPipeline": "sana:Sana",
    "StableDiffusion3Pipeline": "stable_diffusion_3:StableDiffusion3",
    "StableDiffusionImg2ImgPipeline": "stable_diffusion:StableDiffusion",
    "StableDiffusionInpaintPipeline": "stable_diffusion:StableDiffusion",
    "StableDiffusionPipeline": "stable_diffusion:StableDiffusion",
    "StableDiffusionXLPipeline": "stable_diffusion_xl:StableDiffusionXL",
    "WanPipeline": "wan:Wan",
    "ZImagePipeline": "z_image:ZImage",
}

FAMILIES: Registry[type["Parts"]] = Registry(
    "architecture",
    "unsee.architectures",
    {pipeline: f"{__name__}.{target}" for pipeline, target in _OURS.items()},
)
"""The class of a pipeline, or one that it is derived from, to the class that describes it."""


def family_of(pipeline: type) -> type["Parts"] | None:
    """The class that describes a pipeline's class; None if there is none."""
    for cls in pipeline.__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
    return None
