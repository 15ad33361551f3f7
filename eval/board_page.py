"""The page of a comparison: one HTML file that needs nothing beside it."""

from typing import NamedTuple

from . import words
from .leaderboard import FRONT, Cell, Entry, Leaderboard, parts
from .page import MARKS, TEMPLATES, Span, templates


class Place(NamedTuple):
    """An entry on the plane of what forgetting cost: how much is left against what was lost."""

    entry: Entry
    target: Cell
    lost: Cell
    label: str


def render(board: Leaderboard) -> str:
    """The comparison as one HTML page without a script."""
    from markupsafe import Markup

    first = next((c for c in board.columns if c.role == "target"), None)
    drawn = [
        (e, target)
        for e in board.entries
        if first is not None
        and (target := e.cells[first.key]).value is not None
        and e.lost.value is not None
    ]
    # What lies on one spot has one label, at the last of them
    spots = [(round(t.value or 0, 3), round(e.lost.value or 0, 3)) for e, t in drawn]
    places = [
        Place(
            e, target, e.lost,
            ""
            if spots[i] in spots[i + 1 :]
            else ", ".join(str(k) for k, spot in enumerate(spots, 1) if spot == spots[i]),
        )
        for i, (e, target) in enumerate(drawn)
    ]  # fmt: skip
    ends = (end for p in places for end in p.lost.interval or ())
    return (
        templates()
        .get_template("compare.html")
        .render(
            board=board,
            words=words,
            style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
            marks=MARKS,
            parts=parts,
            front=FRONT,
            places=places,
            target=first,
            base=board.base.get(first.key) if first else None,
            span=Span.over(ends, (-10, 30)),
        )
    )
