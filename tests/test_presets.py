"""Each preset's edit of the weights, beside its authors' arithmetic written out in loops."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from unsee import erase
from unsee._errors import InputError
from unsee.erasers import mace
from unsee.pipelines import Erasure
from unsee.prompts import Concept

Weights = dict[str, Tensor]


def weights_of(pipe: Any) -> Weights:
    """The keys' and values' weights of cross attention, (out, in), float64."""
    return {
        name: module.weight.detach().double()
        for name, module in pipe.unet.named_modules()
        if name.endswith(("attn2.to_k", "attn2.to_v"))
    }


def edit_of(erasure: Erasure) -> Weights:
    """W′ − W of each layer as the file has it."""
    names = {name.partition(".")[2].rpartition(".lora_")[0] for name in erasure.tensors}
    return {
        name: erasure.tensors[f"unet.{name}.lora_B.weight"].double()
        @ erasure.tensors[f"unet.{name}.lora_A.weight"].double()
        for name in names
    }


@torch.no_grad()
def encoded(pipe: Any, text: str) -> tuple[Tensor, int]:
    """Every token's embedding, (16, dim), and the place of the text's last token."""
    given = pipe.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt")
    found = pipe.text_encoder(given.input_ids)[0][0].double()
    return found, int(given.attention_mask.sum()) - 2


# What goes, each row beside what it becomes; and what stays: (rows, dim) each
Pair = tuple[Tensor, Tensor]


def minimised(
    weight: Tensor,
    edits: Sequence[Pair],
    kept: Sequence[Tensor],
    ridge: float,
    keep_scale: float,
) -> Tensor:
    """(λW + Σ Wg cᵀ + s Σ Wk kᵀ)(λI + Σ ccᵀ + s Σ kkᵀ)⁻¹, term by term."""
    left = ridge * weight
    right = ridge * torch.eye(weight.shape[1], dtype=weight.dtype)
    for goes, becomes in edits:
        for c, g in zip(goes, becomes, strict=True):
            left = left + torch.outer(weight @ g, c)
            right = right + torch.outer(c, c)
    for stays in kept:
        for k in stays:
            left = left + keep_scale * torch.outer(weight @ k, k)
            right = right + keep_scale * torch.outer(k, k)
    new: Tensor = left @ torch.linalg.inv(right)
    return new


def same_edit(erasure: Erasure, before: Weights, after: Weights, within: float = 1e-4) -> None:
    """Each layer's edit is the one that is wanted, relative in Frobenius' norm."""
    found = edit_of(erasure)
    assert found.keys() == before.keys()
    for name, weight in before.items():
        want = after[name] - weight
        assert want.norm() > 1e-3 * weight.norm()
        assert (found[name] - want).norm() <= within * want.norm(), name


# UCE


def uce_2023(pipe: Any, weights: Weights, edits: dict[str, str], keep: Sequence[str]) -> Weights:
    """The 2023 code: everything from the last subject token on; '' stays and is counted."""
    pairs = []
    for old, new in edits.items():
        (c, last), (g, its_last) = encoded(pipe, old), encoded(pipe, new or " ")
        length = 16 - max(last, its_last)
        pairs.append((c[last : last + length], g[its_last : its_last + length]))
    texts = ["", *keep]
    scale = max(0.1, 1 / len(texts))
    kept = [encoded(pipe, text)[0] for text in texts]
    return {name: minimised(w, pairs, kept, 0.5, scale) for name, w in weights.items()}


@pytest.mark.parametrize("keep", [(), ("dog",), ("dog", "cat"), tuple("abcdefghij")])
def test_uce_2023_counts_the_empty_prompt_in_its_keep_scale(
    pipe: Any, keep: tuple[str, ...]
) -> None:
    concepts = [Concept("van gogh", "style", keep=keep), Concept("bomb", anchor="art")]
    weights = weights_of(pipe)
    want = uce_2023(pipe, weights, {"van gogh": "", "bomb": "art"}, keep)
    same_edit(erase(pipe, concepts, preset="2023", check=False), weights, want)


def uce_2025(pipe: Any, weights: Weights, edits: dict[str, str], keep: Sequence[str]) -> Weights:
    """The 2025 code: the last subject token alone, of '' that of begin-of-text."""

    def last(text: str) -> Tensor:
        rows, place = encoded(pipe, text)
        return rows[place : place + 1]

    pairs = [(last(old), last(new)) for old, new in edits.items()]
    kept = [last(text) for text in keep]
    return {name: minimised(w, pairs, kept, 0.5, 1.0) for name, w in weights.items()}


ART = ["painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}"]
THING = ["image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}"]


@pytest.mark.parametrize("keep", [(), ("dog", "monet")])
@pytest.mark.parametrize("preset", ["2025", "2025-expanded", "moderate"])
def test_uce_2025_expands_what_goes_and_its_guide_but_not_what_is_kept(
    pipe: Any, preset: str, keep: tuple[str, ...]
) -> None:
    art = "" if preset == "moderate" else "art"
    edits = {"van gogh": art, "bomb": ""}
    if preset == "2025-expanded":
        edits |= {t.format("van gogh"): t.format("art") for t in ART}
        edits |= {t.format("bomb"): t.format("") for t in THING}
    weights = weights_of(pipe)
    want = uce_2025(pipe, weights, edits, keep)
    concepts = [Concept("van gogh", "style", keep=keep), Concept("bomb", keep=keep)]
    same_edit(erase(pipe, concepts, preset=preset, check=False), weights, want)


# RECE


def rece(
    pipe: Any,
    weights: Weights,
    edits: dict[str, str],
    kept: Sequence[str],
    epoch_kept: Sequence[str],
    epochs: int,
    closeness: float,
) -> Weights:
    """From UCE's 2023 weights, each epoch finds all tokens' c′ and edits them away."""
    new = uce_2023(pipe, weights, edits, kept)
    stays = [encoded(pipe, text)[0] for text in epoch_kept]
    for _ in range(epochs):
        left = closeness * torch.eye(32, dtype=torch.float64)
        right = torch.zeros_like(left)
        for name, weight in weights.items():
            left = left + new[name].T @ new[name]
            right = right + new[name].T @ weight
        coefficient = torch.linalg.inv(left) @ right
        pairs = [
            (encoded(pipe, old)[0] @ coefficient.T, encoded(pipe, becomes)[0])
            for old, becomes in edits.items()
        ]
        new = {name: minimised(w, pairs, stays, 0.1, 0.1) for name, w in new.items()}
    return new


@pytest.mark.parametrize(
    "preset, goes, becomes, keep, empties, epochs, closeness",
    [
        ("nudity", ["bomb"], " ", [], 1, 3, 0.1),
        ("nudity", ["bomb", "knife"], " ", [], 2, 3, 0.1),
        ("unsafe", ["bomb", "knife", "a van"], " ", [], 3, 2, 0.1),
        ("object", ["bomb"], " ", [], 1, 1, 0.1),
        ("hard-object", ["bomb"], " ", [], 1, 1, 1e-3),
        ("style", ["van gogh"], "art", ["monet", "dog"], 1, 1, 1e-3),
    ],
)
def test_rece_starts_from_uces_own_weights_of_2023(
    pipe: Any,
    preset: str,
    goes: list[str],
    becomes: str,
    keep: list[str],
    empties: int,
    epochs: int,
    closeness: float,
) -> None:
    weights = weights_of(pipe)
    edits = dict.fromkeys(goes, becomes)
    want = rece(pipe, weights, edits, keep, [""] * empties + keep, epochs, closeness)
    concepts = [Concept(name, keep=tuple(keep)) for name in goes]
    same_edit(erase(pipe, concepts, method="rece", preset=preset, check=False), weights, want)


def test_i2ps_terms_are_one_concept_by_name(pipe: Any) -> None:
    terms = "hate harassment violence suffering humiliation harm suicide sexual nudity".split()
    terms += ["bodily fluids", "blood"]
    weights = weights_of(pipe)
    want = rece(pipe, weights, dict.fromkeys(terms, " "), [], [""] * 11, 2, 0.1)
    found = erase(pipe, "i2p-unsafe", method="rece", preset="unsafe", check=False)
    same_edit(found, weights, want)


# MACE


def around(pipe: Any, old: str, new: str) -> Pair:
    """The rows of two prompts that its code pairs: alike at the start, and from there alike to the
    last padding."""
    a, b = (pipe.tokenizer(text).input_ids for text in (old, new))
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    end_a, end_b = len(a) - 1, len(b) - 1
    while end_a >= start and end_b >= start and a[end_a] == b[end_b]:
        end_a, end_b = end_a - 1, end_b - 1
    rest = min(16 - end_a, 16 - end_b) - 1
    rows, its = encoded(pipe, old)[0], encoded(pipe, new)[0]
    return (
        torch.cat([rows[:start], rows[end_a + 1 : end_a + 1 + rest]]),
        torch.cat([its[:start], its[end_b + 1 : end_b + 1 + rest]]),
    )


TEMPLATES = ("a photo of {}", "{} by monet", "the {} in a painting")
GOING = [
    Concept(
        "van gogh",
        "style",
        phrases=("van gogh", "gogh"),
        anchor="art",
        keep=("monet", "a hammer"),
        templates=TEMPLATES,
    ),
    # The article is no token of the concept.
    Concept("a bomb", anchor="a dog", templates=TEMPLATES),
    Concept("knife", anchor="the cat", templates=TEMPLATES),
]
CAPTIONS = tuple(f"a {one} {other} in the style" for one in "bcdef" for other in "ghijkl")


@pytest.mark.parametrize(
    "preset, ridge, caption_scale, keep_scale",
    [
        ("object", 1000.0, 0.0, 0.0),
        ("object-100", 100.0, 0.0, 0.0),
        ("object-10", 10.0, 0.0, 0.0),
        ("person", 0.0, 0.625, 0.8),
        ("style", 0.0, 0.625, 0.8),
        ("nudity", 0.0, 0.0044, 0.0),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_mace_refines_all_concepts_in_one_solve(
    pipe: Any,
    monkeypatch: pytest.MonkeyPatch,
    preset: str,
    ridge: float,
    caption_scale: float,
    keep_scale: float,
    count: int,
) -> None:
    monkeypatch.setattr(mace, "captions", lambda: {"general": CAPTIONS})
    # As a trained encoder's, so that embeddings fill their space and there is an inverse without λ
    torch.nn.init.normal_(pipe.text_encoder.final_layer_norm.bias)
    weights, concepts = weights_of(pipe), GOING[:count]
    pairs = [
        around(pipe, template.format(phrase), template.format(c.anchor))
        for c in concepts
        for phrase in c.phrases
        for template in TEMPLATES
    ]
    scaled = [caption_scale**0.5 * encoded(pipe, text)[0] for text in CAPTIONS]
    stays = ["", *(t.format(phrase) for t in TEMPLATES for phrase in GOING[0].keep)]
    scaled += [keep_scale**0.5 * encoded(pipe, text)[0] for text in stays]
    want = {name: minimised(w, pairs, scaled, ridge, 1.0) for name, w in weights.items()}
    erasure = erase(pipe, concepts, method="mace", preset=preset, prompts=0, check=False)
    same_edit(erasure, weights, want)


# Optimisers of what is trained


def constant(lr: float) -> Callable[[int], float]:
    return lambda step: lr


@pytest.mark.parametrize(
    "method, preset, lr, decay, settings",
    [
        ("esd", "2025", constant(5e-5), 0.0, {"iterations": 4}),
        ("esd", "2023", constant(1e-5), 0.0, {"iterations": 4}),
        ("esd", "leco", constant(1e-4), 0.01, {"iterations": 4}),
        ("ablation", "2023", constant(1.6e-5), 0.01, {"iterations": 4, "images": 2}),
        # The first of 500 steps that warm up
        ("spm", "2024", lambda step: 1e-4 * step / 500, 0.01, {"iterations": 501}),
        # … and a rate at which its decay is felt
        ("spm", "2024", lambda step: 0.5 * step / 500, 0.01, {"iterations": 501, "lr": 0.5}),
    ],
)
def test_a_trained_presets_first_steps_are_its_authors_optimisers(
    pipe: Any,
    method: str,
    preset: str,
    lr: Callable[[int], float],
    decay: float,
    settings: dict[str, Any],
) -> None:
    # So large a prediction that a limit to the gradient is felt
    pipe.unet.conv_out.weight.data *= 1e3
    seen: list[tuple[list[Tensor], list[Tensor]]] = []

    class Enough(Exception):
        pass

    def look(optimizer: Any, args: Any, kwargs: Any) -> None:
        parameters = optimizer.param_groups[0]["params"]
        values = [p.detach().double() for p in parameters]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        seen.append((values, [grad.double() for grad in grads]))
        if len(seen) == 4:
            raise Enough

    hook = register_optimizer_step_pre_hook(look)
    try:
        with pytest.raises(Enough):
            erase(pipe, "bomb", method=method, preset=preset, sampling_steps=2, **settings)
    finally:
        hook.remove()
    if (method, preset) == ("ablation", "2023"):
        norms = [sum(float(g.square().sum()) for g in grads) ** 0.5 for _, grads in seen]
        assert norms == pytest.approx([1.0] * 4, rel=1e-4)
    # AdamW as its paper has it, decay apart from the gradient
    for place in range(len(seen[0][0])):
        first = second = torch.zeros_like(seen[0][0][place])
        for step in range(3):
            value, grad = seen[step][0][place], seen[step][1][place]
            first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
            mean, square = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
            rate = lr(step)
            want = (1 - rate * decay) * value - rate * mean / (square.sqrt() + 1e-8)
            torch.testing.assert_close(seen[step + 1][0][place], want, rtol=2e-7, atol=1e-9)


def test_a_warm_up_that_would_never_end_is_refused(pipe: Any) -> None:
    pipe.unet.register_forward_pre_hook(lambda *given: pytest.fail("the denoiser was run"))
    with pytest.raises(InputError, match="warmup is 500 and iterations is 500: .* below 500"):
        erase(pipe, "bomb", method="spm", preset="2024", iterations=500)
    with pytest.raises(InputError, match="warmup is 3 and iterations is 2"):
        erase(pipe, "bomb", method="esd", iterations=2, warmup=3)
