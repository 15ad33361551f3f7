"""unsee runs: what was made, and what can go."""

from typing import Annotated

import typer

from .._errors import InputError
from ..eval import words
from ..store import OFF, Store
from .terminal import figures, next_, say


def runs(
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Remove images from the store that no run has any more. Folders of runs stay.",
        ),
    ] = False,
) -> None:
    """List what was made on this machine, its size, and what can go."""
    from ..runs import prune as prune_store
    from ..runs import shelf

    store = Store.of_user()
    if store is None:
        raise InputError(f"There is no store, as UNSEE_STORE is {OFF}: nothing is known of runs.")
    found = prune_store(store) if prune else shelf(store)
    if found.runs:
        figures(
            ("folder", "begun", "result", "images", "size"),
            [
                (
                    str(listed.run.path),
                    listed.run.date[:16].replace("T", " "),
                    listed.verdict,
                    str(listed.images),
                    words.bytes_(listed.bytes),
                )
                for listed in found.runs
            ],
        )
    say(
        f"The store {store.path} holds {words.count(found.images, 'image')} "
        f"({words.bytes_(found.bytes)}), of which no run has {len(found.free)} any more "
        f"({words.bytes_(found.free_bytes)})."
    )
    gone = sum(listed.verdict == "gone" for listed in found.runs)
    if prune:
        say(f"Removed {words.count(len(found.free), 'image')} from it, and {gone} from the list.")
    elif found.free or gone:
        next_("unsee", "runs", "--prune")
