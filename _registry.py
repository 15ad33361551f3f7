"""Named things that others add to: erasers, detectors, metrics, suites, architectures."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, cast

from ._errors import InputError
from ._settings import check, hints_of, read

T = TypeVar("T")
M = TypeVar("M")


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not there: the nearest name, and those that there are.

    >>> print(unknown("method", "ucee", ["uce", "esd"]))
    No method is named 'ucee'. Did you mean 'uce'? There are: esd, uce.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    there = f"There are: {', '.join(names[:20])}{more}." if names else "There is none at all."
    return InputError(f"No {kind} is named {name!r}.{hint} {there}")


def configured(
    registry: "Registry[type[T]]", name: str, preset: str | None, settings: dict[str, Any]
) -> T:
    """A member of a registry of dataclasses of settings, such as methods and attacks.

    Args:
        name: Its name.
        preset: One of its named settings, ``presets``.
        settings: What goes before the preset's.

    Raises:
        InputError: There is no such member, preset or setting, or a value that cannot be.
    """
    cls: Any = registry[name]
    known = hints_of(cls)
    for one in settings:
        if one not in known:
            raise unknown(f"setting of {name}", one, known)
    if preset is not None and preset not in cls.presets:
        raise unknown(f"preset of {name}", preset, cls.presets)
    made: T = cls(**((cls.presets[preset] if preset else {}) | settings))
    check(made)  # as another package's may not do
    return made


class Registry(Mapping[str, T], Generic[T]):
    """A read-only mapping from a name to what "module:attribute" points at, imported lazily.

    Args:
        kind: What its members are, in the words of the error message.
        group: The entry-point group by which other packages add members, such as
            ``unsee.erasers``. A name of ours cannot be taken over.
        ours: Name to "module:attribute".
    """

    def __init__(self, kind: str, group: str, ours: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self._ours = dict(ours)
        self._here: dict[str, T] = {}

    def add(self, ours: Mapping[str, str]) -> None:
        """Takes members of ours that another folder names, from above the registry's own."""
        self._ours |= ours

    def register(self, name: str) -> Callable[[M], M]:
        """A decorator that makes what is below it a member, for as long as Python runs.

        Raises:
            InputError: A member of ours has that name.

        >>> colours: Registry[type] = Registry("colour", "example.colours", {})
        >>> @colours.register("red")
        ... class Red:
        ...     pass
        >>> colours["red"] is Red
        True
        """
        if name in self._ours:
            raise InputError(f"There is a built-in {self.kind} named {name!r}: take another name.")

        def put(member: M) -> M:
            self._here[name] = cast(T, member)
            return member

        return put

    @functools.cached_property
    def _installed(self) -> dict[str, str]:
        return {e.name: e.value for e in entry_points(group=self.group)}

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise unknown(self.kind, name, self)
        if name in self._here:
            return self._here[name]
        # Other packages' names are looked up last, and only where there is need.
        target = self._ours.get(name) or self._installed[name]
        module, _, attribute = target.partition(":")
        return cast(T, getattr(import_module(module), attribute))

    def __contains__(self, name: object) -> bool:
        return name in self._ours or name in self._here or name in self._installed

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._ours, *self._here, *self._installed}))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def make(registry: Registry[Callable[..., T]], spec: str, **settings: Any) -> T:
    """What a registry's factory makes, from ``name`` or ``name:argument``.

    A factory takes nothing, or one text; one with a default may be left out. Everything after the
    first colon is the argument, so that it may be ``hf-hub:org/name`` or a path; a name that has a
    colon itself takes none.

    Args:
        registry: Name to factory.
        spec: As on the command line: "emoji/clip", "clip:hf-hub:org/name", "clip:models/mine".
        settings: What else the factory is told.

    Raises:
        InputError: There is no such name, or it lacks its argument or was given one too many. The
            factory's own errors pass through.
    """
    name, colon, argument = (spec, "", "") if spec in registry else spec.partition(":")
    factory, takes = registry[name], _argument(registry[name])
    if takes is None and colon:
        raise InputError(
            f"The {registry.kind} {name!r} takes no argument: say {name}, not {spec}."
        )
    if takes is not None and not argument and (colon or takes.default is takes.empty):
        raise InputError(
            f"The {registry.kind} {name!r} needs its argument: say {name}:{takes.name.upper()}."
        )
    return factory(argument, **settings) if argument else factory(**settings)


def told(
    registry: Registry[Callable[..., T]], spec: str, given: Mapping[str, Any]
) -> tuple[str, dict[str, Any], dict[str, inspect.Parameter]]:
    """What ``make`` takes of ``NAME:ARGUMENT?setting=value&setting=value``.

    Args:
        spec: The text.
        given: Settings from elsewhere, which those in the text go before.

    Returns:
        The text before the question mark, the settings, each read as its annotation says, and all
        that there are.

    Raises:
        InputError: There is no such name or setting, or a value that cannot be.
    """
    head, _, query = spec.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    name = head if head in registry else head.partition(":")[0]
    parameters = inspect.signature(registry[name], eval_str=True).parameters
    known = {key: p for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    settings = {}
    for key, value in {**given, **{key: value for key, _, value in pairs}}.items():
        if key not in known:
            raise unknown(f"setting of {name}", str(key), known)
        settings[key] = read(f"{name}'s {key}", value, known[key].annotation)
    return head, settings, known


def described(registry: Registry[Callable[..., T]]) -> list[tuple[str, str]]:
    """Each factory as ``make`` is told it, as in ``hf:MODEL``, and its docstring's first line."""
    found = []
    for name in registry:
        factory, takes, usage = registry[name], _argument(registry[name]), name
        if takes is not None:
            argument = f":{takes.name.upper()}"
            usage += argument if takes.default is takes.empty else f"[{argument}]"
        found.append((usage, (factory.__doc__ or "").partition("\n")[0].replace("``", "")))
    return found


def _argument(factory: Callable[..., Any]) -> inspect.Parameter | None:
    """The one text that a factory takes, if it takes one."""
    parameters = inspect.signature(factory).parameters.values()
    return next((p for p in parameters if p.kind is not p.KEYWORD_ONLY), None)
