"""How much faster ESD is than the published schedule, on Stable Diffusion 1.5's real UNet shapes.

    python lab/bench_esd.py [--latent 64] [--steps 50] [--samples 200] [--divide 1] [--device cpu]

Both train cross attention on the same number of samples, batch 1, in float32, from random weights,
each in a process of its own, one after the other. The published schedule is written out plainly
from its description, and holds a frozen UNet and a trained one: for each sample k steps with
guidance from noise (two rows each), three predictions at that point, and the student's forward and
backward. Its k are spread evenly over the steps rather than drawn, so that a few samples have the
mean of many. Ours is ``ESD.fit`` as it is, from the trajectories to the file's tensors.

On a CPU a smaller latent and fewer steps keep it short; as the published schedule's length is the
steps', fewer of them make the ratio smaller: with 50 it is about 53 rows a sample to 3, with 10
about 13 to 3. ``--divide`` makes the UNet narrower too, to try the script out.

Prints a row for each: seconds, rows of the denoiser a sample, peak memory (of the process, or of
the device where there is one), and then the ratios.
"""

import argparse
import copy
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unsee.erasers.esd import ESD
from unsee.pipelines.stable_diffusion import StableDiffusionParts
from unsee.prompts import Concept


class RandomParts(StableDiffusionParts):
    """A random UNet of Stable Diffusion 1.5's shapes; its texts are random embeddings."""

    def encode(self, texts: Any) -> Tensor:
        draws = (torch.Generator().manual_seed(len(text)) for text in texts)
        dim = self.pipe.unet.config.cross_attention_dim
        rows = torch.stack([torch.randn(77, dim, generator=draw) for draw in draws])
        return rows.to(self.pipe.unet.device)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        return (4, self.pipe.unet.config.sample_size, self.pipe.unet.config.sample_size)


def make_parts(latent: int, divide: int, device: str) -> RandomParts:
    from diffusers import DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(
            sample_size=latent,
            cross_attention_dim=768,
            attention_head_dim=8,
            block_out_channels=tuple(width // divide for width in (320, 640, 1280, 1280)),
            norm_num_groups=32 // divide,
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
    )
    pipe = SimpleNamespace(
        unet=unet.eval(), scheduler=scheduler, name_or_path="random", device=unet.device
    )
    return RandomParts(pipe)


def published(parts: RandomParts, samples: int, steps: int) -> None:
    """One trajectory, three predictions and one step of Adam a sample."""
    base = parts.pipe.unet.requires_grad_(False)
    student = copy.deepcopy(base)
    trained = [p for name, p in student.named_parameters() if ".attn2." in name]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(trained, lr=5e-5)
    empty, concept = parts.encode(["", "van gogh"]).split(1)
    both = torch.cat([empty, concept])
    draw = torch.Generator().manual_seed(0)
    scheduler = parts.sampler(steps)
    for sample in range(samples):
        x = torch.randn((1, *parts.latent_shape()), generator=draw).to(base.device)
        k = sample * steps // samples
        with torch.no_grad():
            for t in scheduler.timesteps[:k]:
                rows = base(torch.cat([x, x]), t, encoder_hidden_states=both).sample
                e_0, e_c = rows.chunk(2)
                x = scheduler.step(e_0 + 3.0 * (e_c - e_0), t, x).prev_sample
            t = scheduler.timesteps[k]
            e_c, e_0, e_a = (
                base(x, t, encoder_hidden_states=text).sample for text in (concept, empty, empty)
            )
        optimizer.zero_grad()
        eps = student(x, t, encoder_hidden_states=concept).sample
        functional.mse_loss(eps, e_a - (e_c - e_0)).backward()
        optimizer.step()


def ours(parts: RandomParts, samples: int, steps: int) -> None:
    """``ESD.fit`` with the published loss: no term for what is kept, dense as it was trained."""
    settings = ESD(iterations=samples, sampling_steps=steps, keep_weight=0.0, store="dense")
    settings.fit(parts, [Concept("van gogh", "style")])


METHODS: dict[str, Callable[[RandomParts, int, int], None]] = {
    "published": published,
    "ours": ours,
}


def measure(method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs in a process of its own, so that the peak of memory is this method's."""
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    parts = make_parts(arguments.latent, arguments.divide, device)
    rows = []

    def count(module: Any, inputs: Any) -> None:
        rows.append(len(inputs[0]))

    # A copy of the UNet takes the hook along.
    parts.pipe.unet.register_forward_pre_hook(count)
    with torch.no_grad():  # warm up
        x = torch.zeros(1, *parts.latent_shape(), device=device)
        parts.predict(x, torch.tensor(1, device=device), parts.encode([""]))
    rows.clear()
    start = time.perf_counter()
    METHODS[method](parts, arguments.samples, arguments.steps)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    seconds = time.perf_counter() - start
    if not device.startswith("cuda"):
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "method": method,
        "seconds": round(seconds, 2),
        "rows_a_sample": round(sum(rows) / arguments.samples, 2),
        "peak_GB": round(peak / 1e9, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--latent", type=int, default=64, help="rows and columns of the latent")
    parser.add_argument("--steps", type=int, default=50, help="of a whole trajectory")
    parser.add_argument("--samples", type=int, default=200, help="best a multiple of the steps")
    parser.add_argument("--divide", type=int, default=1, help="the UNet's widths by this")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    print(json.dumps(vars(arguments)), flush=True)
    found = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for method in METHODS:
            found[method] = pool.apply(measure, (method, arguments))
            print(json.dumps(found[method]), flush=True)
    ratios = {
        key: round(found["published"][key] / found["ours"][key], 2)
        for key in ("seconds", "rows_a_sample", "peak_GB")
    }
    print(json.dumps({"published / ours": ratios}))


if __name__ == "__main__":
    main()
