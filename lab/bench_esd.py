"""ESD beside the published schedule: how much faster it is, and whether it erases as well.

    python -m lab.bench_esd [--latent 64] [--steps 50] [--samples 200] [--published 200]
                            [--divide 1] [--device cpu]
    python -m lab.bench_esd --emoji OUT [--concept "kitchen knife"] [--steps 20]
                            [--samples 400] [--size 96]

The first is on Stable Diffusion 1.5's real UNet shapes, with random weights: both train cross
attention, batch 1, in float32, each in a process of its own, one after the other. The published
schedule is written out plainly from its description, and holds a frozen UNet and a trained one:
for each sample k steps with guidance from noise (two rows each), three predictions at that point,
and the student's forward and backward. Its k are spread evenly over the steps rather than drawn,
so that a few samples have the mean of many, and ``--published`` may be less than ``--samples``: 2
or 10 of 50 steps have it exactly. Ours is ``ESD.fit`` as it is by default, whole trajectories, to
the file's tensors; ``storing_s``, within its seconds, is how long it takes once to find the LoRA
of what was learnt, however many samples there were.

On a CPU a smaller latent keeps it short. With fewer steps the published schedule is shorter and
the ratio smaller. ``--divide`` makes the UNet narrower too, to try the script out.

Prints a row for each: seconds a sample, and those of the process's CPU time, which other work on
the machine hardly changes; rows of the denoiser a sample; peak memory, of the process or of the
device where there is one; and then the ratios.

The second erases an object from the built-in model both ways, on as many samples and otherwise the
same settings (``--set``, in JSON), into the folder OUT, and prints what the judge sees on the same
prompts and seeds, with 95 % intervals, and whether these overlap.
"""

import argparse
import copy
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from unsee.erasers.esd import ESD
from unsee.eval import DETECTORS, compare
from unsee.flow import erase, generate_gallery
from unsee.pipelines import load_pipeline
from unsee.pipelines.architectures.stable_diffusion import StableDiffusion
from unsee.pipelines.schedule import ddim
from unsee.pipelines.text import Text
from unsee.prompts import Concept, find_suite


class RandomParts(StableDiffusion):
    """A random UNet of Stable Diffusion 1.5's shapes; its texts are random embeddings."""

    def encode(self, texts: Any, *, negative: bool = False) -> Text:
        draws = (torch.Generator().manual_seed(len(text or "")) for text in texts)
        dim = self.pipe.unet.config.cross_attention_dim
        rows = torch.stack([torch.randn(77, dim, generator=draw) for draw in draws])
        return Text({"encoder_hidden_states": rows.to(self.pipe.unet.device)})

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


def published(parts: RandomParts, samples: int, steps: int) -> float:
    """One trajectory, three predictions and one step of Adam a sample."""
    base = parts.pipe.unet.requires_grad_(False)
    student = copy.deepcopy(base)
    trained = [p for name, p in student.named_parameters() if ".attn2." in name]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(trained, lr=5e-5)
    empty, concept = parts.encode([None, "van gogh"]).first.split(1)
    both = torch.cat([empty, concept])
    draw = torch.Generator().manual_seed(0)
    scheduler = ddim(parts.scheduler)
    scheduler.set_timesteps(steps)
    for sample in range(samples):
        x = torch.randn((1, *parts.latent_shape()), generator=draw).to(base.device)
        k = (2 * sample + 1) * steps // (2 * samples)
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
    return time.perf_counter()


def ours(parts: RandomParts, samples: int, steps: int) -> float:
    """``ESD.fit`` with the published loss: nothing is kept, so there is no term for it."""
    done = []
    settings = ESD(iterations=samples, sampling_steps=steps)
    settings.fit(
        parts,
        [Concept("van gogh", "style")],
        progress=lambda share: done.append(time.perf_counter()),
    )
    return done[-1]


# Each returns when its last step was done.
METHODS: dict[str, Callable[[RandomParts, int, int], float]] = {
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
    samples = arguments.samples if method == "ours" else arguments.published
    start, start_cpu = time.perf_counter(), time.process_time()
    trained = METHODS[method](parts, samples, arguments.steps)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    if not device.startswith("cuda"):
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "method": method,
        "samples": samples,
        "seconds_a_sample": round(seconds / samples, 3),
        "cpu_seconds_a_sample": round(cpu / samples, 3),
        "storing_s": round(start + seconds - trained, 2),
        "rows_a_sample": round(sum(rows) / samples, 2),
        "peak_GB": round(peak / 1e9, 2),
    }


def emoji(arguments: argparse.Namespace) -> None:
    """Both ways of sampling on the built-in model."""
    pipe = load_pipeline("emoji")
    settings = {"batch_size": 8, "lr": 1e-3, **json.loads(arguments.set)}
    iterations = max(1, arguments.samples // settings["batch_size"])
    found = {}
    for sampling in ("batched", "reference"):
        erasure = erase(
            pipe,
            arguments.concept,
            method="esd",
            sampling=sampling,
            iterations=iterations,
            sampling_steps=arguments.steps,
            **settings,
        )
        concepts = list(erasure.record.concepts)
        suite = find_suite("emoji", concepts, arguments.size)
        base = generate_gallery("emoji", [], suite, arguments.emoji / "base")
        out = arguments.emoji / f"{sampling}-{erasure.measured.seconds}"
        report = compare(
            base,
            generate_gallery("emoji", [erasure], suite, out),
            concepts,
            detectors=[DETECTORS[name]() for name in ("emoji/object", "emoji/style")],
        )
        (outcome,) = report.outcomes
        found[sampling] = {
            c.role: c.erased
            for c in outcome.comparisons
            if c.role in ("target", "same kind", "other kind")
        }
        print(
            json.dumps(
                {
                    "sampling": sampling,
                    "samples": iterations * settings["batch_size"],
                    "seconds": erasure.measured.seconds,
                }
                | {
                    role: {"rate": rate.value, "interval": rate.interval(), "n": rate.n}
                    for role, rate in found[sampling].items()
                }
            ),
            flush=True,
        )
    overlap = {}
    for role, one in found["batched"].items():
        mine, other = one.interval(), found["reference"][role].interval()
        # of nothing scored there is none
        overlap[role] = mine and other and mine[0] <= other[1] and other[0] <= mine[1]
    print(json.dumps({"the intervals overlap": overlap}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--latent", type=int, default=64, help="rows and columns of the latent")
    parser.add_argument("--steps", type=int, default=50, help="of a whole trajectory")
    parser.add_argument("--samples", type=int, default=200, help="best a multiple of the steps")
    parser.add_argument("--published", type=int, help="samples of the published schedule")
    parser.add_argument("--divide", type=int, default=1, help="the UNet's widths by this")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--emoji", type=Path, help="compare on the built-in model, in this folder")
    parser.add_argument("--concept", default="kitchen knife", help="with --emoji: what goes")
    parser.add_argument("--size", type=int, default=96, help="with --emoji: prompts of the audit")
    parser.add_argument("--set", default="{}", help="with --emoji: settings of both, as JSON")
    arguments = parser.parse_args()
    arguments.published = arguments.published or arguments.samples
    print(json.dumps({name: str(value) for name, value in vars(arguments).items()}), flush=True)
    if arguments.emoji:
        torch.set_num_threads(arguments.threads)
        emoji(arguments)
        return
    found = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for method in METHODS:
            found[method] = pool.apply(measure, (method, arguments))
            print(json.dumps(found[method]), flush=True)
    ratios = {
        key: round(found["published"][key] / found["ours"][key], 2)
        for key in ("seconds_a_sample", "cpu_seconds_a_sample", "rows_a_sample", "peak_GB")
    }
    print(json.dumps({"published / ours": ratios}))


if __name__ == "__main__":
    main()
