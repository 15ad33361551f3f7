"""What is on a denoiser or a text encoder, and the look at it before each of its calls.

A pipeline with erasures in it is diffusers' own, and what its user does with adapters, weights and
modules may take an erasure out. So each component keeps what was put on it, and one hook looks
before each call: an erasure that was switched off is switched on again, with a warning, and one
that is not there any more is an error, never the base model's image.

The pipeline is listened to where it begins to draw: it may have been given another denoiser.
Whoever wants erasures to act otherwise for a while weighs them (``Erasures.weigh``), and may
follow the pipeline's steps (``followed``): what is meant is not mended.
"""

import functools
import inspect
import itertools
import json
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from .._errors import InputError
from .._files import write_atomically
from .._registry import unknown
from .._settings import fit, shown
from .modules import ENCODERS, component_of, eager, named, uncompiled

if TYPE_CHECKING:
    from .erasure import Erasure

# In a model's config.json: what is part of the weights since they were saved.
_SAVED = "_unsee"
_ERASURES = "unsee_erasures"
_LISTENED = ("encode_prompt", "progress_bar", "save_pretrained")

_serials = itertools.count()


@dataclass(frozen=True)
class Active:
    """An erasure that is on.

    Attributes:
        name: The erasure's, its concepts joined.
        kind: ``lowrank``, ``dense`` or ``guidance``.
        method: Of the eraser.
        adapter: What its LoRA is called in the denoiser, if it is one.
        weight: What it is multiplied by; 1 is as it was made.
    """

    name: str
    kind: str
    method: str
    adapter: str | None = None
    weight: float = 1.0


class Put(Protocol):
    """An erasure in a component, as its kind puts it there.

    Attributes:
        component: The component's name in the pipeline.
        adapter: As ``Active``.
        alone: Whether it keeps a state during a call of the denoiser, which only one thread may
            then call at a time.
    """

    @property
    def component(self) -> str: ...

    @property
    def adapter(self) -> str | None: ...

    @property
    def alone(self) -> bool: ...

    def look(self, whole: bool) -> str | None:
        """Makes sure that it acts; says in words what was switched on again for that.

        Args:
            whole: Whether to look at all its layers; if not, at one, as all that diffusers
                does to adapters it does to all.

        Raises:
            InputError: It was taken out, overwritten or fused; the end of the one line, after
                "The erasure 'x' ", says how to put it right.
        """
        ...

    def weigh(self, share: float) -> None:
        """Lets it act at a share of its weight from now on: 1 is as it was put on.

        At 0 the component gives what it gave without it, bit for bit, and at 1 again what it gave
        with it.

        Args:
            share: In [0, 1].

        Raises:
            InputError: It cannot be weighed; the end of the one line, after "The erasure 'x' ".
                It then acts as before.
        """
        ...

    def off(self) -> None:
        """Takes it out, bit for bit; what somebody has taken out already is let be.

        Raises:
            InputError: It cannot be taken out as it is.
        """
        ...

    def write(self, state: dict[str, Tensor]) -> None:
        """Puts it into the denoiser's weights, which are to be saved, by the base model's names.

        Raises:
            InputError: Weights cannot hold it.
        """
        ...


@dataclass(frozen=True, eq=False)
class Spoken:
    """A call of a pipeline's ``encode_prompt``.

    Attributes:
        prompts: An entry an image; none where embeddings were given in their place.
        negatives: Likewise of the negative prompt; '' where there is none.
        given: What it gave.
        settings: Its arguments by name, defaults included.
    """

    prompts: tuple[str, ...]
    negatives: tuple[str, ...]
    given: tuple[Any, ...]
    settings: Mapping[str, Any]


class Memory(Protocol):
    """What somebody has to remember as long as a denoising loop lasts."""

    def end(self) -> None:
        """Called after the last step, unless something broke before.

        Raises:
            InputError: The loop was not as it has to be.
        """
        ...


@dataclass
class Loop:
    """A pipeline's denoising loop, which goes on.

    Attributes:
        thread: The identity of the thread that it runs in.
        spoken: The last texts that were encoded before it.
        looked: The denoisers' erasures of which all was looked at before its first step.
        memory: What ends with it.
        step: The steps that are done, as the pipeline's progress bar counts them.
        passed: Calls of the denoiser in which its erasures were weighed to nothing.
        serial: One of its own, which a copy of a denoiser has not.
    """

    thread: int
    spoken: tuple[Spoken, ...]
    looked: "list[Erasures]"
    memory: Memory | None = None
    step: int = 0
    passed: int = 0
    serial: int = field(default_factory=lambda: next(_serials))

    @property
    def prompts(self) -> tuple[str, ...]:
        """An entry an image; none where embeddings were given in their place."""
        return self.spoken[-1].prompts if self.spoken else ()


class Follower(Protocol):
    """Who follows what a pipeline draws, step by step."""

    def encodes(self) -> AbstractContextManager[None]:
        """What a call of ``encode_prompt`` runs in."""
        ...

    def begins(self, loop: Loop) -> None:
        """Called before the first step of a loop."""
        ...

    def stepped(self, loop: Loop) -> None:
        """Called after each step."""
        ...

    def ends(self, loop: Loop) -> None:
        """Called after a loop, whatever happened in it."""
        ...


class Listener:
    """Stands in for three methods of a pipeline that has erasures in it.

    ``encode_prompt``, by which a call begins, tells the prompts; ``progress_bar`` is a context
    around the denoising loop, which it ends whatever happens; ``save_pretrained`` must not write
    half a pipeline.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.erasures: list[Erasures] = []
        self.loop: Loop | None = None
        self.spoken: tuple[Spoken, ...] = ()
        # what was looked at since the last loop
        self.looked: list[Erasures] = []
        self.follower: Follower | None = None
        self.encode = pipe.encode_prompt
        functools.update_wrapper(self, self.encode)
        pipe.encode_prompt = self
        pipe.progress_bar = self.progress_bar
        pipe.save_pretrained = self.save_pretrained

    def __deepcopy__(self, memo: dict[int, Any]) -> "Listener":
        # A copy of the denoiser alone is no reason to copy its pipeline.
        if id(self.pipe) not in memo:
            return self
        new = memo[id(self)] = object.__new__(Listener)
        new.__dict__.update(
            {name: deepcopy(value, memo) for name, value in self.__dict__.items()} | {"loop": None}
        )
        return new

    def release(self) -> None:
        """Ends it, if nobody needs it any more."""
        if not self.erasures and self.follower is None:
            for name in _LISTENED:
                self.pipe.__dict__.pop(name, None)

    def check(self) -> None:
        """Makes sure that the erasures are in the denoiser that the pipeline has now."""
        for erasures in self.erasures:
            for entry in erasures.entries:
                if entry.listener is not self:
                    continue
                prefix = entry.put.component
                now = erasures_on(component_of(self.pipe, prefix))
                if now is None or entry.serial not in [other.serial for other in now.entries]:
                    raise InputError(
                        f"The erasure {entry.erasure.name!r} is not in the {prefix} that the "
                        f"pipeline has now: put the {prefix} back that it is in, or take it off "
                        f"with unsee.remove(pipe, {entry.erasure.name!r}) and, if it is to act, "
                        "put it into the new one with add_to."
                    )
                if not now.watching:
                    raise InputError(
                        f"The hooks of the {prefix} have been removed, and with them the erasure "
                        f"{entry.erasure.name!r}: load the pipeline again."
                    )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.check()
        with nullcontext() if self.follower is None else self.follower.encodes():
            spoken = self.speak(*args, **kwargs)
        self.spoken = (*self.spoken[-7:], spoken)
        return spoken.given

    def speak(self, *args: Any, **kwargs: Any) -> Spoken:
        """A call of the pipeline's own ``encode_prompt``."""
        call = _bound(self.encode, args, kwargs)
        images = call.get("num_images_per_prompt") or call.get("num_videos_per_prompt") or 1
        prompts = _listed(call.get("prompt"))
        negatives = _listed(call.get("negative_prompt") or "")
        if len(negatives) < len(prompts):
            negatives = negatives[:1] * len(prompts)
        if not prompts or call.get("negative_prompt_embeds") is not None:
            # Embeddings that were made elsewhere
            negatives = []
        given = self.encode(*args, **kwargs)
        # each an entry an image, in the order of the pipeline's rows
        said, unsaid = (
            tuple(text for text in texts for _ in range(images)) for texts in (prompts, negatives)
        )
        return Spoken(said, unsaid, given, call)

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        bar = type(self.pipe).progress_bar(self.pipe, iterable=iterable, total=total)
        if iterable is None:
            return _Looping(self, bar)
        if self.follower is not None:
            raise InputError(
                f"The steps of a {type(self.pipe).__name__} cannot be counted, as its progress "
                "bar is no context around its loop: nothing can come on at one of them."
            )
        return bar

    @contextmanager
    def looping(self) -> Iterator[None]:
        self.check()
        thread = threading.get_ident()
        if (running := self.loop) is not None and running.thread != thread:
            # Its scheduler's too, so that the images are wrong whatever the erasure is.
            raise InputError(
                "Two threads draw with one pipeline, which keeps count of one drawing at a time: "
                "give each thread a pipeline of its own (copy.deepcopy)."
            )
        if running is not None and self.follower is not None:
            raise InputError(
                "A callback draws with the pipeline that it was called by, whose erasures come on "
                "at a step of one drawing at a time: draw with another (load_pipeline)."
            )
        if not self.spoken or not self.spoken[-1].prompts:
            self.check_heard()
        self.check_looked(self.looked, reads=True)
        self.loop = loop = Loop(thread, self.spoken, [])
        try:
            if self.follower is not None:
                self.follower.begins(loop)
            yield
            self.check_looked(loop.looked, reads=False)
            if loop.memory is not None:
                loop.memory.end()
        finally:
            try:
                if self.follower is not None:
                    self.follower.ends(loop)
            finally:
                self.loop, loop.memory, self.spoken = running, None, ()
                self.looked.clear()

    def stepped(self) -> None:
        """Counts a step of the loop that goes on."""
        if self.loop is not None:
            self.loop.step += 1
            if self.follower is not None:
                self.follower.stepped(self.loop)

    def entries(self, reads: bool) -> "list[Entry]":
        """What is on in the text encoders, if it reads, or in the denoiser."""
        on = [entry for erasures in self.erasures for entry in erasures.entries]
        return [
            entry
            for entry in on
            if entry.listener is self and (entry.put.component in ENCODERS) == reads
        ]

    def check_heard(self) -> None:
        """Makes sure that no erasure is in a text encoder, which has read nothing."""
        for entry in self.entries(reads=True):
            raise InputError(
                f"The erasure {entry.erasure.name!r} edits the {entry.put.component}, and "
                "embeddings were given that it may not have made: pass prompt, not prompt_embeds."
            )

    def check_looked(self, looked: "list[Erasures]", reads: bool) -> None:
        """Makes sure that the erasures were looked at: while text was read, or in a loop."""
        for entry in self.entries(reads):
            now = erasures_on(component_of(self.pipe, entry.put.component))
            if now is not None and now not in looked:
                raise InputError(
                    f"The erasure {entry.erasure.name!r} did not act: the {entry.put.component} "
                    "was compiled or called without its hooks. Call torch.compiler.reset(), and "
                    "draw again."
                )

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        self.check()
        for erasures in self.erasures:
            erasures.check_saving()
        type(self.pipe).save_pretrained(self.pipe, *args, **kwargs)


class _Looping:
    """A progress bar that tells a listener how long it is shown."""

    def __init__(self, listener: Listener, bar: Any) -> None:
        self.listener, self.bar = listener, bar
        self.context = listener.looping()

    def __enter__(self) -> Any:
        self.context.__enter__()
        self.bar.__enter__()
        return self

    def update(self, n: float = 1) -> Any:
        shown = self.bar.update(n)
        self.listener.stepped()
        return shown

    def __exit__(self, *error: Any) -> Any:
        try:
            return self.bar.__exit__(*error)
        finally:
            self.context.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bar, name)


@dataclass(frozen=True, eq=False)
class Entry:
    """An erasure in a component, put there by way of a pipeline.

    Attributes:
        serial: When it was put on: one for all the components that it edits.
    """

    erasure: "Erasure"
    put: Put
    listener: Listener
    serial: int
    weight: float

    @property
    def active(self) -> Active:
        name, record = self.erasure.name, self.erasure.record
        return Active(name, record.kind, record.method, self.put.adapter, self.weight)


class Erasures:
    """The erasures of one component, kept as its attribute, and the look at them.

    Its own hooks are bound methods, so that a deep copy of the denoiser is looked at too.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.entries: list[Entry] = []
        self.told: set[int] = set()
        # the thread that is inside a call of the denoiser
        self.inside: int | None = None
        # what the weights of all are multiplied by, and the pipeline and loop for which that is
        self.share = 1.0
        self.meant: tuple[Listener, int] | None = None
        self.handles = (
            denoiser.register_forward_pre_hook(self.look, with_kwargs=True, prepend=True),
            denoiser.register_forward_hook(self.leave, always_call=True),
        )
        setattr(denoiser, _ERASURES, self)
        # Its class's writes the names that LoRAs give to the layers, which nothing loads again.
        vars(denoiser)["save_pretrained"] = MethodType(_saving(type(denoiser)), denoiser)

    @property
    def watching(self) -> bool:
        """Whether the look is still taken."""
        return self.handles[0].id in self.denoiser._forward_pre_hooks

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        if self not in entry.listener.erasures:
            entry.listener.erasures.append(self)

    def take_off(self, entry: Entry) -> None:
        if entry not in self.entries:
            return
        entry.put.off()
        self.entries.remove(entry)
        if not any(other.listener is entry.listener for other in self.entries):
            entry.listener.erasures.remove(self)
            entry.listener.release()
        if not self.entries:
            for handle in self.handles:
                handle.remove()
            delattr(self.denoiser, _ERASURES)
            del vars(self.denoiser)["save_pretrained"]

    @eager
    def look(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        thread = threading.get_ident()
        if self.inside not in (None, thread) and any(e.put.alone for e in self.entries):
            raise InputError(
                f"Two threads are inside the {type(module).__name__} at once, and the erasure "
                f"{next(e for e in self.entries if e.put.alone).erasure.name!r} keeps count of "
                "one call at a time: give each thread a pipeline of its own (copy.deepcopy)."
            )
        self.inside = thread
        self.check_meant(thread)
        for entry in self.entries:
            if self not in entry.listener.looked:
                entry.listener.looked.append(self)
        if args[3:] or kwargs.get("cross_attention_kwargs"):
            given = named(module, args, kwargs).get("cross_attention_kwargs") or {}
            adapters = [e for e in self.entries if e.put.adapter is not None]
            if adapters and given.get("scale", 1.0) != 1.0:
                raise InputError(
                    "The scale in cross_attention_kwargs is for all LoRAs, and would weaken the "
                    f"erasure {adapters[0].erasure.name!r}: give your own LoRA its weight by "
                    "set_adapters in its place."
                )
        # All is looked at before an image, and between its steps what a callback may have done.
        loops = (entry.listener.loop for entry in self.entries)
        loop = next((one for one in loops if one is not None and one.thread == thread), None)
        whole = loop is None or self not in loop.looked
        if self.share:
            self.check(whole)
        if loop is not None and whole:
            loop.looked.append(self)

    @eager
    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.inside == threading.get_ident():
            self.inside = None

    def weigh(self, share: float, meant: tuple[Listener, int] | None = None) -> None:
        """Lets all act at a share of their weights, until they are weighed anew.

        Weighed to nothing, they are not looked at: that they do not act is meant.

        Args:
            share: In [0, 1].
            meant: For which pipeline's loop alone, by its serial; a call of the component from
                elsewhere is then an error.

        Raises:
            InputError: One cannot be weighed, or does not act as it is; all are as before.
        """
        if share != 1 and self.share == 1:
            self.check()
        before = self.share
        try:
            for entry in self.entries:
                try:
                    entry.put.weigh(share)
                except InputError as error:
                    raise InputError(f"The erasure {entry.erasure.name!r} {error}") from error
        except InputError:
            for entry in self.entries:
                entry.put.weigh(before)
            raise
        self.share, self.meant = share, meant

    def check_meant(self, thread: int) -> None:
        """Makes sure that what is off for a loop's first steps is called by that loop alone."""
        if self.meant is None:
            return
        listener, serial = self.meant
        loop = listener.loop
        if loop is None or loop.serial != serial or loop.thread != thread:
            raise InputError(
                f"The erasure {self.entries[0].erasure.name!r} is off for the first steps of "
                f"another drawing with this {type(self.denoiser).__name__}: draw one after "
                "another, or with a copy of the pipeline (copy.deepcopy) made before."
            )
        loop.passed += 1

    def check(self, whole: bool = True) -> None:
        """Makes sure that every erasure acts."""
        for entry in self.entries:
            name = entry.erasure.name
            try:
                mended = entry.put.look(whole)
            except InputError as error:
                raise InputError(f"The erasure {name!r} {error}") from error
            if mended is not None and entry.serial not in self.told:
                self.told.add(entry.serial)
                warnings.warn(
                    f"The erasure {name!r} {mended}, and is switched on again. "
                    f"unsee.remove(pipe, {name!r}) takes it off.",
                    stacklevel=2,
                )

    def check_saving(self) -> None:
        """Makes sure that the denoiser's weights can hold what is on.

        Raises:
            InputError: They cannot.
        """
        if self.share != 1:
            raise InputError(
                f"The erasure {self.entries[0].erasure.name!r} is weighed otherwise for a while: "
                "save the pipeline afterwards."
            )
        self.check()
        self.check_alone()
        self.state({})

    def check_alone(self) -> None:
        """Makes sure that no LoRA of somebody else's is beside them."""
        ours = {entry.put.adapter for entry in self.entries}
        if others := sorted(set(getattr(self.denoiser, "peft_config", {})) - ours):
            raise InputError(
                f"The pipeline carries the LoRA {', '.join(others)} beside its erasures, and "
                "save_pretrained cannot keep them apart: take it off with delete_adapters first."
            )

    def state(self, state: dict[str, Tensor]) -> None:
        """Puts all erasures into the weights of a state dict; of an empty one, only checks."""
        for name in [name for name in state if ".lora_A." in name or ".lora_B." in name]:
            del state[name]
        for name in [name for name in state if ".base_layer." in name]:
            state[name.replace(".base_layer.", ".")] = state.pop(name)
        for entry in self.entries:
            try:
                entry.put.write(state)
            except InputError as error:
                raise InputError(f"The erasure {entry.erasure.name!r} {error}") from error


def erasures_on(denoiser: nn.Module | None) -> Erasures | None:
    """What is on a denoiser."""
    return cast("Erasures | None", getattr(denoiser, _ERASURES, None))


def put_on(
    pipe: Any, erasure: "Erasure", puts: Sequence[Put], weight: float = 1.0
) -> Callable[[], None]:
    """Watches over an erasure that was just put into a pipeline; returns what takes it off."""
    serial = next(_serials)
    on: list[tuple[Erasures, Entry]] = []
    for put in puts:
        component = component_of(pipe, put.component)
        assert component is not None
        erasures = erasures_on(component) or Erasures(component)
        listener = listener_of(pipe)
        entry = Entry(erasure, put, listener, serial, weight)
        erasures.add(entry)
        on.append((erasures, entry))
        if getattr(pipe, put.component) is not component:
            # What was compiled without the hooks would go on without them.
            torch.compiler.reset()

    def off() -> None:
        for erasures, entry in reversed(on):
            erasures.take_off(entry)

    return off


def listener_of(pipe: Any) -> Listener:
    """Who listens to a pipeline, from now on if nobody did."""
    listener = pipe.__dict__.get("encode_prompt")
    return listener if isinstance(listener, Listener) else Listener(pipe)


@contextmanager
def followed(pipe: Any, follower: Follower) -> Iterator[None]:
    """A pipeline whose steps somebody follows, inside a ``with``.

    Raises:
        InputError: Somebody does already.
    """
    listener = listener_of(pipe)
    if listener.follower is not None:
        raise InputError(
            "The pipeline's erasures come on at a step already: leave that context first."
        )
    listener.follower = follower
    try:
        yield
    finally:
        listener.follower = None
        listener.release()


def carried(pipe: Any) -> list["Erasure"]:
    """The erasures that are on in a pipeline, in the order in which they were put on."""
    return [entry.erasure for entry in _once(pipe)]


def active(pipe: Any) -> list[Active]:
    """What is on in a pipeline, in the order in which it was put on.

    What is part of the weights since ``save_pretrained`` has the kind ``weights``.

    Raises:
        InputError: It is no pipeline.
    """
    _check_pipeline(pipe)
    return [*_saved(pipe), *(entry.active for entry in _once(pipe))]


def remove(pipe: Any, name: str | None = None) -> None:
    """Takes erasures off a pipeline, which then draws what it drew without them, bit for bit.

    Args:
        pipe: A pipeline.
        name: The erasure's name, as ``active`` gives it; None takes all of them off.

    Raises:
        InputError: No erasure of that name is on, it is fused into the weights, or there is no
            pipeline.
    """
    _check_pipeline(pipe)
    name = fit("name", name, str | None)
    entries = _entries(pipe)
    if name is not None:
        if name in (saved.name for saved in _saved(pipe)):
            raise InputError(
                f"The erasure {name!r} is part of this model's weights, as it was saved: load the "
                "base model in its place."
            )
        if name not in (names := [entry.erasure.name for _, entry in entries]):
            if not names:
                raise InputError(f"No erasure is named {name!r}: none is on in this pipeline.")
            raise unknown("erasure in this pipeline", name, names)
    for erasures, entry in reversed(entries):
        if name in (None, entry.erasure.name):
            erasures.take_off(entry)


def _entries(pipe: Any) -> list[tuple[Erasures, Entry]]:
    """What is on in a pipeline's components, and what is to be and is not there."""
    there = [erasures_on(uncompiled(m)) for m in _modules(pipe)]
    listener = pipe.__dict__.get("encode_prompt")
    wanted = listener.erasures if isinstance(listener, Listener) else []
    found: dict[tuple[int, str], tuple[Erasures, Entry]] = {}
    for erasures in (*wanted, *there):
        for entry in () if erasures is None else erasures.entries:
            # A guide acts in the pipeline that it was put into.
            if not entry.put.alone or entry.put.adapter or entry.listener is listener:
                found[entry.serial, entry.put.component] = (erasures, entry)  # type: ignore[assignment]
    return [found[key] for key in sorted(found)]


def _once(pipe: Any) -> list[Entry]:
    """An entry of each erasure that is on, which may be in several components."""
    return list({entry.serial: entry for _, entry in _entries(pipe)}.values())


def _check_pipeline(pipe: Any) -> None:
    if not isinstance(getattr(pipe, "components", None), Mapping):
        raise InputError(
            f"{shown(pipe)} is no pipeline of diffusers: give what load_pipeline returned."
        )


def _modules(pipe: Any) -> list[nn.Module]:
    return [m for m in pipe.components.values() if isinstance(m, nn.Module)]


def _saved(pipe: Any) -> list[Active]:
    found = [
        Active(
            str(saved["name"]),
            "weights",
            str(saved["method"]),
            weight=float(saved.get("weight", 1)),
        )
        for module in _modules(pipe)
        for saved in getattr(getattr(module, "config", None), _SAVED, None) or ()
    ]
    # One that edits several components is in the configuration of each.
    return list(dict.fromkeys(found))


def _saving(model: Any) -> Callable[..., None]:
    """What takes the place of a model class's ``save_pretrained``."""

    @functools.wraps(model.save_pretrained)
    def save_pretrained(self: Any, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        erasures: Erasures = getattr(self, _ERASURES)
        erasures.check_saving()

        def write(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
            erasures.state(state)

        handle = self.register_state_dict_post_hook(write)
        # By this, which a LoRA leaves behind, transformers would save the LoRAs alone.
        lora = getattr(self, "_hf_peft_config_loaded", False)
        if lora:
            self._hf_peft_config_loaded = False
        try:
            model.save_pretrained(self, save_directory, *args, **kwargs)
        finally:
            handle.remove()
            if lora:
                self._hf_peft_config_loaded = lora
        # transformers has no name of its own for it
        file = Path(save_directory) / (getattr(self, "config_name", None) or "config.json")
        config = json.loads(file.read_text(encoding="utf-8"))
        on = [
            {"name": e.active.name, "method": e.active.method, "weight": e.weight}
            for e in erasures.entries
        ]
        config[_SAVED] = [*config.get(_SAVED, ()), *on]
        write_atomically(file, json.dumps(config, indent=2, sort_keys=True) + "\n")

    return save_pretrained


def spoken_in(pipe: Any) -> tuple[Spoken, ...]:
    """What a pipeline has encoded for the loop that goes on, or before the next one."""
    listener = pipe.__dict__.get("encode_prompt")
    if not isinstance(listener, Listener):
        return ()
    return listener.spoken if listener.loop is None else listener.loop.spoken


def _listed(texts: str | Sequence[str] | None) -> list[str]:
    """What a pipeline takes as text, a list."""
    return [texts] if isinstance(texts, str) else list(texts or ())


def _bound(call: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by name, defaults included."""
    bound = inspect.signature(call).bind(*args, **kwargs)
    bound.apply_defaults()
    found = bound.arguments
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= found.pop(name)
    # Copies, as some pipelines write into the list
    return {name: list(v) if isinstance(v, list) else v for name, v in found.items()}
