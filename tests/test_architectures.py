"""What holds for every architecture: the contract of a file in ``pipelines/architectures``."""

import dataclasses
import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unsee
from unsee._errors import InputError
from unsee.erasers import ERASERS
from unsee.erasers.esd import select
from unsee.pipelines import Parts, parts_of
from unsee.pipelines.architectures.flux import Flux, unpacked
from unsee.pipelines.guidance import Guided
from unsee.pipelines.parts import described
from unsee.pipelines.text import Text
from unsee.pipelines.watch import put_on
from unsee.tests.families import GUIDED, PIPELINES, build

PROMPTS = ("a painting by van gogh", "a photo of a dog")
STEPS = 3

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
    arguments = described(pipe).call(prompt=list(prompts), steps=STEPS, **GUIDED.get(name, {}))
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    made = pipe(**arguments | more, generator=generators, output_type="latent")
    found: Tensor = made.frames if hasattr(made, "frames") else made.images
    return found


@dataclass
class Seen:
    """What a scheduler was given at a step: the prediction, the latents, and t."""

    predictions: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    times: list[Tensor] = field(default_factory=list)


@contextmanager
def watched(pipe: Any) -> Iterator[Seen]:
    """Notes what the pipeline's scheduler is given, its latents as the denoiser reads them."""
    seen, scheduler, shape = Seen(), pipe.scheduler, described(pipe).latent_shape()
    own = scheduler.step

    def step(prediction: Tensor, t: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        scaled = (
            scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        )
        seen.predictions.append(whole(prediction, shape))
        seen.latents.append(whole(scaled, shape))
        seen.times.append(torch.as_tensor(t))
        return own(prediction, t, x, *args, **kwargs)

    scheduler.step = step
    try:
        yield seen
    finally:
        del scheduler.step


def whole(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Latents as they were before a pipeline packed them."""
    return x.clone() if x.shape[1:] == shape else unpacked(x, *shape[-2:])


def scale(name: str, pipe: Any) -> float:
    """The scale of guidance in ``draw``."""
    own = inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default
    return float(GUIDED.get(name, {}).get("true_cfg_scale", own))


def guided(name: str, parts: Parts, empty: Tensor, prompt: Tensor) -> Tensor:
    """The pipeline's guidance in ``draw``."""
    if isinstance(parts, Flux):  # which has none by default
        return empty + scale(name, parts.pipe) * (prompt - empty)
    return parts.combine(empty, prompt, scale(name, parts.pipe))


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@each
def test_the_first_noise_is_drawn_in_the_latents_shape(name: str, pipe: Any) -> None:
    with watched(pipe) as seen:
        draw(name, pipe)
    shape = (1, *parts_of(pipe).latent_shape())
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    # Euler's first latents are scaled to a deviation of nearly 1.
    assert apart(seen.latents[0], torch.cat(noise)) < 1e-2


@each
@torch.no_grad()
def test_its_prediction_is_what_the_scheduler_is_given_at_every_step(name: str, pipe: Any) -> None:
    parts = parts_of(pipe)
    with watched(pipe) as seen:
        draw(name, pipe)
    text = parts.encode([None, None, *PROMPTS])
    assert len(seen.times) == STEPS
    for want, x, t in zip(seen.predictions, seen.latents, seen.times, strict=True):
        empty, prompt = parts.predict(torch.cat([x, x]), t, text).chunk(2)
        assert apart(guided(name, parts, empty, prompt), want) < 1e-5


@each
@torch.no_grad()
def test_a_flow_models_trajectory_is_the_pipelines(name: str, pipe: Any) -> None:
    parts = parts_of(pipe)
    if type(pipe.scheduler).__name__ != "FlowMatchEulerDiscreteScheduler":
        pytest.skip("its sampler is of another order, or it is no flow model")
    schedule, text = parts.schedule(STEPS), parts.encode([None, None, *PROMPTS])
    shape = (1, *parts.latent_shape())
    x = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in (0, 1)])
    for i, t in enumerate(schedule.times):
        empty, prompt = parts.predict(torch.cat([x, x]), t, text).chunk(2)
        x = schedule.step(i, guided(name, parts, empty, prompt), x)
    assert apart(x, whole(draw(name, pipe), shape[1:])) < 1e-5


@each
@torch.no_grad()
def test_a_batch_of_texts_predicts_what_each_alone_does(name: str, pipe: Any) -> None:
    parts = parts_of(pipe)
    x = torch.randn(2, *parts.latent_shape(), generator=torch.Generator().manual_seed(0))
    t = torch.tensor(500)
    together = parts.predict(x, t, parts.encode(PROMPTS))
    alone = [parts.predict(x[i, None], t, parts.encode([PROMPTS[i]])) for i in (0, 1)]
    assert apart(torch.cat(alone), together) < 1e-5
    # The same by pieces that were put together
    pieces = Text.cat([parts.encode([PROMPTS[0]]), parts.encode([PROMPTS[1]])])
    assert apart(parts.predict(x, t, pieces), together) < 1e-5


@each
@torch.no_grad()
def test_the_empty_prompt_is_said_to_be_a_text_where_it_is_one(name: str, pipe: Any) -> None:
    parts = parts_of(pipe)
    asked = parts.heard(parts.encoded([""], guided=True))
    empty = asked.prompt if asked.empty is None else asked.empty
    text = parts.encode([""])
    assert parts.empty_is_text == (apart(text.first[0], empty.first[0]) < 1e-6)
    assert parts.encode([None]).map(torch.Tensor.double).equals(empty.map(torch.Tensor.double))


@each
def test_its_readers_are_the_layers_that_change_with_text_alone(name: str, pipe: Any) -> None:
    """Found without knowing the architecture: what else they read, they do not first."""
    parts = parts_of(pipe)
    inputs: list[dict[str, Tensor]] = []

    def note(layer: str) -> Any:
        return lambda module, args: inputs[-1].setdefault(layer, args[0].clone())

    linears = {n: m for n, m in parts.denoiser.named_modules() if isinstance(m, nn.Linear)}
    handles = [m.register_forward_pre_hook(note(n)) for n, m in linears.items()]
    x, other = torch.randn(2, 1, *parts.latent_shape(), generator=torch.Generator().manual_seed(0))
    text, another = (parts.encode([prompt]) for prompt in PROMPTS)
    with torch.no_grad():
        for latents, t, words in (
            (x, 500.0, text),
            (x, 500.0, another),
            (other, 500.0, text),
            (x, 200.0, text),
        ):
            inputs.append({})
            parts.predict(latents, torch.tensor(t), words)
    for handle in handles:
        handle.remove()
    base, said, drawn, later = inputs

    def differ(layer: str, one: dict[str, Tensor]) -> bool:
        a, b = base[layer], one[layer]
        return a.shape != b.shape or not torch.allclose(a, b, atol=1e-6)

    of_text = {n for n in base if differ(n, said) and not differ(n, drawn)}
    found = {n for group in parts.readers().values() for n in group.layers}
    assert found <= of_text
    # Those that change with text alone and are not readers read what readers have made.
    for layer in of_text - found:
        read = [base[layer].flatten(0, -2)]
        given = [rows for rows in parts.reads(text).values()]
        assert not any(
            one.shape[-1] == rows[0].shape[-1] and torch.isin(rows[0][:1], one).all()
            for one in read
            for rows in given
        )
    assert any(not differ(n, later) for n in found)


@each
@torch.no_grad()
def test_it_says_what_the_readers_read(name: str, pipe: Any) -> None:
    parts = parts_of(pipe)
    text = parts.encode(PROMPTS)
    read = parts.reads(text)
    got: dict[str, Tensor] = {}
    for group, one in parts.readers().items():
        layer = next(iter(one.layers.values()))
        handle = layer.register_forward_pre_hook(
            lambda m, args, group=group: got.setdefault(group, args[0].clone())
        )
        parts.predict(torch.zeros(2, *parts.latent_shape()), torch.tensor(500.0), text)
        handle.remove()
        for i, rows in enumerate(read[group]):
            seen = got[group].reshape(2, -1, got[group].shape[-1])[i, :, : one.columns]
            # Of the rows that it reads, those that the denoiser leaves out are not among ours.
            places = [int((seen - row).abs().sum(1).argmin()) for row in rows[:40]]
            assert apart(seen[places], rows[:40]) < 1e-5
        assert {len(s.tokenizer("dog").input_ids) > 0 for s in parts.streams() if s.group == group}


@each
@torch.no_grad()
def test_one_prompt_sent_to_another_predicts_what_the_other_does(name: str, pipe: Any) -> None:
    """By the closed form, every row that the concept changes, with hardly any ridge."""
    parts = parts_of(pipe)
    erasure = unsee.erase(
        pipe,
        unsee.Concept("monet", anchor="dog", keep=("cat",)),
        method="uce",
        ridge=1e-9,
        residual=1e-9,
        keep_scale=1.0,
        expand=False,
        check=False,
    )
    x = torch.randn(1, *parts.latent_shape(), generator=torch.Generator().manual_seed(0))
    t = torch.tensor(500.0)

    def predicted(prompt: str) -> Tensor:
        return parts.predict(x, t, parts.encode([prompt]))

    before, anchor, kept = (predicted(p) for p in ("monet", "dog", "cat"))
    with erasure.applied(pipe):
        after, still = predicted("monet"), predicted("cat")
    assert float((after - anchor).norm()) < 2e-2 * float((before - anchor).norm())
    assert float((still - kept).norm()) < 2e-2 * float((before - anchor).norm())


@each
def test_uce_as_it_is_by_default_takes_a_concept_to_its_anchor(name: str, pipe: Any) -> None:
    """λ and the rows that are edited fit every text encoder: no setting is for one of them."""
    erasure = unsee.erase(pipe, "van gogh", keep=["cat"])
    assert erasure.measured.effect is not None
    assert 0.9 < erasure.measured.effect["van gogh"].moved < 1.2


@each
def test_off_again_it_is_the_base_bit_for_bit(name: str, pipe: Any) -> None:
    base = draw(name, pipe)
    erasure = unsee.erase(pipe, "van gogh", check=False, keep=["cat"])
    with erasure.applied(pipe):
        assert not torch.equal(draw(name, pipe), base)
    assert torch.equal(draw(name, pipe), base)


class Still:
    """A guide that does nothing but take a row of its own."""

    begins = 0
    changes: tuple[int, ...] = ()

    def __init__(self, text: Text) -> None:
        self.text = text

    def before(self, step: int, empty: Text, prompt: Text) -> tuple[Text, Text, Sequence[Text]]:
        return empty, prompt, (self.text.to(prompt.first).expand(len(prompt)),)

    def after(
        self, step: int, empty: Tensor, prompt: Tensor, more: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        return empty, prompt


@each
def test_a_guide_that_does_nothing_is_the_pipeline(name: str, pipe: Any) -> None:
    parts = parts_of(pipe)
    base = draw(name, pipe)
    erasure = unsee.erase(pipe, "van gogh", method="negative")
    put = Guided(parts, lambda steps, prompts: Still(parts.encode(["van gogh"])))
    remove = put_on(pipe, erasure, put)
    try:
        assert apart(draw(name, pipe), base) < 1e-5
    finally:
        remove()


@each
def test_the_negative_prompt_by_a_guide_is_the_one_by_argument(name: str, pipe: Any) -> None:
    if "negative_prompt" not in inspect.signature(type(pipe).__call__).parameters:
        pytest.skip("the pipeline takes no negative prompt")
    base = draw(name, pipe)
    want = draw(name, pipe, negative_prompt=["van gogh"] * len(PROMPTS))
    with unsee.erase(pipe, "van gogh", method="negative").applied(pipe):
        found = draw(name, pipe)
    assert apart(want, base) > 1e-4
    assert apart(found, want) < 1e-5


# Every method on every architecture: an image that changes, or one line that says why not

QUICK: dict[str, dict[str, Any]] = {
    "esd": {"iterations": 2, "sampling_steps": 2, "lr": 1e-3, "rank": 2},
    "ablation": {"iterations": 2, "batch_size": 1, "images": 1, "sampling_steps": 2, "lr": 1e-3}
    | {"rank": 2},
    "spm": {"iterations": 2, "batch_size": 1, "sampling_steps": 2, "lr": 1e-2},
    "mace": {"prompts": 2},
    "rece": {"epochs": 1},
    "sld": {"preset": "max"},
    "safree": {"preset": "every-step"},
}

REFUSED = {
    ("safree", "stable-diffusion-3"): "the text encoder of a StableDiffusion3Pipeline has none",
    ("safree", "flux"): "the text encoder of a FluxPipeline has none",
    ("safree", "flux-schnell"): "the text encoder of a FluxPipeline has none",
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


@pytest.mark.parametrize("method", ["uce", "esd"])
@each
def test_plain_diffusers_reads_the_file(name: str, pipe: Any, method: str, tmp_path: Path) -> None:
    loading = getattr(pipe, "load_lora_weights", None)
    if loading is None:
        pytest.skip("diffusers loads no LoRA into this pipeline")
    path = tmp_path / "it.safetensors"
    erasure = unsee.erase(pipe, "van gogh", check=False, method=method, **QUICK.get(method, {}))
    erasure.save(path)
    base = draw(name, pipe)
    with erasure.applied(pipe):
        ours = draw(name, pipe)
    loading(path)
    try:
        adapters = sum(hasattr(m, "lora_A") for m in described(pipe).denoiser.modules())
        assert adapters == len(erasure.tensors) // 2
        assert apart(draw(name, pipe), ours) < 1e-5
    finally:
        pipe.unload_lora_weights()
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
    reasons: list[str] = []
    for name in PIPELINES:
        cells = []
        for method in methods:
            reason = REFUSED.get((method, name))
            if reason is None:
                cells.append("yes")
                continue
            if reason not in reasons:
                reasons.append(reason)
            cells.append(f"no ({reasons.index(reason) + 1})")
        pipeline = type(_built(name)).__name__
        lines.append(f"| {name} | `{pipeline}` | {' | '.join(cells)} |")
    lines += ["", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1))]
    return "\n".join(lines)


def test_the_table_in_the_docs_is_what_the_tests_show() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = text.partition("<!-- table -->")[2].partition("<!-- end of table -->")[0].strip()
    assert shown == table(), f"docs/architectures.md should have:\n\n{table()}"
