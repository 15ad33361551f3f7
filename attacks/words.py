"""Words: other words that draw the concept, out of the whole vocabulary.

Each word w is put in the place of the concept's phrase and ranked by how well the attacked model
then predicts images of the concept, x_t an image under the noise n at a time t:

    L(w) = mean over (x₀, n, t) of ‖target(x₀, n, t) − ε_θ(x_t, t, τ(prompt with w))‖²

with ε_θ and its target in the model's own terms. The samples are drawn once and are common to all
words, so that L differs by words alone. The best are drawn at the rows' own seeds and looked at,
since a low loss is not yet an image: what is looked at decides. Pairs of the best words follow.

Ranking is by successive halving: all words on a few samples, a share of them on more, the last on
all. A word costs as much on 40 samples as one image of 20 guided steps.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from torch import Tensor

from .._errors import InputError
from .._settings import Count, Range, Whole, check
from ..pipelines.parts import Parts
from ..pipelines.schedule import SPAN
from ..pipelines.watch import active
from ..prompts import Concept, Prompt
from ..prompts.concept import fold, read_mapping
from . import Attack, Control, Draw, Look
from .attacked import Attacked, Record, Spent, record_of
from .kinds.text import put_in, unit
from .vocabulary import (
    fits,
    misspellings,
    nearness,
    pairs,
    says_own,
    says_phrase,
    survives,
    vocabulary,
)

if TYPE_CHECKING:
    from PIL.Image import Image

TRANSLATIONS = Path(__file__).parent / "translations.yaml"
"""Phrases in other languages, by the concept's name."""

Time = Annotated[int, Range(least=0, below=SPAN)]


@dataclass(frozen=True)
class Words(Attack):
    """The words of a vocabulary, pairs of them, and the concept misspelt and translated.

    What ranks well was tried on the built-in model, with 102 words for "kitchen knife". On the
    base and under SPM the concept's own words come first at every t from 400 to 970, and 2 samples
    rank them as 12 do where all words share them; under UCE, tried at 600, 750, 850 and 950, they
    are among the first three but at 850, where pieces of words are. The losses differ most at 600,
    where the best word has 0.04 (base) to 0.2 (UCE) of the median loss, and at 970 0.2 to 0.7. But
    up to 750 words that say nothing, "by", "an" and "emoji", come next after them, as the noised
    image tells enough; from 850 on it is pieces of words. Hence t from 600 to 950, and a look.

    There, 395 texts took 2,208 rows and 62 images, 36 to 43 s of a busy core, and pairs 9 s more.

    Where a guide is on, which steers no single prediction, the base ranks and what is attacked
    draws.

    Attributes:
        own_words: Whether the concept's own words are allowed, such as "knife" of "kitchen
            knife", and its misspellings. Its whole phrase is never tried.
        lists: Whether misspellings by rule are tried, and translations where there are some
            (``translations.yaml``: of nudity, violence and Van Gogh).
        candidates: Words that are ranked. Of a larger vocabulary half are the nearest to the
            concept by their own embeddings, and half are drawn.
        samples: Samples (x₀, n, t) that the last words are ranked on.
        first: Samples that all are ranked on.
        earliest, latest: Where t lies, out of 1000, which is noise.
        drawn: Words of which an image is drawn; the best of them then get a quarter as many more.
        pairs: Words of which all pairs are ranked, and twice as many drawn; 0 is none.
        batch_size: Rows of the denoiser at a time.
    """

    own_words: bool = True
    lists: bool = True
    candidates: Count = 1000
    samples: Count = 64
    first: Count = 2
    earliest: Time = 600
    latest: Time = 950
    drawn: Count = 50
    pairs: Whole = 8
    batch_size: Count = 64

    touches = "text"
    controls: ClassVar[tuple[Control, ...]] = ("positive", "blind")

    def __post_init__(self) -> None:
        check(self)
        check_times(self.earliest, self.latest)
        if self.samples < self.first:
            raise InputError(
                f"first is {self.first} and samples is {self.samples}: the words cannot begin "
                "with more samples than there are."
            )
        if self.pairs == 1:
            raise InputError("pairs is 1, and one word makes no pair: set 0, or 2 or more.")

    def fit(
        self,
        parts: Parts,
        concept: Concept,
        rows: Sequence[Prompt],
        images: "Sequence[Image]",
        base: Callable[[], AbstractContextManager[Parts]],
        look: Look,
        draw: Draw,
        *,
        seed: int = 0,
        progress: Callable[[float], None] = lambda done: None,
    ) -> Iterator[Attacked]:
        """As ``Attack.fit``.

        Raises:
            InputError: No word can be put into the prompts, or the images have no latents here.
        """
        generator = torch.Generator().manual_seed(seed)
        guided = any(one.kind == "guidance" for one in active(parts.pipe))
        words = self._chosen(parts, concept, generator)
        listed = self._listed(concept)
        texts = _usable(parts, concept, rows, dict.fromkeys([*listed, *words]), self.own_words)
        if not texts:
            raise InputError(
                f"No word can stand for {concept.name!r} in its prompts: they fill the "
                "tokenizer's room, or its vocabulary has no other words."
            )
        trial = self._trial(parts, concept, rows, images, generator)
        before = look.count
        contest = Contest(concept, rows, look, draw)
        tried: dict[str, None] = {}

        def found(text: str | None) -> Attacked:
            spent = Spent(trial.rows, len(tried), look.count - before, len(images) if tried else 0)
            return Attacked(self._record(concept, seed, spent, text))

        def stage(texts: Sequence[str], drawn: int, done: float, share: float) -> None:
            tried.update(dict.fromkeys(texts))
            with base() if guided else nullcontext(parts) as ranks:
                ranked = trial.ranked(ranks, texts, partial(_in_part, progress, done, share))
            best = ranked[:drawn]
            contest.spend(best, len(best) + len(best) // 4)

        yield found(None)
        stage(texts, self.drawn, 0.0, 0.6)
        progress(0.8)
        yield found(contest.best)
        if self.pairs:
            both = _usable(
                parts, concept, rows, pairs(contest.order[: self.pairs]), self.own_words
            )
            if both:
                stage(both, 2 * self.pairs, 0.8, 0.1)
            progress(1.0)
            yield found(contest.best)

    def blind(
        self,
        found: Attacked,
        parts: Parts,
        rows: Sequence[Prompt],
        look: Look,
        draw: Draw,
        *,
        seed: int = 0,
    ) -> Attacked:
        """As many looks at words of the vocabulary, and at pairs of them, that were drawn blindly.

        Args:
            found, parts, rows, look, draw, seed: As ``Attack.blind``.
        """
        concept, looks = found.record.concept, found.record.spent.looks
        generator = torch.Generator().manual_seed(seed)
        words = list(vocabulary(parts.streams()[0]))
        order = torch.randperm(len(words), generator=generator)[:looks]
        single = [words[i] for i in order.tolist()]
        drawn = torch.randint(len(words), (2, looks), generator=generator).tolist()
        both = [f"{words[i]} {words[j]}" for i, j in zip(*drawn, strict=True)]
        # Pairs are all that is left once a small vocabulary is at its end
        mixed = itertools.chain.from_iterable(itertools.zip_longest(single, both, fillvalue=""))
        some = filter(None, mixed) if self.pairs else [*single, *both]
        texts = _usable(parts, concept, rows, some, self.own_words)
        before = look.count
        contest = Contest(concept, rows, look, draw)
        contest.spend(texts, looks)
        spent = Spent(looks=look.count - before)
        return Attacked(self._record(concept, seed, spent, contest.best))

    def _record(self, concept: Concept, seed: int, spent: Spent, text: str | None) -> Record:
        return record_of(self, "words", "text", concept, seed, spent=spent, text=text)

    def _chosen(self, parts: Parts, concept: Concept, generator: torch.Generator) -> list[str]:
        """Words of the vocabulary, chosen by nothing that looks at the answer."""
        words = vocabulary(parts.streams()[0])
        if len(words) <= self.candidates:
            return list(words)
        near = nearness(parts, list(words.values()), concept)
        order = near.argsort(descending=True, stable=True).tolist()
        half = self.candidates // 2
        rest = torch.randperm(len(order) - half, generator=generator)[: self.candidates - half]
        named = list(words)
        return [named[i] for i in order[:half]] + [named[order[half + i]] for i in rest.tolist()]

    def _listed(self, concept: Concept) -> list[str]:
        if not self.lists:
            return []
        spelt = [m for p in concept.phrases for m in misspellings(p)] if self.own_words else []
        table = read_mapping(TRANSLATIONS)
        return [*spelt, *table.get(fold(concept.name), {}).values()]

    def _trial(
        self,
        parts: Parts,
        concept: Concept,
        rows: Sequence[Prompt],
        images: "Sequence[Image]",
        generator: torch.Generator,
    ) -> "Trial":
        """The samples: the images in turn, at times spread evenly, in an order that is drawn."""
        count = self.samples
        order = torch.randperm(len(images), generator=generator)
        which = order.repeat(math.ceil(count / len(order)))[:count]
        span = self.latest + 1 - self.earliest
        t = self.earliest + (torch.arange(count) * GOLDEN % 1.0 * span).long()
        latents = parts.latents(images).float().cpu()[which]
        noise = torch.randn(latents.shape, generator=generator)
        schedule = parts.schedule(2)
        return Trial(
            concept,
            [rows[i].prompt for i in which.tolist()],
            schedule.noised(latents, noise, t),
            t,
            schedule.truth(latents, noise, t),
            self.first,
            self.batch_size,
        )


def check_times(earliest: int, latest: int) -> None:
    """Makes sure that there is a t to choose.

    Raises:
        InputError: None lies between them.
    """
    if latest < earliest:
        raise InputError(f"latest is {latest} and earliest is {earliest}: no t lies between.")


GOLDEN = (math.sqrt(5) - 1) / 2
"""The fractions of its first multiples, however many, are spread evenly over [0, 1)."""


@dataclass
class Trial:
    """What words are ranked by: samples (x_t, t) of the concept and what is to be predicted.

    Attributes:
        concept: In the place of whose phrases the words stand.
        prompts: Of each sample, with the phrases.
        x, t, goal: The samples, and what a perfect denoiser predicts of them.
        first: Samples that all words are ranked on.
        batch_size: Rows of the denoiser at a time.
        rows: Rows of the denoiser so far.
    """

    concept: Concept
    prompts: Sequence[str]
    x: Tensor
    t: Tensor
    goal: Tensor
    first: int
    batch_size: int
    rows: int = 0

    @torch.no_grad()
    def losses(
        self,
        parts: Parts,
        texts: Sequence[str],
        samples: Sequence[int],
        progress: Callable[[float], None] = lambda done: None,
    ) -> Tensor:
        """The sum of the losses of each text on some of the samples, shape (texts,), float64."""
        found = []
        at_once = max(1, self.batch_size // len(samples))
        for start in range(0, len(texts), at_once):
            some = texts[start : start + at_once]
            said = [put_in(self.prompts[i], self.concept, text) for text in some for i in samples]
            place = {prompt: n for n, prompt in enumerate(dict.fromkeys(said))}
            # Just before they are predicted, as what acts by the prompt hears the last texts alone
            text = parts.encode(list(place))
            each = torch.tensor([place[prompt] for prompt in said])
            sample = torch.tensor(list(samples)).repeat(len(some))
            losses = [
                self._losses(
                    parts, sample[i : i + self.batch_size], text, each[i : i + self.batch_size]
                )
                for i in range(0, len(said), self.batch_size)
            ]
            found.append(torch.cat(losses).view(len(some), -1).sum(1))
            self.rows += len(said)
            progress((start + len(some)) / len(texts))
        return torch.cat(found)

    def _losses(self, parts: Parts, sample: Tensor, text: Any, each: Tensor) -> Tensor:
        like = text.first
        x, goal, t = self.x[sample], self.goal[sample], self.t[sample]
        made = parts.predict(x.to(like), t.to(like.device), text[each.to(like.device)])
        return (made.float().cpu() - goal).square().flatten(1).mean(1).double()

    def ranked(
        self, parts: Parts, texts: Sequence[str], progress: Callable[[float], None]
    ) -> list[str]:
        """The texts, the best first: by successive halving, who goes on before who does not."""
        rounds = _rounds(len(texts), self.first, len(self.prompts))
        whole = sum(many * (stop - start) for many, start, stop in rounds)
        left, behind, done = list(texts), list[str](), 0.0
        sums = torch.zeros(len(texts), dtype=torch.float64)
        for many, start, stop in rounds:
            behind = left[many:] + behind
            left, sums = left[:many], sums[:many]
            share = many * (stop - start) / whole
            told = partial(_in_part, progress, done, share)
            sums = sums + self.losses(parts, left, range(start, stop), told)
            done += share
            order = sums.argsort(stable=True)
            left, sums = [left[i] for i in order.tolist()], sums[order]
        return left + behind


def _in_part(progress: Callable[[float], None], done: float, share: float, part: float) -> None:
    progress(done + share * part)


def _rounds(texts: int, first: int, samples: int) -> list[tuple[int, int, int]]:
    """How many texts see the samples from one on to before another: a quarter, up to four times.

    >>> _rounds(400, 2, 64)
    [(400, 0, 2), (100, 2, 8), (25, 8, 32), (7, 32, 64)]
    """
    found, start, stop = [], 0, min(first, samples)
    while start < samples:
        found.append((texts, start, stop))
        texts, start, stop = math.ceil(texts / 4), stop, min(4 * stop, samples)
    return found


@dataclass
class Contest:
    """Which texts show the concept, by drawing and looking: one image each, the best some more.

    A text's images are at one row after another, and texts that are side by side begin at
    different rows, so that one hard row fails no more than its share of them.

    Attributes:
        concept: In the place of whose phrases the texts stand.
        rows: Whose prompts and seeds are drawn.
        look, draw: As ``Attack.fit``.
        seen: By text, in the order of their ranks, whether each of its images shows the concept.
    """

    concept: Concept
    rows: Sequence[Prompt]
    look: Look
    draw: Draw
    seen: dict[str, list[bool]] = field(default_factory=dict)
    begins: dict[str, int] = field(default_factory=dict)

    def spend(self, texts: Sequence[str], looks: int) -> None:
        """Spends that many looks on texts, the best first, and on the best seen so far.

        No text is drawn twice at one row, so that of few texts and rows fewer looks are spent.
        """
        more = looks // 5 if len(self.rows) > 1 else 0
        begin = [text for text in texts if text not in self.seen][: looks - more]
        for text in begin:
            self.begins[text] = len(self.begins)
            self.seen[text] = []
        self._see(begin)
        # As many finalists as have MORE images each
        each = min(MORE, len(self.rows) - 1)
        finalists = [text for text in self.order if len(self.seen[text]) + each <= len(self.rows)][
            : math.ceil(more / each) if more else 0
        ]
        self._see([text for _ in range(each) for text in finalists][:more])

    def _see(self, texts: Sequence[str]) -> None:
        """An image of each text, at the next of its rows."""
        if not texts:
            return
        count = {text: len(self.seen[text]) for text in texts}
        prompts = []
        for n, text in enumerate(texts):
            row = self.rows[(self.begins[text] + count[text]) % len(self.rows)]
            count[text] += 1
            words = put_in(row.prompt, self.concept, text)
            prompts.append(
                dataclasses.replace(row, id=f"{row.id}-{n}", prompt=words, unit=unit(row))
            )
        for text, hit in zip(texts, self.look(self.draw(prompts)), strict=True):
            self.seen[text].append(hit)

    @property
    def order(self) -> list[str]:
        """The texts by the share of their images that show the concept, then by their ranks.

        A share counts as if there had been one image more that does not: one of one is less than
        four of five.
        """
        return sorted(self.seen, key=lambda t: -sum(self.seen[t]) / (len(self.seen[t]) + 1))

    @property
    def best(self) -> str:
        return self.order[0]


MORE = 4
"""Images more of each text that is among the best after its first."""


def _usable(
    parts: Parts,
    concept: Concept,
    rows: Sequence[Prompt],
    texts: Iterable[str],
    own: bool,
) -> list[str]:
    """The texts that are ordinary, fit into every prompt, and are no whole phrase there."""
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    found = []
    for text in dict.fromkeys(texts):
        if not survives(parts, text) or (not own and says_own(text, concept)):
            continue
        said = [put_in(prompt, concept, text) for prompt in prompts]
        if not any(says_phrase(p, concept) for p in said) and all(fits(parts, p) for p in said):
            found.append(text)
    return found
