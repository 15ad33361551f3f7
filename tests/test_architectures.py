"""What holds for every architecture: the contract of a file in ``pipelines/architectures``."""

import copy
import dataclasses
import functools
import hashlib
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import unsee
from unsee import contract
from unsee._errors import InputError
from unsee.contract import PROMPTS, STEPS, apart
from unsee.erasers import ERASERS
from unsee.eval.detectors import Detection, Unscored, highest
from unsee.pipelines import load_pipeline, load_text_side, parts_of
from unsee.pipelines.architectures import SIBLINGS
from unsee.pipelines.generation import cut, own
from unsee.pipelines.guidance import Guided, Start
from unsee.pipelines.parts import Parts, default, described
from unsee.pipelines.watch import put_on
from unsee.prompts import Prompt, Suite
from unsee.tests.families import GUIDED, PIPELINES, build, calling
from unsee.training.student import select

each = pytest.mark.parametrize("name", list(PIPELINES))
_built = functools.cache(build)


@pytest.fixture
def pipe(name: str) -> Iterator[Any]:
    """The pipeline of that name, whose weights a test leaves as they were."""
    found = _built(name)
    before = {n: t._version for n, t in described(found).denoiser.named_parameters()}
    yield found
    after = {n: t._version for n, t in described(found).denoiser.named_parameters()}
    assert before.keys() == after.keys()


def draw(name: str, pipe: Any, prompts: Sequence[str] = PROMPTS, **more: Any) -> Tensor:
    """Latents of prompts, by classifier-free guidance where the pipeline can have it."""
    return contract.Tried(pipe, GUIDED.get(name, {})).draw(prompts, **more)


@pytest.mark.parametrize("law", contract.LAWS, ids=lambda law: law.__name__)
@each
@torch.no_grad()
def test_it_holds(name: str, pipe: Any, law: Callable[[contract.Tried], None]) -> None:
    law(contract.Tried(pipe, GUIDED.get(name, {})))


@each
def test_encoding_leaves_the_callers_texts_as_they_were(name: str, pipe: Any) -> None:
    texts = list(PROMPTS)
    parts_of(pipe).encode(texts)
    parts_of(pipe).encoded(texts, True, texts)
    assert texts == list(PROMPTS)


@pytest.mark.filterwarnings("ignore:The anchor", "ignore:What must stay")
@each
def test_uce_as_it_is_by_default_takes_a_concept_to_its_anchor(name: str, pipe: Any) -> None:
    """λ and the rows that are edited fit every text encoder: no setting is for one of them.

    Of as many tokens as its anchor: where a text is not filled up, other rows more are left.
    """
    erasure = unsee.erase(pipe, unsee.Concept("monet", anchor="dog"))
    assert erasure.measured.effect is not None
    assert 0.9 < erasure.measured.effect["monet"].moved < 1.2


def still(parts: Parts) -> Start:
    text = parts.encode(["van gogh"])
    return lambda steps, prompts: contract.Still(text)


@pytest.mark.parametrize("name", [n for n in PIPELINES if described(_built(n)).calls == 2])
def test_what_two_calls_a_step_read_is_computed_once(name: str, pipe: Any) -> None:
    """Three rows an image and step: the prompt's, the empty prompt's, and the guide's own."""
    parts, rows = parts_of(pipe), []
    (layer, *_) = parts.readers()["sequence"].layers.values()
    erasure = unsee.erase(pipe, "van gogh", method="sld", preset="max")
    counting = layer.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    with erasure.applied(pipe):
        made = draw(name, pipe)
        assert sum(rows) == 3 * STEPS * len(PROMPTS)
        rows.clear()
        # Computed and thrown away, as a compiled denoiser does
        spared = vars(parts.denoiser).pop("forward")
        assert torch.equal(draw(name, pipe), made)
        assert sum(rows) > 3 * STEPS * len(PROMPTS)
        vars(parts.denoiser)["forward"] = spared
    counting.remove()
    assert "forward" not in vars(parts.denoiser)


@pytest.mark.parametrize("name", ["stable-diffusion-xl", "wan", "z-image"])
def test_a_deep_copy_of_a_guided_pipeline_draws_what_it_draws(name: str, pipe: Any) -> None:
    with unsee.erase(pipe, "van gogh", method="negative").applied(pipe):
        made, copied = draw(name, pipe), copy.deepcopy(pipe)
    assert torch.equal(draw(name, copied), made)
    assert "van gogh" in [one.name for one in unsee.active(copied)]
    unsee.remove(copied)
    assert torch.equal(draw(name, copied), draw(name, pipe))


@pytest.mark.slow
def test_a_compiled_denoiser_of_two_calls_is_guided() -> None:
    pipe = build("chroma")
    erasure = unsee.erase(pipe, "van gogh", method="sld", preset="max")
    with erasure.applied(pipe):
        want = draw("chroma", pipe)
    torch.compiler.reset()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    with erasure.applied(pipe):
        assert apart(draw("chroma", pipe), want) < 1e-6


class Anything:
    """Sees a cat in whatever there is."""

    name, kind, labels = "test/anything", "object", None
    protocol: dict[str, Any] = {}

    def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
        return [Detection(("cat",), {"cat": 1.0}) for _ in images]


@each
def test_it_is_audited_by_its_own_settings(name: str, pipe: Any, tmp_path: Path) -> None:
    parts = described(pipe)
    rows = (
        unsee.Prompt("own", "a photo of a cat", 1, {"object": "cat"}),
        unsee.Prompt("sized", "a photo of a cat", 1, {"object": "cat"}, width=32, height=64),
        unsee.Prompt("scaled", "a photo of a cat", 1, {"object": "cat"}, guidance=1.5),
    )
    erasure = unsee.erase(pipe, "cat", check=False)
    report = unsee.audit(
        pipe,
        erasure,
        out=tmp_path,
        suite=unsee.Suite("s", rows),
        detectors=[Anything()],
        steps=2,
        batch_size=1,
    )
    made_by = unsee.Gallery.open(tmp_path / "erased").made_by
    assert made_by is not None and made_by.steps == 2
    assert made_by.guidance == default(pipe, parts.guidance_argument)
    assert (parts.pictured in report.warnings) == bool(parts.pictured)
    for row in rows:
        asked = {"width": row.width, "height": row.height, "guidance": row.guidance, "steps": 2}
        seed = torch.Generator().manual_seed(1)
        call = parts.call(prompt=[row.prompt], output_type="pil", **asked)
        ((want, *_),) = parts.images(pipe(**call, generator=[seed]))
        with Image.open(tmp_path / f"base/images/{row.id}.png") as found:
            assert found.size == (row.width or 32, row.height or 32)
            assert found.tobytes() == want.tobytes()
            with Image.open(tmp_path / f"erased/images/{row.id}.png") as erased:
                assert erased.size == found.size


class Eye:
    """Sees a cat in given frames and a dog in all others, but for one that it cannot read."""

    name, kind, labels = "test/eye", "object", ("cat", "dog")

    def __init__(self, cats: Sequence[Image.Image], unread: Image.Image | None = None) -> None:
        self.cats = [cat.tobytes() for cat in cats]
        self.unread = unread and unread.tobytes()
        digests = [hashlib.sha256(it).hexdigest() for it in (*self.cats, self.unread or b"")]
        self.protocol = {"frames": digests}

    def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
        if any(image.tobytes() == self.unread for image in images):
            raise ValueError("cannot be read")
        cats = [float(image.tobytes() in self.cats) for image in images]
        return [Detection(("cat",) if c else ("dog",), {"cat": c, "dog": 1 - c}) for c in cats]

    def follows(self, answer: Detection) -> bool:
        return highest(answer, self.labels, 1)


def test_what_is_in_the_last_frame_of_a_video_alone_is_seen(tmp_path: Path) -> None:
    """And what could not be looked at in one of its frames is not gone."""
    pipe = calling(diffusers.WanPipeline, height=32, width=32, num_frames=29)(
        **_built("wan").components
    )
    pipe.set_progress_bar_config(disable=True)
    suite = unsee.Suite("s", (unsee.Prompt("it", "a photo of a cat", 1, {"object": "cat"}),))
    erasure = unsee.erase(pipe, "cat", check=False)

    def drawn() -> Any:
        draw = [torch.Generator().manual_seed(1)]
        call = {"prompt": ["a photo of a cat"], "num_inference_steps": 2, "output_type": "pil"}
        return pipe(**call, generator=draw).frames[0]

    base = drawn()
    with erasure.applied(pipe):
        erased = drawn()
    assert len(base) == 29

    def seen(*given: Any) -> tuple[Any, unsee.Report]:
        made = unsee.audit(
            pipe, erasure, out=tmp_path, suite=suite, detectors=[Eye(*given)], steps=2
        )
        (asked,) = made.samples[0].asked
        return (asked.base, asked.erased), made

    last, report = seen([base[-1], erased[-1]])
    assert last == (True, True)
    assert any("5 frames of each were looked at" in line for line in report.warnings)
    assert seen([base[-1]])[0] == (True, False)
    assert seen([base[0], erased[14]])[0] == (True, True)
    # Between those that are looked at
    assert seen([base[1], erased[27]])[0] == (False, False)

    with Image.open(tmp_path / "erased/images/it.png") as file:
        frames = []
        for at in range(file.n_frames):  # type: ignore[attr-defined]
            file.seek(at)
            frames.append(file.convert("RGB").tobytes())
    assert frames == [erased[at].tobytes() for at in (0, 7, 14, 21, 28)]

    lost, report = seen([base[-1]], erased[7])
    assert lost == (True, None)
    said = report.samples[0].erased.detectors["test/eye"]
    assert said.unscored == "frame 2 of 5: ValueError: cannot be read"
    assert report.verdict.value == "incomplete"
    # But for what is in the others
    assert seen([erased[-1]], erased[7])[0] == (False, True)


@pytest.mark.parametrize("name", ["aura-flow", "hunyuan-dit", "pixart-sigma", "sana", "wan"])
def test_a_guide_without_guidance_is_an_error(name: str, pipe: Any) -> None:
    with unsee.erase(pipe, "van gogh", method="negative").applied(pipe):
        with pytest.raises(InputError, match="steers classifier-free guidance, and this call has"):
            draw(name, pipe, guidance_scale=1.0)
        draw(name, pipe)


@pytest.mark.parametrize("what", ["boundary_ratio", "expand_timesteps", "transformer_2"])
def test_a_wan_of_two_transformers_or_a_time_a_frame_is_refused_in_a_line(what: str) -> None:
    pipe = build("wan")
    erasure = unsee.erase(pipe, "van gogh", check=False)
    if what == "transformer_2":
        pipe.register_modules(transformer_2=build("wan").transformer)
    else:
        pipe.register_to_config(**{what: 0.9 if what == "boundary_ratio" else True})
    for use in (lambda: unsee.erase(pipe, "van gogh"), lambda: erasure.add_to(pipe)):
        with pytest.raises(InputError, match=r"is a Wan 2.2.*: take that one\.$") as error:
            use()
        assert "\n" not in str(error.value)
    assert not unsee.active(pipe)


def test_a_pipeline_that_is_not_described_is_drawn_with(tmp_path: Path) -> None:
    known = build("pixart-sigma")
    pipeline = calling(diffusers.PixArtAlphaPipeline, use_resolution_binning=False)
    pipe = pipeline(**known.components)
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(InputError, match="Cannot take a PixArtAlphaPipeline apart"):
        unsee.erase(pipe, "van gogh")
    suite = unsee.Suite("s", (unsee.Prompt("it", "a cat", 1, width=32, height=32),))
    gallery = unsee.generate_gallery(pipe, [], suite, tmp_path, steps=2)
    assert gallery.made_by is not None and gallery.made_by.guidance == 4.5
    with Image.open(tmp_path / "images/it.png") as found:
        assert found.size == (32, 32)


@each
def test_a_prompt_with_one_word_too_many_is_said_to_be_cut(name: str, pipe: Any) -> None:
    rooms = [stream.room for stream in described(pipe).streams()]
    for room in rooms:
        whole = "a photo of " + " ".join(["the"] * (room - 4) + ["dog"])
        longer = [unsee.Prompt("it", whole, 0), unsee.Prompt("more", whole + " cat", 0)]
        assert cut(pipe, longer)[-1] == "more"
        assert (cut(pipe, longer[:1]) == ()) == (room == min(rooms))


@each
def test_left_out_its_settings_are_those_of_its_call(name: str, pipe: Any) -> None:
    call = inspect.signature(type(pipe).__call__).parameters
    mine = own(pipe)
    assert mine.steps == call["num_inference_steps"].default
    assert mine.guidance == call[described(pipe).guidance_argument].default


ENDED = {
    "lumina-2": ({"cfg_trunc_ratio": 0.5}, {"cfg_trunc_ratio": 0.7}),
    "z-image": ({"cfg_truncation": 0.1},),
}
"""What ends guidance before the last step, or before the step before it."""


@pytest.mark.parametrize(
    ("name", "setting"), [(n, one) for n, some in ENDED.items() for one in some]
)
def test_guidance_that_ends_on_the_way_is_an_error_with_a_guide(
    name: str, pipe: Any, setting: dict[str, Any]
) -> None:
    assert apart(draw(name, pipe, **setting), draw(name, pipe)) > 1e-4
    with unsee.erase(pipe, "van gogh", method="negative").applied(pipe):
        with pytest.raises(InputError, match=r"[Gg]uidance ended"):
            draw(name, pipe, **setting)


@each
def test_a_guides_text_is_encoded_as_the_call_encodes_its_own(name: str, pipe: Any) -> None:
    if "max_sequence_length" not in inspect.signature(type(pipe).__call__).parameters:
        pytest.skip("the pipeline's texts have one length")
    parts = parts_of(pipe)
    erasure = unsee.erase(pipe, "van gogh", method="negative")
    remove = put_on(pipe, erasure, [Guided(parts, still)])
    try:
        made = draw(name, pipe, max_sequence_length=200)
    finally:
        remove()
    assert apart(made, draw(name, pipe, max_sequence_length=200)) < 1e-5


@pytest.mark.parametrize("name", ["flux"])
def test_a_guide_on_flux_is_the_negative_prompt_at_any_length_of_texts(
    name: str, pipe: Any
) -> None:
    words = ["van gogh"] * len(PROMPTS)
    short: dict[str, Any] = {"max_sequence_length": 64}
    base, want = draw(name, pipe, **short), draw(name, pipe, **short, negative_prompt=words)
    with unsee.erase(pipe, "van gogh", method="negative").applied(pipe):
        assert apart(draw(name, pipe, **short), want) < 1e-5 < apart(want, base)
        assert not torch.equal(draw(name, pipe), want)
    long = unsee.Concept("it", phrases=(" ".join(["the"] * 70),))
    with unsee.erase(pipe, long, method="negative").applied(pipe):
        draw(name, pipe)
        with pytest.raises(InputError, match="is 70 tokens long and the tokenizer cuts after 63"):
            draw(name, pipe, **short)


@pytest.mark.parametrize("name", ["flux"])
def test_embeddings_of_another_length_than_a_guides_text_are_refused(name: str, pipe: Any) -> None:
    text = parts_of(pipe).heard(parts_of(pipe).encoded(PROMPTS, False, max_sequence_length=64))
    sequence, pooled = text.prompt.inputs.values()
    given: dict[str, Any] = {"prompt_embeds": sequence, "pooled_prompt_embeds": pooled}
    given |= {f"negative_{n}": value for n, value in given.items()} | {"prompt": None}
    with unsee.erase(pipe, "van gogh", method="negative").applied(pipe):
        with pytest.raises(InputError, match="pass prompts, not embeddings"):
            draw(name, pipe, **given, negative_prompt=None)


# Every method on every architecture: an image that changes, or one line that says why not

QUICK: dict[str, dict[str, Any]] = {
    "esd": {"iterations": 2, "sampling_steps": 2, "lr": 1e-2, "rank": 2},
    "ablation": {"iterations": 2, "batch_size": 1, "images": 1, "sampling_steps": 2, "lr": 1e-2}
    | {"rank": 2},
    "spm": {"iterations": 2, "batch_size": 1, "sampling_steps": 2, "lr": 1e-2},
    "mace": {"prompts": 2},
    "rece": {"epochs": 1},
    "sld": {"preset": "max"},
    "safree": {"preset": "every-step"},
}

REFUSED = {
    **{
        ("safree", name): f"the text encoder of a {cls} has none"
        for name, cls in (
            ("aura-flow", "AuraFlowPipeline"),
            ("hunyuan-dit", "HunyuanDiTPipeline"),
            ("pixart-sigma", "PixArtSigmaPipeline"),
            ("sana", "SanaPipeline"),
            ("wan", "WanPipeline"),
        )
    },
    ("safree", "stable-diffusion-3"): "the text encoder of a StableDiffusion3Pipeline has none",
    ("safree", "flux"): "the text encoder of a FluxPipeline has none",
    ("safree", "flux-schnell"): "the text encoder of a FluxPipeline has none",
    ("safree", "chroma"): "the text encoder of a ChromaPipeline has none",
    ("safree", "flux-2-klein"): "the text encoder of a Flux2KleinPipeline has none",
    ("safree", "lumina-2"): "the text encoder of a Lumina2Pipeline has none",
    ("safree", "qwen-image"): "the text encoder of a QwenImagePipeline has none",
    ("safree", "z-image"): "the text encoder of a ZImagePipeline has none",
}


@pytest.mark.parametrize("method", list(ERASERS))
@each
def test_every_method_acts_on_every_architecture_or_says_why_not(
    name: str, pipe: Any, method: str
) -> None:
    base = draw(name, pipe)
    arguments: dict[str, Any] = {"method": method, "check": False} | QUICK.get(method, {})
    if reason := REFUSED.get((method, name)):
        with pytest.raises(InputError, match=reason):
            with unsee.erase(pipe, "van gogh", **arguments).applied(pipe):
                draw(name, pipe)
        return
    erasure = unsee.erase(pipe, "van gogh", **arguments)
    with erasure.applied(pipe):
        assert apart(draw(name, pipe), base) > 1e-6
    assert torch.equal(draw(name, pipe), base)


def plainly_loaded(pipe: Any, path: Path) -> Any:
    """Loads a file without us: by diffusers, or by peft where diffusers loads no LoRA."""
    if hasattr(pipe, "load_lora_weights"):
        pipe.load_lora_weights(path)
        return pipe.unload_lora_weights
    tensors = {k.removeprefix("transformer."): t for k, t in load_file(path).items()}
    ranks = {f"^{k.partition('.lora_A')[0]}": len(t) for k, t in tensors.items() if "lora_A" in k}
    layers = [layer[1:] for layer in ranks]
    config = LoraConfig(target_modules=layers, rank_pattern=ranks, alpha_pattern=ranks)
    denoiser = pipe.transformer
    inject_adapter_in_model(config, denoiser, "it", state_dict=tensors)
    set_peft_model_state_dict(denoiser, tensors, "it")

    def unload() -> None:
        recurse_remove_peft_layers(denoiser)
        del denoiser.peft_config

    return unload


@each
def test_the_text_side_alone_gives_the_same_file(name: str, pipe: Any, tmp_path: Path) -> None:
    """Of a denoiser in several files: what stands before the readers is read too."""
    pipe.save_pretrained(tmp_path, max_shard_size="20KB")
    side, all_of_it = load_text_side(tmp_path), load_pipeline(tmp_path, device="cpu")
    assert any(parameter.is_meta for parameter in described(side).denoiser.parameters())
    one, other = (
        unsee.erase(it, "van gogh", keep=["cat"], expand=False, check=False)
        for it in (side, all_of_it)
    )
    assert one.record.base == other.record.base
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


@each
def test_loading_it_from_a_folder_is_silent(name: str, pipe: Any, tmp_path: Path) -> None:
    """Nothing is given to its pipeline that it does not know."""
    pipe.save_pretrained(tmp_path)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(library) for library in ("diffusers", "transformers", "unsee")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
    try:
        load_text_side(tmp_path, **UNCHECKED)
        load_pipeline(tmp_path, device="cpu", **UNCHECKED)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
    assert said == []


@pytest.mark.parametrize("method", ["uce", "esd"])
@each
def test_plain_diffusers_reads_the_file(name: str, pipe: Any, method: str, tmp_path: Path) -> None:
    path = tmp_path / "it.safetensors"
    erasure = unsee.erase(pipe, "van gogh", check=False, method=method, **QUICK.get(method, {}))
    erasure.save(path)
    base = draw(name, pipe)
    with erasure.applied(pipe):
        ours = draw(name, pipe)
    unload = plainly_loaded(pipe, path)
    try:
        adapters = sum(hasattr(m, "lora_A") for m in described(pipe).denoiser.modules())
        assert adapters == len(erasure.tensors) // 2
        assert apart(draw(name, pipe), ours) < 1e-5
    finally:
        unload()
    assert torch.equal(draw(name, pipe), base)


@pytest.mark.parametrize("name", ["stable-diffusion-xl", "stable-diffusion-3", "flux"])
@torch.no_grad()
def test_a_concept_is_left_where_the_pooled_embedding_is_not_edited(name: str, pipe: Any) -> None:
    erasure = unsee.erase(pipe, "monet", anchor="dog", check=False, ridge=1e-6)
    pooled = parts_of(pipe).readers()["pooled"].layers
    (component,) = erasure.record.base.components.values()
    assert component.sample is not None
    rest = dataclasses.replace(
        component,
        layers={n: shape for n, shape in component.layers.items() if n not in pooled},
        sample={n: values for n, values in component.sample.items() if n not in pooled},
    )
    base = dataclasses.replace(erasure.record.base, components={parts_of(pipe).prefix: rest})
    without = dataclasses.replace(
        erasure,
        record=dataclasses.replace(erasure.record, base=base),
        tensors={
            n: t
            for n, t in erasure.tensors.items()
            if not any(f".{layer}." in n for layer in pooled)
        },
    )
    parts = parts_of(pipe)
    x = torch.randn(1, *parts.latent_shape(), generator=torch.Generator().manual_seed(0))
    left = []
    anchor = parts.predict(x, torch.tensor(500.0), parts.encode(["dog"]))
    for one in (erasure, without):
        with one.applied(pipe):
            found = parts.predict(x, torch.tensor(500.0), parts.encode(["monet"]))
        left.append(float((found - anchor).norm()))
    assert left[0] < 0.1 * left[1]


def test_the_second_attention_of_stable_diffusion_3_is_the_images_own() -> None:
    parts = parts_of(_built("stable-diffusion-3"))
    names = set(dict(parts.denoiser.named_modules()))
    assert any(".attn2." in name for name in names)
    assert not any(".attn2." in name for name in (*select(parts, "x"), *select(parts, "x-strict")))
    assert {name.rpartition(".")[2] for name in select(parts, "x-strict")} == {
        "add_k_proj",
        "add_v_proj",
    }


# Pipelines of the same parts that begin with an image

OF = {type(_built(name)).__name__: name for name in ("flux-schnell", *PIPELINES)}


def begun(pipe: Any, name: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline that begins with an image, of another's parts, and the arguments of its call."""
    made = getattr(diffusers, name).from_pipe(pipe)
    made.set_progress_bar_config(disable=True)
    picture = Image.effect_noise((32, 32), 80).convert("RGB")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    few = {"num_inference_steps": 4, "height": 32, "width": 32, "strength": 0.8}
    given = {"image": [picture] * 2, "mask_image": [mask] * 2, "video": [[picture] * 5] * 2}
    takes = inspect.signature(type(made).__call__).parameters
    guided = GUIDED.get(OF[SIBLINGS[name]], {})
    call = described(made).call(prompt=list(PROMPTS), **guided)
    return made, call | {n: v for n, v in {**few, **given}.items() if n in takes}


@pytest.mark.parametrize("begins", list(SIBLINGS))
def test_a_pipeline_that_begins_with_an_image_takes_the_erasures_of_its_model(
    begins: str,
) -> None:
    pipe = _built(OF[SIBLINGS[begins]])
    made, call = begun(pipe, begins)

    def drawn() -> Tensor:
        generators = [torch.Generator().manual_seed(i) for i in (0, 1)]
        # A list of its own, as Z-Image's writes into it
        given = {"prompt": list(PROMPTS), "generator": generators, "output_type": "latent"}
        out = made(**call | given)
        found: Tensor = out.frames if hasattr(out, "frames") else out.images
        return found

    base = drawn()
    for method in ("uce", "sld"):
        more = QUICK.get(method, {})
        erasure = unsee.erase(pipe, "van gogh", method=method, check=False, **more)
        with erasure.applied(made):
            assert apart(drawn(), base) > 1e-5
        assert torch.equal(drawn(), base)


@pytest.mark.parametrize("begins", list(SIBLINGS))
def test_erasing_from_one_that_begins_with_an_image_gives_the_same_or_says_from_which(
    begins: str,
) -> None:
    pipe = _built(OF[SIBLINGS[begins]])
    made, _ = begun(pipe, begins)
    if described(pipe).flow:
        with pytest.raises(InputError, match=rf"erase from a {SIBLINGS[begins]} of the same"):
            unsee.erase(made, "van gogh")
        return
    one, other = (unsee.erase(it, "van gogh", keep=["cat"]) for it in (made, pipe))
    assert all(torch.equal(one.tensors[n], other.tensors[n]) for n in other.tensors)
    assert one.measured.effect == other.measured.effect


UNCHECKED: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
"""What every model is loaded with that is to be drawn with."""

PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"


def table() -> str:
    """What the tests above show, a line an architecture."""
    methods = list(ERASERS)
    lines = [f"| | pipeline | {' | '.join(f'`{m}`' for m in methods)} |"]
    lines.append("|---" * (2 + len(methods)) + "|")
    for name in PIPELINES:
        cells = []
        for method in methods:
            cells.append("no" if (method, name) in REFUSED else "yes")
        pipeline = type(_built(name)).__name__
        lines.append(f"| {name} | `{pipeline}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_table_in_the_docs_is_what_the_tests_show() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = text.partition("<!-- table -->")[2].partition("<!-- end of table -->")[0].strip()
    assert shown == table(), f"docs/architectures.md should have:\n\n{table()}"


@pytest.mark.parametrize("name", ["stable-diffusion", "pixart-sigma", "flux-2-klein"])
def test_a_gallerys_image_is_the_pipelines_own(name: str, tmp_path: Path) -> None:
    pipe = build(name)
    suite = Suite("two", tuple(Prompt(f"p{i}", text, i) for i, text in enumerate(PROMPTS)))
    gallery = unsee.generate_gallery(pipe, (), suite, tmp_path, steps=2)
    parts = described(pipe)
    settings = gallery.made_by
    assert settings is not None
    made = parts.images(
        pipe(
            **parts.call(
                prompt=list(PROMPTS),
                generator=[torch.Generator().manual_seed(i) for i in range(len(PROMPTS))],
                steps=2,
                guidance=settings.guidance,
                output_type="pil",
            )
        )
    )
    for prompt, (image,) in zip(gallery, made, strict=True):
        with Image.open(gallery.image_path(prompt)) as file:
            apart = np.asarray(file, int) - np.asarray(image.convert("RGB"), int)
        # A level of 255 is what the processor's arithmetic may round otherwise
        assert np.abs(apart).max() <= 1 and file.mode == image.mode
