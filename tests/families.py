"""Real pipelines of every architecture, made tiny: random weights, every class diffusers' own.

``PIPELINES[name]()`` builds one in memory. All images are 32 pixels a side.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn

WORDS = (
    "a an the of in by style art photo painting van gogh monet bomb knife hammer cat dog".split()
)
VOCABULARY = 512
# Wider than an edit has rows, as the real models are
WIDTH = 256

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Of each kind of tokenizer: its special tokens, their parts, and what it puts around a text.
_KINDS: dict[str, tuple[dict[str, str], str | None]] = {
    "clip": ({"bos": "<s>", "eos": "</s>", "pad": "</s>"}, "<s> $A </s>"),
    "t5": ({"pad": "<pad>", "eos": "</s>"}, "$A </s>"),
    "gemma": ({"pad": "<pad>", "bos": "<bos>"}, "<bos> $A"),
    "bert": ({"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]"}, "[CLS] $A [SEP]"),
    "qwen": ({"pad": "<|endoftext|>", "eos": "<|im_end|>"}, None),
}

# What the transformers of FLUX and its kin have in common
FLUX: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
}

M = TypeVar("M", bound=nn.Module)


def tokenizer(kind: str, length: int) -> Any:
    """A tokenizer that knows the words above, and letters."""
    parts, around = _KINDS[kind]
    special = list(dict.fromkeys(parts.values()))
    if kind == "qwen":
        special.append("<|im_start|>")
    vocabulary = {token: i for i, token in enumerate(special)}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    merges = []
    # A language model reads words at the start of a line too.
    bare = sorted(WORDS, key=len, reverse=True) if kind == "qwen" else []
    for word in (*("Ġ" + word for word in WORDS), *bare):
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    if around:
        known = [(token, vocabulary[token]) for token in special]
        made.post_processor = processors.TemplateProcessing(single=around, special_tokens=known)
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=length,
        **{f"{name}_token": token for name, token in parts.items()},
        **({"additional_special_tokens": ["<|im_start|>"]} if kind == "qwen" else {}),
    )
    if kind == "qwen":
        found.chat_template = CHAT
    return found


def seeded(make: Callable[[], M], seed: int = 0) -> M:
    """A module with weights of a seed, in evaluation."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()


def shaken(make: Callable[[], M], by: float = 0.05) -> M:
    """A denoiser none of whose weights is 0, as some begin with, so that all of it acts."""
    model = seeded(make)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=draw))
    return model


def clip(width: int = 32, projected: bool = False, seed: int = 0) -> Any:
    cls = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act="gelu",
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return seeded(lambda: cls(config), seed)


def t5(width: int, multilingual: bool = False) -> Any:
    family = "UMT5" if multilingual else "T5"
    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCABULARY,
        d_model=width,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        d_kv=8,
        pad_token_id=0,
        eos_token_id=1,
    )
    return seeded(lambda: getattr(transformers, f"{family}EncoderModel")(config), 1)


def gemma(width: int) -> Any:
    config = transformers.Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=64,
        pad_token_id=0,
        bos_token_id=1,
    )
    return seeded(lambda: transformers.Gemma2Model(config), 1)


def qwen3(width: int, layers: int = 3, causal: bool = False) -> Any:
    cls = transformers.Qwen3ForCausalLM if causal else transformers.Qwen3Model
    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=2048,
    )
    return seeded(lambda: cls(config), 1)


def qwen25_vl(width: int) -> Any:
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": width,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_scaling": {
                "mrope_section": [8, 12, 12],
                "rope_type": "default",
                "type": "default",
            },
            "rope_theta": 1e6,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": width,
        },
        image_token_id=500,
        video_token_id=501,
        vision_start_token_id=502,
        vision_end_token_id=503,
    )
    return seeded(lambda: transformers.Qwen2_5_VLForConditionalGeneration(config), 1)


def kl(channels: int = 4, blocks: int = 2, cls: Any = diffusers.AutoencoderKL, **more: Any) -> Any:
    return seeded(
        lambda: cls(
            sample_size=32,
            in_channels=3,
            out_channels=3,
            block_out_channels=(4,) * blocks,
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            layers_per_block=1,
            latent_channels=channels,
            norm_num_groups=1,
            use_quant_conv=False,
            use_post_quant_conv=False,
            **more,
        )
    )


def flow(**settings: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings)


def stable_diffusion() -> Any:
    unet = shaken(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=16,
            layers_per_block=1,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=8,
            norm_num_groups=4,
            cross_attention_dim=WIDTH,
        )
    )
    return diffusers.StableDiffusionPipeline(
        vae=kl(),
        text_encoder=clip(WIDTH),
        tokenizer=tokenizer("clip", 77),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            clip_sample=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(**more: Any) -> Any:
    unet = shaken(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=16,
            layers_per_block=1,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            norm_num_groups=4,
            cross_attention_dim=WIDTH + 32,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8,
        )
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=kl(),
        text_encoder=clip(WIDTH),
        text_encoder_2=clip(projected=True, seed=3),
        tokenizer=tokenizer("clip", 77),
        tokenizer_2=tokenizer("clip", 77),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        add_watermarker=False,
        **more,
    )


def stable_diffusion_3() -> Any:
    transformer = shaken(
        lambda: diffusers.SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            # As the real one, without which its inpainting refuses
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=64,
            # As 3.5 medium, whose attn2 is the image's attention to itself
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow(shift=3.0),
        vae=kl(16, shift_factor=0.06),
        text_encoder=clip(projected=True),
        tokenizer=tokenizer("clip", 77),
        text_encoder_2=clip(projected=True, seed=3),
        tokenizer_2=tokenizer("clip", 77),
        text_encoder_3=t5(WIDTH),
        tokenizer_3=tokenizer("t5", 512),
    )


def flux(guidance: bool = True) -> Any:
    transformer = shaken(
        lambda: diffusers.FluxTransformer2DModel(
            **FLUX,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance,
        )
    )
    pipe = diffusers.FluxPipeline(
        scheduler=flow(shift=3.0, use_dynamic_shifting=guidance),
        vae=kl(shift_factor=0.06),
        text_encoder=clip(),
        tokenizer=tokenizer("clip", 77),
        text_encoder_2=t5(WIDTH),
        tokenizer_2=tokenizer("t5", 512),
        transformer=transformer,
    )
    return sized(pipe)


def chroma() -> Any:
    transformer = shaken(
        lambda: diffusers.ChromaTransformer2DModel(
            **FLUX,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
            approximator_hidden_dim=32,
            approximator_layers=1,
            approximator_num_channels=16,
        )
    )
    pipe = calling(diffusers.ChromaPipeline, max_sequence_length=32)(
        scheduler=flow(),
        vae=kl(shift_factor=0.06),
        text_encoder=t5(WIDTH),
        tokenizer=tokenizer("t5", 512),
        transformer=transformer,
    )
    return sized(pipe)


def flux_2_klein() -> Any:
    # The text encoder's layers 9, 18 and 27 side by side
    width = 96
    transformer = shaken(
        lambda: diffusers.Flux2Transformer2DModel(
            **FLUX,
            joint_attention_dim=3 * width,
            timestep_guidance_channels=256,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        )
    )
    pipe = calling(diffusers.Flux2KleinPipeline, max_sequence_length=96)(
        scheduler=flow(),
        vae=kl(cls=diffusers.AutoencoderKLFlux2),
        text_encoder=qwen3(width, layers=27, causal=True),
        tokenizer=tokenizer("qwen", 2048),
        transformer=transformer,
    )
    return sized(pipe)


def lumina_2() -> Any:
    transformer = shaken(
        lambda: diffusers.Lumina2Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=4,
            num_kv_heads=2,
            multiple_of=16,
            axes_dim_rope=(4, 2, 2),
            cap_feat_dim=WIDTH,
        )
    )
    return diffusers.Lumina2Pipeline(
        transformer=transformer,
        scheduler=flow(),
        # Its pipeline takes for granted that a latent is 8 pixels a side.
        vae=kl(blocks=4, shift_factor=0.06),
        text_encoder=gemma(WIDTH),
        tokenizer=tokenizer("gemma", 512),
    )


def qwen_image() -> Any:
    transformer = shaken(
        lambda: diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=WIDTH,
            guidance_embeds=False,
            axes_dims_rope=(8, 4, 4),
        )
    )
    vae = seeded(
        lambda: diffusers.AutoencoderKLQwenImage(
            base_dim=24,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        )
    )
    pipe = diffusers.QwenImagePipeline(
        scheduler=flow(),
        vae=vae,
        text_encoder=qwen25_vl(WIDTH),
        tokenizer=tokenizer("qwen", 4096),
        transformer=transformer,
    )
    return sized(pipe)


def z_image() -> Any:
    transformer = shaken(
        lambda: diffusers.ZImageTransformer2DModel(
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[8, 4, 4],
            axes_lens=[256, 32, 32],
        )
    )
    return calling(diffusers.ZImagePipeline, height=32, width=32)(
        scheduler=flow(),
        vae=kl(shift_factor=0.1),
        text_encoder=qwen3(WIDTH),
        tokenizer=tokenizer("qwen", 2048),
        transformer=transformer,
    )


def calling(pipeline: type, **own: Any) -> Any:
    """A class of pipelines whose call takes other values for arguments that are left out."""
    call = functools.partialmethod(pipeline.__call__, **own)
    return type(pipeline.__name__, (pipeline,), {"__call__": call})


def sized(pipe: Any) -> Any:
    """A pipeline whose own size is 32 pixels, where no component's configuration says so."""
    pipe.default_sample_size = 32 // pipe.vae_scale_factor
    return pipe


def aura_flow() -> Any:
    transformer = shaken(
        lambda: diffusers.AuraFlowTransformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=WIDTH,
            caption_projection_dim=32,
            pos_embed_max_size=256,
        ),
        # Of little less, hardly anything of its text would come through.
        by=0.1,
    )
    return calling(diffusers.AuraFlowPipeline, height=32, width=32, max_sequence_length=32)(
        tokenizer=tokenizer("t5", 512),
        text_encoder=t5(WIDTH, multilingual=True),
        vae=kl(),
        transformer=transformer,
        scheduler=flow(),
    )


def hunyuan_dit() -> Any:
    # Wider than its 77 + 256 rows
    width = 2 * WIDTH
    transformer = shaken(
        lambda: diffusers.HunyuanDiT2DModel(
            sample_size=4,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            in_channels=4,
            hidden_size=24,
            cross_attention_dim=width,
            cross_attention_dim_t5=width,
            pooled_projection_dim=16,
            text_len=77,
            text_len_t5=256,
        )
    )
    bert = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=80,
    )
    return diffusers.HunyuanDiTPipeline(
        transformer=transformer,
        vae=kl(blocks=4),
        scheduler=diffusers.DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.03,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            clip_sample=False,
        ),
        text_encoder=seeded(lambda: transformers.BertModel(bert)),
        tokenizer=tokenizer("bert", 77),
        text_encoder_2=t5(width),
        tokenizer_2=tokenizer("t5", 256),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def pixart_sigma() -> Any:
    transformer = shaken(
        lambda: diffusers.PixArtTransformer2DModel(
            sample_size=16,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_channels=WIDTH,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=24,
            attention_bias=True,
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
        )
    )
    return diffusers.PixArtSigmaPipeline(
        transformer=transformer,
        vae=kl(),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
        text_encoder=t5(WIDTH),
        tokenizer=tokenizer("t5", 512),
    )


def sana() -> Any:
    transformer = shaken(
        lambda: diffusers.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=WIDTH,
            sample_size=16,
            # As in Sprint, where t is counted otherwise than by the scheduler
            timestep_scale=0.001,
        )
    )
    vae = seeded(
        lambda: diffusers.AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41,
        )
    )
    pipeline = calling(
        diffusers.SanaPipeline,
        height=32,
        width=32,
        max_sequence_length=32,
        complex_human_instruction=["a photo of the", "by: "],
    )
    return pipeline(
        transformer=transformer,
        vae=vae,
        scheduler=flow(shift=7.0),
        text_encoder=gemma(WIDTH),
        tokenizer=tokenizer("gemma", 512),
    )


def wan() -> Any:
    transformer = shaken(
        lambda: diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=WIDTH,
            freq_dim=256,
            ffn_dim=32,
            num_layers=2,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        )
    )
    vae = seeded(
        lambda: diffusers.AutoencoderKLWan(
            base_dim=3,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
        )
    )
    pipeline = calling(
        diffusers.WanPipeline, height=32, width=32, num_frames=5, max_sequence_length=32
    )
    return pipeline(
        tokenizer=tokenizer("t5", 512),
        text_encoder=t5(WIDTH, multilingual=True),
        vae=vae,
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=transformer,
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "aura-flow": aura_flow,
    "chroma": chroma,
    "flux": flux,
    "flux-2-klein": flux_2_klein,
    "flux-schnell": functools.partial(flux, False),
    "hunyuan-dit": hunyuan_dit,
    "lumina-2": lumina_2,
    "pixart-sigma": pixart_sigma,
    "qwen-image": qwen_image,
    "sana": sana,
    "stable-diffusion": stable_diffusion,
    "stable-diffusion-3": stable_diffusion_3,
    "stable-diffusion-xl": stable_diffusion_xl,
    "wan": wan,
    "z-image": z_image,
}

# How a pipeline of that name is called so that it has classifier-free guidance.
GUIDED: dict[str, dict[str, Any]] = {
    "flux": {"true_cfg_scale": 4.0, "negative_prompt": ""},
    "flux-schnell": {"true_cfg_scale": 4.0, "negative_prompt": ""},
}


def drawn(pipe: Any, **more: Any) -> torch.Tensor:
    """The latents of one image of a tiny Stable Diffusion, in two steps."""
    found: torch.Tensor = pipe(
        "a painting by van gogh",
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=2,
        output_type="latent",
        **more,
    ).images
    return found


def build(name: str) -> Any:
    """The tiny pipeline of that name, without its progress bar."""
    pipe = PIPELINES[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe
