"""What attacks by words choose from: the words of a tokenizer, and which texts count.

A text is ordinary: it is tokenised, decoded and tokenised again to the same tokens, so that it
can be typed. And it is an attack: a prompt with it nowhere says the concept's whole phrase.
"""

import itertools
import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..pipelines.parts import Parts, Stream
from ..prompts import Concept
from ..training.search import encoders
from .kinds.text import phrases_in


def vocabulary(stream: Stream) -> dict[str, int]:
    """The words that are one token each, and that token.

    They have a letter, or are symbols beyond ASCII such as emoji; a piece that only stands within
    words is none, as the text that it is tokenises to other tokens.
    """
    special = set(stream.tokenizer.all_special_ids)
    found = {}
    for token in sorted(set(stream.tokenizer.get_vocab().values()) - special):
        word = stream.tokenizer.decode([token]).strip()
        told = any(c.isalpha() for c in word) or not word.isascii()
        if told and word.isprintable() and " " not in word and stream.tokens(word) == [token]:
            found[word] = token
    return found


def survives(parts: Parts, text: str) -> bool:
    """Whether a text's tokens say the same text again, in each of the tokenizers."""
    for stream in parts.streams():
        tokens = stream.tokens(text)
        if not tokens or not set(tokens).isdisjoint(stream.tokenizer.all_special_ids):
            return False
        if stream.tokens(stream.tokenizer.decode(tokens).strip()) != tokens:
            return False
    return True


def fits(parts: Parts, text: str) -> bool:
    """Whether no tokenizer cuts a text."""
    return all(len(stream.tokens(text)) <= stream.room for stream in parts.streams())


def own_words(concept: Concept) -> set[str]:
    """The letters of a concept's own words; of a phrase of short ones alone, all its letters.

    >>> sorted(own_words(Concept("kitchen knife")))
    ['kitchen', 'knife']
    >>> sorted(own_words(Concept("nudity", phrases=("nude", "a nude person"))))
    ['nude', 'nudity', 'person']
    """
    found = set()
    for phrase in (concept.name, *concept.phrases):
        words = [letters(word) for word in phrase.split()]
        found |= {word for word in words if len(word) > 2} or {letters(phrase)}
    return found - {""}


def says_own(text: str, concept: Concept) -> bool:
    """Whether a text has a concept's own words in it by letters, however they are spaced.

    >>> says_own("kit chenware", Concept("kitchen knife"))
    True
    """
    said = letters(text)
    return any(word in said for word in own_words(concept))


def says_phrase(text: str, concept: Concept) -> bool:
    """Whether a text says the concept's name or one of its phrases, which is no attack."""
    return phrases_in([concept]).search(text) is not None


def letters(text: str) -> str:
    """A text's letters and digits, whatever their case."""
    return "".join(c for c in text.casefold() if c.isalnum())


def misspellings(phrase: str) -> list[str]:
    """A phrase with one letter dropped, doubled, or swapped with the next; joined; hyphenated.

    >>> misspellings("a cat")[:4]
    ['cat', 'aa cat', 'a at', 'a ccat']
    >>> misspellings("a cat")[-2:]
    ['acat', 'a-cat']
    """
    found = []
    for i, letter in enumerate(phrase):
        if not letter.isalpha():
            continue
        found += [phrase[:i] + phrase[i + 1 :], phrase[:i] + letter + phrase[i:]]
        after = phrase[i + 1 : i + 2]
        if after.isalpha() and after != letter:
            found.append(phrase[:i] + after + letter + phrase[i + 2 :])
    parts = re.split(r"[\s-]+", phrase)
    found += [mark.join(parts) for mark in ("", "-", " ")]
    tidy = (" ".join(text.split()) for text in found)
    return [text for text in dict.fromkeys(tidy) if text and text != phrase]


def pairs(words: Sequence[str]) -> list[str]:
    """Every two of some words, in both orders."""
    return [f"{one} {other}" for one, other in itertools.permutations(words, 2)]


def nearness(parts: Parts, tokens: Sequence[int], concept: Concept) -> Tensor:
    """The cosine of words' own embeddings with the nearest of a concept's phrases, shape (n,).

    A phrase's is the mean of its tokens'. It looks at no prediction and no image.
    """
    stream = parts.streams()[0]
    for name, module in encoders(parts.pipe).items():
        if getattr(parts.pipe, name.replace("text_encoder", "tokenizer")) is stream.tokenizer:
            # Written for any module; transformers' say which one their embeddings are
            table = module.get_input_embeddings().weight.detach()  # type: ignore[operator]
            means = [table[stream.tokens(p)].float().mean(0) for p in concept.phrases]
            phrases = functional.normalize(torch.stack(means), dim=1)
            return (functional.normalize(table[list(tokens)].float(), dim=1) @ phrases.T).amax(1)
    return torch.zeros(len(tokens))
