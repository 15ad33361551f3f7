"""A suite's images, each depending on its own prompt and seed alone."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..gallery import Gallery
from ..prompts import Prompt


def generate(
    pipe: Any,
    gallery: Gallery,
    *,
    batch_size: int = 8,
    guidance: float = 7.5,
    steps: int = 50,
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
        guidance: Scale of classifier-free guidance where a prompt names none.
        steps: Denoising steps where a prompt names none.

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
                images = pipe(
                    prompt=[p.prompt for p in batch],
                    generator=[torch.Generator("cpu").manual_seed(p.seed) for p in batch],
                    guidance_scale=guidance if first.guidance is None else first.guidance,
                    num_inference_steps=steps if first.steps is None else first.steps,
                    width=first.width,
                    height=first.height,
                ).images
            for prompt, image in zip(batch, images, strict=True):
                if prompt in missing:
                    gallery.put(prompt, image)
        yield len(batch)


def cut(pipe: Any, prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """The ids of the prompts whose ends the model never reads, as a tokenizer cuts them off."""
    tokenizers = [
        part for name, part in pipe.components.items() if name.startswith("tokenizer") and part
    ]
    texts = list(dict.fromkeys(prompt.prompt for prompt in prompts))
    long = {
        text
        for tokenizer in tokenizers
        for text, ids in zip(texts, tokenizer(texts, verbose=False).input_ids, strict=True)
        if len(ids) > tokenizer.model_max_length
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
