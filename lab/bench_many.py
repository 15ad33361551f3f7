"""How much memory UCE takes beyond the model's weights, as the number of concepts grows.

    python -m lab.bench_many [--model sd15|sdxl] [--concepts 10 100 1000] [--preset 2025]

Fits as many concepts at once, each in a process of its own, to the cross-attention key and value
weights of Stable Diffusion 1.5's or SDXL's UNet, random. Texts are random embeddings of 77 tokens,
made as they are asked for, so that what is seen is the method's own memory and not that of the
text encoder, which works in batches whatever the number.

Prints a row for each: seconds, the rank and the MB of the erasure's factors, the peak of memory
above what there was with the weights alone, in MB, and (d + n) · n numbers of 8 bytes in MB. With
``--preset`` left out all tokens of six prompts a concept are edited, about 450 rows each.
"""

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import nn

from lab.bench_uce import shapes
from unsee.erasers.uce import UCE
from unsee.pipelines.architectures.stable_diffusion import StableDiffusion
from unsee.pipelines.parts import Stream
from unsee.pipelines.text import Text
from unsee.prompts import Concept


class Layers(nn.Module):
    """The layers alone, by their names in the UNet."""

    def __init__(self, sizes: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        self.named = {n: nn.Linear(i, o, bias=False) for n, (o, i) in sizes.items()}
        self.layers = nn.ModuleList(self.named.values())

    def named_modules(self, *args: object, **kwargs: object) -> object:
        return iter(self.named.items())


class RandomParts(StableDiffusion):
    """Its texts are random embeddings, a token a word."""

    def streams(self) -> tuple[Stream, ...]:
        return (Stream("sequence", words, room=75, start=1, from_last=True),)

    def encode(self, texts: Sequence[str | None], *, negative: bool = False) -> Text:
        draws = (torch.Generator().manual_seed(hash(text) % 2**32) for text in texts)
        rows = [torch.randn(77, self.pipe.dim, generator=draw) for draw in draws]
        return Text({"encoder_hidden_states": torch.stack(rows)})


def words(text: str, **options: object) -> SimpleNamespace:
    """A tokenizer to which every word is one token."""
    return SimpleNamespace(input_ids=text.split())


def resident() -> float:
    """MB at this moment."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def measure(model: str, count: int, preset: str | None, threads: int) -> None:
    torch.set_num_threads(threads)
    sizes = shapes(model)
    dim = next(iter(sizes.values()))[1]
    pipe = SimpleNamespace(unet=Layers(sizes), dim=dim, name_or_path="random")
    parts = RandomParts(pipe)
    concepts = [Concept(f"concept number {i}") for i in range(count)]
    eraser = UCE(**(UCE.presets[preset] if preset else {}))
    before, start = resident(), time.perf_counter()
    erasure = eraser.fit(parts, concepts)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    factors = {t.data_ptr(): t for t in erasure.tensors.values()}.values()
    row = {
        "concepts": count,
        "seconds": round(seconds, 1),
        "rank": len(next(t for name, t in erasure.tensors.items() if "lora_A" in name)),
        "factors_mb": round(sum(t.numel() * t.element_size() for t in factors) / 2**20, 1),
        "peak_mb": round(peak - before, 1),
        "(d+n)n_mb": round((dim + count) * count * 8 / 2**20, 1),
    }
    print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=("sd15", "sdxl"), default="sd15")
    parser.add_argument("--concepts", nargs="+", type=int, default=[10, 100, 1000])
    parser.add_argument("--preset", choices=list(UCE.presets))
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for count in arguments.concepts:
        work = (arguments.model, count, arguments.preset, torch.get_num_threads())
        process = context.Process(target=measure, args=work)
        process.start()
        process.join()


if __name__ == "__main__":
    main()
