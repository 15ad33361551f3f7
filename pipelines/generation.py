"""A suite's images, each depending on its own prompt and seed alone.

A video is drawn as an image is, and some of its frames stand for it, which reports say.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .._errors import InputError
from .._files import Claims
from ..gallery import Gallery
from ..processes import Processes, appears, processes
from ..prompts import Prompt
from ..store import Made, Store
from .architectures import family_of
from .parts import Parts, arguments, default, described

if TYPE_CHECKING:
    from PIL.Image import Image

Developed = Callable[[], "tuple[Image, ...]"]
"""What gives an image, or a video's frames, out of what a pipeline has drawn."""


def generate(
    pipe: Any,
    gallery: Gallery,
    *,
    batch_size: int = 8,
    guidance: float | None = None,
    steps: int | None = None,
    store: Store | None = None,
) -> Iterator[int]:
    """Makes the images of a gallery that are not there yet, or not as they were made.

    Each image starts from noise drawn on the CPU by a generator of its own, so its batch is
    without influence but for the rounding of the arithmetic, which can differ by batch shape.
    A batch has prompts of one size, guidance and number of steps. Batches are cut from the
    gallery's whole list, and one that was interrupted is made again as a whole: a gallery made in
    two goes has the bytes of one made in one. Where the device's memory is too small for a batch,
    it and those after it are made in halves, which images.jsonl says.

    What the store has is taken first, and batches are cut from the rest. Processes that make one
    gallery at once share its batches out among them: those of one launch (``processes``) take
    turns by their numbers, any others by locks. Images are written while the next are drawn.

    Args:
        pipe: A pipeline as ``load_pipeline`` gives it.
        gallery: Where to put the images; its prompts' own settings go before the arguments here.
        batch_size: Images at a time.
        guidance: Scale of classifier-free guidance where a prompt names none; None is the
            pipeline's own.
        steps: Denoising steps where a prompt names none; None is the pipeline's own.
        store: What images are taken from that another run has made, and where they are kept.

    Warns:
        UserWarning: An image was changed or removed since it was made, or memory was too small.

    Yields:
        The number of images of each batch once they are there, made now or found.
    """
    several = processes()
    if several.size > 1:
        yield from _in_turns(pipe, gallery, several, batch_size, guidance, steps, store)
        return
    todo = gallery.unmade()
    _tell_of_altered(gallery, todo)
    if not todo:  # and nothing to write, perhaps no right to
        yield len(gallery)
        return
    at_once = batch_size
    with Claims(gallery.path / "gallery.json") as claims, ThreadPoolExecutor(1) as writer:
        claims.take(_ASKING, wait=True)
        # Of these another process may have made some meanwhile
        unmade = {prompt.id for prompt in todo} - gallery.made(todo)
        # Where another process is at it already, it has asked the store
        if claims.take(_DRAWING) and store is not None:
            unmade -= _taken(gallery, unmade, store)
        stored = gallery.stored - unmade
        claims.give_back(_ASKING)
        if stored:
            yield len(stored)
        batches = dict(enumerate(_batches(gallery, stored, batch_size), _FIRST))
        written: Future[int] | None = None
        # What another process has begun is looked at again when all the rest is done
        for wait in (False, True):
            for number, batch in list(batches.items()):
                if not claims.take(number, wait=wait):
                    continue
                del batches[number]
                missing = [p for p in batch if p.id in unmade]
                if any(gallery.image_path(p).exists() for p in missing):
                    # Changed since, or made meanwhile by another process
                    made = gallery.made(missing)
                    missing = [p for p in missing if p.id not in made]
                images: list[Developed] = []
                if missing:
                    images, at_once = _drawn(pipe, batch, at_once, guidance, steps)
                put = [(p, i) for p, i in zip(batch, images, strict=False) if p in missing]
                if written is not None:
                    yield written.result()
                written = writer.submit(_write, gallery, put, len(batch), store, at_once)
        if written is not None:
            yield written.result()


def _in_turns(
    pipe: Any,
    gallery: Gallery,
    several: Processes,
    batch_size: int,
    guidance: float | None,
    steps: int | None,
    store: Store | None,
) -> Iterator[int]:
    """As ``generate``, where a launcher started several processes of one run.

    In each round every process draws one batch and writes its images; the first notes them all, in
    the gallery's order, while the next are drawn. So images.jsonl is what one process writes.
    """

    def missing() -> tuple[set[str], set[str]]:
        todo = gallery.unmade()
        _tell_of_altered(gallery, todo)
        unmade = {prompt.id for prompt in todo}
        unmade -= _taken(gallery, unmade, store) if store is not None else set()
        return unmade, gallery.stored - unmade

    found = several.first(missing)
    # The first process's word: to another machine a file can be there later
    unmade, stored = several.share(found)[0] or (set(), set())
    batches = [
        batch
        for batch in _batches(gallery, stored, batch_size)
        if any(p.id in unmade for p in batch)
    ]
    there = len(gallery) - sum(map(len, batches))
    if there:
        yield there
    rounds = [batches[i : i + several.size] for i in range(0, len(batches), several.size)]
    at_once = batch_size
    by_id = {prompt.id: prompt for prompt in gallery}

    def told(written: "Future[list[tuple[str, Made]]]") -> None:
        for id, made in (line for lines in several.share(written.result()) for line in lines):
            if not several.is_first:
                continue
            if not appears(gallery.image_path(by_id[id])):
                raise InputError(
                    f"Another process wrote {gallery.image_path(by_id[id])}, which is not to be "
                    "seen here: name a folder that all machines share."
                )
            gallery.note(by_id[id], made, store)

    with ThreadPoolExecutor(1) as writer:
        written: Future[list[tuple[str, Made]]] | None = None
        for number, turn in enumerate(rounds):
            put: list[tuple[Prompt, Developed]] = []
            if several.rank < len(turn):
                batch = turn[several.rank]
                images, at_once = _drawn(pipe, batch, at_once, guidance, steps)
                put = [(p, i) for p, i in zip(batch, images, strict=True) if p.id in unmade]
            if written is not None:
                told(written)
                yield sum(map(len, rounds[number - 1]))
            written = writer.submit(_written, gallery, put, at_once)
        if written is not None:
            told(written)
            yield sum(map(len, rounds[-1]))
    several.share(None)  # until all is noted


def _written(
    gallery: Gallery, images: "Sequence[tuple[Prompt, Developed]]", at_once: int
) -> list[tuple[str, Made]]:
    """Writes images, and gives what is to be noted of them."""
    return [(p.id, gallery.write(p, *image(), batch_size=at_once)) for p, image in images]


def _taken(gallery: Gallery, unmade: Set[str], store: Store) -> set[str]:
    """Takes from the store what it has of the images that are missing, and gives their ids."""
    return {p.id for p in gallery if p.id in unmade and gallery.take(p, store)}


def _tell_of_altered(gallery: Gallery, unmade: Sequence[Prompt]) -> None:
    if altered := [prompt.id for prompt in gallery.altered(unmade)]:
        warnings.warn(
            f"{len(altered)} images in {gallery.path} were changed or removed after they had been "
            f"made, and are made again: {', '.join(altered[:8])}{' …' * (len(altered) > 8)}.",
            stacklevel=3,
        )


# What processes that make one gallery take turns in: asking the store, and drawing at all, so
# that the store is asked once; and from the third number on the batches.
_ASKING, _DRAWING, _FIRST = range(3)


def _write(
    gallery: Gallery,
    images: "Sequence[tuple[Prompt, Developed]]",
    batch: int,
    store: Store | None,
    at_once: int,
) -> int:
    """Puts images into their gallery, and gives how many the batch has with those there were."""
    for prompt, image in images:
        gallery.put(prompt, *image(), batch_size=at_once, store=store)
    return batch


def _drawn(
    pipe: Any, batch: Sequence[Prompt], at_once: int, guidance: float | None, steps: int | None
) -> "tuple[list[Developed], int]":
    """A batch's images, and how many at a time fit into memory.

    Warns:
        UserWarning: Fewer fit than were to.
    """
    first, images = batch[0], list[Developed]()
    todo = list(batch)
    while todo:
        now = todo[:at_once]
        try:
            with _told_once(pipe):
                images += _images(
                    pipe,
                    prompt=[p.prompt for p in now],
                    generator=[torch.Generator("cpu").manual_seed(p.seed) for p in now],
                    guidance=guidance if first.guidance is None else first.guidance,
                    steps=steps if first.steps is None else first.steps,
                    width=first.width,
                    height=first.height,
                )
        except torch.OutOfMemoryError:
            if len(now) == 1:
                raise
            at_once = len(now) // 2
        else:
            todo = todo[len(now) :]
            continue
        # Past the handler, whose traceback holds on to what filled the memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(
            f"The device's memory is too small for {len(now)} images at a time: they are made "
            f"{at_once} at a time.",
            stacklevel=3,
        )
    return images, at_once


def _images(pipe: Any, **settings: Any) -> "list[Developed]":
    """As ``Parts.images``, of a call; of what is not described, what the pipeline says itself.

    Where the pipeline makes its pictures as diffusers' own do, that is left to who writes them.
    """
    from diffusers.image_processor import VaeImageProcessor as Processor

    if family_of(type(pipe)) is None:
        return [partial(tuple, (image,)) for image in pipe(**arguments(settings)).images]
    parts = described(pipe)
    processor = getattr(pipe, "image_processor", None)
    usual = isinstance(processor, Processor) and (
        type(processor).postprocess is Processor.postprocess
    )
    if not usual or type(parts).images is not Parts.images:
        found = parts.images(pipe(**parts.call(output_type="pil", **settings)))
        return [partial(tuple, frames) for frames in found]
    rows = pipe(**parts.call(output_type="pt", **settings)).images

    def developed(row: torch.Tensor) -> "tuple[Image, ...]":
        return tuple(Processor.numpy_to_pil(Processor.pt_to_numpy(row[None])))

    return [partial(developed, row) for row in rows]


def pictured(pipe: Any) -> str:
    """What of a pipeline's result its image is, in a sentence; empty where that is all of it."""
    family = family_of(type(pipe))
    return "" if family is None else str(family.pictured)


def pictures(
    pipe: Any,
    prompts: Sequence[Prompt],
    *,
    batch_size: int = 8,
    guidance: float | None = None,
    steps: int | None = None,
) -> "list[Image]":
    """Images of prompts as ``generate`` makes them, kept nowhere; of a video its first frame."""
    found: dict[str, Image] = {}
    for batch in _batched(prompts, batch_size):
        images, _ = _drawn(pipe, batch, batch_size, guidance, steps)
        found |= {prompt.id: image()[0] for prompt, image in zip(batch, images, strict=True)}
    return [found[prompt.id] for prompt in prompts]


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


def _batches(gallery: Gallery, stored: Set[str], size: int) -> Iterator[list[Prompt]]:
    yield from _batched([p for p in gallery.prompts if p.id not in stored], size)


def _batched(prompts: Sequence[Prompt], size: int) -> Iterator[list[Prompt]]:
    """The prompts in batches, each of one size, guidance and number of steps."""

    def settings(prompt: Prompt) -> tuple[Any, ...]:
        return (prompt.guidance, prompt.steps, prompt.width, prompt.height)

    alike: dict[tuple[Any, ...], list[Prompt]] = {}
    for prompt in prompts:
        alike.setdefault(settings(prompt), []).append(prompt)
    for some in alike.values():
        for start in range(0, len(some), size):
            yield some[start : start + size]
