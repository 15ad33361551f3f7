"""What was made on this machine, and what of the store no run has any more."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ._errors import InputError
from ._files import read_text
from .gallery import Gallery
from .store import FITTED, Run, Store


@dataclass(frozen=True)
class Listed:
    """A run, as it is found now.

    Attributes:
        run: Where it is, and when it was begun last.
        verdict: Its report's; "images" for a gallery, "not finished", or "gone".
        images: How many its galleries have.
        held: The SHA-256 of each of them.
        bytes: Of all its files. Images that other runs have too, as links, are counted in each.
    """

    run: Run
    verdict: str
    images: int
    held: frozenset[str]
    bytes: int


@dataclass(frozen=True)
class Shelf:
    """All of it.

    Attributes:
        runs: The oldest first.
        images, bytes: What is in the store.
        free: The keys of the images that no run has any more.
        free_bytes: Theirs.
    """

    runs: tuple[Listed, ...]
    images: int
    bytes: int
    free: tuple[str, ...]
    free_bytes: int


def shelf(store: Store) -> Shelf:
    """Looks at every run that the store knows of, and at what it holds."""
    runs = [_listed(run) for run in store.runs()]
    held = _held(runs)
    there = list(store.images())
    free = [(key, size) for key, made, size in there if made.sha256 not in held]
    return Shelf(
        tuple(runs),
        len(there),
        sum(size for _, _, size in there),
        tuple(key for key, _ in free),
        sum(size for _, size in free),
    )


def prune(store: Store) -> Shelf:
    """Removes from the store what no run has any more; gives what there was before.

    Folders of runs stay as they are. What is removed is made again where it is wanted again.
    """
    from .eval.metrics.shared import prune as prune_rows

    found = shelf(store)
    for key in found.free:
        store.forget(key)
    held = _held(found.runs)
    for sha256 in store.answered():
        if sha256 not in held:
            store.answers(sha256).unlink(missing_ok=True)
    attacked = _attacked(found.runs)
    for key in store.attacks():
        if key not in attacked:
            shutil.rmtree(store.attack(key), ignore_errors=True)
    for file in store.networks():
        prune_rows(file, held)
    for listed in found.runs:
        if listed.verdict == "gone":
            store.forget_run(listed.run.path)
    store.tidy()
    return found


def _held(runs: Iterable[Listed]) -> frozenset[str]:
    """The SHA-256 of every image that a run has."""
    return frozenset().union(*(listed.held for listed in runs))


def _attacked(runs: Iterable[Listed]) -> frozenset[str]:
    """The key of every attack that a run has tried."""
    files = (file for listed in runs for file in listed.run.path.glob(f"attacks/*/{FITTED}"))
    return frozenset(key for file in files for key in read_text(file).split())


def galleries(path: Path) -> Iterator[Gallery]:
    """The galleries of a run that can be read: the folder itself, or those below it."""
    below = (sorted(path.glob(f"{depth}gallery.json")) for depth in ("*/", "attacks/**/"))
    for head in (path / "gallery.json", *(head for heads in below for head in heads)):
        if head.is_file():
            try:
                yield Gallery.open(head.parent)
            except InputError:
                continue


def _listed(run: Run) -> Listed:
    from .eval.report import Report

    images = [sha256 for gallery in galleries(run.path) for sha256 in gallery.hashes().values()]
    size = sum(f.stat().st_size for f in run.path.rglob("*") if f.is_file())
    if not run.path.is_dir():
        verdict = "gone"
    elif (run.path / "gallery.json").is_file():
        verdict = "images"
    else:
        try:
            verdict = Report.load(run.path / "report.json").verdict.value
        except InputError:
            verdict = "not finished"
    return Listed(run, verdict, len(images), frozenset(images), size)
