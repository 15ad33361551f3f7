"""What holds for every architecture: the contract of a file in ``pipelines/architectures``."""

import copy
import dataclasses
import functools
import hashlib
import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import unsee
from unsee._errors import InputError
from unsee.erasers import ERASERS
from unsee.erasers.esd import select
from unsee.eval.detectors import Detection, Unscored, highest
from unsee.pipelines import load_pipeline, load_text_side, parts_of
from unsee.pipelines.architectures import SIBLINGS
from unsee.pipelines.architectures.flux import unpacked
from unsee.pipelines.generation import cut, own
from unsee.pipelines.guidance import Guided, Start
from unsee.pipelines.parts import Parts, default, described
from unsee.pipelines.schedule import ddim, eps_scale
from unsee.pipelines.text import Text
from unsee.pipelines.watch import put_on
from unsee.tests.families import GUIDED, PIPELINES, build, calling

# Of two lengths
PROMPTS = ("a painting by van gogh", "a photo of a dog in the van")
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
    """What a scheduler was given at a step: the prediction, the latents, and t; what it made."""

    predictions: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    times: list[Tensor] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)


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
        found = own(prediction, t, x, *args, **kwargs)
        seen.made.append(whole(found[0], shape))
        return found

    scheduler.step = step
    try:
        yield seen
    finally:
        del scheduler.step


def whole(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Latents as they were before a pipeline packed them."""
    if x.ndim > len(shape) + 1:
        # One frame of a video
        x = x.squeeze(2)
    if x.shape[2:] == shape[1:]:
        # Some predict a variance behind it.
        return x[:, : shape[0]].clone()
    if x.shape[-1] == shape[0]:
        # A latent is a token.
        return x.transpose(1, 2).reshape(len(x), *shape)
    return unpacked(x, *shape[-2:])


def scale(name: str, pipe: Any) -> float:
    """The scale of guidance in ``draw``."""
    own = default(pipe, described(pipe).guidance_argument)
    return float(GUIDED.get(name, {}).get("true_cfg_scale", own))


def guided(name: str, pipe: Any, empty: Tensor, prompt: Tensor) -> Tensor:
    """What guidance makes of two predictions in ``draw``."""
    if "true_cfg_scale" in GUIDED.get(name, {}):
        # Which it does not have by default
        return empty + scale(name, pipe) * (prompt - empty)
    return described(pipe).combine(empty, prompt, scale(name, pipe))


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
        assert apart(guided(name, pipe, empty, prompt), want) < 1e-5


# What makes of a pipeline's sampler the one that ``Parts.schedule`` is: of order 1 and without its
# corrector, UniPC is Euler's. As it comes, of order 2, its images are 2e-2 away.
SAMPLERS: dict[str, dict[str, Any]] = {
    "wan": {"solver_order": 1, "disable_corrector": list(range(STEPS))},
}


@each
@torch.no_grad()
def test_its_schedule_draws_what_the_pipeline_draws(
    name: str, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of(pipe)
    schedule, own = parts.schedule(STEPS), pipe.scheduler
    settings = SAMPLERS.get(name, {})
    monkeypatch.setattr(
        pipe,
        "scheduler",
        type(own).from_config(own.config, **settings) if parts.flow else ddim(own),
    )
    text = parts.encode([None, None, *PROMPTS])
    shape = parts.latent_shape()
    noise = [torch.randn(1, *shape, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    x = schedule.start * torch.cat(noise)
    for i, t in enumerate(schedule.times):
        empty, prompt = parts.predict(torch.cat([x, x]), t, text).chunk(2)
        x = schedule.step(i, guided(name, pipe, empty, prompt), x)
    with watched(pipe) as seen:
        draw(name, pipe)
    assert apart(x, seen.made[-1]) < 1e-5


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
def test_encoding_leaves_the_callers_texts_as_they_were(name: str, pipe: Any) -> None:
    texts = list(PROMPTS)
    parts_of(pipe).encode(texts)
    parts_of(pipe).encoded(texts, True, texts)
    assert texts == list(PROMPTS)


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
    for i, prompt in enumerate(PROMPTS):
        for group, (alone,) in parts.reads(parts.encode([prompt])).items():
            # None is there for the sake of a longer text beside it.
            assert alone.shape == read[group][i].shape
            assert apart(alone, read[group][i]) < 1e-4
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
def test_it_says_from_which_row_on_a_word_changes_a_text(name: str, pipe: Any) -> None:
    parts = parts_of(pipe)
    read = parts.reads(parts.encode(["a photo of a dog", "a photo of a cat"]))
    for stream in parts.streams():
        one, other = (rows[: stream.stop] for rows in read[stream.group])
        changed = (one - other).abs().amax(1)[stream.first :].nonzero().flatten() + stream.first
        whole = stream.pooled or not stream.causal
        first = stream.first if whole else stream.position("a photo of a dog")
        assert int(changed[0]) == first


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


@pytest.mark.filterwarnings("ignore:The anchor", "ignore:What must stay")
@each
def test_uce_as_it_is_by_default_takes_a_concept_to_its_anchor(name: str, pipe: Any) -> None:
    """λ and the rows that are edited fit every text encoder: no setting is for one of them.

    Of as many tokens as its anchor: where a text is not filled up, other rows more are left.
    """
    erasure = unsee.erase(pipe, unsee.Concept("monet", anchor="dog"))
    assert erasure.measured.effect is not None
    assert 0.9 < erasure.measured.effect["monet"].moved < 1.2


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


def still(parts: Parts) -> Start:
    text = parts.encode(["van gogh"])
    return lambda steps, prompts: Still(text)


@each
def test_a_guide_that_does_nothing_is_the_pipeline(name: str, pipe: Any) -> None:
    parts = parts_of(pipe)
    base = draw(name, pipe)
    erasure = unsee.erase(pipe, "van gogh", method="negative")
    put = Guided(parts, still)
    remove = put_on(pipe, erasure, put)
    try:
        assert apart(draw(name, pipe), base) < 1e-5
    finally:
        remove()


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


class Noting(Still):
    """A guide that notes by how much the predictions differ from the one for the empty prompt."""

    def __init__(self, text: Text) -> None:
        super().__init__(text)
        self.apart: dict[int, tuple[Tensor, Tensor]] = {}

    def after(
        self, step: int, empty: Tensor, prompt: Tensor, more: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        self.apart[step] = (prompt - empty, more[0] - empty)
        return empty, prompt


@each
@torch.no_grad()
def test_a_guide_is_given_differences_of_noise(name: str, pipe: Any) -> None:
    """Whatever the model predicts, by whatever sign, and however it counts t."""
    parts = parts_of(pipe)
    concept = parts.encode(["van gogh"])
    guide = Noting(concept)
    erasure = unsee.erase(pipe, "van gogh", method="negative")
    remove = put_on(pipe, erasure, Guided(parts, lambda parts: lambda steps, prompts: guide))
    try:
        with watched(pipe) as seen:
            draw(name, pipe)
    finally:
        remove()
    shape, text = (
        parts.latent_shape(),
        Text.cat([parts.encode([None, None, *PROMPTS]), *2 * [concept]]),
    )
    # Of pure noise, a flow model says nothing of it.
    says = [i for i, t in enumerate(seen.times) if float(eps_scale(pipe.scheduler, t))]
    assert list(guide.apart) == says and len(says) >= STEPS - 1
    for step, found in guide.apart.items():
        x, t = seen.latents[step], seen.times[step]
        empty, prompt, more = parts.predict(torch.cat([x, x, x]), t, text).chunk(3)
        scale = eps_scale(pipe.scheduler, t)
        for want, got in zip((prompt - empty, more - empty), found, strict=True):
            assert apart(whole(got, shape), scale * want) < 1e-4


@each
def test_the_negative_prompt_by_a_guide_is_the_one_by_argument(name: str, pipe: Any) -> None:
    words = ["van gogh"] * len(PROMPTS)
    if "negative_prompt" in inspect.signature(type(pipe).__call__).parameters:
        argument: dict[str, Any] = {"negative_prompt": words}
    else:
        argument = {"negative_prompt_embeds": parts_of(pipe).encode(words, negative=True).first}
    base = draw(name, pipe)
    want = draw(name, pipe, **argument)
    with unsee.erase(pipe, "van gogh", method="negative").applied(pipe):
        found = draw(name, pipe)
    assert apart(want, base) > 1e-4
    assert apart(found, want) < 1e-5


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
@torch.no_grad()
def test_what_is_not_said_to_be_cut_is_read_to_its_last_word(name: str, pipe: Any) -> None:
    parts = described(pipe)
    shortest = min(stream.room for stream in parts.streams())
    for stream in parts.streams():
        room = stream.room
        ends = ["a photo of " + " ".join(["the"] * (room - 4) + [w]) for w in ("dog", "cat")]
        assert [len(stream.tokens(text)) for text in ends] == [room, room]
        read = parts.reads(parts.heard(parts.encoded(ends, False)).prompt)[stream.group]
        one, other = (rows[stream.first : stream.stop] for rows in read)
        assert not torch.equal(one, other)
        longer = [unsee.Prompt("it", ends[0], 0), unsee.Prompt("more", ends[0] + " cat", 0)]
        assert cut(pipe, longer)[-1] == "more"
        assert (cut(pipe, longer[:1]) == ()) == (room == shortest)


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
    put = Guided(parts, still)
    remove = put_on(pipe, erasure, put)
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
