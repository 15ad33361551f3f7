"""Other words: in the place of the concept's phrases, or of a whole prompt."""

import dataclasses
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from ...prompts import Concept, Prompt

if TYPE_CHECKING:
    from ..attacked import Attacked


def changes_model(attacked: "Attacked") -> bool:
    return False


def prompt(attacked: "Attacked", prompt: Prompt) -> Prompt:
    record = attacked.record
    words = record.prompts.get(prompt.prompt)
    if words is None and record.text is not None:
        words = put_in(prompt.prompt, record.concept, record.text)
    return (
        prompt if words is None else dataclasses.replace(prompt, prompt=words, unit=unit(prompt))
    )


def applied(attacked: "Attacked", pipe: Any) -> AbstractContextManager[None]:
    return nullcontext()


def unit(prompt: Prompt) -> str:
    """The unit of independent evidence that a row has, whatever is put into its prompt."""
    return prompt.unit or prompt.prompt


def put_in(prompt: str, concept: Concept, text: str) -> str:
    """A prompt with a text in the place of the concept's phrases; behind it, where it has none.

    >>> put_in("a photo of a Cat", Concept("cat"), "dog")
    'a photo of a dog'
    >>> put_in("something that meows", Concept("cat"), "dog")
    'something that meows, dog'
    """
    said = phrases_in([concept])
    found, count = said.subn(lambda _: text, prompt)
    return found if count else f"{prompt}, {text}"


def phrases_in(concepts: Sequence[Concept]) -> "re.Pattern[str]":
    """A pattern of concepts' names and phrases, the longest first, whatever their case."""
    phrases = {phrase for c in concepts for phrase in (c.name, *c.phrases)}
    ordered = sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
    spaced = (r"\s+".join(map(re.escape, phrase.split())) for phrase in ordered)
    return re.compile(r"(?<!\w)(?:" + "|".join(spaced) + r")(?!\w)", re.IGNORECASE)
