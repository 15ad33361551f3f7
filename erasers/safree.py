"""SAFREE: the prompt's words that lie near a concept are moved out of its subspace.

Yoon et al., "SAFREE: Training-Free and Adaptive Guard for Safe Text-to-Image and Video
Generation", ICLR 2025 (https://arxiv.org/abs/2410.12761). With C the pooled embeddings of the
concept's phrases, p_i the prompt's pooled embedding while its i-th token is masked, I those of
all tokens, e the embedding of a token that cross attention reads, and P the orthogonal projection
onto what vectors span,

    d_i = ‖(I − P_C) p_i‖                    how far the prompt is from the concept without token i
    token i is a trigger  ⇔  d_i ≥ (1 + α) · mean of d_j over j ≠ i
    e′ = (I − P_C) P_I e                     takes the place of e where the token is a trigger
    β = 1 − mean of cos(e, e′) over the prompt's tokens
    step i of 50, from 0, reads e′  ⇔  i ≤ round(10 σ(5 (10 β − 5.333))), and else e

Nothing is trained and the denoiser has no further rows; a prompt costs one batch of the text
encoder, of a row a token. A prompt without a trigger gives the base model's image. What other
tokens have heard of a trigger in the text encoder stays in them. Anchors and what is to be kept
have no place in it.

Where the paper leaves a choice, the authors' code decides: a token is masked by the token of id 0
in its place, β counts begin- and end-of-text as well, and the one token of a prompt, which has no
others, is a trigger always. The paper's re-attention, which damps low frequencies of the skip
features (scales 0.9 and 0.2), is not here; nor, unless ``negative`` is set, the negative prompt of
the published code.

What is known to undo it: prompts that were written against other models, Ring-A-Bell's by 55.8 %
and P4D's by 40.8 % (table 1 of https://arxiv.org/abs/2501.19066); an embedding that is given in a
prompt's place is not read, and so not steered.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional

from .._errors import InputError
from .._reading import read
from .._settings import NotNegative, Range, check
from ..pipelines.erasure import Erasure
from ..pipelines.guidance import Guide, Start
from ..pipelines.parts import Encoder, Parts
from ..pipelines.text import Text
from ..prompts import Concept
from ..records import Record
from ..training.record import encode_concepts, guidance
from . import Eraser


@dataclass(frozen=True)
class SAFREE(Eraser):
    """SAFREE without re-attention. The defaults are the authors' for nudity, "style" for a style.

    Attributes:
        margin: α, by how much the distance without a trigger stands out, relative.
        validate: Whether β says how many steps read the moved text; if not, all do.
        limit: The last step that β can ask for, of 50; of another number as great a share.
        sharpness: How fast their number grows with β.
        midpoint: Ten times the β that asks for half of ``limit``.
        negative: Whether the phrases also take the place of the negative prompt, as in the
            published code, whose figures therefore include it.
    """

    margin: NotNegative = 0.01
    validate: bool = True
    limit: Annotated[int, Range(least=0, most=50)] = 10
    sharpness: NotNegative = 5.0
    midpoint: float = 5.333
    negative: bool = False

    needs = "text"
    honours_keep = False
    honours_anchor = False
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "style": {"sharpness": 7.0, "midpoint": 5.5},
        "every-step": {"validate": False},
        "with-negative": {"negative": True},
    }

    def __post_init__(self) -> None:
        check(self)

    def fit(
        self,
        parts: Parts,
        concepts: Sequence[Concept],
        *,
        seed: int = 0,
        progress: Callable[[float], None] = lambda done: None,
    ) -> Erasure:
        progress(1.0)
        return guidance(parts, "safree", self, concepts, seed)


def guide(record: Record, parts: Parts) -> Start:
    """What makes the guide of a record, for a trajectory.

    Raises:
        InputError: Its settings are none of this method's.
    """
    settings = read(SAFREE, record.settings, "The record: settings of safree", defaults=True)
    phrases = [phrase for concept in record.concepts for phrase in concept.phrases]
    encoders = parts.encoders()
    if not encoders:
        raise InputError(
            "safree masks each word in a pooled embedding of the prompt, and the text encoder of "
            f"a {type(parts.pipe).__name__} has none: take sld or negative, or a method that "
            "edits the weights."
        )
    concepts = [
        span(torch.cat([pooled(parts.pipe, encoder, phrase)[:1] for phrase in phrases]))
        for encoder in encoders
    ]
    negative = None
    if settings.negative:
        negative = encode_concepts(parts, record.concepts, negative=True)

    def start(steps: int, prompts: Sequence[str]) -> Guide:
        if not prompts:
            raise InputError(
                "safree reads the prompt's words, and this call has embeddings in their place: "
                "pass prompt, not prompt_embeds."
            )
        masked = {
            prompt: [pooled(parts.pipe, encoder, prompt) for encoder in encoders]
            for prompt in dict.fromkeys(prompts)
        }
        own = [masked[prompt] for prompt in prompts]
        columns = [encoder.columns for encoder in encoders]
        return _Guide(settings, steps, concepts, columns, own, negative)

    return start


@torch.no_grad()
def pooled(pipe: Any, encoder: Encoder, text: str) -> Tensor:
    """The pooled embedding of a text as it is, and with each of its tokens masked in turn.

    Returns:
        Shape (1 + tokens, dim), float32, the first row the text as it is, on the CPU.
    """
    model: Any = encoder.model
    words = pipe.maybe_convert_prompt(text, encoder.tokenizer)
    ids = encoder.tokenizer(words, truncation=True, return_tensors="pt").input_ids.to(model.device)
    # Row i masks token i; begin-of-text, token 0, stays, so that row 0 masks none.
    rows = ids.repeat(ids.shape[1] - 1, 1)
    rows.diagonal()[1:] = 0
    # What the sequence is of too, before any projection
    found = getattr(model, "text_model", model)(rows)
    return cast(Tensor, found.pooler_output.float().cpu())


def span(vectors: Tensor) -> Tensor:
    """An orthonormal basis of what vectors (n, dim) span, shape (rank, dim), float64."""
    _, scales, basis = torch.linalg.svd(vectors.double(), full_matrices=False)
    # A direction that is no more than float32's rounding is none. What a model in half precision
    # rounds off is far more, and as large as directions that do count.
    kept: Tensor = basis[scales > scales[0] * len(vectors) * torch.finfo(torch.float32).eps]
    return kept


def project(vectors: Tensor, basis: Tensor) -> Tensor:
    """P v for each vector (…, dim), onto what an orthonormal basis (rank, dim) spans."""
    within: Tensor = vectors @ basis.T @ basis
    return within


def triggers(masked: Tensor, concept: Tensor, margin: float) -> Tensor:
    """Which tokens of a prompt bring it near the concept.

    Args:
        masked: The prompt's pooled embedding as it is and without each token, (1 + tokens, dim).
        concept: A basis of the concept's subspace.
        margin: α.

    Returns:
        Shape (tokens,), bool.
    """
    each = masked[1:].double()
    d = (each - project(each, concept)).norm(dim=1)
    others = (d.sum() - d) / (len(d) - 1)
    # Of the only token the others' mean is not a number, and nothing is below that.
    found: Tensor = ~(d < (1 + margin) * others)
    return found


@dataclass
class _Guide:
    settings: SAFREE
    steps: int
    concepts: Sequence[Tensor]
    columns: Sequence[slice]
    masked: Sequence[Sequence[Tensor]]
    negative: Text | None
    begins: ClassVar[int] = 0
    changes: Collection[int] = ()

    def before(self, step: int, empty: Text, prompt: Text) -> tuple[Text, Text, Sequence[Text]]:
        if self.negative is not None:
            empty = self.negative.to(empty.first).expand(len(empty))
        name, given = next(iter(prompt.inputs.items()))
        assert isinstance(given, Tensor)
        moved, ends = given.clone(), []
        for row, masked in enumerate(self.masked):
            # Each text encoder's own columns, by its own pooled embedding
            for columns, concept, own in zip(self.columns, self.concepts, masked, strict=True):
                text, end = self.filtered(given[row, :, columns].cpu().double(), own, concept)
                ends.append(end)
                if step < end:
                    moved[row, :, columns] = text.to(given)
        self.changes = ends
        return empty, Text({**prompt.inputs, name: moved}), ()

    def filtered(self, e: Tensor, masked: Tensor, concept: Tensor) -> tuple[Tensor, int]:
        """A prompt's text (tokens, dim) with its triggers moved, and how many steps read it."""
        s, count = self.settings, len(masked) - 1
        hit = torch.zeros(len(e), dtype=torch.bool)
        hit[1 : 1 + count] = triggers(masked, concept, s.margin)
        if not hit.any():
            return e, 0
        inside = project(e, span(masked[1:]))
        clean = inside - project(inside, concept)
        text = torch.where(hit[:, None], clean, e)
        if not s.validate:
            return text, self.steps
        words = slice(count + 2)
        beta = 1 - float(functional.cosine_similarity(e[words], clean[words]).mean())
        share = torch.tensor(s.sharpness * (10 * beta - s.midpoint), dtype=e.dtype).sigmoid()
        return text, 1 + round(s.limit * float(share) * self.steps / 50)

    def after(
        self, step: int, empty: Tensor, prompt: Tensor, more: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        return empty, prompt
