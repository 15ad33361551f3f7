"""Several processes of one run, as ``torchrun`` and ``accelerate launch`` start them.

The first one starts a gallery, says which images are missing, notes those that were made, measures
and writes the report; all of them draw. Each uses the accelerator of its number on its machine,
which accelerate chooses, and what they tell one another goes over torch.distributed's gloo, which
needs no GPU and notices at once when a process is gone.

The files go into one folder that all of them see; it needs no locks.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ._errors import InputError

P = ParamSpec("P")
T = TypeVar("T")

LONGEST = timedelta(days=7)
"""That a process waits for the others, which are still measuring or drawing; one that is gone is
noticed without it."""

LAG = 60.0
"""Seconds after which a file must be seen that another machine has written: those of a network
file system that remembers for a while what was not there."""


class LostError(ConnectionError):
    """Another process of the run is gone: something broke there, or somebody stopped it."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, from the place of one.

    Attributes:
        rank: The number of this one, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, value: T) -> list[T]:
        """What every process has to say, in their order; each waits until all have said it.

        Raises:
            LostError: One is gone.
        """
        if self.size == 1:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.size
        try:
            distributed.all_gather_object(found, value, group=_group())
        except RuntimeError as error:  # DistBackendError is one
            raise LostError(
                f"Another of the {self.size} processes ended before its work was done. What was "
                "made is kept: run the same command again to go on."
            ) from error
        return found

    def first(self, work: Callable[[], T]) -> T | None:
        """What the first process's work gives, there; elsewhere None, once it is done.

        Raises:
            InputError: The first process raised it.
            LostError: One is gone.
        """
        return self.all(work if self.is_first else lambda: None)

    def by_first(self, work: Callable[P, T]) -> Callable[P, T | None]:
        """The same function, which only the first process carries out: see ``first``."""

        def led(*arguments: P.args, **named: P.kwargs) -> T | None:
            return self.first(lambda: work(*arguments, **named))

        return led

    def all(self, work: Callable[[], T]) -> T:
        """What a work that every process does gives here, once all have done it.

        Raises:
            InputError: One of them raised it.
            LostError: One is gone.
        """
        if self.size == 1:
            return work()
        try:
            done, wrong = work(), ""
        except InputError as error:
            wrong = str(error)
        for one in self.share(wrong):
            if one:
                raise InputError(one)
        return done


def launched() -> Processes:
    """What the launcher says in the environment; without one, this process alone.

    Raises:
        InputError: What it says is no number of a process.
    """
    # Both: a scheduler may set one of them for every program
    said = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE")]
    if None in said:
        return Processes()
    try:
        rank, size = (int(one or "") for one in said)
    except ValueError:
        rank, size = -1, 0
    if not 0 <= rank < size:
        raise InputError(
            f"RANK is {said[0]!r} and WORLD_SIZE {said[1]!r}; they must be a process's number, "
            "from 0, and how many there are: start with torchrun, or unset them."
        )
    return Processes(rank, size)


def processes() -> Processes:
    """This run's, connected."""
    found = launched()
    if found.size > 1:
        _group()
    return found


@cache
def _group() -> Any:
    """What the processes talk over, once all are there; each then has its accelerator."""
    import torch
    from accelerate import PartialState
    from torch import distributed

    # On the CPU it must be told, or it takes each process for the only one
    PartialState(cpu=not torch.accelerator.is_available(), backend="gloo", timeout=LONGEST)
    if not distributed.is_initialized():  # where somebody made a PartialState before
        distributed.init_process_group("gloo", timeout=LONGEST)
    return distributed.new_group(backend="gloo", timeout=LONGEST)


def appears(path: Path) -> bool:
    """Whether a file that another process has written is there, waiting for it for a while."""
    end = time.monotonic() + LAG
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True
