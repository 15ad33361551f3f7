"""What has to hold of every pipeline that is described, tried on one without knowing which it is.

``check`` is for who describes a pipeline, and the tests hold the same of those described here. A
law is a function of this module; its name is the sentence that it proves.
"""

import functools
import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ._errors import InputError
from .erasers.uce import UCE
from .flow import erase
from .pipelines.architectures.flux import unpacked
from .pipelines.erasure import Erasure
from .pipelines.guidance import Guided
from .pipelines.parts import Parts, default, described, parts_of
from .pipelines.schedule import ddim, eps_scale
from .pipelines.text import Text
from .pipelines.watch import put_on
from .prompts import Concept

WORDS = tuple("a art by cat dog gogh in monet of painting photo the van".split())
"""What a tiny model's tokenizer has to know, each as one token."""

# Of two lengths
PROMPTS = ("a painting by van gogh", "a photo of a dog in the van")
STEPS = 3


@dataclass(frozen=True)
class Tried:
    """A pipeline that laws are tried on.

    Attributes:
        pipe: It, with an image of at most some hundred pixels a side.
        given: What its call is given so that it has classifier-free guidance, where it has none by
            itself.
    """

    pipe: Any
    given: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def parts(self) -> Parts:
        """The pipeline taken apart."""
        return described(self.pipe)

    def draw(self, prompts: Sequence[str] = PROMPTS, **more: Any) -> Tensor:
        """Latents of prompts, by classifier-free guidance."""
        arguments = self.parts.call(prompt=list(prompts), steps=STEPS, **self.given)
        generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        made = self.pipe(**arguments | more, generator=generators, output_type="latent")
        found: Tensor = made.frames if hasattr(made, "frames") else made.images
        return found

    def noise(self) -> Tensor:
        """What ``draw`` starts from."""
        shape = (1, *self.parts.latent_shape())
        draws = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
        return torch.cat([torch.randn(shape, generator=one) for one in draws])

    def predict(self, latents: Tensor, t: float, *texts: str | None) -> Tensor:
        """The prediction for texts at a time."""
        return self.parts.predict(latents, torch.tensor(t), self.parts.encode(texts))

    def guided(self, latents: Tensor, t: Tensor) -> Tensor:
        """The guided prediction for ``PROMPTS``."""
        text = self.parts.encode([None] * len(PROMPTS) + list(PROMPTS))
        empty, prompt = self.parts.predict(torch.cat([latents, latents]), t, text).chunk(2)
        if "true_cfg_scale" in self.given:
            # Which it does not have by default
            return empty + float(self.given["true_cfg_scale"]) * (prompt - empty)
        scale = default(self.pipe, self.parts.guidance_argument)
        return self.parts.combine(empty, prompt, float(scale))

    @contextmanager
    def watched(self) -> "Iterator[Seen]":
        """Notes what the scheduler is given, its latents as the denoiser reads them."""
        seen, scheduler, shape = Seen(), self.pipe.scheduler, self.parts.latent_shape()
        own = scheduler.step

        # Pipelines look into its signature for what to give it.
        @functools.wraps(own)
        def step(prediction: Tensor, t: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
            scales = hasattr(scheduler, "scale_model_input")
            scaled = scheduler.scale_model_input(x, t) if scales else x
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


@dataclass
class Seen:
    """What a scheduler was given at a step: the prediction, the latents, and t; what it made."""

    predictions: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    times: list[Tensor] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)


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
    tokens = (shape[-2] // 2) * (shape[-1] // 2)
    if x.shape[1:] != (tokens, 4 * shape[0]):
        raise InputError(f"latents are of shape {(*x.shape,)}, and latent_shape says {shape}.")
    return unpacked(x, *shape[-2:])


def apart(one: Tensor, other: Tensor) -> float:
    """How far a tensor is from another, in units of the other's norm."""
    return float((one - other).norm() / other.norm())


def must(holds: object, otherwise: str) -> None:
    """Raises an InputError unless something holds."""
    if not holds:
        raise InputError(otherwise)


def alike(found: Tensor, wanted: Tensor, within: float, what: str) -> None:
    """Makes sure that two tensors are nearly the same."""
    if found.shape != wanted.shape:
        raise InputError(f"{what} has shape {(*found.shape,)}, and wanted is {(*wanted.shape,)}.")
    # not (…): nor is a distance that is no number small
    if not (distance := apart(found, wanted)) <= within:
        raise InputError(f"{what} is {distance:.1e} off, of which {within:g} may be rounding.")


def the_first_noise_is_drawn_in_the_latents_shape(it: Tried) -> None:
    with it.watched() as seen:
        it.draw()
    # Euler's first latents are scaled to a deviation of nearly 1.
    alike(seen.latents[0], it.noise(), 1e-2, "noise in the shape of latent_shape")


def its_prediction_is_what_the_scheduler_is_given_at_every_step(it: Tried) -> None:
    with it.watched() as seen:
        it.draw()
    must(len(seen.times) == STEPS, f"the scheduler made {len(seen.times)} steps, not {STEPS}.")
    for i, (want, x, t) in enumerate(zip(seen.predictions, seen.latents, seen.times, strict=True)):
        alike(it.guided(x, t), want, 1e-5, f"what predict and combine give at step {i}")


def its_schedule_draws_what_the_pipeline_draws(it: Tried) -> None:
    schedule, own = it.parts.schedule(STEPS), it.pipe.scheduler
    # Of order 1 and without its corrector, UniPC is Euler's. As it comes, it is 2e-2 away.
    first_order = {"solver_order": 1, "disable_corrector": list(range(STEPS))}
    takes = inspect.signature(type(own).__init__).parameters
    settings = {name: value for name, value in first_order.items() if name in takes}
    x = schedule.start * it.noise()
    for i, t in enumerate(schedule.times):
        x = schedule.step(i, it.guided(x, t), x)
    alone = type(own).from_config(own.config, **settings) if it.parts.flow else ddim(own)
    it.pipe.scheduler = alone
    try:
        with it.watched() as seen:
            it.draw()
    finally:
        it.pipe.scheduler = own
    alike(x, seen.made[-1], 1e-5, "what schedule and predict draw")


def a_batch_of_texts_predicts_what_each_alone_does(it: Tried) -> None:
    x, t = it.noise(), torch.tensor(500)
    together = it.predict(x, 500.0, *PROMPTS)
    alone = [it.predict(x[i, None], 500.0, prompt) for i, prompt in enumerate(PROMPTS)]
    alike(torch.cat(alone), together, 1e-5, "the prediction for each text alone")
    pieces = Text.cat([it.parts.encode([prompt]) for prompt in PROMPTS])
    alike(it.parts.predict(x, t, pieces), together, 1e-5, "the prediction for texts put together")


def the_empty_prompt_is_said_to_be_a_text_where_it_is_one(it: Tried) -> None:
    asked = it.parts.heard(it.parts.encoded([""], guided=True))
    empty = asked.prompt if asked.empty is None else asked.empty
    same = apart(it.parts.encode([""]).first[0], empty.first[0]) < 1e-6
    must(it.parts.empty_is_text == same, f"empty_is_text is {not same}, and {same} is found.")
    said = it.parts.encode([None]).map(Tensor.double)
    must(said.equals(empty.map(Tensor.double)), "encode([None]) is not the pipeline's own ∅.")


def its_readers_are_the_layers_that_change_with_text_alone(it: Tried) -> None:
    """Found without knowing the architecture: what else they read, they do not first."""
    parts = it.parts
    inputs: list[dict[str, Tensor]] = []

    def note(layer: str) -> Any:
        return lambda module, args: inputs[-1].setdefault(layer, args[0].clone())

    linears = {n: m for n, m in parts.denoiser.named_modules() if isinstance(m, nn.Linear)}
    handles = [m.register_forward_pre_hook(note(n)) for n, m in linears.items()]
    x, other = it.noise().split(1)
    text, another = PROMPTS
    try:
        for latents, t, words in (
            (x, 500.0, text),
            (x, 500.0, another),
            (other, 500.0, text),
            (x, 200.0, text),
        ):
            inputs.append({})
            it.predict(latents, t, words)
    finally:
        for handle in handles:
            handle.remove()
    base, said, drawn, later = inputs

    def differ(layer: str, one: dict[str, Tensor]) -> bool:
        a, b = base[layer], one[layer]
        return a.shape != b.shape or not torch.allclose(a, b, atol=1e-6)

    of_text = {n for n in base if differ(n, said) and not differ(n, drawn)}
    found = {n for group in parts.readers().values() for n in group.layers}
    must(found, "readers_by_name fits no layer.")
    must(found <= of_text, f"{', '.join(sorted(found - of_text))} do not read the text alone.")
    # Those that change with text alone and are not readers read what readers have made.
    given = list(parts.reads(parts.encode([text])).values())
    for layer in sorted(of_text - found):
        read = base[layer].flatten(0, -2)
        for rows in given:
            first = read.shape[-1] == rows[0].shape[-1] and torch.isin(rows[0][:1], read).all()
            must(not first, f"{layer} reads the text first, and readers_by_name leaves it out.")
    must(any(not differ(n, later) for n in found), "all readers change with time.")


def it_says_what_the_readers_read(it: Tried) -> None:
    parts = it.parts
    text = parts.encode(PROMPTS)
    read = parts.reads(text)
    for i, prompt in enumerate(PROMPTS):
        for group, (alone,) in parts.reads(parts.encode([prompt])).items():
            # None is there for the sake of a longer text beside it.
            alike(alone, read[group][i], 1e-4, f"what reads says of {prompt!r} alone, in {group},")
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
            alike(seen[places], rows[:40], 1e-5, f"what reads says of {group}")
    groups = {stream.group for stream in parts.streams()}
    must(groups == read.keys(), f"streams are of {groups}, and reads of {set(read)}.")


def shifted(row: Tensor, columns: int) -> Callable[..., tuple[Tensor, ...]]:
    """A hook before a layer that moves one of the rows that the layer is given."""

    def shift(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        read = args[0].clone()
        told = read[..., :columns]
        told[(told - row).abs().amax(-1) < 1e-6] += 1
        return (read, *args[1:])

    return shift


def all_rows_that_are_read_change_the_prediction(it: Tried) -> None:
    """The first and the last: padding that the denoiser leaves out is at an end."""
    parts, x = it.parts, it.noise()[:1]
    text, t = parts.encode(PROMPTS[:1]), torch.tensor(500.0)
    base = parts.predict(x, t, text)
    for group, (rows,) in parts.reads(text).items():
        one = parts.readers()[group]
        layer = next(iter(one.layers.values()))
        for which in (0, -1):
            handle = layer.register_forward_pre_hook(shifted(rows[which], one.columns))
            try:
                found = parts.predict(x, t, text)
            finally:
                handle.remove()
            must(
                not torch.equal(found, base),
                f"row {which} that reads gives of {group} does not change the prediction: is it "
                "hidden by a mask (masked), or made otherwise by then?",
            )


def it_says_from_which_row_on_a_word_changes_a_text(it: Tried) -> None:
    read = it.parts.reads(it.parts.encode(["a photo of a dog", "a photo of a cat"]))
    for stream in it.parts.streams():
        one, other = (rows[: stream.stop] for rows in read[stream.group])
        changed = (one - other).abs().amax(1)[stream.first :].nonzero().flatten() + stream.first
        must(len(changed), f"no row of {stream.group} changes with the last word.")
        everywhere = stream.pooled or not stream.causal
        said = stream.first if everywhere else stream.position("a photo of a dog")
        must(
            int(changed[0]) == said,
            f"the first row of {stream.group} that the last word changes is {int(changed[0])}, "
            f"and the stream says {said}.",
        )


def what_is_not_said_to_be_cut_is_read_to_its_last_word(it: Tried) -> None:
    for stream in it.parts.streams():
        room = stream.room
        ends = ["a photo of " + " ".join(["the"] * (room - 4) + [w]) for w in ("dog", "cat")]
        found = [len(stream.tokens(text)) for text in ends]
        must(found == [room] * 2, f"texts of {room} words have {found} tokens.")
        read = it.parts.reads(it.parts.heard(it.parts.encoded(ends, False)).prompt)[stream.group]
        one, other = (rows[stream.first : stream.stop] for rows in read)
        must(
            not torch.equal(one, other),
            f"word {room} of a text is not read, and the stream of {stream.group} has that room.",
        )


def one_prompt_sent_to_another_predicts_what_the_other_does(it: Tried) -> None:
    """By the closed form, every row that the concept changes, with hardly any ridge."""
    settings = UCE(ridge=1e-9, residual=1e-9, keep_scale=1.0, expand=False)
    erasure = settings.fit(it.parts, [Concept("monet", anchor="dog", keep=("cat",))])
    x = it.noise()[:1]
    before, anchor, kept = (it.predict(x, 500.0, p) for p in ("monet", "dog", "cat"))
    with erasure.applied(it.pipe):
        after, still = it.predict(x, 500.0, "monet"), it.predict(x, 500.0, "cat")
    distance = (before - anchor).norm()
    left, moved = float((after - anchor).norm()) / distance, (still - kept).norm() / distance
    must(left < 2e-2, f"with the readers edited, {float(left):.1%} of the way to it is left.")
    must(moved < 2e-2, f"what was to be kept moved {float(moved):.1%} of that way.")


def off_again_and_from_its_file_it_is_the_same_bit_for_bit(it: Tried) -> None:
    base = it.draw()
    erasure = erase(it.pipe, "van gogh", check=False, keep=["cat"])
    with erasure.applied(it.pipe):
        erased = it.draw()
    must(not torch.equal(erased, base), "the erasure changes no image.")
    must(torch.equal(it.draw(), base), "the pipeline is not the base again.")
    with tempfile.TemporaryDirectory() as folder:
        erasure.save(Path(folder) / "it.safetensors")
        with Erasure.load(Path(folder) / "it.safetensors").applied(it.pipe):
            must(torch.equal(it.draw(), erased), "the file that was saved acts otherwise.")


class Still:
    """A guide that does nothing but take a row of its own, and notes the predictions."""

    begins = 0
    changes: tuple[int, ...] = ()

    def __init__(self, text: Text) -> None:
        self.text = text
        self.apart: dict[int, tuple[Tensor, Tensor]] = {}

    def before(self, step: int, empty: Text, prompt: Text) -> tuple[Text, Text, Sequence[Text]]:
        return empty, prompt, (self.text.to(prompt.first).expand(len(prompt)),)

    def after(
        self, step: int, empty: Tensor, prompt: Tensor, more: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        self.apart[step] = (prompt - empty, more[0] - empty)
        return empty, prompt


def a_guide_that_does_nothing_is_the_pipeline(it: Tried) -> None:
    """And is given differences of noise, whatever the model predicts, by whatever sign."""
    parts, base = it.parts, it.draw()
    concept = parts.encode(["van gogh"])
    guide = Still(concept)
    erasure = erase(it.pipe, "van gogh", method="negative")
    remove = put_on(it.pipe, erasure, [Guided(parts, lambda parts: lambda steps, prompts: guide)])
    try:
        with it.watched() as seen:
            found = it.draw()
    finally:
        remove()
    alike(found, base, 1e-5, "what is drawn with it")
    shape = parts.latent_shape()
    text = Text.cat([parts.encode([None, None, *PROMPTS]), *2 * [concept]])
    # Of pure noise, a flow model says nothing of it.
    says = [i for i, t in enumerate(seen.times) if float(eps_scale(it.pipe.scheduler, t))]
    must(list(guide.apart) == says, f"it is asked at steps {list(guide.apart)}, not at {says}.")
    must(len(says) >= STEPS - 1, "the predictions say nothing of noise.")
    for step, differences in guide.apart.items():
        x, t = seen.latents[step], seen.times[step]
        empty, prompt, more = parts.predict(torch.cat([x, x, x]), t, text).chunk(3)
        scale = eps_scale(it.pipe.scheduler, t)
        for want, got in zip((prompt - empty, more - empty), differences, strict=True):
            what = f"the difference that it is given at step {step} (sign, time_of)"
            alike(whole(got, shape), scale * want, 1e-4, what)


def the_negative_prompt_by_a_guide_is_the_one_by_argument(it: Tried) -> None:
    words = ["van gogh"] * len(PROMPTS)
    if "negative_prompt" in inspect.signature(type(it.pipe).__call__).parameters:
        argument: dict[str, Any] = {"negative_prompt": words}
    else:
        argument = {"negative_prompt_embeds": it.parts.encode(words, negative=True).first}
    base, want = it.draw(), it.draw(**argument)
    with erase(it.pipe, "van gogh", method="negative").applied(it.pipe):
        found = it.draw()
    must(apart(want, base) > 1e-4, "a negative prompt changes no image.")
    alike(found, want, 1e-5, "what is drawn by the guide (calls, empty_first, text, shared)")


LAWS: tuple[Callable[[Tried], None], ...] = (
    the_first_noise_is_drawn_in_the_latents_shape,
    the_empty_prompt_is_said_to_be_a_text_where_it_is_one,
    a_batch_of_texts_predicts_what_each_alone_does,
    its_prediction_is_what_the_scheduler_is_given_at_every_step,
    its_schedule_draws_what_the_pipeline_draws,
    its_readers_are_the_layers_that_change_with_text_alone,
    it_says_what_the_readers_read,
    all_rows_that_are_read_change_the_prediction,
    it_says_from_which_row_on_a_word_changes_a_text,
    what_is_not_said_to_be_cut_is_read_to_its_last_word,
    one_prompt_sent_to_another_predicts_what_the_other_does,
    off_again_and_from_its_file_it_is_the_same_bit_for_bit,
    a_guide_that_does_nothing_is_the_pipeline,
    the_negative_prompt_by_a_guide_is_the_one_by_argument,
)


def check(pipe: Any, **given: Any) -> tuple[str, ...]:
    """Makes sure that a pipeline's description says what the pipeline does.

    Args:
        pipe: A pipeline of the class that is described, tiny and with random weights.
        given: See ``Tried``.

    Returns:
        The laws that hold, in words: all that there are.

    Raises:
        InputError: One does not hold, or the pipeline is not described, or has a LoRA in it.
    """
    parts_of(pipe)
    it = Tried(pipe, given)
    held = []
    for law in LAWS:
        words = law.__name__.replace("_", " ")
        try:
            with torch.no_grad():
                law(it)
        except InputError as error:
            raise InputError(f"{words}: it does not hold: {error}") from error
        held.append(words)
    return tuple(held)
