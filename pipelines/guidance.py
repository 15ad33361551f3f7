"""Guidance that steers away from concepts: a hook on the denoiser.

A pipeline with classifier-free guidance gives its denoiser two rows an image, for the empty prompt
and for the prompt, and goes ε_∅ + w(ε_c − ε_∅). A guide may change these rows' text, add rows of
its own, and change the two predictions that come out. So any such pipeline runs the method, with
its own scheduler and code. Each denoising loop of the pipeline is a trajectory of its own, which
begins and ends with it, whatever happens inside: what was left of a loop that broke off steers
nothing, and a call of the denoiser from elsewhere is an error.
"""

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from .._errors import InputError
from ..records import Record
from . import GUIDES
from .parts import Parts, eager, named
from .watch import erasures_on


class Guide(Protocol):
    """One method in one trajectory, of whose steps it may keep a memory.

    Attributes:
        changes: The steps after the first in which the text that ``before`` gives is another than
            in the step before; it may be known only once ``before`` has been called.
    """

    @property
    def changes(self) -> Collection[int]: ...

    def before(
        self, step: int, empty: Tensor, prompt: Tensor
    ) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        """The text for the two rows of each image, and for further rows, each (n, tokens, dim).

        Called in the first step, in those of ``changes`` and where the text given is another.

        Args:
            step: The denoiser's calls in this trajectory before this one.
            empty: The text of the empty or negative prompt.
            prompt: The prompt's.
        """
        ...

    def after(
        self, step: int, empty: Tensor, prompt: Tensor, more: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """What guidance is to take for ε_∅ and ε_c, each (n, *latent_shape).

        Args:
            step: As for ``before``.
            empty: ε_∅.
            prompt: ε_c.
            more: The predictions for the further rows.
        """
        ...


# Makes a guide for a trajectory of so many steps, and of these prompts, one an image; of none
# where the call was given embeddings in their place.
Start = Callable[[int, Sequence[str]], Guide]


def guide_of(parts: Parts, record: Record) -> Start:
    """What makes a record's guides in a pipeline.

    Raises:
        InputError: There is no guide for the record's method.
    """
    start: Start = GUIDES[record.method](record, parts)
    return start


@dataclass
class Trajectory:
    """The guides of one denoising loop.

    Attributes:
        steps: The calls of the denoiser that there will be.
        guides: In the order in which they were put on.
        step: The calls that there were.
        given: The text that the denoiser was to read last, (2n, tokens, dim).
        text: What it reads in its place, (rows, tokens, dim).
        added: How many further rows an image each guide has.
    """

    steps: int
    guides: list[Guide]
    step: int = 0
    given: Tensor | None = None
    text: Tensor | None = None
    added: tuple[int, ...] = ()

    def read(self, given: Tensor) -> None:
        empty, prompt = given.chunk(2)
        further: list[Tensor] = []
        added = []
        for guide in self.guides:
            empty, prompt, more = guide.before(self.step, empty, prompt)
            further += more
            added.append(len(more))
        self.given, self.text = given, torch.cat([empty, prompt, *further])
        self.added = tuple(added)


class Guides:
    """The guides of one denoiser, called around it in one batch, as its attribute ``guides``."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        # of the denoiser's call that goes on
        self.now: Trajectory | None = None
        self.handles = (
            # before all other hooks, which are to see the rows that there will be
            denoiser.register_forward_pre_hook(self.before, with_kwargs=True, prepend=True),
            denoiser.register_forward_hook(self.after),
        )
        denoiser.guides = self  # type: ignore[assignment]

    @property
    def on(self) -> bool:
        """Whether the hooks are there."""
        return self.handles[0].id in self.denoiser._forward_pre_hooks

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()
        del self.denoiser.guides

    @eager
    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        names = list(named(module, args, {}))
        given = named(module, args, kwargs)
        text: Tensor = given["encoder_hidden_states"]
        trajectory = self.trajectory(module)
        if trajectory.given is not text:
            if trajectory.given is not None and not _equal(trajectory.given, text):
                raise InputError(
                    "The text was changed between two steps, or another pipeline drew in between, "
                    "and guides steer one text from the first step to the last: take them off "
                    "with unsee.remove(pipe), or draw without that callback."
                )
            trajectory.read(text)
        elif any(trajectory.step in guide.changes for guide in trajectory.guides):
            trajectory.read(text)
        if further := sum(trajectory.added):
            given = {name: _extended(value, len(text), further) for name, value in given.items()}
        given["encoder_hidden_states"] = trajectory.text
        self.now = trajectory
        return tuple(given[name] for name in names), {name: given[name] for name in kwargs}

    def trajectory(self, module: nn.Module) -> Trajectory:
        """That of the loop from which the denoiser is called."""
        on = erasures_on(module)
        entries = [(e, e.put) for e in on.entries if isinstance(e.put, Guided)] if on else []
        thread = threading.get_ident()
        for listener in {id(e.listener): e.listener for e, _ in entries}.values():
            loop = listener.loop
            # A callback may end guidance on the way.
            if loop is None or loop.thread != thread or not _guided(listener.pipe):
                continue
            if loop.memory is None:
                steps = int(listener.pipe.num_timesteps)
                starts = [put.start for e, put in entries if e.listener is listener]
                loop.memory = Trajectory(steps, [start(steps, loop.prompts) for start in starts])
            return cast(Trajectory, loop.memory)
        raise InputError(
            f"{entries[0][0].active.method} steers classifier-free guidance, and this call has "
            "none: set guidance_scale above 1, in a call of the pipeline that the erasure is in; "
            "put it into another pipeline of the same parts as well, by add_to."
        )

    @eager
    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        trajectory, self.now = self.now, None
        assert trajectory is not None
        prediction = output[0]
        empty, prompt, *further = prediction.chunk(2 + sum(trajectory.added))
        for guide, count in zip(trajectory.guides, trajectory.added, strict=True):
            empty, prompt = guide.after(trajectory.step, empty, prompt, further[:count])
            further = further[count:]
        trajectory.step += 1
        guided = torch.cat([empty, prompt])
        return (guided,) if isinstance(output, tuple) else type(output)(sample=guided)


class Guided:
    """An erasure as a guide."""

    adapter = None
    alone = True

    def __init__(self, denoiser: Any, component: str, start: Start) -> None:
        self.denoiser, self.component, self.start = denoiser, component, start
        self.guides: Guides = getattr(denoiser, "guides", None) or Guides(denoiser)

    def look(self, whole: bool) -> str | None:
        if not self.guides.on:
            raise InputError("has lost its hook on the denoiser: load the pipeline again.")
        return None

    def off(self) -> None:
        on = erasures_on(self.denoiser)
        if on is None or sum(isinstance(e.put, Guided) for e in on.entries) == 1:
            self.guides.close()

    def write(self, state: dict[str, Tensor]) -> None:
        raise InputError(
            "steers while a pipeline draws, which saved weights cannot hold: save its file beside "
            "the base model, or take it off with unsee.remove(pipe) first."
        )


def _guided(pipe: Any) -> bool:
    # A shallow copy draws in the place of the pipeline itself, which may never have drawn.
    return bool(getattr(pipe, "do_classifier_free_guidance", False))


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _extended(value: Any, rows: int, further: int) -> Any:
    """An argument of the denoiser for further rows, which take what the first ones have."""
    if isinstance(value, Tensor):
        if value.ndim == 0 or len(value) != rows:
            return value
        return torch.cat([value, *[value.chunk(2)[0]] * further])
    if isinstance(value, dict):
        return {name: _extended(one, rows, further) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_extended(one, rows, further) for one in value)
    return value
