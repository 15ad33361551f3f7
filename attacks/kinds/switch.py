"""A switch: the erasures come on at a step, and the base makes the steps before.

From that step on ``then`` stands in the prompts, where a record has it.
"""

from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from ...pipelines.weaken import late
from ...prompts import Concept, Prompt
from .text import phrases_in, put_in

if TYPE_CHECKING:
    from ..attacked import Attacked


def changes_model(attacked: "Attacked") -> bool:
    return bool(attacked.record.step) or attacked.record.then is not None


def prompt(attacked: "Attacked", prompt: Prompt) -> Prompt:
    return prompt


def applied(attacked: "Attacked", pipe: Any) -> AbstractContextManager[None]:
    record = attacked.record
    then = None if record.then is None else partial(rest, concept=record.concept, text=record.then)
    return late(pipe, record.step or 0, then)


def rest(prompt: str, concept: Concept, text: str) -> str:
    """What a prompt is from the step on: a text in the place of the concept's phrases.

    A prompt that has none of them calls up the concept by all its words, and goes as a whole.

    >>> rest("a photo of a Cat", Concept("cat"), "dog")
    'a photo of a dog'
    >>> rest("something that meows", Concept("cat"), "dog")
    'dog'
    """
    return put_in(prompt, concept, text) if phrases_in([concept]).search(prompt) else text
