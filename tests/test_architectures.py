"""What holds for every architecture: the contract of a file in ``pipelines/architectures``."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
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
from unsee.contract import PROMPTS, apart
from unsee.erasers import ERASERS
from unsee.erasers.esd import select
from unsee.eval.detectors import Detection, Unscored
from unsee.pipelines import load_pipeline, load_text_side, parts_of
from unsee.pipelines.generation import cut, own
from unsee.pipelines.guidance import Guided
from unsee.pipelines.parts import default, described
from unsee.pipelines.watch import put_on
from unsee.tests.families import GUIDED, PIPELINES, build, calling

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
        (want,) = parts.images(pipe(**call, generator=[seed]))
        with Image.open(tmp_path / f"base/images/{row.id}.png") as found:
            assert found.size == (row.width or 32, row.height or 32)
            assert found.tobytes() == want.tobytes()
            with Image.open(tmp_path / f"erased/images/{row.id}.png") as erased:
                assert erased.size == found.size


@pytest.mark.parametrize("name", ["aura-flow", "hunyuan-dit", "pixart-sigma", "sana", "wan"])
def test_a_guide_without_guidance_is_an_error(name: str, pipe: Any) -> None:
    with unsee.erase(pipe, "van gogh", method="negative").applied(pipe):
        with pytest.raises(InputError, match="steers classifier-free guidance, and this call has"):
            draw(name, pipe, guidance_scale=1.0)
        draw(name, pipe)


def test_a_second_transformer_is_refused() -> None:
    pipe = build("wan")
    pipe.register_to_config(boundary_ratio=0.9)
    with pytest.raises(InputError, match="is a Wan 2.2"):
        unsee.erase(pipe, "van gogh")


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
def test_a_text_of_another_length_is_no_guides_unless_the_rest_is_left_out(
    name: str, pipe: Any
) -> None:
    if "max_sequence_length" not in inspect.signature(type(pipe).__call__).parameters:
        pytest.skip("the pipeline's texts have one length")
    parts = parts_of(pipe)
    erasure = unsee.erase(pipe, "van gogh", method="negative")
    put = Guided(parts, lambda steps, prompts: contract.Still(parts.encode(["van gogh"])))
    remove = put_on(pipe, erasure, [put])
    try:
        made = draw(name, pipe, max_sequence_length=200)
    except InputError as error:
        assert "leave max_sequence_length as it is" in str(error)
        return
    finally:
        remove()
    assert apart(made, draw(name, pipe, max_sequence_length=200)) < 1e-5


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
