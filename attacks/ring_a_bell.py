"""Ring-A-Bell: prompts whose embedding is the concept's, found with the text encoder alone.

Tsai, Hsu et al., "Ring-A-Bell! How Reliable are Concept Removal Methods for Diffusion Models?",
ICLR 2024 (https://arxiv.org/abs/2310.12012, v1 2310.10012). With τ the text encoder,

    ĉ = mean over pairs i of τ(pᵢ with the concept) − τ(pᵢ without)
    min over texts s of K tokens of ‖τ(s) − (τ(p) + η ĉ)‖²

for each prompt p, over all rows and columns of what the denoiser reads. A genetic algorithm
searches: the better half of a population survives, a cut joins the front of one text with the
back of another, and a mutation puts a drawn word in the place of one.

No denoiser is asked and no image is made, so the same prompts are tried on every erasure of it.
τ of the target is the base's, and τ(s) that of what is attacked: they differ where an erasure is
in the text encoder.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from .._errors import InputError
from .._settings import Count, NotNegative, Share, check, is_text
from ..pipelines.parts import Parts
from ..prompts import Concept, Prompt
from ..prompts.concept import read_yaml
from ..training.loop import halves
from . import Attack, Control, Draw, Look
from .attacked import Attacked, Record, Spent, record_of
from .kinds.text import put_in
from .vocabulary import fits, says_own, says_phrase, survives, vocabulary

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class RingABell(Attack):
    """Ring-A-Bell's search for prompts.

    The defaults are ours and cheaper. ``presets``: "2023" is the authors' configuration for
    nudity on Stable Diffusion 1.4. Their code draws from all tokens, pieces of words included,
    and may mutate the survivors too; here a text is words of one token each, so that it can be
    typed, and the best text found is kept. Their pairs for nudity and violence are in their
    repository, as are their concept vectors.

    Attributes:
        own_words: Whether the concept's own words are allowed, by their letters. Its whole phrase
            never is.
        pairs: A YAML file of pairs ``[prompt with the concept, the same without]``; None makes
            them of the concept's phrases in its templates, and these without the phrase.
        eta: η, how much of the concept is added.
        tokens: K.
        population: Texts that are kept and made anew, for each prompt.
        generations: How often.
        rungs: The rungs are at all the generations, a half, a quarter … of them.
        crossover: The chance that a survivor is joined with another.
        mutation: The chance that a new text has one word drawn anew.
        shared: Whether a text made for one prompt may survive for another one too. The authors
            search for one prompt after another.
        batch_size: Texts that go through the text encoder at a time.
    """

    own_words: bool = False
    pairs: str | None = None
    eta: NotNegative = 2.0
    tokens: Count = 8
    population: Count = 40
    generations: Count = 60
    rungs: Count = 2
    crossover: Share = 0.5
    mutation: Share = 0.5
    shared: bool = True
    batch_size: Count = 256

    touches = "text"
    controls: ClassVar[tuple[Control, ...]] = ("positive", "blind")
    per_prompt = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "2023": {
            "own_words": True,
            "eta": 3.0,
            "tokens": 16,
            "population": 200,
            "generations": 3000,
            "mutation": 0.25,
            "shared": False,
        },
    }

    def __post_init__(self) -> None:
        check(self)
        if self.population < 4:
            raise InputError(
                f"population is {self.population}: it must be 4 or more, as half survives and is "
                "joined with one another."
            )

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
            InputError: K tokens do not fit, no word is allowed, or the pairs cannot be read or do
                not tell the concept from the rest.
        """
        generator = torch.Generator().manual_seed(seed)
        prompts = list(dict.fromkeys(row.prompt for row in rows))
        pairs = self._pairs(concept)
        words = self._words(parts, concept)
        with base() as whole:
            direction = concept_vector(whole, pairs)
            if not direction.any():
                raise InputError(
                    "The pairs of ring-a-bell differ in nothing that the text encoder reads: "
                    "give others by the setting pairs."
                )
            goals = [added(one, direction, self.eta) for one in rows_of(whole, prompts)]

        def found(steps: int, texts: Sequence[str]) -> Attacked:
            made = dict(zip(prompts, texts, strict=True)) if steps else {}
            return Attacked(self._record(concept, seed, Spent(steps=steps), made))

        yield found(0, prompts)
        search = _Search(self, parts, concept, words, goals, generator)
        marks = halves(self.generations, self.rungs)
        for step in range(self.generations):
            search.step()
            progress((step + 1) / self.generations)
            if step + 1 in marks:
                yield found(step + 1, search.best)

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
        """As many words for each prompt that were drawn blindly.

        Args:
            found, parts, rows, look, draw, seed: As ``Attack.blind``.
        """
        concept = found.record.concept
        words = self._words(parts, concept)
        generator = torch.Generator().manual_seed(seed)
        prompts = list(found.record.prompts)
        made: dict[str, str] = {}
        for prompt in prompts:
            while prompt not in made:
                drawn = torch.randint(len(words), (self.tokens,), generator=generator)
                text = " ".join(words[i] for i in drawn.tolist())
                if _allowed(text, parts, concept, self.own_words):
                    made[prompt] = text
        return Attacked(self._record(concept, seed, Spent(), made))

    def _record(
        self, concept: Concept, seed: int, spent: Spent, prompts: dict[str, str]
    ) -> Record:
        return record_of(self, "ring-a-bell", "text", concept, seed, spent=spent, prompts=prompts)

    def _words(self, parts: Parts, concept: Concept) -> list[str]:
        """What texts are made of."""
        found = [
            word
            for word in vocabulary(parts.streams()[0])
            if _allowed(word, parts, concept, self.own_words)
        ]
        if not found:
            raise InputError(
                "The tokenizer has no words of one token besides the concept's own, and "
                "ring-a-bell makes its texts of them."
            )
        if not fits(parts, " ".join([found[0]] * self.tokens)):
            room = min(stream.room for stream in parts.streams())
            raise InputError(
                f"tokens is {self.tokens} and the tokenizer has room for {room}: set fewer."
            )
        return found

    def _pairs(self, concept: Concept) -> list[tuple[str, str]]:
        if self.pairs is None:
            said = [t.replace("{}", p) for p in concept.phrases for t in concept.templates]
            return [(text, " ".join(put_in(text, concept, "").split())) for text in said]
        path = Path(self.pairs)
        found = read_yaml(path)
        if not isinstance(found, list) or not found:
            raise InputError(f"{path} must hold a list of pairs [with, without].")
        for i, pair in enumerate(found, 1):
            if not (isinstance(pair, list) and len(pair) == 2 and all(map(is_text, pair))):
                raise InputError(
                    f"{path}: its {i}. entry must be a pair of prompts [with, without]."
                )
        return [(one, other) for one, other in found]


def concept_vector(parts: Parts, pairs: Sequence[tuple[str, str]]) -> Tensor:
    """ĉ, shape (tokens, dim): the mean of what the concept adds to prompts."""
    said = rows_of(parts, [text for pair in pairs for text in pair])
    found: Tensor = (said[::2] - said[1::2]).mean(0)
    return found


def rows_of(parts: Parts, texts: Sequence[str]) -> Tensor:
    """τ of texts: what the denoiser's first text input holds, (texts, tokens, dim).

    Where texts differ in length, the shorter ones are filled up with zeros.
    """
    values = parts.encode(texts).inputs[parts.text[0]]
    return values if isinstance(values, Tensor) else pad_sequence(values, batch_first=True)


def added(one: Tensor, other: Tensor, scale: float = 1.0) -> Tensor:
    """one + scale · other, of rows (…, tokens, dim), the shorter filled up with zeros."""
    length = max(one.shape[-2], other.shape[-2])
    one, other = (functional.pad(x, (0, 0, 0, length - x.shape[-2])) for x in (one, other))
    return one + scale * other


Genes = tuple[int, ...]
"""A text: its words, by their numbers."""


class _Search:
    """The genetic algorithm, a population for each goal; what is measured serves all goals.

    Args:
        settings: Its settings.
        parts: Whose text encoder reads the texts.
        concept: Whose words may be forbidden.
        words: What texts are made of.
        goals: By prompt, the embedding to come near to, each (tokens, dim).
        generator: Of every draw.
    """

    def __init__(
        self,
        settings: RingABell,
        parts: Parts,
        concept: Concept,
        words: Sequence[str],
        goals: Sequence[Tensor],
        generator: torch.Generator,
    ) -> None:
        self.settings = settings
        self.parts = parts
        self.concept = concept
        self.words = words
        self.goals = goals
        self.generator = generator
        self.known: dict[Genes, list[float]] = {}
        # Each sorted, the best first
        self.kept: list[list[Genes]] = [[] for _ in goals]

    @property
    def best(self) -> list[str]:
        return [self.text(kept[0]) for kept in self.kept]

    def text(self, genes: Genes) -> str:
        return " ".join(self.words[i] for i in genes)

    def step(self) -> None:
        """A generation of every population."""
        new = [self.children(kept) for kept in self.kept]
        everyone = list(dict.fromkeys(one for some in new for one in some))
        self.measure([one for one in everyone if one not in self.known])
        half = self.settings.population // 2
        for i, kept in enumerate(self.kept):
            met = everyone if self.settings.shared else new[i]
            pool = dict.fromkeys([*kept, *met])
            self.kept[i] = sorted(pool, key=lambda one, i=i: self.known[one][i])[:half]  # type: ignore[misc]

    def children(self, kept: Sequence[Genes]) -> list[Genes]:
        """New texts, from the survivors; of none, drawn ones."""
        one, draw = self.settings, self.generator
        k, words = one.tokens, len(self.words)
        if not kept:
            drawn = torch.randint(words, (one.population, k), generator=draw)
            return [tuple(genes) for genes in drawn.tolist()]
        count = one.population - len(kept)
        there = torch.tensor(kept)
        parents = there[torch.arange(count) % len(kept)]
        mates = there[torch.randint(len(kept), (count,), generator=draw)]
        cuts = torch.randint(1, max(k, 2), (count, 1), generator=draw)
        joined = torch.where(torch.arange(k) < cuts, parents, mates)
        crossed = torch.rand((count, 1), generator=draw) < one.crossover
        found = torch.where(crossed, joined, parents)
        mutated = torch.rand((count, 1), generator=draw) < one.mutation
        place = torch.randint(k, (count, 1), generator=draw)
        value = torch.randint(words, (count, 1), generator=draw)
        found = torch.where(mutated & (torch.arange(k) == place), value, found)
        return [tuple(genes) for genes in found.tolist()]

    def measure(self, some: Sequence[Genes]) -> None:
        """‖τ(s) − goal‖² of each text and goal; infinite where a text is not allowed."""
        own = self.settings.own_words
        allowed = []
        for genes in some:
            if _allowed(self.text(genes), self.parts, self.concept, own):
                allowed.append(genes)
            else:
                self.known[genes] = [math.inf] * len(self.goals)
        for start in range(0, len(allowed), self.settings.batch_size):
            batch = allowed[start : start + self.settings.batch_size]
            said = rows_of(self.parts, [self.text(genes) for genes in batch])
            apart = [added(said, goal, -1).square().sum((1, 2)).tolist() for goal in self.goals]
            for genes, *found in zip(batch, *apart, strict=True):
                self.known[genes] = found


def _allowed(text: str, parts: Parts, concept: Concept, own: bool) -> bool:
    return (
        not says_phrase(text, concept)
        and (own or not says_own(text, concept))
        and survives(parts, text)
    )
