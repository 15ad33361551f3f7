"""Plans: what audits would take, in images, time and disk, before they are run (``--dry-run``)."""

import functools
import inspect
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

from ._settings import checked
from .drawing import Source
from .gallery import Gallery
from .pipelines.loading import Loading
from .prompts import Concept, Suite
from .store import Store
from .tasks import Comparison, Task, each_alone

P = ParamSpec("P")


@dataclass(frozen=True)
class Plan:
    """What an audit would take.

    Attributes:
        images: That it needs, of both sides.
        there: That are made already, in its folder or in the store.
        seconds: To make the others, at the rate that was measured; None where none is to be made.
        bytes: Of disk that they take, likewise.
        measured: Images that were made to measure the rate, in a folder that does not stay.
    """

    images: int
    there: int
    seconds: float | None
    bytes: int | None
    measured: int

    def __add__(self, other: "Plan") -> "Plan":
        def both(a: Any, b: Any) -> Any:
            return (a or 0) + (b or 0) if (a, b) != (None, None) else None

        return Plan(
            self.images + other.images,
            self.there + other.there,
            both(self.seconds, other.seconds),
            both(self.bytes, other.bytes),
            self.measured + other.measured,
        )


def of_a_task(task: Callable[P, Task]) -> Callable[[Callable[[Task], Plan]], Callable[P, Plan]]:
    """A plan that takes what its task is made of, so that arguments, defaults and checks are one.

    Args:
        task: What makes the task.
    """

    def asked_so(plan: Callable[[Task], Plan]) -> Callable[P, Plan]:
        @functools.wraps(plan)
        def call(*args: P.args, **kwargs: P.kwargs) -> Plan:
            return plan(task(*args, **kwargs))

        call.__signature__ = inspect.signature(task).replace(  # type: ignore[attr-defined]
            return_annotation=Plan
        )
        return call

    return asked_so


@of_a_task(Task.of)
def plan_audit(task: Task) -> Plan:
    """What ``audit`` of the same arguments would take: images, time, disk; nothing is kept.

    One batch of what is judged is made, to measure how fast it goes.

    Args:
        base, erasures, out, against, concepts, kind, suite, size, where, detectors, metrics,
            batch_size, guidance, steps, loading: As ``audit``.
        rest: What else ``audit`` takes, which changes nothing here.

    Raises:
        InputError: As ``audit``.
    """
    return _planned(task, set())


@checked
def plan_each(
    base: Any,
    each: Mapping[str, Any] | Sequence[str | Path],
    *,
    out: str | Path,
    concepts: str | Concept | Sequence[str | Concept] = (),
    loading: Loading | None = None,
    **options: Any,
) -> Plan:
    """What ``audit_each`` of the same arguments would take.

    Raises:
        InputError: As ``audit_each``.
    """
    source = Source.of(base, loading)
    total, known = Plan(0, 0, None, None, 0), set[str]()
    for _, given in each_alone(each, out, concepts):
        total += _planned(Task.of(source, **given, **options), known)
    return total


@checked
def plan_all(
    comparison: str | Path | Comparison, *, out: str | Path, loading: Loading | None = None
) -> Plan:
    """What ``audit_all`` of the same arguments would take.

    Raises:
        InputError: As ``audit_all``.
    """
    if not isinstance(comparison, Comparison):
        comparison = Comparison.load(Path(comparison))
    total = Plan(0, 0, None, None, 0)
    for name, base in comparison.bases.items():
        total += plan_each(
            base, comparison.each, out=Path(out) / name, loading=loading, **comparison.options
        )
    return total


def _planned(task: Task, known: set[str]) -> Plan:
    """What one audit would take.

    Args:
        known: The keys of the images that are there, or will be by then; this one's are added.
    """
    store, prompts = Store.of_user(), task.asked.suite.prompts
    there = 0
    for side, (source, stacked) in task.sides.items():
        made_by = source.made_by(stacked, task.asked.suite, task.settings)
        made: set[str] = set()
        if (task.out / side / "gallery.json").is_file():
            made = set(Gallery.start(task.out / side, made_by, prompts).hashes())
        shared = store if source.ours else None
        for prompt in prompts:
            key = made_by.image_key(prompt)
            there += prompt.id in made or key in known or (shared is not None and shared.has(key))
            if shared is not None:
                known.add(key)
    images = len(task.sides) * len(prompts)
    if there == images:
        return Plan(images, there, None, None, 0)
    few = Suite("few", prompts[: task.settings["batch_size"]])
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        drawn = task.other.draw(
            task.erasures, few, Path(folder) / "few", task.settings, "model, to measure", None,
            lambda what, made, total: None,
        )  # fmt: skip
        seconds = (time.perf_counter() - begun) / len(few.prompts)
        size_of = sum(drawn.image_path(p).stat().st_size for p in few.prompts) / len(few.prompts)
    left = images - there
    return Plan(images, there, left * seconds, round(left * size_of), len(few.prompts))
