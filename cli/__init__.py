"""The command line: ``unsee``."""

import sys

from .._errors import InputError


def main() -> None:
    """Runs the command and exits: 0, 1 for an audit's verdict, 2 for what the user can mend."""
    from rich.console import Console

    from .commands import app

    # Anywhere on the line, so that it can be put behind the command that has just failed.
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        app(arguments, prog_name="unsee")
    except InputError as error:
        if debug:
            raise
        Console(stderr=True).print(f"[bold red]unsee:[/] {_plain(error)}", soft_wrap=True)
        sys.exit(2)
    except SystemExit as end:
        if end.code == 130:  # typer's, when interrupted
            Console(stderr=True).print("\nInterrupted. Run the same command again to go on.")
        raise


def _plain(error: InputError) -> str:
    from rich.markup import escape

    return escape(" ".join(str(error).split()))
