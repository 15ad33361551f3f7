"""What a denoiser is told of its texts: its text inputs by their own names, a row a text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Text:
    """The text inputs of a denoiser for one text or several.

    Attributes:
        inputs: Each input by the denoiser's own name: a tensor (texts, …), or a list of a tensor
            a text where texts differ in length.
    """

    inputs: Mapping[str, Tensor | list[Tensor]]

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def __getitem__(self, which: slice | Tensor | Sequence[int]) -> "Text":
        """Some of the texts, or all of them in another order."""

        def rows(values: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
            if isinstance(values, Tensor):
                return values[which]
            if isinstance(which, slice):
                return values[which]
            return [values[int(i)] for i in which]

        return Text({name: rows(values) for name, values in self.inputs.items()})

    @property
    def first(self) -> Tensor:
        """One of the tensors, which tells where all are and in what precision."""
        values = next(iter(self.inputs.values()))
        return values if isinstance(values, Tensor) else values[0]

    def expand(self, count: int) -> "Text":
        """The only text that this is, so many times.

        It takes no memory where the inputs are tensors.
        """

        def rows(values: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
            if isinstance(values, list):
                return values * count
            return values.expand(count, *values.shape[1:])

        return Text({name: rows(values) for name, values in self.inputs.items()})

    def repeat_interleave(self, count: int) -> "Text":
        """Each text so many times, one after another."""
        return self[torch.arange(len(self)).repeat_interleave(count)]

    def to(self, like: Tensor) -> "Text":
        """The texts where a tensor is; what is a floating-point number, in its precision too."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(like) if tensor.is_floating_point() else tensor.to(like.device)

        return self.map(moved)

    def cpu(self) -> "Text":
        """The texts on the CPU."""
        return self.map(Tensor.cpu)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Text":
        """The texts with each tensor changed."""
        return Text(
            {
                name: change(values)
                if isinstance(values, Tensor)
                else [change(one) for one in values]
                for name, values in self.inputs.items()
            }
        )

    def equals(self, other: "Text") -> bool:
        """Whether the other says the same, bit for bit."""
        if self is other:
            return True
        if self.inputs.keys() != other.inputs.keys() or len(self) != len(other):
            return False
        return all(_equal(self.inputs[name], other.inputs[name]) for name in self.inputs)

    @staticmethod
    def cat(texts: Sequence["Text"]) -> "Text":
        """All texts of several, one after another.

        Sequences of another length are filled up with zeros, and so are their masks, which leaves
        out what was filled up.
        """
        return Text(
            {name: _joined([text.inputs[name] for text in texts]) for name in texts[0].inputs}
        )


def _equal(one: Tensor | list[Tensor], other: Tensor | list[Tensor]) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return len(one) == len(other) and all(map(_equal, one, other))


def _joined(values: Sequence[Tensor | list[Tensor]]) -> Tensor | list[Tensor]:
    if any(isinstance(one, list) for one in values):
        return [tensor for one in values for tensor in one]
    tensors = [one for one in values if isinstance(one, Tensor)]
    if tensors[0].ndim > 1 and len({tensor.shape[1] for tensor in tensors}) > 1:
        longest = max(tensor.shape[1] for tensor in tensors)
        tensors = [padded(tensor, longest) for tensor in tensors]
    return torch.cat(tensors)


def padded(tensor: Tensor, length: int) -> Tensor:
    """A tensor (texts, tokens, …) filled up with zeros to so many tokens."""
    more = (0, 0) * (tensor.ndim - 2)
    return functional.pad(tensor, (*more, 0, length - tensor.shape[1]))
