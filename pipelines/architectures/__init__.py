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

SIBLINGS = {
    "ChromaImg2ImgPipeline": "ChromaPipeline",
    "Flux2KleinInpaintPipeline": "Flux2KleinPipeline",
    "FluxImg2ImgPipeline": "FluxPipeline",
    "FluxInpaintPipeline": "FluxPipeline",
    "QwenImageImg2ImgPipeline": "QwenImagePipeline",
    "QwenImageInpaintPipeline": "QwenImagePipeline",
    "StableDiffusion3Img2ImgPipeline": "StableDiffusion3Pipeline",
    "StableDiffusion3InpaintPipeline": "StableDiffusion3Pipeline",
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionInpaintPipeline": "StableDiffusionPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLInpaintPipeline": "StableDiffusionXLPipeline",
    "WanVideoToVideoPipeline": "WanPipeline",
    "ZImageImg2ImgPipeline": "ZImagePipeline",
    "ZImageInpaintPipeline": "ZImagePipeline",
}
"""A pipeline that begins with an image or a video, to the one of the same parts that does not."""


def family_of(pipeline: type) -> type["Parts"] | None:
    """The class that describes a pipeline's class; None if there is none."""
    for cls in pipeline.__mro__:
        name = SIBLINGS.get(cls.__name__, cls.__name__)
        if name in FAMILIES:
            return FAMILIES[name]
    return None


def from_text(pipeline: type) -> str | None:
    """The pipeline that draws from text alone, for one that begins with an image; else None."""
    return next((SIBLINGS[c.__name__] for c in pipeline.__mro__ if c.__name__ in SIBLINGS), None)
