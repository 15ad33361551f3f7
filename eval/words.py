"""Figures in words, the same in verdicts, tables and pages."""

import math

from .statistics import Paired, Rate, Score


def percent(value: float) -> str:
    """A share: "9.1 %", "100 %", "0 %"."""
    return f"{_number(100 * value, 1)} %"


def points(value: float) -> str:
    """A difference of shares: "2.5 points", "1 point"."""
    number = _number(100 * value, 1)
    return f"{number} point{'' if number == '1' else 's'}"


def change(value: float | None) -> str:
    """A signed difference of shares, in points: "−12.5", "+1", "0"."""
    return "–" if value is None else signed(100 * value)


def count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def rate(found: Rate) -> str:
    """A rate with its counts: "39 of 40 images (97.5 %)"."""
    if found.value is None:
        return "no image that was scored"
    return f"{found.hits} of {count(found.n, 'image')} ({percent(found.value)})"


def evidence(found: Rate) -> str:
    """For how much a rate's images count, where several are of one prompt; else nothing."""
    if found.units == found.n:
        return ""
    return (
        f" The {count(found.n, 'image')} are of {count(found.units, 'prompt')} and count as "
        f"{_number(found.effective, 0)}."
    )


def counting_as(found: Rate) -> str:
    """The same beside a count: ", of 16 prompts, counting as 20"."""
    if found.units == found.n:
        return ""
    prompts = count(found.units, "prompt")
    return f", of {prompts}, counting as {_number(found.effective, 0)}"


def share(found: Rate) -> str:
    return "–" if found.value is None else percent(found.value)


def interval(found: tuple[float, float] | None) -> str:
    """An interval of shares: "0 to 8.8 %"."""
    if found is None:
        return "–"
    return f"{_number(100 * found[0], 1)} to {_number(100 * found[1], 1)} %"


def difference_interval(found: tuple[float, float] | None) -> str:
    """An interval of a difference of shares, in points: "−100 to −88.2"."""
    return "–" if found is None else f"{signed(100 * found[0])} to {signed(100 * found[1])}"


def points_interval(found: tuple[float, float] | None) -> str:
    """The same in a sentence: "−13.8 and +13.8 points"."""
    low, high = found or (-1.0, 1.0)
    return f"{signed(100 * low)} and {signed(100 * high)} points"


def score(found: Score | None) -> str:
    if found is not None and found.withheld:
        return "not shown"
    return "–" if found is None or found.value is None else _figure(found.value)


def paired(found: Score) -> str:
    """Whether a distance is between images of the same prompts and seeds; else nothing."""
    if not found.pairs:
        return ""
    fewer = min(found.n, found.n_reference or found.n)
    return "paired" if found.pairs >= fewer else f"{found.pairs} of {fewer} paired"


def floor(found: Score) -> str:
    """A distance on other seeds: "on other seeds 4.1, the base's own 3.9, of 40 images"."""
    if found.floor is None:
        return ""
    erased, base = map(_figure, (found.floor.erased, found.floor.base))
    return f"on other seeds {erased}, the base's own {base}, of {count(found.floor.n, 'image')}"


def score_interval(found: Score | None) -> str:
    if found is None or found.interval is None:
        return "–"
    return " to ".join(map(_figure, found.interval))


def p_value(found: float | None, holm: float | None = None) -> str:
    """A p-value: "p = 0.0078", "p < 0.001", and what Holm makes of it: "p = 0.03, Holm 0.2"."""
    if found is None:
        return "–"
    said = "p < 0.001" if found < 0.001 else f"p = {found:.2g}"
    if holm is None or holm == found:
        return said
    return f"{said}, Holm " + ("< 0.001" if holm < 0.001 else f"{holm:.2g}")


def shows_from(found: Paired) -> str:
    """The smallest fall that so many pairs would have shown: "falls show from 7.3"."""
    loss = found.smallest_loss
    return (
        "too few to show a fall" if loss is None else f"falls show from {_number(100 * loss, 1)}"
    )


def bytes_(found: int) -> str:
    """A size: "2.2 kB", "0.66 MB", "2.1 GB"."""
    if found >= 1e9:
        return f"{_number(found / 1e9, 1)} GB"
    if found < 1e5:
        return f"{_number(found / 1e3, 1)} kB"
    return f"{_number(found / 1e6, 2 if found < 1e8 else 0)} MB"


def plural(kind: str) -> str:
    return {"person": "people", "unsafe": "unsafe content"}.get(kind, f"{kind}s")


def fold(text: str) -> str:
    """A label as labels are compared: case and spacing do not count."""
    return " ".join(text.lower().split())


def signed(value: float) -> str:
    number = _number(abs(value), 1)
    return number if number == "0" else f"{'+' if value > 0 else '−'}{number}"


def _figure(value: float) -> str:
    """Two decimals; under 0.1, as most KIDs are, two digits that are not 0, at most 6 places."""
    if not 0 < abs(value) < 0.1:
        return _number(value, 2)
    return _number(value, min(6, 1 - math.floor(math.log10(abs(value)))))


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text
