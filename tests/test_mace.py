"""MACE's closed form, beside the paper's two minimisations written out layer by layer."""

from typing import Any

import pytest
import torch
from torch import Tensor

from unsee._errors import InputError
from unsee.erasers import mace
from unsee.erasers.mace import MACE, aligned
from unsee.pipelines import parts_of
from unsee.prompts import Concept

VAN_GOGH = Concept("van gogh", "style", keep=("monet",), templates=("{}", "a {} photo"))
BOMB = Concept("bomb", keep=("dog", "cat"))
CAPTIONS = ("a dog by monet", "a painting of the hammer in a caption that is much too long")


@pytest.fixture(autouse=True)
def short_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions that a tokenizer of 14 tokens has room for, but for one."""
    monkeypatch.setattr(mace, "captions", lambda: {"general": CAPTIONS})


def words(parts: Any) -> list[tuple[Tensor, Tensor]]:
    """f and g of the two concepts, their tokens aligned by hand: 16 a prompt."""
    texts = ["van gogh", "art", "a van gogh photo", "a art photo", "bomb", ""]
    van_gogh, art, a_van_gogh, an_art, bomb, nothing = parts.encode(texts).first.double()
    styles = (
        torch.cat([van_gogh, a_van_gogh]),
        # gogh becomes art, and so does van; what follows moves up by one
        torch.cat([art[[0, 1, 1, *range(2, 15)]], an_art[[0, 1, 2, 2, *range(3, 15)]]]),
    )
    return [styles, (bomb, nothing[[0, *range(15)]])]


def prior(parts: Any, *kept: str) -> Tensor:
    tokens = parts.encode(list(kept)).first.double().flatten(0, 1)
    general = parts.encode(["a dog by monet"]).first.double().flatten(0, 1)
    return torch.add(0.05 * tokens.T @ tokens, 0.01 * general.T @ general)


def refined(weight: Tensor, f: Tensor, values: Tensor, p: Tensor, ridge: float) -> Tensor:
    """(Σ v fᵀ + W P + λW)(Σ f fᵀ + P + λI)⁻¹, where f is to give the values v."""
    left = values.T @ f + weight @ p + ridge * weight
    right = f.T @ f + p + ridge * torch.eye(len(p), dtype=p.dtype)
    return torch.matmul(left, torch.linalg.inv(right))


SETTINGS = MACE(prompts=0)


def edited(parts: Any, settings: MACE, concepts: list[Concept]) -> dict[str, Tensor]:
    rows = settings.rows(parts, concepts)["sequence"]
    left, right = rows.solve(1.0, 1.0, settings.ridge)
    return {
        name: layer.weight.detach().double() @ (torch.eye(len(left)).double() + left @ right)
        for name, layer in parts.readers()["sequence"].layers.items()
    }


def test_one_concept_is_refined_as_layer_by_layer(pipe: Any) -> None:
    parts = parts_of(pipe)
    f, g = words(parts)[0]
    p = prior(parts, "monet", "a monet photo", "")
    for name, new in edited(parts, SETTINGS, [VAN_GOGH]).items():
        weight = parts.readers()["sequence"].layers[name].weight.detach().double()
        want = refined(weight, f, g @ weight.T, p, 10.0)
        assert (want - weight).abs().max() > 1e-3
        torch.testing.assert_close(new, want, rtol=0, atol=1e-9)


def test_two_concepts_are_refined_together_layer_by_layer(pipe: Any) -> None:
    parts = parts_of(pipe)
    pairs = words(parts)
    p = prior(parts, "monet", "a monet photo", "dog", "cat", "")
    erasure = MACE(prompts=0, residual=1e-9).fit(parts, [VAN_GOGH, BOMB])
    f, g = (torch.cat(side) for side in zip(*pairs, strict=True))
    for name, new in edited(parts, SETTINGS, [VAN_GOGH, BOMB]).items():
        weight = parts.readers()["sequence"].layers[name].weight.detach().double()
        want = refined(weight, f, g @ weight.T, p, 10.0)
        torch.testing.assert_close(new, want, rtol=0, atol=1e-9)
        a, b = (erasure.tensors[f"unet.{name}.lora_{side}.weight"].double() for side in "AB")
        torch.testing.assert_close(weight + b @ a, want, rtol=0, atol=2e-5)


def test_the_paper_leaves_the_phrase_itself_to_its_lora(pipe: Any) -> None:
    parts = parts_of(pipe)
    f, g = words(parts)[1]
    around = [0, *range(2, 16)]
    p = prior(parts, "dog", "cat", "")
    for name, new in edited(parts, MACE(prompts=0, tokens="around"), [BOMB]).items():
        weight = parts.readers()["sequence"].layers[name].weight.detach().double()
        want = refined(weight, f[around], g[around] @ weight.T, p, 10.0)
        torch.testing.assert_close(new, want, rtol=0, atol=1e-9)


def test_the_order_of_concepts_does_not_matter(pipe: Any) -> None:
    parts = parts_of(pipe)
    one = edited(parts, SETTINGS, [VAN_GOGH, BOMB])
    two = edited(parts, SETTINGS, [BOMB, VAN_GOGH])
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-9)


def test_what_its_anchor_encodes_to_already_is_let_be(pipe: Any) -> None:
    parts = parts_of(pipe)
    # One letter to the tokenizer, two texts to us
    same = [
        Concept("caf\u00e9", anchor="cafe\u0301", keep=("dog",)),
        Concept("b\u00e9", anchor="be\u0301"),
    ]
    for name, new in edited(parts, SETTINGS, same).items():
        torch.testing.assert_close(
            new,
            parts.readers()["sequence"].layers[name].weight.detach().double(),
            rtol=0,
            atol=1e-9,
        )


@pytest.mark.parametrize(
    "phrase, anchor, tokens",
    [
        ("van gogh cat", "dog photo", [1, 1, 2]),
        ("cat", "dog photo", [2]),
        ("van gogh", "", [0, 0]),
        ("a bomb", "a cat", [2]),
    ],
)
def test_a_phrase_and_its_anchor_are_aligned_at_their_ends(
    pipe: Any, phrase: str, anchor: str, tokens: list[int]
) -> None:
    concept = Concept(phrase, anchor=anchor)
    _, ((_, (own,)), (_, (its,))), _ = MACE(prompts=0)._pairs(parts_of(pipe), concept)
    last = parts_of(pipe).streams()[0].position(phrase)
    assert own.fixed == tuple(range(last + 1 - len(tokens), last + 1))
    assert its.fixed == tuple(tokens)


@pytest.mark.parametrize(
    "goes, becomes, found",
    [
        ([0, 5, 9], [0, 6, 9], (1, 1, 1)),
        ([0, 5, 6, 9], [0, 5, 7, 8, 9], (2, 2, 3)),
        # What is shared at the start is not counted at the end as well.
        ([0, 5, 6, 6, 9], [0, 5, 6, 9], (3, 3, 2)),
        ([0, 5, 9], [0, 5, 9], (3, 2, 2)),
    ],
)
def test_the_tokens_of_a_concept_are_those_that_its_anchors_prompt_has_not(
    goes: list[int], becomes: list[int], found: tuple[int, int, int]
) -> None:
    assert aligned(goes, becomes) == found


def test_a_phrase_is_put_into_as_many_prompts_as_there_is_room_for(pipe: Any) -> None:
    parts = parts_of(pipe)
    texts = [
        dict.fromkeys(text for pair in MACE(prompts=count)._pairs(parts, BOMB) for text, _ in pair)
        for count in (0, 3, 30)
    ]
    assert list(texts[0]) == ["bomb", ""]
    assert list(texts[1]) == [
        "bomb",
        "",
        "a photo of bomb",
        "a photo of ",
        "an image of bomb",
        "an image of ",
    ]
    assert 6 < len(texts[2]) < 60 and "a photo of bomb at night" in texts[2]
    assert all(parts.streams()[0].position(text or "") <= 14 for text in texts[2])


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"ridge": -1.0}, "ridge"),
        ({"keep_scale": -1.0}, "keep_scale"),
        ({"prior_scale": -1.0}, "prior_scale"),
        ({"prompts": -1}, "prompts"),
        ({"tokens": "last"}, "tokens"),
        ({"captions": "generel"}, "Did you mean 'general'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        MACE(**settings)
