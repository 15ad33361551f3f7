"""How often the report's 95 % intervals hold what they should, by simulation.

    python lab/coverage.py [--repeats 2000]     # lab/results/coverage.md

Data are drawn from a world whose truth is known, the interval is taken by the package's own
functions, and the share of intervals that hold the truth is counted. Three tables, each at n = 20,
100 and 1000:

- Wilson's interval of a rate, its coverage not drawn but summed over all outcomes, exactly.
- Newcombe's interval of a paired difference.
- The interval of a mean over prompts of 1 to 7 images each, by the bootstrap over prompts, beside
  the normal one (clustered by prompt) and the one that takes every image for a draw of its own.

And three of prompts (units) of several images, whose images are alike:

- Rates: the package's interval beside others.
- Paired differences: the same.
- The test of a paired difference: how often it sees one where there is none.
"""

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import binom, t

from unsee.eval.statistics import Z95, Paired, Rate, mean_interval, newcombe
from unsee.eval.statistics import wilson as wilson_at

SIZES = (20, 100, 1000)
RESULT = Path(__file__).parent / "results" / "coverage.md"

# Base rate, erased rate, and how the pairs hang together (phi)
PAIRS = ((0.5, 0.5, 0.0), (0.5, 0.5, 0.6), (0.9, 0.8, 0.3), (0.95, 0.95, 0.5), (0.98, 0.05, 0.0))

Draw = Callable[[np.random.Generator, int], np.ndarray]

# A prompt's own level and its true mean; the third is skewed, as few scores are
LEVELS: dict[str, tuple[Draw, float]] = {
    "normal, as a CLIP score": (lambda rng, n: rng.normal(25, 4, n), 25.0),
    "beta(2, 8), in [0, 1]": (lambda rng, n: rng.beta(2, 8, n), 0.2),
    "log-normal, skewed": (lambda rng, n: rng.lognormal(0, 0.75, n), math.exp(0.75**2 / 2)),
}


def wilson(n: int, p: float) -> float:
    """The chance that the interval holds p, exactly."""
    hits = np.arange(n + 1)
    ends = np.array([Rate(int(k), n).interval() for k in hits])
    return float(binom.pmf(hits, n, p)[(ends[:, 0] <= p) & (p <= ends[:, 1])].sum())


def rates() -> Iterator[list[str]]:
    yield ["n", "p = 0.02", "0.1", "0.3", "0.5", "mean over p", "least, p in 0.02 to 0.98"]
    grid = np.linspace(0.0005, 0.9995, 1000)
    for n in SIZES:
        every = np.array([wilson(n, p) for p in grid])
        inner = every[(grid >= 0.02) & (grid <= 0.98)]
        some = [wilson(n, p) for p in (0.02, 0.1, 0.3, 0.5)]
        yield [str(n), *map(percent, (*some, every.mean(), inner.min()))]


def differences(repeats: int, rng: np.random.Generator) -> Iterator[list[str]]:
    yield ["n", *(f"{p:g} to {q:g}, φ {phi:g}" for p, q, phi in PAIRS)]
    for n in SIZES:
        row = [str(n)]
        for p, q, phi in PAIRS:
            both = p * q + phi * math.sqrt(p * (1 - p) * q * (1 - q))
            cells = [both, p - both, q - both, 1 - p - q + both]
            held = 0
            for a, b, c, d in rng.multinomial(n, cells, size=repeats).tolist():
                low, high = Paired(a, b, c, d).interval() or (math.nan, math.nan)
                held += low <= q - p <= high
            row.append(percent(held / repeats))
        yield row


def means(repeats: int, rng: np.random.Generator) -> Iterator[list[str]]:
    yield ["prompts", "scores", "bootstrap by prompt", "normal, by prompt", "normal, by image"]
    for n in SIZES:
        for name, (draw, truth) in LEVELS.items():
            # A bootstrap of 1000 prompts is the slow one, and the one that has least to show
            times = repeats if n < 1000 else repeats // 2
            spread, held = float(np.std(draw(rng, 10_000))), np.zeros(3)
            for _ in range(times):
                images = rng.integers(1, 8, n)
                noise = np.split(rng.normal(0, spread, images.sum()), images.cumsum()[:-1])
                groups = [(m + e).tolist() for m, e in zip(draw(rng, n), noise, strict=True)]
                flat = [[x] for group in groups for x in group]
                ours = mean_interval(groups, resamples=999)
                assert ours is not None
                found = (ours, normal(groups), normal(flat))
                held += [low <= truth <= high for low, high in found]
            yield [str(n), name, *map(percent, held / times)]


def normal(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The mean ± 1.96 standard errors, groups being the units of chance (Liang and Zeger's)."""
    sums, sizes = np.array([sum(g) for g in groups]), np.array([len(g) for g in groups])
    mean, n = sums.sum() / sizes.sum(), len(groups)
    half = Z95 * math.sqrt(n / (n - 1) * ((sums - mean * sizes) ** 2).sum()) / sizes.sum()
    return mean - half, mean + half


# Prompts, images of each (their mean, where sizes differ), and ρ between a prompt's images
CLUSTERS = (
    (8, 6, 0.28),
    (16, 2, 0.5),
    (24, 6, 0.28),
    (24, 6, 0.5),
    (50, 5, 0.0),
    (50, 5, 0.5),
    (142, 1, 0.5),
    (1000, 5, 0.5),
)

# Shares of pairs: both, only the base, only the erased, neither
CELLS = (
    (0.93, 0.04, 0.01, 0.02),
    (0.88, 0.07, 0.02, 0.03),
    (0.60, 0.15, 0.05, 0.20),
    (0.05, 0.90, 0.02, 0.03),
    (0.45, 0.05, 0.05, 0.45),
)


def sizes(rng: np.random.Generator, count: int, mean: int) -> np.ndarray:
    """Images a prompt, from 1 to twice the mean less one; 16 prompts stand for a grid, 1 or 2."""
    return rng.integers(1, 2 * mean, count) if mean > 2 else np.full(count, mean)


def levels(rng: np.random.Generator, cells: Sequence[float], rho: float, count: int) -> np.ndarray:
    """Each prompt's own shares, Dirichlet about the cells, so that ρ is every indicator's."""
    if not rho:
        return np.tile(cells, (count, 1))
    return rng.dirichlet([(1 / rho - 1) * cell for cell in cells], count)


def rate_of(hits: np.ndarray, images: np.ndarray) -> Rate:
    units = Counter(zip(hits.tolist(), images.tolist(), strict=True))
    by_unit = tuple(sorted((*unit, k) for unit, k in units.items()))
    alone = bool((images == 1).all())
    return Rate(int(hits.sum()), int(images.sum()), 0, () if alone else by_unit)


def analysed(found: Rate) -> tuple[float, float]:
    """Wilson at n / (1 + (m − 1)ρ) and t, ρ as the analysis of variance has it (1 at 0 hits)."""
    value = found.value or 0.0
    if not found.by_unit:
        return wilson_at(value, found.n, Z95)
    units, n, count = found.by_unit, found.n, found.units
    size = sum(k * m * m for _, m, k in units) / n
    between = sum(k * m * (h / m - value) ** 2 for h, m, k in units) / (count - 1)
    within = sum(k * h * (1 - h / m) for h, m, k in units) / (n - count)
    below = between + ((n - size) / (count - 1) - 1) * within
    rho = min(max((between - within) / below, 0.0), 1.0) if below else 1.0
    return wilson_at(value, n / (1 + (size - 1) * rho), float(t.ppf(0.975, count - 1)))


def by_units(found: Rate) -> tuple[float, float]:
    """Wilson with prompts for images, whatever they are like."""
    far = Z95 if not found.by_unit else float(t.ppf(0.975, found.units - 1))
    return wilson_at(found.value or 0.0, found.units, far)


def resampled(hits: np.ndarray, images: np.ndarray) -> tuple[float, float]:
    """The bootstrap by prompt of ``mean_interval``."""
    groups = [[1.0] * h + [0.0] * (m - h) for h, m in zip(hits, images, strict=True)]
    return mean_interval(groups, resamples=399) or (math.nan, math.nan)


def clustered_rates(repeats: int, rng: np.random.Generator) -> Iterator[list[str]]:
    yield ["prompts × images, ρ", "p", "package", "ρ as it is", "over images", "n = prompts",
           "bootstrap"]  # fmt: skip
    for count, mean, rho in CLUSTERS:
        for p in (0.02, 0.05, 0.1, 0.375):
            held, widths = np.zeros(5), []
            times = repeats if count < 1000 else repeats // 4
            slow = min(times, 200) if count < 1000 else 0
            for i in range(times):
                images = sizes(rng, count, mean)
                hits = rng.binomial(images, levels(rng, (p, 1 - p), rho, count)[:, 0])
                found = rate_of(hits, images)
                ours = found.interval()
                assert ours is not None
                some = [ours, analysed(found), wilson_at(found.value or 0.0, found.n, Z95),
                        by_units(found)]  # fmt: skip
                some += [resampled(hits, images)] if i < slow else []
                widths.append([high - low for low, high in some[:4]])
                held[: len(some)] += [low <= p <= high for low, high in some]
            wide = np.median(np.array(widths), axis=0)
            cells = [
                f"{percent(h / times)} ({100 * w:.0f})"
                for h, w in zip(held[:4], wide, strict=True)
            ]
            yield [f"{count} × {mean}, {rho:g}", f"{p:g}", *cells,
                   percent(held[4] / slow) if slow else "–"]  # fmt: skip


def pairs_of(rng: np.random.Generator, cells: Sequence[float], rho: float, images: np.ndarray
             ) -> Paired:  # fmt: skip
    table = rng.multinomial(images, levels(rng, cells, rho, len(images)))
    units = Counter(map(tuple, table.tolist()))
    a, b, c, d = map(int, table.sum(0))
    by_unit = tuple(sorted((*unit, k) for unit, k in units.items()))
    return Paired(a, b, c, d, () if (images == 1).all() else by_unit)


def shrunk(found: Paired) -> tuple[float, float]:
    """Newcombe's of the table shrunk to the effective number of the differences themselves."""
    n, count, d = found.n, found.units, found.difference or 0.0
    units = [(g - lost, g + lost, a + lost + g + b, k) for a, lost, g, b, k in found.by_unit]
    size = sum(k * m * m for *_, m, k in units) / n
    between = sum(k * m * (s / m - d) ** 2 for s, _, m, k in units) / (count - 1)
    within = sum(k * (squares - s * s / m) for s, squares, m, k in units) / (n - count)
    below = between + ((n - size) / (count - 1) - 1) * within
    rho = min(max((between - within) / below, 0.0), 1.0) if below else 1.0
    n_eff = n / (1 + (size - 1) * rho)
    p, q = found.erased.value or 0.0, found.base.value or 0.0
    far = float(t.ppf(0.975, count - 1))
    phi = (found.both * found.neither - found.only_base * found.only_erased) / n**2
    spread = math.sqrt(p * (1 - p) * q * (1 - q))
    phi = phi / spread if spread else 0.0
    return newcombe(p, q, phi, n_eff, wilson_at(p, n_eff, far), wilson_at(q, n_eff, far))


def robust(found: Paired) -> tuple[float, float]:
    """The difference ± t standard errors, prompts being the units of chance (Obuchowski's)."""
    d, count = found.difference or 0.0, found.units
    rest = sum(k * (g - lost - (a + lost + g + b) * d) ** 2 for a, lost, g, b, k in found.by_unit)
    half = float(t.ppf(0.975, count - 1)) * math.sqrt(count / (count - 1) * rest) / found.n
    return d - half, d + half


def clustered_differences(repeats: int, rng: np.random.Generator) -> Iterator[list[str]]:
    yield ["prompts × images, ρ", "base to erased", "package", "shrunk table", "robust",
           "over images"]  # fmt: skip
    for count, mean, rho in CLUSTERS:
        if mean == 1:
            continue
        for cells in CELLS:
            both, lost, gained, _ = cells
            truth, held, widths = gained - lost, np.zeros(4), []
            times = repeats if count < 1000 else repeats // 4
            for _ in range(times):
                found = pairs_of(rng, cells, rho, sizes(rng, count, mean))
                ours = found.interval()
                plain = replace(found, by_unit=()).interval()
                assert ours is not None and plain is not None
                some = (ours, shrunk(found), robust(found), plain)
                widths.append([high - low for low, high in some])
                held += [low - 1e-12 <= truth <= high + 1e-12 for low, high in some]
            wide = np.median(np.array(widths), axis=0)
            yield [f"{count} × {mean}, {rho:g}", f"{both + lost:g} to {both + gained:g}",
                   *(f"{percent(h / times)} ({100 * w:.0f})"
                     for h, w in zip(held, wide, strict=True))]  # fmt: skip


def alarms(repeats: int, rng: np.random.Generator) -> Iterator[list[str]]:
    yield ["prompts × images, ρ", "only one side, each way", "sign flips by prompt", "McNemar"]
    for count, mean, rho in CLUSTERS:
        if count == 1000:
            continue
        for each in (0.05, 0.1):
            cells, false = (0.6 - each, each, each, 0.4 - each), np.zeros(2)
            for _ in range(repeats):
                found = pairs_of(rng, cells, rho, sizes(rng, count, mean))
                both = (found.p_value, replace(found, by_unit=()).p_value)
                false += [p is not None and p <= 0.05 for p in both]
            yield [f"{count} × {mean}, {rho:g}", f"{each:g}", *map(percent, false / repeats)]


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def table(rows: Iterator[list[str]]) -> str:
    head, *rest = rows
    lines = [head, ["---"] * len(head), *rest]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2000)
    repeats = parser.parse_args().repeats
    rng = np.random.default_rng(0)
    error = percent(math.sqrt(0.95 * 0.05 / repeats))
    worse = percent(math.sqrt(0.95 * 0.05 / (repeats // 2)))
    RESULT.write_text(
        f"""# Coverage of the 95 % intervals

Made by `python lab/coverage.py --repeats {repeats}`. Each figure is the share, in %, of intervals
that hold the truth; 95 is wanted.

## A rate: Wilson

Exact, no drawing. Counts are whole numbers, so at one p the coverage swings about 95 and theory
promises it only on average over p.

{table(rates())}

## A paired difference: Newcombe's method 10

{repeats} draws a cell (standard error {error}). Base rate to erased rate, and the correlation φ of
the pairs. It rests on Wilson's and swings as that does; near 0 and 1, and where pairs hang
together, it errs on the wide side.

{table(differences(repeats, rng))}

## A mean over prompts of 1 to 7 images

{repeats} draws a cell (standard error {error}), {repeats // 2} at 1000 prompts ({worse}); 999
resamples. Half of an image's variance is its prompt's. Theory promises 95 % as prompts become
many: with little skew it is there at 20 prompts or a little under, with much skew (log-normal) it
is still a point short at 1000. The normal interval is shorter and misses more at 20. An interval
over images, as if none shared a prompt, misses one time in four at any n.

{table(means(repeats, rng))}

## A rate over prompts of several images

{repeats} draws a cell, a quarter at 1000 prompts, 200 of the bootstrap; in brackets the median
width in points. A prompt's own chance is beta distributed, so that two of its images correlate
by ρ; where the mean is over 2, prompts have from 1 image to nearly twice the mean. On the
built-in model ρ was 0.2 to 0.6 under erasures that half worked. The package's is
Wilson's at n / (1 + (m − 1)ρ) with Student's t, ρ by analysis of variance over the prompts and two
imagined ones, one of hits alone and one of misses. Without those (“ρ as it is”, 1 at 0 or all
hits) it is up to 3 points short where p is small: then few prompts show anything, and say little
of ρ. With them it errs on the wide side where prompts are few. Over images it misses one time in
four, and more images a prompt do not mend it. With one image a prompt they are all one.

{table(clustered_rates(repeats, rng))}

## A paired difference over prompts of several images

{repeats} draws a cell, a quarter at 1000 prompts. The prompts' shares of the four kinds of pair
are Dirichlet distributed. The package's is Newcombe's from the clustered intervals of both rates
and the correlation of the prompts' residuals; “shrunk table” is his from the table at the
effective number of the differences, “robust” the normal one with Obuchowski's variance. The
package's was chosen because it alone is nowhere more than a point short; it is wide where hardly
anything changes, and by a good deal where prompts are few.

{table(clustered_differences(repeats, rng))}

## The test of a paired difference: alarms where there is none

{repeats} draws a cell. At 5 % at most 5 are wanted.

{table(alarms(repeats, rng))}
""",
        encoding="utf-8",
    )
    print(RESULT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
