"""The attack `prompt` beside the published schedule: rows and seconds to one loss.

    python -m lab.bench_attacks [--prompts 2] [--times 50] [--iterations 40] [--tokens 3]
                                [--steps 40] [--by gcg]

On the built-in base model, with nothing erased. Each prompt says a style and no object, its image
shows a kitchen knife, and the tokens before it, the concept's words among them, are searched for.
The published schedule (UnlearnDiffAtk) is written out plainly from its description: one prompt
after another; so many times t from the least noise on, at each of them so many iterations; in each
one t and one noise that is drawn anew, a token drawn from each row of P over the whole vocabulary,
hardtanh of the gradient, Adam, and the projection onto the simplex by bisection. Ours is
``PromptSearch.fit`` with all prompts together, in its own settings but for the number of its steps
and without looks.

Both are judged by the same held-out samples, 32 a prompt with t from 600 to 949, on the texts
after decode and encode, outside the clock: the published one at every time and ours at every rung.
The level to be reached is 95 % of the way from the mean loss of the prompts as they are to that of
the same prompts with the concept's name, which neither search sets; the published one ends there.

Prints the rows of the denoiser (a row forward and back counts as three) and the seconds to the
level of each, their ratios and curves, and the loss of words drawn blindly. Where one does not
reach the level, it says so.
"""

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unsee.attacks.prompt import PromptSearch
from unsee.pipelines import load_pipeline
from unsee.pipelines.generation import pictures
from unsee.pipelines.parts import Parts, described
from unsee.prompts import Concept, Prompt

KNIFE = Concept("kitchen knife")
STYLES = ("fluent", "twemoji", "noto", "blob", "flat", "contrast")
HELD_OUT = 32
CLOSED = 0.95


class HeldOut:
    """The mean loss of texts, one a prompt, on samples that no search has seen."""

    def __init__(self, parts: Parts, latents: Tensor) -> None:
        draw = torch.Generator().manual_seed(99)
        self.parts = parts
        self.t = torch.randint(600, 950, (HELD_OUT,), generator=draw)
        self.samples = []
        for one in latents:
            images = one.expand(HELD_OUT, *one.shape)
            noise = torch.randn(images.shape, generator=draw)
            schedule = parts.schedule(2)
            self.samples.append(
                (
                    schedule.noised(images, noise, self.t),
                    schedule.truth(images, noise, self.t),
                )
            )

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> list[float]:
        found = []
        for text, (x, goal) in zip(texts, self.samples, strict=True):
            made = self.parts.predict(x, self.t, self.parts.encode([text]).expand(HELD_OUT))
            found.append(float(functional.mse_loss(made, goal)))
        return found


def published(
    pipe: Any, parts: Parts, prompt: str, latents: Tensor, k: int, times: int, iterations: int
) -> "Any":
    """The published schedule for one prompt: after each time its text, of which the clock is off.

    Yields (rows, seconds, text).
    """
    draw = torch.Generator().manual_seed(0)
    table = pipe.text_encoder.get_input_embeddings()
    weight = table.weight.detach()
    count = len(weight)
    shares = torch.nn.Parameter(torch.full((k, count), 1 / count))
    adam = torch.optim.Adam([shares], lr=0.01, weight_decay=0.1)
    length = pipe.tokenizer.model_max_length
    own = pipe.tokenizer(prompt, add_special_tokens=False).input_ids
    start, end = pipe.tokenizer.bos_token_id, pipe.tokenizer.eos_token_id
    ids = [start, *[end] * k, *own, end]
    ids += [pipe.tokenizer.pad_token_id] * (length - len(ids))
    schedule = parts.schedule(2)
    rows, seconds, begun = 0, 0.0, time.perf_counter()
    span = 1000 / times
    for i in range(times):
        t = torch.tensor([int((i + 0.5) * span)])
        for _ in range(iterations):
            noise = torch.randn(latents.shape, generator=draw)
            x, goal = schedule.noised(latents, noise, t), schedule.truth(latents, noise, t)
            drawn = torch.multinomial(shares.detach(), 1, generator=draw)[:, 0]
            hard = functional.one_hot(drawn, count).float().requires_grad_()
            tokens = hard @ weight

            def put(m: Any, a: Any, out: Tensor, tokens: Tensor = tokens) -> Tensor:
                return torch.cat([out[:, :1], tokens[None], out[:, 1 + k :]], 1)

            handle = table.register_forward_hook(put)
            text = pipe.text_encoder(torch.tensor([ids]))[0]
            handle.remove()
            functional.mse_loss(pipe.unet(x, t, text).sample, goal).backward()
            assert hard.grad is not None
            shares.grad = hard.grad.clamp(-1, 1)
            adam.step()
            shares.data = bisected(shares.data)
            rows += 3
        best = shares.argmax(1).tolist()
        said = f"{pipe.tokenizer.decode(best)} {prompt}"
        seconds += time.perf_counter() - begun
        yield rows, seconds, said
        begun = time.perf_counter()


def bisected(rows: Tensor) -> Tensor:
    """The nearest points of the simplex, by bisection."""
    low, high = rows.amin(1, keepdim=True) - 1, rows.amax(1, keepdim=True)
    for _ in range(50):
        middle = (low + high) / 2
        above = (rows - middle).clamp_min(0).sum(1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    found = (rows - high).clamp_min(0)
    return found / found.sum(1, keepdim=True)


class Unasked:
    """A look that nobody asks for."""

    count = 0

    def __call__(self, images: Any) -> list[bool]:
        raise AssertionError("Without looks nothing is looked at.")


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=2, choices=range(1, len(STYLES) + 1))
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--by", choices=("gcg", "simplex"), default="gcg")
    one = parser.parse_args()
    pipe = load_pipeline("emoji", device="cpu")
    parts = described(pipe)
    for module in (pipe.unet, pipe.text_encoder):
        module.requires_grad_(False)
    named = [Prompt(f"{s}", f"an emoji of a kitchen knife, {s} style", 7) for s in STYLES]
    named = named[: one.prompts]
    rows = [Prompt(s, f"an emoji, {s} style", 7) for s in STYLES[: one.prompts]]
    images = pictures(pipe, named, guidance=3.0, steps=20)
    latents = parts.latents(images).float()
    held_out = HeldOut(parts, latents)

    plain = mean(held_out([row.prompt for row in rows]))
    name = mean(held_out([row.prompt for row in named]))
    level = name + (1 - CLOSED) * (plain - name)

    schedules = [
        published(pipe, parts, row.prompt, own[None], one.tokens, one.times, one.iterations)
        for row, own in zip(rows, latents, strict=True)
    ]
    theirs = []
    for at in zip(*schedules, strict=True):
        texts = [text for *_, text in at]
        theirs.append(
            (mean(held_out(texts)), sum(r for r, *_ in at), sum(s for _, s, _ in at), texts)
        )
        if theirs[-1][0] <= level:
            break

    attack = PromptSearch(
        by=one.by, tokens=one.tokens, own_words=True, steps=one.steps, looks=0,
        rungs=one.steps.bit_length(),
    )  # fmt: skip

    def draw(prompts: Any) -> Any:
        raise AssertionError("Without looks nothing is drawn.")

    fit = attack.fit(parts, KNIFE, rows, images, lambda: nullcontext(parts), Unasked(), draw)
    ours, seconds, begun = [], 0.0, time.perf_counter()
    for found in fit:
        seconds += time.perf_counter() - begun
        if texts := list(found.record.prompts.values()):
            ours.append((mean(held_out(texts)), found.record.spent.rows, seconds, texts))
        begun = time.perf_counter()
    last = found
    blind = attack.blind(last, parts, rows, Unasked(), draw, seed=1)
    curves = {"published": theirs, "ours": ours}
    page: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "level": round(level, 5),
        "as_they_are": round(plain, 5),
        "named": round(name, 5),
        "blind": round(mean(held_out(list(blind.record.prompts.values()))), 5),
    }
    first: dict[str, tuple[int, float]] = {}
    for who, curve in curves.items():
        page[f"{who}_curve"] = [[r, round(s, 1), round(loss, 5)] for loss, r, s, _ in curve]
        page[who] = "did not reach the level"
        for loss, count, took, texts in curve:
            if loss <= level:
                first[who] = count, took
                page[who] = {"rows": count, "s": round(took, 1), "texts": texts}
                break
    if len(first) == 2:
        (their_rows, their_s), (our_rows, our_s) = first["published"], first["ours"]
        page["rows_ratio"] = round(their_rows / our_rows, 1)
        page["seconds_ratio"] = round(their_s / our_s, 1)
    for key, value in page.items():
        print(key, json.dumps(value, ensure_ascii=False))


if __name__ == "__main__":
    main()
