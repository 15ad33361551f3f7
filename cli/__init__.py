"""The command line: ``unsee``."""

import io
import sys
import time
from typing import Any, NoReturn

from .._errors import InputError
from ..processes import Processes, launched

FINE, VERDICT, INPUT, BROKEN, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes. The second is an audit's that says anything but forgotten, and a score's with images
unscored; the fourth is for what broke on the way: a full disk, too little memory, our own faults.
"""

LONGEST = 2000
"""Characters of an error's line: a file can hold a name of a megabyte."""


SHARED = ("audit", "generate")
"""The commands whose work several processes share."""

LEAD = 5.0
"""Seconds that another process than the first gives the first to say what is wrong, and launchers
to end it then: most often it is the same for all."""


def main() -> NoReturn:
    """Runs the command and exits with one of the codes above; an error is one line."""
    # Anywhere on the line, so that it can be put behind the command that has just failed.
    debug = "--debug" in sys.argv
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows only a few hundred characters shows "?" for the others.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    several = Processes()
    try:
        several = launched()
        code = _run([a for a in sys.argv[1:] if a != "--debug"], several)
    except KeyboardInterrupt:
        # By no library: it may be in the middle of being imported.
        if several.is_first:
            print("\nInterrupted. Run the same command again to go on.", file=sys.stderr)
        code = INTERRUPTED
    except InputError as error:
        code = _failed(INPUT, str(error), debug, several)
    except Exception as error:
        again = "" if debug else " Run the command again with --debug for the traceback."
        code = _failed(BROKEN, f"{_reason(error)}{again}", debug, several)
    # The verdict is the first one's to give: a launcher ends all the others when one has failed
    sys.exit(code if several.is_first or code != VERDICT else FINE)


def _run(arguments: list[str], several: Processes) -> int:
    import typer

    from .commands import app

    if several.size > 1:
        _check_shared(arguments)
    if not several.is_first:
        _silence()

    # click's, which typer brings and does not name
    usage_error: Any = typer.BadParameter.__mro__[1]
    try:
        # Not standalone: typer's own exit code for a file that ends too early would be 1.
        code = app(arguments or ["--help"], prog_name="unsee", standalone_mode=False)
    except usage_error as error:
        if not (said := error.format_message()):  # a group without a command has shown its help
            return INPUT
        page = error.ctx.command_path if error.ctx else "unsee"
        raise InputError(f"{said.rstrip('.')}. See '{page} --help'.") from error
    except typer.Abort as error:  # as which typer passes on a file that ends too early
        raise (error.__cause__ or error) from None
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return int(code or FINE)


def _check_shared(arguments: list[str]) -> None:
    """Refuses a command that each of several processes would do as a whole.

    Raises:
        InputError: It is one.
    """
    if not set(arguments[:1]) <= {*SHARED}:
        raise InputError(
            f"Several processes share the work of unsee {' and unsee '.join(SHARED)} alone: run "
            "this command without the launcher."
        )


def _silence() -> None:
    """Leaves the terminal to the first process."""
    import warnings

    from .terminal import console, errors

    console.quiet = errors.quiet = True
    warnings.simplefilter("ignore")


def _reason(error: Exception) -> str:
    """What broke, for somebody who does not read Python."""
    said = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "out of memory" in said.lower():
        return (
            "The memory is full: make fewer images at a time (--batch-size), or close what else "
            f"is running. ({said or 'MemoryError'})"
        )
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}."
    return f"{type(error).__name__}: {said}" if said else f"{type(error).__name__}."


def _failed(code: int, line: str, debug: bool, several: Processes) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    from .terminal import errors, say

    if not several.is_first:
        time.sleep(LEAD)
        errors.quiet = False
        line = f"Process {several.rank} of {several.size}: {line}"
    line = " ".join(line.split())
    line = line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
    say(("unsee:", "bold red"), " ", line, to=errors)
    return code
