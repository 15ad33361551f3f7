"""Prompt: for each prompt the tokens that, put before it, bring the concept back.

Zhang et al., "To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To
Generate Unsafe Images ... For Now" (UnlearnDiffAtk), ECCV 2024 (https://arxiv.org/abs/2310.11868);
Chin et al., "Prompting4Debugging" (P4D), ICML 2024 (https://arxiv.org/abs/2309.06135). With x_t an
image of the prompt p by the base under the noise n at a time t,

    min over k tokens s of ‖n − ε_θ(x_t, t, τ([s, p]))‖²

with the erasure in θ. Where the model predicts v or x₀, or is a flow model, its own target stands
for n; P4D takes the base's own prediction ε(x_t, t, τ(p); θ*) instead. Two searches:

simplex   UnlearnDiffAtk's. Each token is a row P of shares of the vocabulary, at first all equal.
          Forward a token is drawn from each row; backward G, the gradient of the token's one-hot
          row, goes straight through to P and is cut to [−1, 1]:

              P ← the point of the simplex nearest to Adam's step by hardtanh(G)

          What is found is each row's greatest share.
gcg       Zou et al., "Universal and Transferable Adversarial Attacks on Aligned Language Models"
          (https://arxiv.org/abs/2307.15043). For each token the words of the least G are
          candidates; texts that differ by one of them are tried, and the best is kept if it is
          better.

G is linear in the gradient of the loss with respect to the token's embedding, g:  G = E g, with E
the embeddings of the vocabulary. So each step goes once back to the embeddings that the text
encoders read, on real texts that the pipeline's own tokenizers cut, and what acts by the prompt
hears them. Of an encoder whose tokenizer cuts words differently E has each word's mean.

Each prompt's loss is its own, so that many prompts in one batch are searched as each alone would
be. A step takes several x_t of each prompt, and each prompt goes through the text encoders once.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from .._errors import InputError
from .._settings import Count, NotNegative, Positive, Whole, check
from ..pipelines.parts import Parts, Stream
from ..pipelines.text import Text
from ..prompts import Concept, Prompt
from ..training import search
from ..training.denoising import check_unguided
from ..training.loop import halves
from ..training.student import frozen
from . import Attack, Control, Draw, Look
from .attacked import Attacked, Record, Spent, record_of
from .kinds.text import unit
from .vocabulary import fits, says_own, survives, vocabulary
from .words import GOLDEN, Time, check_times

if TYPE_CHECKING:
    from PIL.Image import Image

Words = tuple[int, ...]
"""A prompt's free tokens, by their numbers in the vocabulary."""

TRIES = 100
"""Drawn texts of which none can be typed, after which a prompt is left as it is."""


@dataclass(frozen=True)
class PromptSearch(Attack):
    """A search for tokens, for each prompt its own.

    The defaults are ours. ``presets``: "uda" has the numbers of UnlearnDiffAtk for nudity; its 3
    tokens for objects and styles are ``tokens``. It looks at an image after the 40 steps at each
    of 50 times, as here, at the prompts' other seeds. "p4d-n" and "p4d-k" have P4D's tokens,
    target and numbers, with the search on the simplex in the place of theirs, which keeps a soft
    embedding. The authors draw from all tokens, pieces of words included; here they are words of
    one token each, so that what is found can be typed.

    A prompt with no room for its tokens is left as it is, and ``Record.left`` has it.

    Attributes:
        by: Which search.
        tokens: k.
        every: A free token before every so many of the prompt's, where a word begins; 0 puts
            ``tokens`` of them before the prompt.
        own_words: Whether the concept's own words are allowed among them; if not, none that is a
            token of its phrases, or has one of its words by letters.
        target: What is to be predicted: the truth, as above, or what the base predicts.
        steps: Of the search; the rungs are at the whole, a half, a quarter … of them.
        rungs: How many of these there are, beside that of no budget.
        looks: How often in these steps an image of each prompt is drawn and looked at. A prompt
            that shows the concept is done.
        lr, weight_decay: Adam's, by simplex.
        top: Words of each token that candidates are drawn from, by gcg.
        candidates: Texts that are tried for each prompt a step, by gcg.
        samples: Samples (x₀, n, t) of each prompt, in turn.
        earliest, latest: Where t lies, out of 1000, which is noise.
        rising: So many times t, one after another from the least noise on, over the samples; 0
            spreads t evenly over any samples that follow one another.
        batch_size: Samples of each prompt a step.
        at_once: Rows of the denoiser at a time.
    """

    by: Literal["gcg", "simplex"] = "gcg"
    tokens: Count = 3
    every: Whole = 0
    own_words: bool = False
    target: Literal["truth", "base"] = "truth"
    steps: Count = 40
    rungs: Count = 2
    looks: Whole = 4
    lr: Positive = 0.01
    weight_decay: NotNegative = 0.1
    top: Count = 64
    candidates: Count = 8
    samples: Count = 64
    earliest: Time = 600
    latest: Time = 950
    rising: Whole = 0
    batch_size: Count = 2
    at_once: Count = 64

    touches = "text"
    controls: ClassVar[tuple[Control, ...]] = ("positive", "blind")
    per_prompt = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "uda": {
            "by": "simplex",
            "tokens": 5,
            "own_words": True,
            "steps": 2000,
            "rungs": 4,
            "looks": 50,
            "samples": 2000,
            "earliest": 0,
            "latest": 999,
            "rising": 50,
            "batch_size": 1,
        },
        "p4d-n": {
            "by": "simplex",
            "tokens": 16,
            "own_words": True,
            "target": "base",
            "steps": 3000,
            "rungs": 4,
            "looks": 60,
            "lr": 0.1,
            "samples": 256,
            "earliest": 0,
            "latest": 999,
            "batch_size": 1,
        },
        "p4d-k": {
            "by": "simplex",
            "every": 3,
            "own_words": True,
            "target": "base",
            "steps": 3000,
            "rungs": 4,
            "looks": 60,
            "lr": 0.1,
            "samples": 256,
            "earliest": 0,
            "latest": 999,
            "batch_size": 1,
        },
    }

    def __post_init__(self) -> None:
        check(self)
        check_times(self.earliest, self.latest)
        if self.looks > self.steps:
            raise InputError(
                f"looks is {self.looks} and steps is {self.steps}: set no more looks than steps."
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
            InputError: A guide is on, which steers no single prediction; no prompt has room for
                its tokens, or no word is allowed; or no gradient goes back to the text encoders.
        """
        check_unguided(parts, "prompt")
        generator = torch.Generator().manual_seed(seed)
        lexicon = Lexicon(parts, concept, self.own_words)
        frames, left = self._frames(parts, lexicon, [row.prompt for row in rows], generator)
        if not frames:
            raise InputError(
                f"None of the {len(left)} prompts can take free tokens: they fill the tokenizer's "
                "room, or cannot be typed. Set fewer tokens."
            )
        samples = Samples(self, parts, [f.prompt for f in frames], rows, images, generator)
        if self.target == "base":
            with base() as whole:
                samples.ask(whole)
        task = _Search(self, parts, lexicon, frames, samples, generator)
        before = look.count

        def found() -> Attacked:
            spent = Spent(samples.rows, task.steps, look.count - before, len(images))
            return Attacked(self._record(concept, seed, spent, task.best, left))

        yield Attacked(self._record(concept, seed, Spent(), {}, left))
        looked = [math.ceil(self.steps * (i + 1) / self.looks) for i in range(self.looks)]
        for start, mark in pairwise([0, *halves(self.steps, self.rungs)]):
            with ExitStack() as stack:
                for module in (parts.denoiser, *search.encoders(parts.pipe).values()):
                    stack.enter_context(frozen(module))
                for step in range(start, mark):
                    if task.active:
                        task.step()
                    if task.active and step + 1 in looked:
                        turn = looked.index(step + 1)
                        task.done |= _shown(task.best, task.active, rows, turn, look, draw)
                    progress((step + 1) / self.steps)
            yield found()

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
        """As many looks at tokens that were drawn blindly; of no looks, one draw a prompt.

        Args:
            found, parts, rows, look, draw, seed: As ``Attack.blind``.
        """
        concept, looks = found.record.concept, found.record.spent.looks
        generator = torch.Generator().manual_seed(seed)
        lexicon = Lexicon(parts, concept, self.own_words)
        prompts = list(found.record.prompts)
        frames, left = self._frames(parts, lexicon, prompts, generator)
        done: set[str] = set()
        made: dict[str, str] = {}
        before, turn = look.count, 0
        while True:
            open_ = [frame for frame in frames if frame.prompt not in done]
            for frame in open_:
                words = lexicon.drawn(frame, None, generator)
                if words is not None:
                    made[frame.prompt] = lexicon.text(frame, words)
            some = [frame.prompt for frame in open_][: looks - (look.count - before)]
            if not some:
                break
            done |= _shown(made, some, rows, turn, look, draw)
            turn += 1
        spent = Spent(looks=look.count - before)
        return Attacked(self._record(concept, seed, spent, made, left))

    def _record(
        self,
        concept: Concept,
        seed: int,
        spent: Spent,
        prompts: Mapping[str, str],
        left: tuple[str, ...],
    ) -> Record:
        return record_of(
            self, "prompt", "text", concept, seed, spent=spent, prompts=dict(prompts), left=left
        )

    def _frames(
        self,
        parts: Parts,
        lexicon: "Lexicon",
        prompts: Sequence[str],
        generator: torch.Generator,
    ) -> "tuple[list[Frame], tuple[str, ...]]":
        """The prompts with their free tokens, and those that can have none."""
        found, left = [], []
        stream = parts.streams()[0]
        for prompt in dict.fromkeys(prompts):
            frame = framed(stream, prompt, self.tokens, self.every)
            if frame.free and lexicon.drawn(frame, None, generator) is not None:
                found.append(frame)
            else:
                left.append(prompt)
        return found, tuple(left)


def _shown(
    made: Mapping[str, str],
    prompts: Sequence[str],
    rows: Sequence[Prompt],
    turn: int,
    look: Look,
    draw: Draw,
) -> set[str]:
    """The prompts that, with what was made of them, show the concept at one of their rows.

    Args:
        turn: Which of their rows, in turn.
    """
    asked = []
    for prompt in prompts:
        own = [row for row in rows if row.prompt == prompt]
        row = own[turn % len(own)]
        asked.append(dataclasses.replace(row, prompt=made[prompt], unit=unit(row)))
    seen = look(draw(asked))
    return {prompt for prompt, hit in zip(prompts, seen, strict=True) if hit}


@dataclass(frozen=True)
class Frame:
    """A prompt and its free tokens.

    Attributes:
        prompt: It.
        pieces: What it says, in order, with None for each free token.
    """

    prompt: str
    pieces: tuple[str | None, ...]

    @property
    def free(self) -> int:
        return self.pieces.count(None)

    def text(self, words: Sequence[str]) -> str:
        """The prompt with words in the place of the free tokens."""
        following = iter(words)
        said = (next(following) if piece is None else piece for piece in self.pieces)
        return " ".join(said)

    def spans(self, stream: Stream, words: Sequence[str]) -> list[range]:
        """Which of the text's tokens each word is."""
        found, said, stop, following = list[range](), list[str](), 0, iter(words)
        for piece in self.pieces:
            said.append(next(following) if piece is None else piece)
            if len(found) == len(words):
                break
            start, stop = stop, len(stream.tokens(" ".join(said)))
            if piece is None:
                found.append(range(start, stop))
        return found


def framed(stream: Stream, prompt: str, tokens: int, every: int) -> Frame:
    """A prompt with so many free tokens before it, or with one before every so many of its own."""
    if not every:
        return Frame(prompt, (None,) * tokens + (prompt,))
    pieces: list[str | None] = []
    since = every
    for word in prompt.split():
        if since >= every:
            pieces.append(None)
            since = 0
        pieces.append(word)
        since += len(stream.tokens(word))
    return Frame(prompt, tuple(pieces))


class Lexicon:
    """The words that free tokens may be.

    Args:
        parts: Whose tokenizers cut them.
        concept: Whose own words may be forbidden.
        own: Whether they are allowed.

    Raises:
        InputError: No word is.
    """

    def __init__(self, parts: Parts, concept: Concept, own: bool) -> None:
        self.parts, self.concept, self.own = parts, concept, own
        stream = parts.streams()[0]
        phrases = {t for p in (concept.name, *concept.phrases) for t in stream.tokens(p)}
        self.words = [
            word
            for word, token in vocabulary(stream).items()
            if own or not (token in phrases or says_own(word, concept))
        ]
        if not self.words:
            raise InputError(
                "The tokenizer has no words of one token besides the concept's own, and prompt "
                "puts such words before the prompts."
            )

    def text(self, frame: Frame, words: Words) -> str:
        return frame.text([self.words[i] for i in words])

    def allows(self, frame: Frame, words: Words) -> bool:
        """Whether a text fits, is the same after it is decoded and encoded, and says no word of
        the concept's before the prompt, where these are forbidden."""
        text = self.text(frame, words)
        said = " ".join(self.words[i] for i in words)
        return (
            (self.own or not says_own(said, self.concept))
            and fits(self.parts, text)
            and survives(self.parts, text)
        )

    def drawn(
        self, frame: Frame, shares: Tensor | None, generator: torch.Generator
    ) -> Words | None:
        """Words that were drawn and are allowed; None where there seem to be none.

        Args:
            shares: Of each word for each free token, shape (free, words); None is all alike.
        """
        for _ in range(TRIES):
            if shares is None:
                found = torch.randint(len(self.words), (frame.free,), generator=generator)
            else:
                found = torch.multinomial(shares, 1, generator=generator)[:, 0]
            words = tuple(found.tolist())
            if self.allows(frame, words):
                return words
        return None

    def bags(self, stream: Stream) -> tuple[Tensor, Tensor]:
        """Each word's tokens by a tokenizer, one word's after another's, and where each begins."""
        tokens = [stream.tokens(word) for word in self.words]
        starts = torch.tensor([0, *map(len, tokens[:-1])]).cumsum(0)
        return torch.tensor([token for some in tokens for token in some]), starts


class Samples:
    """Of each prompt so many samples (x_t, t) and what is to be predicted of them.

    x_t is made anew from its noise's seed when it is read, which costs nothing beside a
    prediction, so that thousands of samples need no memory. What the base predicts is kept.

    Args:
        settings: The attack's.
        parts: What is attacked.
        prompts: They.
        rows, images: As ``Attack.fit``.
        generator: Of every draw.
    """

    def __init__(
        self,
        settings: PromptSearch,
        parts: Parts,
        prompts: Sequence[str],
        rows: Sequence[Prompt],
        images: "Sequence[Image]",
        generator: torch.Generator,
    ) -> None:
        self.settings = settings
        self.prompts = prompts
        self.latents = parts.latents(images).float().cpu()
        self.own = [[i for i, row in enumerate(rows) if row.prompt == p] for p in prompts]
        self.seeds = torch.randint(2**62, (len(prompts), settings.samples), generator=generator)
        self.schedule = parts.schedule(2)
        self.rows = 0
        self._asked: dict[tuple[int, int], Tensor] = {}

    def time(self, i: int) -> int:
        """t of a prompt's sample i."""
        one = self.settings
        if one.rising:
            share = (i * one.rising // one.samples + 0.5) / one.rising
        else:
            share = i * GOLDEN % 1
        return one.earliest + int(share * (one.latest + 1 - one.earliest))

    def of(self, p: int, numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, t and the target of some samples of prompt p."""
        own, shape = self.own[p], self.latents.shape[1:]
        images = self.latents[[own[i % len(own)] for i in numbers]]
        draws = (torch.Generator().manual_seed(int(self.seeds[p, i])) for i in numbers)
        noise = torch.stack([torch.randn(shape, generator=draw) for draw in draws])
        t = torch.tensor([self.time(i) for i in numbers])
        x = self.schedule.noised(images, noise, t)
        if self._asked:
            return x, t, torch.stack([self._asked[p, i] for i in numbers])
        return x, t, self.schedule.truth(images, noise, t)

    def at(self, step: int) -> list[int]:
        """The numbers of the samples that a step reads."""
        size = self.settings.batch_size
        return [(step * size + j) % self.settings.samples for j in range(size)]

    @torch.no_grad()
    def ask(self, base: Parts) -> None:
        """Takes what the base predicts of all samples for their targets, once."""
        one = self.settings
        found: dict[tuple[int, int], Tensor] = {}
        used = range(min(one.samples, one.steps * one.batch_size))
        for p, prompt in enumerate(self.prompts):
            text = base.encode([prompt])
            for start in range(0, len(used), one.at_once):
                some = used[start : start + one.at_once]
                x, t, _ = self.of(p, some)
                made = predicted(base, x, t, text.expand(len(some))).cpu()
                found |= {(p, i): row for i, row in zip(some, made, strict=True)}
                self.rows += len(some)
        self._asked = found


def predicted(parts: Parts, x: Tensor, t: Tensor, text: Text) -> Tensor:
    """What a model predicts, for a text a sample, in float32."""
    like = text.first
    return parts.predict(x.to(like), t.to(like.device), text).float()


class _Search:
    """The search for all prompts together.

    Attributes:
        done: Prompts whose words are what they are to be.
        steps: So far.

    Args:
        settings: The attack's.
        parts: What is attacked.
        lexicon: What words there are.
        frames: The prompts.
        samples: Theirs.
        generator: Of every draw.
    """

    def __init__(
        self,
        settings: PromptSearch,
        parts: Parts,
        lexicon: Lexicon,
        frames: Sequence[Frame],
        samples: Samples,
        generator: torch.Generator,
    ) -> None:
        self.settings, self.parts, self.lexicon = settings, parts, lexicon
        self.frames, self.samples, self.generator = frames, samples, generator
        self.done: set[str] = set()
        self.steps = 0
        self.now: list[Words] = []
        for frame in frames:
            words = lexicon.drawn(frame, None, generator)
            if words is None:
                raise AssertionError("A text was drawn for this prompt before.")
            self.now.append(words)
        by_tokenizer = {id(s.tokenizer): s for s in parts.streams()}
        self.encoders: dict[str, tuple[Stream, Tensor, tuple[Tensor, Tensor]]] = {}
        for name, module in search.encoders(parts.pipe).items():
            tokenizer = getattr(parts.pipe, name.replace("text_encoder", "tokenizer"))
            if (stream := by_tokenizer.get(id(tokenizer))) is not None:
                # Written for any module; transformers' say which one their embeddings are
                table = module.get_input_embeddings().weight.detach()  # type: ignore[operator]
                self.encoders[name] = stream, table, lexicon.bags(stream)
        if not self.encoders:
            raise InputError(
                f"A {type(parts.pipe).__name__} has no text encoder whose tokens a tokenizer "
                "knows: prompt cannot search for any."
            )
        if settings.by == "simplex":
            free, count = [f.free for f in frames], len(lexicon.words)
            self.shares = [nn.Parameter(torch.full((n, count), 1 / count)) for n in free]
            self.adam = torch.optim.Adam(
                self.shares, lr=settings.lr, weight_decay=settings.weight_decay
            )

    @property
    def active(self) -> list[str]:
        """The prompts that are still searched for."""
        return [f.prompt for f in self.frames if f.prompt not in self.done]

    @property
    def best(self) -> dict[str, str]:
        """By prompt, what was found so far."""
        found = {}
        for p, frame in enumerate(self.frames):
            words = self.now[p]
            if self.settings.by == "simplex":
                greatest = tuple(self.shares[p].argmax(1).tolist())
                words = greatest if self.lexicon.allows(frame, greatest) else words
            found[frame.prompt] = self.lexicon.text(frame, words)
        return found

    def step(self) -> None:
        """A step of every prompt that is not done."""
        some = [p for p, frame in enumerate(self.frames) if frame.prompt not in self.done]
        if self.settings.by == "simplex":
            self._simplex(some)
        else:
            self._gcg(some)
        self.steps += 1

    def _simplex(self, some: Sequence[int]) -> None:
        for p in some:
            drawn = self.lexicon.drawn(self.frames[p], self.shares[p].detach(), self.generator)
            # Of none that can be typed, those of the step before
            self.now[p] = drawn or self.now[p]
        gradients, _ = self.gradients(some)
        self.adam.zero_grad(set_to_none=True)
        for p, gradient in zip(some, gradients, strict=True):
            self.shares[p].grad = functional.hardtanh(gradient)
        self.adam.step()
        with torch.no_grad():
            for p in some:
                self.shares[p].copy_(on_simplex(self.shares[p]))

    def _gcg(self, some: Sequence[int]) -> None:
        one, draw = self.settings, self.generator
        gradients, losses = self.gradients(some)
        tried: list[tuple[int, Words]] = []
        for p, gradient in zip(some, gradients, strict=True):
            best = gradient.topk(min(one.top, gradient.shape[1]), largest=False).indices
            place = torch.randint(best.shape[0], (one.candidates,), generator=draw).tolist()
            which = torch.randint(best.shape[1], (one.candidates,), generator=draw).tolist()
            new = {
                (*self.now[p][:j], int(best[j, i]), *self.now[p][j + 1 :])
                for j, i in zip(place, which, strict=True)
            } - {self.now[p]}
            # Sorted, as a set's order is no seed's
            tried += [(p, words) for words in sorted(new)]
        tried = [(p, words) for p, words in tried if self.lexicon.allows(self.frames[p], words)]
        least = dict(zip(some, losses.tolist(), strict=True))
        for (p, words), loss in zip(tried, self.losses(tried), strict=True):
            if loss < least[p]:
                least[p], self.now[p] = loss, words

    def _chunks(self, some: Sequence[Any]) -> Iterator[Sequence[Any]]:
        """Texts whose samples are no more rows than go at once."""
        many = max(1, self.settings.at_once // self.settings.batch_size)
        for start in range(0, len(some), many):
            yield some[start : start + many]

    def _loss(self, some: Sequence[int], text: Text) -> Tensor:
        """The loss of each text, one of each of these prompts, on the step's samples."""
        numbers = self.samples.at(self.steps)
        own = {p: self.samples.of(p, numbers) for p in dict.fromkeys(some)}
        x, t, goal = (torch.cat([own[p][i] for p in some]) for i in range(3))
        made = predicted(self.parts, x, t, text.repeat_interleave(len(numbers)))
        squares = (made - goal.to(made.device)).square().flatten(1).mean(1)
        return squares.view(len(some), -1).mean(1)

    @torch.no_grad()
    def losses(self, tried: Sequence[tuple[int, Words]]) -> list[float]:
        """The loss of each of some prompts with words."""
        found: list[float] = []
        for chunk in self._chunks(tried):
            text = self.parts.encode([self.lexicon.text(self.frames[p], w) for p, w in chunk])
            found += self._loss([p for p, _ in chunk], text).tolist()
            self.samples.rows += len(chunk) * self.settings.batch_size
        return found

    def gradients(self, some: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """G of each prompt, (free, words) on the CPU, and the losses, with its words as they are.

        Raises:
            InputError: No gradient goes back through the text encoders.
        """
        found: list[Tensor] = []
        losses: list[Tensor] = []
        for chunk in self._chunks(some):
            texts = [self.lexicon.text(self.frames[p], self.now[p]) for p in chunk]
            with search.embedded(self.parts.pipe) as read:
                text = self.parts.encode_with_gradient(texts)
                search.check_learns(text, self.parts, "prompt")
                loss = self._loss(chunk, text)
                loss.sum().backward()
            # A row forward and back is three rows forward
            self.samples.rows += 3 * len(chunk) * self.settings.batch_size
            losses.append(loss.detach().cpu())
            found += self._of_words(chunk, texts, read)
        return found, torch.cat(losses)

    def _of_words(
        self, chunk: Sequence[int], texts: Sequence[str], read: "Mapping[str, search.Embedded]"
    ) -> list[Tensor]:
        """G = E g for each text's free tokens."""
        free = [self.frames[p].free for p in chunk]
        total = torch.zeros(sum(free), len(self.lexicon.words))
        for name, (stream, table, (tokens, starts)) in self.encoders.items():
            if name not in read or read[name].rows.grad is None:
                continue
            grad = read[name].rows.grad
            assert grad is not None
            g = []
            for i, p in enumerate(chunk):
                begin = _begin(read[name].ids[i].tolist(), stream.tokens(texts[i]))
                words = [self.lexicon.words[w] for w in self.now[p]]
                for span in self.frames[p].spans(stream, words):
                    g.append(grad[i, begin + span.start : begin + span.stop].float().sum(0))
            each = table.float() @ torch.stack(g).to(table.device).T
            total += functional.embedding_bag(
                tokens.to(each.device), each, starts.to(each.device), mode="mean"
            ).T.cpu()
        return list(total.split(free))


def _begin(ids: Sequence[int], tokens: Sequence[int]) -> int:
    """Where a text's tokens begin among those that an encoder read."""
    for start in range(len(ids) - len(tokens) + 1):
        if list(ids[start : start + len(tokens)]) == list(tokens):
            return start
    raise AssertionError("A text encoder read other tokens than its tokenizer gave.")


def on_simplex(rows: Tensor) -> Tensor:
    """The points of the simplex that are nearest to some, shape (n, dim).

        max(v − τ, 0)   with τ such that it adds up to 1

    By Michelot's iteration (1986): τ of all entries, then of those above it, until they stay.
    """
    above = torch.ones_like(rows, dtype=torch.bool)
    while True:
        count = above.sum(1, keepdim=True)
        level = ((rows * above).sum(1, keepdim=True) - 1) / count
        fewer = above & (rows > level)
        if torch.equal(fewer, above):
            return (rows - level).clamp_min(0) * above
        above = fewer
