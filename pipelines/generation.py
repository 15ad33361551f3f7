"""A suite's images, each depending on its own prompt and seed alone.

A video is drawn as an image is, and some of its frames stand for it, which reports say.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .._errors import InputError
from ..gallery import Gallery
from ..prompts import Prompt
from .architectures import family_of
from .parts import arguments, default, described

if TYPE_CHECKING:
    from PIL.Image import Image


def generate(
    pipe: Any,
    gallery: Gallery,
    *,
    batch_size: int = 8,
    guidance: float | None = None,
    steps: int | None = None,
) -> Iterator[int]:
    """Makes the images of a gallery that are not there yet, or not as they were made.

    Each image starts from noise drawn on the CPU by a generator of its own, so its batch is
    without influence but for the rounding of the arithmetic, which can differ by batch shape.
    A batch has prompts of one size, guidance and number of steps. Batches are cut from the
    gallery's whole list, and one that was interrupted is made again as a whole: a gallery made in
    two goes has the bytes of one made in one.

    Args:
        pipe: A pipeline as ``load_pipeline`` gives it.
        gallery: Where to put the images; its prompts' own settings go before the arguments here.
        batch_size: Images at a time.
        guidance: Scale of classifier-free guidance where a prompt names none; None is the
            pipeline's own.
        steps: Denoising steps where a prompt names none; None is the pipeline's own.

    Warns:
        UserWarning: An image was changed or removed since it was made.

    Yields:
        The number of images of each batch once they are there, made now or found.
    """
    todo = gallery.unmade()
    if altered := [prompt.id for prompt in gallery.altered(todo)]:
        warnings.warn(
            f"{len(altered)} images in {gallery.path} were changed or removed after they had been "
            f"made, and are made again: {', '.join(altered[:8])}{' …' * (len(altered) > 8)}.",
            stacklevel=2,
        )
    unmade = {prompt.id for prompt in todo}
    for batch in _batches(gallery, batch_size):
        missing = [p for p in batch if p.id in unmade]
        if missing:
            first = batch[0]
            with _told_once(pipe):
                images = _images(
                    pipe,
                    prompt=[p.prompt for p in batch],
                    generator=[torch.Generator("cpu").manual_seed(p.seed) for p in batch],
                    guidance=guidance if first.guidance is None else first.guidance,
                    steps=steps if first.steps is None else first.steps,
                    width=first.width,
                    height=first.height,
                )
            for prompt, frames in zip(batch, images, strict=True):
                if prompt in missing:
                    gallery.put(prompt, *frames)
        yield len(batch)


def _images(pipe: Any, **settings: Any) -> "list[tuple[Image, ...]]":
    """As ``Parts.images``, of a call; of what is not described, what the pipeline says itself."""
    if family_of(type(pipe)) is None:
        return [(image,) for image in pipe(**arguments(settings)).images]
    parts = described(pipe)
    return parts.images(pipe(**parts.call(output_type="pil", **settings)))


def pictured(pipe: Any) -> str:
    """What of a pipeline's result its image is, in a sentence; empty where that is all of it."""
    family = family_of(type(pipe))
    return "" if family is None else str(family.pictured)


class Own(NamedTuple):
    """What a pipeline does where it is not told otherwise.

    Attributes:
        guidance: The scale of its guidance; None if it takes none.
        steps: Denoising steps.
    """

    guidance: float | None
    steps: int


def own(pipe: Any) -> Own:
    """A pipeline's own settings.

    Raises:
        InputError: It does not say how many steps it takes.
    """
    family = family_of(type(pipe))
    name = "guidance_scale" if family is None else family.guidance_argument
    guidance, steps = default(pipe, name), default(pipe, "num_inference_steps")
    if steps is None:
        raise InputError(f"A {type(pipe).__name__} has no number of steps of its own: say steps.")
    return Own(None if guidance is None else float(guidance), int(steps))


def cut(pipe: Any, prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """The ids of the prompts whose ends the model never reads, as a tokenizer cuts them off."""
    texts = {prompt.prompt for prompt in prompts}
    if family_of(type(pipe)) is not None:
        streams = described(pipe).streams()
        long = {text for text in texts if any(len(s.tokens(text)) > s.room for s in streams)}
    else:
        tokenizers = [
            part for name, part in pipe.components.items() if name.startswith("tokenizer") and part
        ]
        long = {
            text
            for text in texts
            for tokenizer in tokenizers
            if len(tokenizer(text, verbose=False).input_ids) > tokenizer.model_max_length
        }
    return tuple(prompt.id for prompt in prompts if prompt.prompt in long)


TOLD = (
    "The following part of your input was truncated",
    "Token indices sequence length is longer",
)
"""How diffusers and transformers begin what they say at every batch with a prompt that is cut."""


@contextmanager
def _told_once(pipe: Any) -> Iterator[None]:
    """Without the libraries' word on prompts that are cut, which ``cut`` lists once."""
    modules = {cls.__module__ for cls in type(pipe).__mro__}
    loggers = [logging.getLogger(name) for name in modules if name.startswith("diffusers.")]
    loggers.append(logging.getLogger("transformers.tokenization_utils_base"))

    def new(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(TOLD)

    for logger in loggers:
        logger.addFilter(new)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(new)


def _batches(gallery: Gallery, size: int) -> Iterator[list[Prompt]]:
    def settings(prompt: Prompt) -> tuple[Any, ...]:
        return (prompt.guidance, prompt.steps, prompt.width, prompt.height)

    alike: dict[tuple[Any, ...], list[Prompt]] = {}
    for prompt in gallery.prompts:
        alike.setdefault(settings(prompt), []).append(prompt)
    for prompts in alike.values():
        for start in range(0, len(prompts), size):
            yield prompts[start : start + size]
