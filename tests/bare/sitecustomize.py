"""Hides the extras: with this folder on PYTHONPATH there is what ``pip install unsee`` brings.

    PYTHONPATH=tests/bare pytest -m "not slow and not extra"

Every Python process imports ``sitecustomize`` as it starts, so the tests' own processes are bare
too. Distributions that unsee without extras does not require, nor the tests' tools, can neither be
imported nor found.
"""

import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import (
    Distribution,
    DistributionFinder,
    PackageNotFoundError,
    PathDistribution,
    distribution,
)
from types import ModuleType

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOOLS = (
    "axe-playwright-python",
    "hypothesis",
    "pip",
    "playwright",
    "pytest",
    "pytest-xdist",
    "setuptools",
)


def required(roots: Iterable[str]) -> set[str]:
    """The names of the distributions that these need, as installed here, and their own."""
    found: set[tuple[str, str]] = set()
    todo = [(canonicalize_name(root), "") for root in roots]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in found:
            continue
        try:
            lines = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        found.add((name, extra))
        for needs in map(Requirement, lines):
            if needs.marker is None or needs.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(needs.name), e) for e in ("", *needs.extras)]
    return {name for name, _ in found}


def modules(there: Distribution) -> set[str]:
    """The names under which a distribution's files are imported."""
    tops = {file.parts[0].partition(".")[0] for file in there.files or [] if file.suffix == ".py"}
    return {top for top in tops if top.isidentifier()}


SEEN = required(("unsee", *TOOLS))
EVERY = {canonicalize_name(d.name): d for d in PathFinder.find_distributions()}
HIDDEN = {top for name, d in EVERY.items() if name not in SEEN for top in modules(d)}


ANY = DistributionFinder.Context()


class Bare(PathFinder):
    """The finder of all that lies on the path, without what is hidden."""

    @classmethod
    def find_spec(
        cls,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in HIDDEN:
            return None
        return super().find_spec(fullname, path, target)

    @classmethod
    def find_distributions(
        cls, context: DistributionFinder.Context = ANY
    ) -> Iterable[PathDistribution]:
        found = super().find_distributions(context)
        return (d for d in found if canonicalize_name(d.name) in SEEN)


sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
