"""The one training loop of the lab: seeded, with a progress bar, and resumable after a kill."""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lab.data import RUNS


def arguments(description: str, *, images: int, batch: int, lr: float) -> argparse.ArgumentParser:
    """What every training can be told."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=images, help="train until so many were seen")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile; minutes to begin")
    parser.add_argument("--name", help="the run's folder under lab/runs")
    return parser


class Run:
    """A training that can be killed at any time and run again with the same command.

    Iterating gives the step's random generators, drawn from seed and step alone. The body
    computes a loss and calls `update`. The learning rate warms up, stays, and falls to zero over
    the last share of the images, so a finished run may be resumed with a larger `--images`.

    Args:
        name: Folder under lab/runs for checkpoint, log and sample sheets.
        model: What is trained; `ema` is its moving average.
        args: From `arguments`.
        ema: The moving average's decay.
        sample: Called with the averaged model and a path to draw a sample sheet, now and then.
        sample_every: Seconds between sample sheets.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        args: argparse.Namespace,
        *,
        ema: float = 0.999,
        falling: float = 0.3,
        weight_decay: float = 0.01,
        sample: Callable[[nn.Module, Path], None] | None = None,
        sample_every: float = 240,
    ) -> None:
        self.folder = RUNS / (args.name or name)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.args, self.decay, self.falling = args, ema, falling
        self.model = model.to(args.device)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.sample, self.sample_every = sample, sample_every
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=args.lr,
            betas=(0.9, 0.99),
            weight_decay=weight_decay,
            fused=True,
        )
        self.seen, self.step, self.seconds = 0, 0, 0.0
        self._figures: dict[str, float] = {}
        checkpoint = self.folder / "checkpoint.pt"
        if checkpoint.exists():
            state = torch.load(checkpoint, map_location=args.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.seen, self.step = state["seen"], state["step"]
            self.seconds = state["seconds"]
            print(f"{self.folder.name}: resumed at {self.seen:,} images")

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "seen": self.seen,
            "step": self.step,
            "seconds": self.seconds,
        }
        unfinished = self.folder / "checkpoint.part"
        torch.save(state, unfinished)
        os.replace(unfinished, self.folder / "checkpoint.pt")

    def rate(self) -> float:
        """The learning rate at this point."""
        left = 1 - self.seen / self.args.images
        return float(self.args.lr * min(1, (self.step + 1) / 100, max(left, 0) / self.falling))

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(torch.device(self.args.device).type, torch.bfloat16)

    def __iter__(self) -> Iterator[tuple[torch.Generator, random.Random]]:
        sampled = saved = mark = time.monotonic()
        bar = tqdm(
            total=self.args.images,
            initial=self.seen,
            unit=" images",
            desc=self.folder.name,
            mininterval=0.5 if sys.stderr.isatty() else 20,
            smoothing=0.05,
        )
        self.model.train()
        self._bar = bar
        while self.seen < self.args.images:
            key = self.args.seed * 1_000_003 + self.step
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate()
            yield torch.Generator().manual_seed(key), random.Random(key)
            now = time.monotonic()
            self.seconds += now - mark
            mark = now
            if now - saved > 60:
                self.save()
                saved = time.monotonic()
            if self.sample and now - sampled > self.sample_every:
                self.sample(self.ema, self.folder / f"sample-{self.seen:08d}.png")
                mark = sampled = time.monotonic()
        self.save()
        if self.sample:
            self.sample(self.ema, self.folder / f"sample-{self.seen:08d}.png")
        bar.close()

    def update(self, loss: Tensor, **figures: float) -> None:
        """One step down the loss, and the moving average after it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.seen += self.args.batch
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.ema.parameters()), list(self.model.parameters()), 1 - decay
            )
            for old, new in zip(self.ema.buffers(), self.model.buffers(), strict=True):
                old.copy_(new)
        for name, value in {"loss": loss.item(), **figures}.items():
            past = self._figures.get(name, value)
            self._figures[name] = past + 0.05 * (value - past)
        self._bar.update(self.args.batch)
        if self.step % 20 == 0:
            self._bar.set_postfix({k: f"{v:.4f}" for k, v in self._figures.items()}, refresh=False)
            line = {"seen": self.seen, "seconds": round(self.seconds), **self._figures}
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")


def load_ema(name: str, model: nn.Module) -> nn.Module:
    """The averaged weights of a run, put into a fresh model."""
    path = RUNS / name / "checkpoint.pt"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: train '{name}' first (lab/README.md).")
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["ema"])
    return model.eval().requires_grad_(False)
