"""Guidance that steers away from concepts: a hook on the denoiser.

A pipeline with classifier-free guidance asks its denoiser for two predictions an image, for the
empty prompt and for the prompt, and goes ε_∅ + w(ε_c − ε_∅): in one call of two rows, or in one
call after another. A guide may change these rows' text, add rows of its own, and change the two
predictions that come out. So any such pipeline runs the method, with its own scheduler and code.
Where there are two calls, all rows go through the first one, and the second, for the empty prompt,
is given what was found there already and computes nothing.

Each denoising loop of the pipeline is a trajectory of its own, which begins and ends with it,
whatever happens inside: what was left of a loop that broke off steers nothing, and a call of the
denoiser from elsewhere is an error.
"""

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from .._errors import InputError
from ..records import Record
from . import GUIDES
from .modules import eager, named
from .parts import Parts
from .text import Text
from .watch import Spoken, erasures_on


class Guide(Protocol):
    """One method in one trajectory, of whose steps it may keep a memory.

    Attributes:
        begins: The first step that it may steer. In a trajectory that ends before, the image would
            be the base model's, so that is refused.
        changes: The steps after the first in which the text that ``before`` gives is another than
            in the step before; it may be known only once ``before`` has been called.
    """

    @property
    def begins(self) -> int: ...

    @property
    def changes(self) -> Collection[int]: ...

    def before(self, step: int, empty: Text, prompt: Text) -> tuple[Text, Text, Sequence[Text]]:
        """The text for the two rows of each image, and for further rows, each of n texts.

        Called in the first step, in those of ``changes`` and where the text given is another.

        Args:
            step: The steps of this trajectory before this one.
            empty: The text of the empty or negative prompt.
            prompt: The prompt's.
        """
        ...

    def after(
        self, step: int, empty: Tensor, prompt: Tensor, more: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """What guidance is to take for ε_∅ and ε_c, each (n, *latent_shape).

        Of a model that predicts something else, all are that times the number that makes their
        differences those of ε.

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


def guide_of(record: Record, parts: Parts) -> Start:
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
        parts: The pipeline's.
        guides: In the order in which they were put on.
        empty: The text of the empty or negative prompt, where it has a call of its own.
        step: The steps that there were.
        given: The text that the denoiser was to read last.
        text: What it reads in its place: the pipeline's rows, and the guides' behind them.
        added: How many rows an image each guide has added.
        waits: What the denoiser gives for the empty prompt, until its own call.
        time: t of the call before that one.
    """

    parts: Parts
    guides: Sequence[Guide]
    empty: Text | None = None
    step: int = 0
    given: Text | None = None
    text: Text | None = None
    added: tuple[int, ...] = ()
    waits: Any = None
    time: Tensor = field(default_factory=lambda: torch.zeros(()))

    def end(self) -> None:
        """Makes sure that no prediction for the empty prompt was left."""
        if self.waits is not None:
            raise InputError(
                "Guidance ended before the last step, and guides steer it from the first step to "
                "the last: leave out the setting that ends it, such as cfg_trunc_ratio, or take "
                "them off with unsee.remove(pipe)."
            )

    def read(self, given: Text) -> None:
        if self.empty is not None:
            # One negative prompt for all images may be one row.
            several = len(self.empty) < len(given)
            prompt, empty = given, self.empty.expand(len(given)) if several else self.empty
        else:
            half = len(given) // 2
            one, other = given[:half], given[half:]
            empty, prompt = (one, other) if self.parts.empty_first else (other, one)
        further: list[Text] = []
        added = []
        for guide in self.guides:
            empty, prompt, more = guide.before(self.step, empty, prompt)
            further += more
            added.append(len(more))
        first = self.empty is None and self.parts.empty_first
        both = [empty, prompt] if first else [prompt, empty]
        texts = [*both, *further]
        # Of what is a list, that is the width, which is one for all.
        lengths = sorted({text.first.shape[1] for text in texts})
        if self.parts.masked is None and len(lengths) > 1:
            raise InputError(
                f"This call reads {given.first.shape[1]} rows of text, a guide's text has others "
                f"({', '.join(map(str, lengths))}), and the model would read what fills them up: "
                "pass prompts, not embeddings that were encoded otherwise."
            )
        self.given, self.text = given, Text.cat(texts)
        self.added = tuple(added)

    def guide(self, prediction: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """What guidance is to take for the empty prompt and for the prompt."""
        one, other, *further = prediction.chunk(2 + sum(self.added))
        first = self.empty is None and self.parts.empty_first
        own = (one, other) if first else (other, one)
        if bool((scale == 0).any()):
            # Here no prediction says anything of ε, and there is nothing to compare.
            return own
        whole = bool((scale == 1).all())
        to_eps = scale.to(prediction).view(-1, *(1 for _ in one.shape[1:]))
        empty, prompt, *more = (
            own[0] if whole else to_eps * own[0],
            own[1] if whole else to_eps * own[1],
            *(one if whole else to_eps * one for one in further),
        )
        for guide, count in zip(self.guides, self.added, strict=True):
            empty, prompt = guide.after(self.step, empty, prompt, more[:count])
            more = more[count:]
        return (empty, prompt) if whole else (empty / to_eps, prompt / to_eps)


class Guides:
    """The guides of one denoiser, called around it in one batch, as its attribute ``guides``."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.denoiser = parts.denoiser
        # of the denoiser's call that goes on
        self.now: Trajectory | None = None
        # for a while: the denoiser is then called as if there were none
        self.silent = False
        self.scale = torch.ones(1)
        self.handles = (
            # before all other hooks, which are to see the rows that there will be
            self.denoiser.register_forward_pre_hook(self.before, with_kwargs=True, prepend=True),
            self.denoiser.register_forward_hook(self.after),
        )
        self.denoiser.guides = self  # type: ignore[assignment]
        # No hook can keep a call from being computed.
        self.forward: Any = self.denoiser.forward
        self.own = "forward" in vars(self.denoiser)
        if parts.calls == 2:
            vars(self.denoiser)["forward"] = self.spared

    @property
    def on(self) -> bool:
        """Whether the hooks are there."""
        return self.handles[0].id in self.denoiser._forward_pre_hooks

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()
        del self.denoiser.guides
        # What was put around it since then goes through it to what was there before.
        if vars(self.denoiser).get("forward") == self.spared:
            del vars(self.denoiser)["forward"]
            if self.own:
                vars(self.denoiser)["forward"] = self.forward

    def spared(self, *args: Any, **kwargs: Any) -> Any:
        """The denoiser's forward, which a call has no need of whose answer is there already."""
        # A compiled graph does not look at a trajectory; ``after`` gives the answer there too.
        if not torch.compiler.is_compiling() and self.now is not None:
            if self.now.waits is not None:
                return self.now.waits
        return self.forward(*args, **kwargs)

    @eager
    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self.silent:
            return None
        given = named(module, args, kwargs)
        text = self.parts.text_of(given)
        self.now = trajectory = self.trajectory(text)
        time = self.parts.time_of(given)
        if trajectory.waits is not None:
            if not torch.equal(time, trajectory.time):
                # The next step's call for the prompt
                trajectory.end()
            # The call for the empty prompt, of which the answer is there already
            return None
        trajectory.time = time
        if trajectory.given is None or not trajectory.given.equals(text):
            if trajectory.given is not None:
                raise InputError(
                    "The text was changed between two steps, guidance ended in between, or "
                    "another pipeline drew, and guides steer one text from the first step to the "
                    "last: take them off with unsee.remove(pipe), or draw without that callback "
                    "or setting."
                )
            trajectory.read(text)
        elif any(trajectory.step in guide.changes for guide in trajectory.guides):
            trajectory.read(text)
        self.scale = self.parts.eps_scale(given).reshape(-1)[:1]
        assert trajectory.text is not None
        rows = len(text)
        images = rows if trajectory.empty is not None else rows // 2
        further = len(trajectory.text) // images - rows // images
        if further:
            given = {
                name: value
                if name in self.parts.shared
                else _extended(value, rows, images, further, name in self.parts.listed)
                for name, value in given.items()
            }
        given = self.parts.with_text(given, trajectory.text)
        # By name, as what the caller left out may be text too
        names = list(named(module, args, {}))
        return tuple(given.pop(name) for name in names), given

    def trajectory(self, text: Text) -> Trajectory:
        """That of the loop from which the denoiser is called, to read this text."""
        on = erasures_on(self.denoiser)
        entries = [(e, e.put) for e in on.entries if isinstance(e.put, Guided)] if on else []
        thread = threading.get_ident()
        for listener in {id(e.listener): e.listener for e, _ in entries}.values():
            loop = listener.loop
            parts = next(put.parts for e, put in entries if e.listener is listener)
            # A callback may end guidance on the way.
            if loop is None or loop.thread != thread or not parts.guided():
                continue
            if loop.memory is None:
                prompts, empty = loop.prompts, None
                if parts.calls == 2:
                    prompts, empty = _spoken(parts, parts.spoken(), text)
                    if empty is None:
                        continue
                steps = int(getattr(parts.pipe, "num_timesteps", len(parts.scheduler.timesteps)))
                own = [(e, put) for e, put in entries if e.listener is listener]
                guides = [put.starting(loop.spoken)(steps, prompts) for _, put in own]
                for (entry, _), guide in zip(own, guides, strict=True):
                    if guide.begins >= steps:
                        raise InputError(
                            f"The erasure {entry.erasure.name!r} would do nothing: "
                            f"{entry.active.method} begins after {guide.begins} steps, and this "
                            f"call has {steps}. Draw with more steps, or erase again with "
                            "settings by which it begins sooner."
                        )
                # Steps that were made without guides are steps too
                loop.memory = Trajectory(parts, guides, empty, loop.passed // parts.calls)
            return cast(Trajectory, loop.memory)
        raise InputError(
            f"{entries[0][0].active.method} steers classifier-free guidance, and this call has "
            f"none: set {self.parts.guiding}, in a call of the pipeline that "
            "the erasure is in; put it into another pipeline of the same parts as well, by add_to."
        )

    @eager
    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        trajectory, self.now = self.now, None
        if trajectory is None:
            return None
        if trajectory.waits is not None:
            found, trajectory.waits = trajectory.waits, None
            return found
        listed = isinstance(output[0], list)

        def given(guided: Tensor) -> Any:
            each: Any = list(guided) if listed else guided
            return (each,) if isinstance(output, tuple) else type(output)(sample=each)

        prediction = torch.stack(output[0]) if listed else output[0]
        empty, prompt = trajectory.guide(prediction, self.scale)
        trajectory.step += 1
        if trajectory.empty is not None:
            trajectory.waits = given(empty)
            return given(prompt)
        return given(torch.cat([empty, prompt] if self.parts.empty_first else [prompt, empty]))


def _spoken(
    parts: Parts, spoken: Sequence[Spoken], text: Text
) -> tuple[tuple[str, ...], Text | None]:
    """The prompts of a text, one an image, and the text of the empty prompt that goes with it.

    Known by the embeddings: other texts may have been encoded in between.
    """
    for i, one in enumerate(spoken):
        heard = parts.heard(one.given)
        if not heard.prompt.equals(text):
            continue
        if heard.empty is not None:
            return one.prompts, heard.empty
        # The negative prompt is encoded after the prompt, by a call of its own.
        if i + 1 < len(spoken):
            return one.prompts, parts.heard(spoken[i + 1].given).prompt
    return (), None


class Guided:
    """An erasure as a guide.

    Args:
        parts: The pipeline's.
        of: What makes its guides in a pipeline.
    """

    adapter = None
    alone = True

    def __init__(self, parts: Parts, of: Callable[[Parts], Start]) -> None:
        self.parts, self.of, self.start = parts, of, of(parts)
        self.denoiser: Any = parts.denoiser
        self.component = parts.prefix
        self.guides: Guides = getattr(self.denoiser, "guides", None) or Guides(parts)

    def starting(self, spoken: Sequence[Spoken]) -> Start:
        """What makes the guides of a loop, with text encoded as that loop's own was."""
        if not spoken:
            return self.start
        parts = self.parts.as_in(spoken[-1])
        usual = all(value == self.parts.passes(name) for name, value in parts.passed.items())
        return self.start if usual else self.of(parts)

    def look(self, whole: bool) -> str | None:
        if not self.guides.on:
            raise InputError("has lost its hook on the denoiser: load the pipeline again.")
        return None

    def weigh(self, share: float) -> None:
        if share not in (0, 1):
            raise InputError(
                "is a guide, which has no weights that could be multiplied: attack it by words or "
                "by completion."
            )
        self.guides.silent = share == 0

    def off(self) -> None:
        on = erasures_on(self.denoiser)
        if on is None or sum(isinstance(e.put, Guided) for e in on.entries) == 1:
            self.guides.close()

    def write(self, state: dict[str, Tensor]) -> None:
        raise InputError(
            "steers while a pipeline draws, which saved weights cannot hold: save its file beside "
            "the base model, or take it off with unsee.remove(pipe) first."
        )


def _extended(value: Any, rows: int, images: int, further: int, listed: bool = False) -> Any:
    """An argument of the denoiser for further rows, which take what the first ones have."""
    if isinstance(value, Tensor):
        if value.ndim == 0 or len(value) != rows:
            return value
        return torch.cat([value, *[value[:images]] * further])
    if listed and isinstance(value, list):
        return value + value[:images] * further
    if isinstance(value, dict):
        return {name: _extended(one, rows, images, further) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_extended(one, rows, images, further) for one in value)
    return value
