"""What a method needs to know of a pipeline, whatever its architecture.

An architecture is described by one class in one file of ``architectures``: what it says of itself
as class attributes, and what differs from here as methods. Nothing else knows architectures.
"""

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .._errors import InputError
from .._settings import shown
from .architectures import FAMILIES, family_of, from_text
from .modules import check_readable, own_modules, uncompiled
from .schedule import Diffusion, Flow, Schedule, asked, eps_scale, flows, other_schedule
from .text import Text

if TYPE_CHECKING:
    from PIL.Image import Image

    from .watch import Spoken


@dataclass(frozen=True)
class Group:
    """Layers of the denoiser that read the same rows of text, so that one multiplier serves all.

    Attributes:
        layers: By their names in the denoiser.
        columns: How many of their inputs are text: the first ones.
    """

    layers: Mapping[str, nn.Linear]
    columns: int


@dataclass(frozen=True)
class Stream:
    """Where a text's tokens are among the rows that a group reads.

    Attributes:
        group: The group's name.
        tokenizer: What cuts the text into tokens.
        room: How many tokens a text may have.
        start: The row of its first token.
        first, stop: The rows of the whole stream: from ``first`` on, to before ``stop``; None is
            to the last.
        causal: Whether a row knows only of the tokens up to its own. If not, one word changes
            all rows.
        from_last: Whether an edit begins with the phrase's last token, as the authors of the
            closed forms have it on Stable Diffusion 1 and 2; if not, with its first.
        pooled: Whether the one row stands for the whole text.
        before: What the pipeline puts before a text: a space at its end and a text's first word
            are one token.
        clean: What the pipeline makes of a text before that.
    """

    group: str
    tokenizer: Any
    room: int
    start: int = 0
    first: int = 0
    stop: int | None = None
    causal: bool = True
    from_last: bool = False
    pooled: bool = False
    before: str = ""
    clean: Callable[[str], str] = str

    def tokens(self, text: str) -> list[int]:
        """A text's tokens, without those that a tokenizer or the pipeline puts around it."""
        found = token_ids(self.tokenizer, self.before + self.clean(text))
        return found[len(token_ids(self.tokenizer, self.before.rstrip(" "))) :]

    def position(self, text: str) -> int:
        """The row of the last token of a text, which may be the beginning of a longer one.

        Of no text at all it is the row before the first token's, if there is one.
        """
        return max(self.first, self.start + len(self.tokens(text)) - 1)


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """A text's tokens, without those that the tokenizer puts around it."""
    if not text:
        return []
    found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return found


class Encoder(NamedTuple):
    """A text encoder with a pooled embedding, and which columns of the sequence are its own."""

    tokenizer: Any
    model: nn.Module
    columns: slice


class Heard(NamedTuple):
    """What ``encode_prompt`` of a pipeline gave; ``empty`` is None where it was not asked for."""

    prompt: Text
    empty: Text | None


class Parts(ABC):
    """A pipeline taken apart. Nothing here changes the pipeline.

    Latents are as the pipeline draws them, before it packs them, and as its denoiser is to read
    them, after ``scale_model_input``. Times t are counted from 1000 (noise) to 0 (image).

    Attributes:
        pipe: The pipeline itself.
        prefix: The denoiser's name in the pipeline, which a LoRA file puts before its layers.
        text: The denoiser's inputs that are text's, by name. The first holds the sequence.
        shared: Its inputs that have no row a text or image, whatever their shape.
        listed: Its inputs that are a list with an entry a row.
        readers_by_name: By group, a pattern of the names of the layers that read the text first.
        before_readers: Modules and parameters through which the text goes before that, by name.
        masked: The text input that says which rows of the sequence are read, where the denoiser
            leaves the others out.
        encodings: How many calls of ``encode_prompt``, one after another, encode one text.
        crosses: A pattern of the attention layers in which image and text meet: ESD's ``x``.
        crosses_strict: Of these, those that read the text: ESD's ``x-strict``.
        blocks: A pattern of the layers of its transformer blocks, with what leads in and out.
        passed: What a call passed on to ``encode_prompt``: see ``as_in``.
        flow: Whether it is a flow model: see ``schedule``.
        calls: How often the denoiser is called a step under classifier-free guidance: once with
            two rows an image, or for the prompt and then for the empty or negative one.
        empty_first: Whether, in one call, the rows of the empty prompt come first.
        sign: −1 where the denoiser's output is the negative of what the scheduler is given.
        relative: Whether λ of the closed forms is in units of the rows that are edited: see
            ``ridge``. Not where it is the authors' own, who tried it on that family.
        guidance_argument: What the pipeline's call names the scale of guidance.
        guiding: What of a call's arguments turns guidance on, in words.
        settings: What its call is given besides what is asked for.
        pictured: What of its result the image is, in a sentence, where that is not all of it.
    """

    prefix: ClassVar[str] = "transformer"
    text: ClassVar[tuple[str, ...]] = ("encoder_hidden_states",)
    shared: ClassVar[tuple[str, ...]] = ()
    listed: ClassVar[tuple[str, ...]] = ()
    readers_by_name: ClassVar[Mapping[str, str]]
    before_readers: ClassVar[tuple[str, ...]] = ()
    masked: ClassVar[str | None] = None
    encodings: ClassVar[int] = 1
    crosses: ClassVar[str]
    crosses_strict: ClassVar[str]
    blocks: ClassVar[str] = r"(single_)?transformer_blocks\..*"
    flow: ClassVar[bool] = True
    calls: ClassVar[Literal[1, 2]] = 1
    empty_first: ClassVar[bool] = True
    sign: ClassVar[float] = 1.0
    relative: ClassVar[bool] = True
    guidance_argument: ClassVar[str] = "guidance_scale"
    guiding: ClassVar[str] = "guidance_scale above 1"
    settings: ClassVar[Mapping[str, Any]] = {}
    pictured: ClassVar[str] = ""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.passed: Mapping[str, Any] = {}
        self._schedules: dict[int, Schedule] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Parts":
        # A copy of the denoiser alone is no reason to copy its pipeline, of whose copy there may
        # be nothing yet.
        new = memo[id(self)] = copy(self)
        new.pipe = memo.get(id(self.pipe), self.pipe)
        new._schedules = {}
        return new

    def as_in(self, spoken: "Spoken") -> "Parts":
        """The same for texts that are encoded as in a call of ``encode_prompt``."""
        new = copy(self)
        new._schedules = {}
        call = inspect.signature(type(self.pipe).__call__).parameters
        new.passed = {n: v for n, v in spoken.settings.items() if n in PASSED_ON and n in call}
        return new

    def passes(self, name: str) -> Any:
        """What the pipeline's call passes on to its ``encode_prompt``: its default, or as_in."""
        return self.passed.get(name, default(self.pipe, name))

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts."""
        return uncompiled(getattr(self.pipe, self.prefix))

    @property
    def scheduler(self) -> Any:
        """The pipeline's own."""
        return self.pipe.scheduler

    # Text

    @abstractmethod
    def streams(self) -> tuple[Stream, ...]:
        """Where each text encoder's tokens are; every group has one."""
        ...

    @abstractmethod
    def heard(self, given: tuple[Any, ...]) -> Heard:
        """What ``encode_prompt`` of the pipeline gave for texts, as the denoiser reads it.

        Args:
            given: What all ``encodings`` calls gave, one after another.
        """
        ...

    def spoken(self) -> "tuple[Spoken, ...]":
        """What the pipeline has encoded for the loop that goes on, an entry a text or several."""
        from .watch import Spoken, spoken_in

        calls, many = spoken_in(self.pipe), self.encodings
        if many == 1:
            return calls
        # From the last one on, as the loop's own come last
        ends = range(len(calls), many - 1, -many)
        groups = [calls[end - many : end] for end in reversed(ends)]
        return tuple(
            Spoken(
                group[-1].prompts,
                group[-1].negatives,
                tuple(one for call in group for one in call.given),
                group[-1].settings,
            )
            for group in groups
        )

    def encoders(self) -> tuple[Encoder, ...]:
        """Those with a pooled embedding that together make the whole sequence; none if they do
        not."""
        return ()

    def check_fits(self, text: str) -> None:
        """Makes sure that no tokenizer cuts a text.

        Raises:
            InputError: One would.
        """
        for stream in self.streams():
            if (count := len(stream.tokens(text))) > stream.room:
                raise InputError(
                    f"{shown(text)} is {count} tokens long and the tokenizer cuts after "
                    f"{stream.room}: "
                    "shorten it."
                )

    @property
    def empty_is_text(self) -> bool:
        """Whether the pipeline's empty prompt ∅ is what the text '' is encoded to.

        SDXL takes zeros in its place, and others leave out what they put before a prompt.
        """
        return True

    @torch.no_grad()
    def encode(self, texts: Sequence[str | None], *, negative: bool = False) -> Text:
        """What the denoiser reads of each text.

        Args:
            texts: None is the empty prompt ∅, as the pipeline itself takes it in guidance.
            negative: Whether they are negative prompts, which a pipeline may encode otherwise.

        Raises:
            InputError: A tokenizer would cut one of them.
        """
        return self.encode_with_gradient(texts, negative=negative)

    def encode_with_gradient(self, texts: Sequence[str | None], *, negative: bool = False) -> Text:
        """As ``encode``, for what learns in a text encoder or at its embeddings."""
        words = [text or "" for text in texts]
        for text in words:
            self.check_fits(text)
        if negative and not self.empty_is_text:
            unwanted = self.heard(self.encoded([""] * len(words), True, words)).empty
            assert unwanted is not None
            found = unwanted
        else:
            found = self.heard(self.encoded(words, False)).prompt
        if self.empty_is_text or None not in texts:
            return found
        empty = self.heard(self.encoded([""], True)).empty
        assert empty is not None
        return Text.cat(
            [empty if text is None else found[i : i + 1] for i, text in enumerate(texts)]
        )

    def encoded(
        self,
        texts: Sequence[str],
        guided: bool,
        negative: Sequence[str] | None = None,
        **more: Any,
    ) -> tuple[Any, ...]:
        """What ``encode_prompt`` gives, with what the pipeline's call passes to it by default.

        Args:
            guided: Whether it is asked for the empty or negative prompt too.
            negative: Negative prompts, one a text; None is the empty one.
            more: What else is passed to it.
        """
        takes = inspect.signature(type(self.pipe).encode_prompt).parameters
        call = inspect.signature(type(self.pipe).__call__).parameters
        arguments: dict[str, Any] = {
            name: self.passes(name)
            for name in PASSED_ON
            if name in takes and name in call and call[name].default is not inspect.Parameter.empty
        }
        arguments |= {
            # Copies, as some pipelines write into the list
            "prompt": list(texts),
            "prompt_2": None,
            "prompt_3": None,
            "device": self.pipe._execution_device,
            "num_images_per_prompt": 1,
            "num_videos_per_prompt": 1,
            "do_classifier_free_guidance": guided,
            # Some take None for a negative prompt.
            **({} if negative is None else {"negative_prompt": list(negative)}),
            **more,
        }
        found: tuple[Any, ...] = self.pipe.encode_prompt(
            **{name: value for name, value in arguments.items() if name in takes}
        )
        return found

    def readers(self) -> dict[str, Group]:
        """The layers that read the text first, by what of it they read.

        Raises:
            InputError: Their weights cannot be read.
        """
        found = {
            group: {
                name: module
                for name, module in own_modules(self.denoiser).items()
                if isinstance(module, nn.Linear) and re.fullmatch(pattern, name)
            }
            for group, pattern in self.readers_by_name.items()
        }
        for layers in found.values():
            for name, layer in layers.items():
                check_readable(name, layer.weight)
        return {
            group: Group(layers, self.columns(group, next(iter(layers.values()))))
            for group, layers in found.items()
            if layers
        }

    def ridge(self, ridge: float, norm: float) -> float:
        """λ of a closed form that edits rows of that mean square norm.

        The rows' norms differ from one text encoder to another by tens, and λ is in their unit:
        where it is ``relative``, it is for rows of a mean square norm of 768, about that of
        CLIP ViT-L, which Stable Diffusion 1 reads.
        """
        if not self.relative:
            return ridge
        return ridge * norm / 768

    def columns(self, group: str, layer: nn.Linear) -> int:
        """How many of a reader's inputs are text."""
        return layer.in_features

    def reads(self, text: Text) -> dict[str, list[Tensor]]:
        """What the groups' layers read of each text, (rows, columns): without what is left out."""
        found = list(text.inputs[self.text[0]])
        if self.masked is not None:
            masks = text.inputs[self.masked]
            found = [rows[mask.bool()] for rows, mask in zip(found, masks, strict=True)]
        return {next(iter(self.readers_by_name)): found}

    def sequence(self, text: Text) -> list[Tensor]:
        """What stands for each text as a whole, (tokens, dim): the rows of the first group."""
        return next(iter(self.reads(text).values()))

    def layers(self, variant: str) -> dict[str, nn.Module]:
        """The denoiser's layers that a variant of ESD's trains, by name.

        Args:
            variant: ``x``, the attention in which text and image meet; ``x-strict``, of it what
                reads the text; ``u``, all but that attention; ``blocks``, the transformer
                blocks; ``all``.

        Raises:
            InputError: Their weights cannot be read.
        """
        patterns = {"x-strict": self.crosses_strict, "blocks": self.blocks, "all": ".*"}
        pattern = patterns.get(variant, self.crosses)
        found = {
            name: module
            for name, module in own_modules(self.denoiser).items()
            if bool(re.fullmatch(pattern, name)) == (variant != "u")
        }
        for name, module in found.items():
            if isinstance(weight := getattr(module, "weight", None), Tensor):
                check_readable(name, weight)
        return found

    # Images

    @abstractmethod
    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        """The shape of one image's latents, of so many pixels; None is the model's own size."""
        ...

    @torch.no_grad()
    def latents(self, images: "Sequence[Image]") -> Tensor:
        """The latents of images, as the pipeline draws them, shape (n, *latent_shape).

        Raises:
            InputError: How this autoencoder's latents are scaled is not known here.
        """
        vae, processor = self.pipe.vae, self.pipe.image_processor
        scale = vae.config.get("scaling_factor")
        if scale is None or vae.config.get("latents_mean") is not None:
            raise InputError(
                f"How a {type(vae).__name__} turns an image into latents is not described: take "
                "what needs no images."
            )
        rows, columns = (n * self.pipe.vae_scale_factor for n in self.latent_shape()[-2:])
        pixels = processor.preprocess(list(images), height=rows, width=columns)
        found = vae.encode(pixels.to(vae.device, vae.dtype))
        # Its mean, where it is a distribution
        own = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latent
        shift = vae.config.get("shift_factor") or 0.0
        latents: Tensor = (own - shift) * scale
        return latents

    @abstractmethod
    def predict(self, latents: Tensor, t: Tensor, text: Text) -> Tensor:
        """What the scheduler is to be given for latents (n, *latent_shape) and n texts.

        Args:
            t: One for all, or shape (n,).
        """
        ...

    def schedule(self, steps: int) -> Schedule:
        """A deterministic sampler on the model's own noise schedule, of that many steps.

        Raises:
            InputError: The pipeline's scheduler has another one.
        """
        if flows(self.scheduler) != self.flow:
            raise other_schedule(self.scheduler)
        if steps not in self._schedules:
            self._schedules[steps] = (
                Flow(*asked(self.pipe, self.denoiser, self.call(steps=steps, prompt=[""])))
                if self.flow
                else Diffusion(self.scheduler, steps)
            )
        return self._schedules[steps]

    def combine(self, empty: Tensor, prompt: Tensor, scale: float) -> Tensor:
        """The pipeline's own guidance, of predictions for ∅ and for the prompt."""
        return empty + scale * (prompt - empty)

    def call(self, **settings: Any) -> dict[str, Any]:
        """The arguments of a call of the pipeline.

        Args:
            settings: ``prompt``; ``steps``, ``guidance``, ``height`` and ``width``, each left out
                or None for the pipeline's own; and what else its call takes.
        """
        return {**self.settings, **arguments(settings, self.guidance_argument)}

    def images(self, result: Any) -> "list[tuple[Image, ...]]":
        """What is looked at of what a call of the pipeline gave: of each prompt an image.

        Of a video it is several frames, in their order.
        """
        return [(image,) for image in result.images]

    # The denoiser's call, for guides: arguments by name

    def text_of(self, given: Mapping[str, Any]) -> Text:
        """The text inputs of a call of the denoiser."""
        return Text({name: given[name] for name in self.text if given.get(name) is not None})

    def with_text(self, given: Mapping[str, Any], text: Text) -> dict[str, Any]:
        """The arguments of a call of the denoiser with other text."""
        return {**given, **text.inputs}

    def time_of(self, given: Mapping[str, Any]) -> Tensor:
        """t of a call of the denoiser."""
        return torch.as_tensor(given["timestep"])

    def eps_scale(self, given: Mapping[str, Any]) -> Tensor:
        """Δε for a difference of two outputs in a call of the denoiser: see ``schedule``."""
        return self.sign * eps_scale(self.scheduler, self.time_of(given))

    def guided(self) -> bool:
        """Whether the call that goes on has classifier-free guidance."""
        if hasattr(type(self.pipe), "do_classifier_free_guidance"):
            # A shallow copy draws in the place of the pipeline itself, which may never have drawn.
            return bool(getattr(self.pipe, "do_classifier_free_guidance", False))
        # Where the pipeline does not say, it has it if it encoded an empty prompt.
        spoken = self.spoken()
        return bool(spoken) and self.heard(spoken[-1].given).empty is not None


# What a pipeline's call passes on to its encode_prompt, beside prompts, by their names in both.
PASSED_ON = (
    "max_sequence_length",
    "complex_human_instruction",
    "clean_caption",
    "system_prompt",
    "text_encoder_out_layers",
)


def default(pipe: Any, name: str) -> Any:
    """What a pipeline's call takes for an argument that is left out; None if it has none."""
    argument = inspect.signature(type(pipe).__call__).parameters.get(name)
    if argument is None or argument.default is inspect.Parameter.empty:
        return None
    return argument.default


def arguments(settings: Mapping[str, Any], guidance: str = "guidance_scale") -> dict[str, Any]:
    """The arguments of a pipeline's call: see ``Parts.call``.

    Args:
        guidance: What the pipeline's call names the scale of guidance.
    """
    names = {"steps": "num_inference_steps", "guidance": guidance}
    return {names.get(name, name): value for name, value in settings.items() if value is not None}


def described(pipe: Any) -> Parts:
    """Takes a diffusers pipeline apart, whatever is in it.

    Raises:
        InputError: Its architecture is not described here.
    """
    family = family_of(type(pipe))
    if family is None:
        raise InputError(
            f"Cannot take a {type(pipe).__name__} apart. Described so far: {', '.join(FAMILIES)}; "
            "to describe another see docs/describe.md."
        )
    return family(pipe)


def parts_of(pipe: Any) -> Parts:
    """Takes a diffusers pipeline with the base model's own weights apart.

    Raises:
        InputError: Its architecture is not described here, it carries a LoRA or an erasure, or it
            begins with an image and cannot say how it draws from text alone.
    """
    from .watch import active

    parts = described(pipe)
    # A flow model's schedule is what its pipeline says in a call without an image.
    if parts.flow and (main := from_text(type(pipe))):
        raise InputError(
            f"A {type(pipe).__name__} begins with an image, and erasing with text alone: erase "
            f"from a {main} of the same model, and put the erasure on this one (add_to)."
        )
    if on := [one for one in active(pipe) if one.kind != "weights"]:
        raise InputError(
            f"The erasure {on[0].name!r} is on in this pipeline, and erasing starts from the base "
            "model: call unsee.remove(pipe) first."
        )
    adapters = dict.fromkeys(
        name
        for component in pipe.components.values()
        for name in getattr(component, "peft_config", None) or ()
    )
    if adapters:
        raise InputError(
            f"The pipeline carries the LoRA {', '.join(adapters)}: erasing starts from the base "
            "model, so call unload_lora_weights() first."
        )
    return parts
