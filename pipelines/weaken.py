"""Erasures that act otherwise for a while: from a step on, at a share of their weight, or merged.

All that is on in a pipeline is weighed (``watch.Erasures.weigh``), so that the look before each
call of the denoiser knows that it is meant. Afterwards the pipeline is bit for bit as it was.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import InputError
from .kinds.dense import DenseErasures, parameters_of
from .kinds.lowrank import LAYERS
from .modules import DENOISERS, ENCODERS, check_readable, component_of, eager, named
from .parts import Heard, described
from .text import Text
from .watch import Erasures, Loop, Spoken, erasures_on, followed, listener_of

Words = Callable[[str], str]
"""What takes a prompt's place."""

_PROMPTS = re.compile(r"prompt(_\d)?")


def late(pipe: Any, step: int, then: Words | None = None) -> AbstractContextManager[None]:
    """A pipeline whose erasures come on at a step of each denoising loop, inside a ``with``.

    The base model makes the steps before, in the same call, with the scheduler's state whole.
    An erasure of a text encoder acts by what is read from that step on: the text is encoded
    without it for the steps before, and again with it. A guide is told the step's own number, as
    if it had been there, and has no memory of the steps before.

    Args:
        pipe: A pipeline, with erasures in it or without. Those that are put on inside do not come
            on late for a text encoder.
        step: From 0, as the pipeline's progress bar counts them; 0 is an erasure from the start
            on, and at the number of steps there is none.
        then: What the prompts become from that step on; None leaves them. Negative prompts stay.

    Raises:
        InputError: The steps' text is to change, and the pipeline's architecture is not described.
    """
    if step == 0 and then is None:
        return nullcontext()
    return _late(pipe, step, then)


@contextmanager
def _late(pipe: Any, step: int, then: Words | None) -> Iterator[None]:
    follower = Late(pipe, step, then)
    try:
        with followed(pipe, follower):
            yield
    finally:
        follower.close()


@contextmanager
def weighed(pipe: Any, share: float) -> Iterator[None]:
    """A pipeline whose erasures act at a share of their weights, inside a ``with``.

    Args:
        share: In [0, 1]: of nothing, the pipeline gives what it gave without them.

    Raises:
        InputError: One of them is a guide, and the share is another than 0 and 1.
    """
    with _weighed(_on(pipe, (*DENOISERS, *ENCODERS)), share):
        yield


@contextmanager
def merged(pipe: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A pipeline whose denoiser's weights are merged with its erasures and changed, for a while.

    The weights of linear layers and convolutions are changed; others, and biases, are merged
    alone. What is on in a text encoder goes on beside its weights.

    Args:
        change: A weight (out, …) to what takes its place, of the same shape.

    Raises:
        InputError: An erasure is one that weights cannot hold, a LoRA of somebody else's is on, or
            weights cannot be read; the pipeline is then as it was.
    """
    modules = [m for n in DENOISERS if (m := component_of(pipe, n)) is not None]
    edited = [_merge(module) for module in modules]
    with ExitStack() as stack:
        stack.enter_context(_weighed(_on(pipe, DENOISERS), 0.0))
        for module, values in zip(modules, edited, strict=True):
            own, weights = parameters_of(module), _weights(module)
            for name in sorted({*weights, *values}):
                value = values.get(name, own[name].detach())
                stack.enter_context(_set(own[name], change(value) if name in weights else value))
        yield


@contextmanager
def _set(parameter: nn.Parameter, values: Tensor) -> Iterator[None]:
    """A parameter with other values."""
    with torch.no_grad():
        before = parameter.detach().clone()
        parameter.copy_(values)
    try:
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(before)


def _merge(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of a denoiser that its erasures edit, as saved weights would have them.

    Raises:
        InputError: Weights cannot hold them, or cannot be read.
    """
    erasures, own = erasures_on(module), parameters_of(module)
    for name in _weights(module):
        check_readable(name.removesuffix(".weight"), own[name])
    if erasures is None:
        if adapters := list(getattr(module, "peft_config", None) or ()):
            raise InputError(
                f"The pipeline carries the LoRA {', '.join(adapters)}, which is no part of its "
                "weights: call unload_lora_weights() first."
            )
        return {}
    base = {name: parameter.detach() for name, parameter in own.items()}
    state = dict(base)
    erasures.check_saving()
    erasures.state(state)
    # A dense erasure is in the weights already, and goes from them when it is weighed
    dense = getattr(module, "dense_erasures", DenseErasures()).originals
    return {
        name: values.clone()
        for name, values in state.items()
        if name in dense or values is not base[name]
    }


def _weights(module: nn.Module) -> list[str]:
    """The names of the weights of a denoiser's own linear layers and convolutions."""
    return [
        f"{name.removesuffix('.base_layer')}.weight"
        for name, layer in module.named_modules()
        if isinstance(layer, LAYERS) and ".lora_" not in name
    ]


def _on(pipe: Any, names: Iterable[str]) -> list[Erasures]:
    """What is on in those of a pipeline's components."""
    found = (erasures_on(component_of(pipe, name)) for name in names)
    return [erasures for erasures in found if erasures is not None]


@contextmanager
def _weighed(on: Iterable[Erasures], share: float) -> Iterator[None]:
    with ExitStack() as stack:
        for erasures in on:
            before, meant = erasures.share, erasures.meant
            erasures.weigh(share)
            stack.callback(erasures.weigh, before, meant)
        yield


class Late:
    """Lets a pipeline's erasures come on at a step, as ``late`` says.

    Args:
        pipe: The pipeline.
        step, then: As there.
    """

    def __init__(self, pipe: Any, step: int, then: Words | None) -> None:
        self.pipe, self.step, self.then = pipe, step, then
        rereads = then is not None or bool(_on(pipe, ENCODERS))
        if rereads:
            self.parts = described(pipe)
        self.listener = listener_of(pipe)
        # whether the loop that goes on is past the step
        self.on = False
        self.handle: Any = None
        # of that loop: what was encoded for it, and what is read in its place
        self.pairs: list[tuple[Heard, Heard]] = []
        # the text of the last call, and what was read in its place
        self.last: tuple[Text, Text] | None = None
        if rereads:
            denoiser = self.parts.denoiser
            # before the hooks of guides, which are to see the text that is read
            self.handle = denoiser.register_forward_pre_hook(
                self.before, with_kwargs=True, prepend=True
            )
            if getattr(pipe, self.parts.prefix) is not denoiser:
                # What was compiled without the hook would go on without it
                torch.compiler.reset()

    def close(self) -> None:
        if self.handle is not None:
            self.handle.remove()

    def encodes(self) -> AbstractContextManager[None]:
        return _weighed(() if self.on or not self.step else _on(self.pipe, ENCODERS), 0.0)

    def begins(self, loop: Loop) -> None:
        self.stepped(loop)
        if not self.on:
            for erasures in _on(self.pipe, DENOISERS):
                erasures.weigh(0.0, (self.listener, loop.serial))

    def stepped(self, loop: Loop) -> None:
        if loop.step == self.step:
            self.on = True
            for erasures in _on(self.pipe, DENOISERS):
                erasures.weigh(1.0)
                erasures.check()

    def ends(self, loop: Loop) -> None:
        self.on, self.pairs, self.last = False, [], None
        for erasures in _on(self.pipe, DENOISERS):
            erasures.weigh(1.0)

    @eager
    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        loop = self.listener.loop
        if not self.on or loop is None or loop.thread != threading.get_ident():
            return None
        given = named(module, args, kwargs)
        text = self.parts.text_of(given)
        if not self.pairs:
            self.read_again(loop, text)
        if self.last is None or not self.last[0].equals(text):
            self.last = (text, self.read(text))
        given = self.parts.with_text(given, self.last[1])
        # By name, as what the caller left out may be text too
        names = list(named(module, args, {}))
        return tuple(given.pop(name) for name in names), given

    def read_again(self, loop: Loop, text: Text) -> None:
        """Encodes all again that was encoded for a loop, the prompts of this text with ``then``.

        A step's first call is for the prompts, and another that there may be for negative ones.
        """
        parts, calls = self.parts, loop.spoken
        many = parts.encodings
        groups = [calls[i : i + many] for i in range(len(calls) % many, len(calls), many)]
        heard = [parts.heard(tuple(one for call in g for one in call.given)) for g in groups]
        prompts = [i for i, one in enumerate(heard) if _read(text, one, one, parts.empty_first)]
        if not prompts or (self.then is not None and not groups[prompts[0]][-1].prompts):
            raise _unknown(self.step)
        again = [
            [self.listener.speak(**self.call(call, i in prompts[:1])) for call in group]
            for i, group in enumerate(groups)
        ]
        self.pairs = [
            (one, parts.heard(tuple(one for call in group for one in call.given)))
            for one, group in zip(heard, again, strict=True)
        ]
        # The prompts' own first, as the negative ones may say the same
        self.pairs.insert(0, self.pairs.pop(prompts[0]))
        loop.spoken = tuple(call for group in again for call in group)

    def call(self, spoken: Spoken, prompts: bool) -> dict[str, Any]:
        """The arguments of a call of ``encode_prompt`` that reads a text again."""
        given, then = dict(spoken.settings), self.then
        if then is not None and prompts:
            for name, texts in spoken.settings.items():
                if _PROMPTS.fullmatch(name) and texts is not None:
                    given[name] = then(texts) if isinstance(texts, str) else list(map(then, texts))
        return given

    def read(self, text: Text) -> Text:
        """What is read in the place of the text of a call."""
        for early, later in self.pairs:
            if found := _read(text, early, later, self.parts.empty_first):
                return found.to(text.first)
        raise _unknown(self.step)


def _read(text: Text, early: Heard, later: Heard, empty_first: bool) -> Text | None:
    """What stands for a text that was encoded once, in what was encoded again; None of another."""
    if text.equals(early.prompt):
        return later.prompt
    if early.empty is None or later.empty is None:
        return None
    if text.equals(early.empty):
        return later.empty
    half = len(text) // 2
    one, other = text[:half], text[half:]
    if not (other if empty_first else one).equals(early.prompt):
        return None
    return Text.cat([later.empty, later.prompt] if empty_first else [later.prompt, later.empty])


def _unknown(step: int) -> InputError:
    return InputError(
        f"The text that is read from step {step} on is another, and embeddings were given, or "
        "changed on the way, that the pipeline did not make of prompts: pass prompt, and no "
        "callback that changes it."
    )
