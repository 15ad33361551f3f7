"""Guidance that steers away from concepts: a hook on the denoiser.

A pipeline with classifier-free guidance gives its denoiser two rows an image, for the empty prompt
and for the prompt, and goes ε_∅ + w(ε_c − ε_∅). A guide may change these rows' text, add rows of
its own, and change the two predictions that come out. So any such pipeline runs the method, with
its own scheduler and code. Each call of the pipeline is a trajectory of its own: it begins by
encoding its prompts, where the hook reads them.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .._errors import InputError
from .._registry import Registry
from ..records import Record
from .parts import Parts, described


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

# From a record and the pipeline's parts, once for all trajectories.
GUIDES: Registry[Callable[[Record, Parts], Start]] = Registry(
    "guide",
    "unsee.guides",
    {
        "negative": "unsee.erasers.negative:guide",
        "safree": "unsee.erasers.safree:guide",
        "sld": "unsee.erasers.sld:guide",
    },
)


def add_guide(pipe: Any, record: Record) -> Callable[[], None]:
    """Steers all that a pipeline draws, after the guides that are there; returns what ends it.

    A call of the pipeline without classifier-free guidance then raises InputError.

    Raises:
        InputError: There is no guide for the record's method.
    """
    method = record.method
    parts = described(pipe)
    start, denoiser = GUIDES[method](record, parts), parts.denoiser
    hook = _HOOKS.get(denoiser) or _Hook(pipe, denoiser)
    entry = (method, start)
    hook.starts.append(entry)
    hook.prompts = None

    def remove() -> None:
        hook.starts.remove(entry)
        hook.prompts = None
        if not hook.starts:
            hook.close()

    return remove


class _Hook:
    """The guides of one denoiser, called around it in one batch."""

    def __init__(self, pipe: Any, denoiser: nn.Module) -> None:
        self.pipe = pipe
        self.starts: list[tuple[str, Start]] = []
        # of the guided call that goes on, if one does
        self.prompts: list[str] | None = None
        self.step = 0
        self.guides: list[Guide] = []
        self.added: list[int] = []
        # what the denoiser was to read, and what it reads
        self.given = self.text = torch.empty(0)
        handles = (
            # before all other hooks, which are to see the rows that there will be
            denoiser.register_forward_pre_hook(self.before, with_kwargs=True, prepend=True),
            denoiser.register_forward_hook(self.after),
        )
        # A call of the pipeline finds this before its class's.
        pipe.encode_prompt = self.listen(pipe.encode_prompt)
        _HOOKS[denoiser] = self

        def close() -> None:
            del _HOOKS[denoiser], pipe.encode_prompt
            for handle in handles:
                handle.remove()

        self.close = close

    def listen(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(encode)

        @functools.wraps(encode)
        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            call = signature.bind(*args, **kwargs).arguments
            prompt, images = call.get("prompt") or [], call.get("num_images_per_prompt", 1)
            prompts = [prompt] if isinstance(prompt, str) else prompt
            # in the order of the pipeline's rows
            guided = call.get("do_classifier_free_guidance", True)
            self.prompts = [p for p in prompts for _ in range(images)] if guided else None
            self.step = 0
            return encode(*args, **kwargs)

        return encode_prompt

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # A callback may end guidance on the way.
        if self.prompts is None or not self.pipe.do_classifier_free_guidance:
            raise InputError(
                f"{self.starts[0][0]} steers classifier-free guidance, and this call has none: "
                "set guidance_scale above 1, in a call of the pipeline that the erasure is in."
            )
        latents, timestep, *rest = args
        given = kwargs["encoder_hidden_states"]
        if self.step == 0:
            steps = self.pipe.num_timesteps
            self.guides = [start(steps, self.prompts) for _, start in self.starts]
        if (
            self.step == 0
            or given is not self.given
            or any(self.step in guide.changes for guide in self.guides)
        ):
            self.read(given)
        if further := sum(self.added):
            latents = torch.cat([latents, *[latents.chunk(2)[0]] * further])
        return (latents, timestep, *rest), kwargs | {"encoder_hidden_states": self.text}

    def read(self, given: Tensor) -> None:
        empty, prompt = given.chunk(2)
        further: list[Tensor] = []
        self.added = []
        for guide in self.guides:
            empty, prompt, more = guide.before(self.step, empty, prompt)
            further += more
            self.added.append(len(more))
        self.given, self.text = given, torch.cat([empty, prompt, *further])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        prediction = output[0]
        empty, prompt, *further = prediction.chunk(2 + sum(self.added))
        for guide, count in zip(self.guides, self.added, strict=True):
            empty, prompt = guide.after(self.step, empty, prompt, further[:count])
            further = further[count:]
        self.step += 1
        if self.step == self.pipe.num_timesteps:
            self.prompts = None
            self.given = self.text = torch.empty(0)
        guided = torch.cat([empty, prompt])
        return (guided,) if isinstance(output, tuple) else type(output)(sample=guided)


_HOOKS: WeakKeyDictionary[nn.Module, _Hook] = WeakKeyDictionary()
