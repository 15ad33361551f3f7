"""Guidance that steers away from concepts: a hook on the denoiser.

A pipeline with classifier-free guidance gives its denoiser two rows an image, for the empty prompt
and for the prompt, and goes ε_∅ + w(ε_c − ε_∅). A guide may change these rows' text, add rows of
its own, and change the two predictions that come out. So any such pipeline runs the method, with
its own scheduler and code.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .._errors import InputError
from .._registry import Registry
from .parts import Parts, described


class Guide(Protocol):
    """One method in one trajectory, of whose steps it may keep a memory."""

    def before(self, empty: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        """The text for the two rows of each image, and for further rows, each (n, tokens, dim)."""
        ...

    def after(
        self, step: int, empty: Tensor, prompt: Tensor, more: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """What guidance is to take for ε_∅ and ε_c, each (n, *latent_shape).

        Args:
            step: The denoiser's calls in this trajectory before this one.
            empty: ε_∅.
            prompt: ε_c.
            more: The predictions for the further rows.
        """
        ...


# From a record and the pipeline's parts, what makes a guide for a trajectory of so many steps.
GUIDES: Registry[Callable[[Mapping[str, Any], Parts], Callable[[int], Guide]]] = Registry(
    "guide",
    "unsee.guides",
    {"sld": "unsee.erasers.sld:guide", "negative": "unsee.erasers.negative:guide"},
)


def add_guide(pipe: Any, record: Mapping[str, Any]) -> Callable[[], None]:
    """Steers all that a pipeline draws, after the guides that are there; returns what ends it.

    A call of the pipeline without classifier-free guidance then raises InputError.

    Raises:
        InputError: There is no guide for the record's method.
    """
    method = str(record["method"])
    parts = described(pipe)
    start, denoiser = GUIDES[method](record, parts), parts.denoiser
    hook = _HOOKS.get(denoiser) or _Hook(pipe, denoiser)
    entry = (method, start)
    hook.starts.append(entry)
    hook.timestep = -torch.inf

    def remove() -> None:
        hook.starts.remove(entry)
        hook.timestep = -torch.inf
        if not hook.starts:
            hook.close()

    return remove


class _Hook:
    """The guides of one denoiser, called around it in one batch."""

    def __init__(self, pipe: Any, denoiser: nn.Module) -> None:
        self.pipe = pipe
        self.starts: list[tuple[str, Callable[[int], Guide]]] = []
        self.guides: list[Guide] = []
        self.timestep = -torch.inf
        self.step = 0
        self.added: list[int] = []
        handles = (
            denoiser.register_forward_pre_hook(self.before, with_kwargs=True),
            denoiser.register_forward_hook(self.after),
        )
        _HOOKS[denoiser] = self

        def close() -> None:
            del _HOOKS[denoiser]
            for handle in handles:
                handle.remove()

        self.close = close

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not self.pipe.do_classifier_free_guidance:
            raise InputError(
                f"{self.starts[0][0]} steers classifier-free guidance, and this call has none: "
                "set guidance_scale above 1."
            )
        latents, timestep, *rest = args
        # A sampler goes down; some call twice at one timestep. Going up, it has begun anew.
        if float(timestep) > self.timestep:
            self.guides = [start(self.pipe.num_timesteps) for _, start in self.starts]
            self.step = 0
        self.timestep = float(timestep)
        empty, prompt = kwargs["encoder_hidden_states"].chunk(2)
        further: list[Tensor] = []
        self.added = []
        for guide in self.guides:
            empty, prompt, more = guide.before(empty, prompt)
            further += more
            self.added.append(len(more))
        images = latents.chunk(2)[0]
        rows = torch.cat([latents, *[images] * len(further)])
        text = torch.cat([empty, prompt, *further])
        return (rows, timestep, *rest), kwargs | {"encoder_hidden_states": text}

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        prediction = output[0]
        empty, prompt, *further = prediction.chunk(2 + sum(self.added))
        for guide, count in zip(self.guides, self.added, strict=True):
            empty, prompt = guide.after(self.step, empty, prompt, further[:count])
            further = further[count:]
        self.step += 1
        guided = torch.cat([empty, prompt])
        return (guided,) if isinstance(output, tuple) else type(output)(sample=guided)


_HOOKS: WeakKeyDictionary[nn.Module, _Hook] = WeakKeyDictionary()
