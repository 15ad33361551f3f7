"""What an audit spends its time on, and what its short cuts save.

    python -m lab.bench_audit [--images 1000] [--batch 24] [--each 3] [--one 64]
        [--sizes 512 1024] [--stub-images 48] [--stub-batch 4] [--seconds 0.3]
        [--only share one each stub]

``share``: so many images of the built-in model, from its loaded pipeline into a gallery and a
store, and how much of that time the pipeline's denoiser and decoder have.

``one``: an audit of ``--one`` images, half of them the base's, by batches, beside one prompt at a
time. ``each``: ``audit_each`` of several erasures of one concept, which draw ``--images`` images
with the base's, beside as many audits that each draw the base's again. Both sides of a ratio are
of this run.

``stub``: the share again with larger images, in diffusers' own pipeline around a denoiser that
only waits, ``--seconds`` an image, as for a GPU, and a decoder that gives a picture with the grain
of a photograph. What is left beside them is diffusers' arithmetic around the two, and what of
encoding PNG, hashing and writing is not done while the next batch is drawn.

Prints a row for each. A ratio by the processor's seconds is what to go by where other programs
run.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import unsee
from unsee.drawing import Source
from unsee.prompts import Prompt, Suite, find_concept, find_suite
from unsee.store import OFF, Store

CONCEPT = "kitchen knife"
PARTS = ("share", "one", "each", "stub")
STEPS = 4
"""Of the stub, among which its seconds are shared out."""


@dataclass
class Inside:
    """Seconds that calls took, by what was called: by the clock, and of their thread."""

    clock: dict[str, float] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*arguments: Any, **named: Any) -> Any:
            clock, processor = time.perf_counter(), time.thread_time()
            try:
                return call(*arguments, **named)
            finally:
                for found, spent in (
                    (self.clock, time.perf_counter() - clock),
                    (self.processor, time.thread_time() - processor),
                ):
                    found[name] = found.get(name, 0.0) + spent

        return timing


@contextmanager
def watched(pipe: Any) -> Iterator[Inside]:
    """What denoiser, decoder and the making of PIL images take while this lasts."""
    inside = Inside()
    pictures = pipe.image_processor
    with (
        patch.object(pipe.unet, "forward", inside.timed("denoiser", pipe.unet.forward)),
        patch.object(pipe.vae, "decode", inside.timed("decoder", pipe.vae.decode)),
        patch.object(pictures, "postprocess", inside.timed("to PIL", pictures.postprocess)),
    ):
        yield inside


def drawn(
    source: Source, suite: Suite, folder: Path, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Draws a suite's images into a gallery and an empty store, and says where the time went.

    ``share_inside`` is by the clock, so that what other programs take of the processor counts
    against us; ``share_undisturbed`` takes for what is outside denoiser and decoder the seconds
    that its thread had the processor, and leaves out what waits for the writing.
    """
    first = Suite("first", suite.prompts[: settings["batch_size"]])
    source.draw([], first, folder / "first", settings, "model", None, silent)  # what loads late
    with watched(source.pipe) as inside:
        clock, process, thread = time.perf_counter(), time.process_time(), time.thread_time()
        gallery = source.draw(
            [], suite, folder / "gallery", settings, "model", Store(folder / "store"), silent
        )
        clock = time.perf_counter() - clock
        process, thread = time.process_time() - process, time.thread_time() - thread
    files = [gallery.image_path(prompt) for prompt in gallery]
    ours = ("denoiser", "decoder")
    within = sum(inside.clock[name] for name in ours)
    outside = thread - sum(inside.processor[name] for name in ours)
    return {
        "images": len(files),
        "seconds": round(clock, 2),
        "images_a_second": round(len(files) / clock, 2),
        **{f"{name}_s": round(seconds, 2) for name, seconds in inside.clock.items()},
        "share_inside": round(within / clock, 4),
        "share_undisturbed": round(within / (within + outside), 4),
        "to_PIL_processor_s_an_image": round(inside.processor["to PIL"] / len(files), 4),
        "outside_processor_s_an_image": round(outside / len(files), 4),
        "other_threads_processor_s_an_image": round((process - thread) / len(files), 4),
        "png_bytes": round(sum(file.stat().st_size for file in files) / len(files)),
    }


def silent(what: str, made: int, total: int) -> None:
    """No progress, where seconds are counted."""


def share(images: int, batch: int) -> dict[str, Any]:
    source = Source.of("emoji")
    suite = find_suite("emoji", [find_concept(CONCEPT, model="emoji")], images)
    settings = {"batch_size": batch, **source.generation(None, None)}
    with tempfile.TemporaryDirectory() as folder:
        return {"what": "built-in model", **drawn(source, suite, Path(folder), settings)}


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, and of the processor in all threads."""

    clock: float
    processor: float


def cost(what: Callable[[], Any], store: str) -> Cost:
    """What a call costs, with images shared through that folder, or ``OFF``."""
    with patch.dict(os.environ, UNSEE_STORE=store):
        clock, processor = time.perf_counter(), time.process_time()
        what()
        return Cost(time.perf_counter() - clock, time.process_time() - processor)


def beside(ours: Cost, other: Cost) -> dict[str, float]:
    return {
        "clock_s": round(ours.clock, 1),
        "other_clock_s": round(other.clock, 1),
        "clock_ratio": round(ours.clock / other.clock, 3),
        "processor_ratio": round(ours.processor / other.processor, 3),
    }


def one(images: int, batch: int) -> dict[str, Any]:
    erasure = unsee.erase("emoji", CONCEPT, check=False)

    def audited(at_once: int) -> Cost:
        with tempfile.TemporaryDirectory() as folder:
            return cost(
                lambda: unsee.audit(
                    "emoji", erasure, out=folder, size=images // 2, batch_size=at_once
                ),
                OFF,
            )

    found = beside(audited(batch), audited(1))
    return {"what": "one prompt at a time", "images": images // 2 * 2, **found}


def each(images: int, batch: int, count: int) -> dict[str, Any]:
    size = images // (count + 1)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for i in range(count):
            files.append(Path(folder) / f"{i}.safetensors")
            unsee.erase("emoji", CONCEPT, check=False, ridge=0.1 * (i + 1)).save(files[-1])
        options: dict[str, Any] = {"size": size, "batch_size": batch}

        def separate() -> None:
            for file in files:
                unsee.audit("emoji", file, out=Path(folder) / f"alone-{file.stem}", **options)

        ours = cost(
            lambda: unsee.audit_each("emoji", files, out=Path(folder) / "each", **options),
            str(Path(folder) / "store"),
        )
        other = cost(separate, OFF)
    counts = {"images": size * (count + 1), "other_images": size * 2 * count}
    return {
        "what": f"{count} audits with the base's images again",
        **counts,
        **beside(ours, other),
    }


def photograph(size: int) -> Tensor:
    """A picture with the detail and the grain of a photograph, shape (3, size, size), in [-1, 1].

    Its power falls with the cube of the frequency: a photograph's falls with the square, but
    lenses and denoisers blur the finest. So a PNG of it has 1.5 bytes a pixel, as theirs have.
    """
    draw = torch.Generator().manual_seed(0)
    noise = torch.fft.rfft2(torch.randn(3, size, size, generator=draw))
    rows, columns = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
    smooth = torch.fft.irfft2(noise / (rows**2 + columns**2 + size**-2) ** 0.75)
    grain = 0.01 * torch.randn(3, size, size, generator=draw)
    found: Tensor = 0.3 * smooth / smooth.std() + grain
    return found.clamp(-1, 1)


def stub(size: int, images: int, batch: int, seconds: float) -> dict[str, Any]:
    source = Source.of("emoji")
    picture = photograph(size)

    def wait(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        rows = len(x) / 2  # with and without the prompt
        time.sleep(seconds * rows / STEPS)
        return (torch.zeros_like(x),)

    def give(z: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        # Each a little apart from the others, as no two images are one file
        return (torch.stack([picture.roll(i, -1) for i in range(len(z))]),)

    prompts = [
        Prompt(id=f"{i:04d}", prompt="a dog emoji", seed=i, width=size, height=size)
        for i in range(images)
    ]
    settings = {"batch_size": batch, "guidance": 3.0, "steps": STEPS}
    with (
        patch.object(source.pipe.unet, "forward", wait),
        patch.object(source.pipe.vae, "decode", give),
        tempfile.TemporaryDirectory() as folder,
    ):
        found = drawn(source, Suite("stub", tuple(prompts)), Path(folder), settings)
    return {"what": f"stub at {size} px", "seconds_an_image": seconds, "batch": batch, **found}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--each", type=int, default=3, help="erasures")
    parser.add_argument("--one", type=int, default=64, help="images that are made one by one")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--stub-images", type=int, default=48)
    parser.add_argument("--stub-batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0.3, help="of the stub, an image")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()

    def show(row: dict[str, Any]) -> None:
        print(json.dumps(row), flush=True)

    if "share" in given.only:
        show(share(given.images, given.batch))
    if "one" in given.only:
        show(one(given.one, given.batch))
    if "each" in given.only:
        show(each(given.images, given.batch, given.each))
    if "stub" in given.only:
        for size in given.sizes:
            show(stub(size, given.stub_images, given.stub_batch, given.seconds))


if __name__ == "__main__":
    main()
