"""UCE's mathematics, beside the paper's formula written out."""

import pytest
import torch
from torch import Tensor

from unsee._errors import InputError
from unsee.erasers.uce import UCE, Rows, gather, multiplier, paired, thin
from unsee.pipelines import Erasure, parts_of
from unsee.prompts import Concept


def problem(
    edited: int, kept: int, dim: int = 24, out: int = 10
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W (out, dim), C (edited + kept, dim), the edited rows' targets and scales, in float64."""
    draw = torch.Generator().manual_seed(edited + 7 * kept)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    rows = edited + kept
    return normal(out, dim), normal(rows, dim), normal(edited, dim), normal(rows).abs() + 0.1


def dense(
    weight: Tensor, sources: Tensor, targets: Tensor, scales: Tensor, ridge: float
) -> Tensor:
    """W′ = (λW + Σ sᵢ W gᵢ cᵢᵀ)(λI + Σ sᵢ cᵢcᵢᵀ)⁻¹, row by row as the authors' loop has it."""
    left = ridge * weight
    right = ridge * torch.eye(weight.shape[1], dtype=weight.dtype)
    for c, g, s in zip(sources, targets, scales, strict=True):
        left = left + s * torch.outer(weight @ g, c)
        right = right + s * torch.outer(c, c)
    return torch.matmul(left, torch.linalg.inv(right))


def edit(weight: Tensor, sources: Tensor, targets: Tensor, scales: Tensor, ridge: float) -> Tensor:
    left, right = multiplier(sources, targets, scales, len(targets), ridge)
    return weight + (weight @ left) @ right


@pytest.mark.parametrize("edited, kept", [(3, 5), (4, 40)])
def test_without_a_ridge_it_is_the_limit_of_small_ones(edited: int, kept: int) -> None:
    weight, sources, targets, scales = problem(edited, kept)
    none, small = (edit(weight, sources, targets, scales, ridge) for ridge in (0.0, 1e-9))
    torch.testing.assert_close(none, small, rtol=0, atol=1e-6)
    assert (none - weight).norm() > 0.1 * weight.norm()


SIZES = [(1, 0), (3, 5), (4, 40), (40, 3)]


@pytest.mark.parametrize("edited, kept", SIZES)
def test_it_is_the_dense_solution(edited: int, kept: int) -> None:
    weight, sources, targets, scales = problem(edited, kept)
    goals = torch.cat([targets, sources[edited:]])
    want = dense(weight, sources, goals, scales, 0.5)
    torch.testing.assert_close(
        edit(weight, sources, targets, scales, 0.5), want, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("edited, kept", SIZES)
def test_the_gradient_is_zero_at_the_solution(edited: int, kept: int) -> None:
    weight, sources, targets, scales = problem(edited, kept)
    new = edit(weight, sources, targets, scales, 0.5).requires_grad_()
    goals = torch.cat([targets, sources[edited:]])
    misses = (sources @ new.T - goals @ weight.T).square().sum(1)
    loss = (scales * misses).sum() + 0.5 * (new - weight).square().sum()
    (gradient,) = torch.autograd.grad(loss, new)
    assert gradient.abs().max() < 1e-9 * loss.item()


def test_keeping_alone_changes_nothing() -> None:
    weight, sources, targets, scales = problem(0, 9)
    torch.testing.assert_close(edit(weight, sources, targets, scales, 0.5), weight)


def test_erasing_to_itself_changes_nothing() -> None:
    weight, sources, _, scales = problem(3, 4)
    torch.testing.assert_close(edit(weight, sources, sources[:3], scales, 0.5), weight)


def test_a_greater_keep_scale_moves_what_is_kept_less() -> None:
    weight, sources, targets, _ = problem(3, 4)
    moved = []
    for scale in (0.0, 0.1, 1.0, 10.0, 100.0):
        scales = torch.tensor([1.0] * 3 + [scale] * 4, dtype=torch.float64)
        new = edit(weight, sources, targets, scales, 0.5)
        moved.append(float((sources[3:] @ (new - weight).T).norm()))
    assert moved == sorted(moved, reverse=True) and moved[-1] < 0.1 * moved[0]


@pytest.mark.parametrize("edited, kept", SIZES)
def test_the_order_of_rows_does_not_matter(edited: int, kept: int) -> None:
    weight, sources, targets, scales = problem(edited, kept)
    flip = torch.cat([torch.arange(edited).flip(0), edited + torch.arange(kept).flip(0)])
    torch.testing.assert_close(
        edit(weight, sources[flip], targets.flip(0), scales[flip], 0.5),
        edit(weight, sources, targets, scales, 0.5),
    )


def test_thin_keeps_the_product_with_the_fewest_columns() -> None:
    _, sources, targets, _ = problem(40, 0)
    left, right = (targets[:, :6] @ sources[:6, :]).T, sources
    a, b = thin(left, right, 1e-12)
    assert a.shape[1] == 6
    torch.testing.assert_close(a @ b, left @ right)


def test_thin_leaves_out_no_more_than_is_said() -> None:
    _, sources, targets, _ = problem(20, 0)
    product = targets.T @ sources
    a, b = thin(targets.T, sources, 0.3)
    assert a.shape[1] < 20
    assert (a @ b - product).norm() <= 0.3 * product.norm()


def rows(pipe: object, preset: str, concept: Concept) -> tuple[Tensor, Tensor, Tensor]:
    settings = UCE(**UCE.presets[preset])
    return settings.rows(parts_of(pipe), [concept])["sequence"][:3]


def test_the_2025_settings_take_the_last_subject_token(pipe: object) -> None:
    parts = parts_of(pipe)
    goes, becomes, stays = rows(pipe, "2025", Concept("van gogh", "style", keep=("claude monet",)))
    encoded = parts.encode(["van gogh", "art", "claude monet"]).first.double()
    last = [parts.streams()[0].position(text) for text in ("van gogh", "art", "claude monet")]
    assert last[0] == 2
    torch.testing.assert_close(goes, encoded[0, 2:3])
    torch.testing.assert_close(becomes, encoded[1, last[1] : last[1] + 1])
    torch.testing.assert_close(stays, encoded[2, last[2] : last[2] + 1])


def test_the_2025_settings_send_an_object_to_the_begin_of_text(pipe: object) -> None:
    _, becomes, _ = rows(pipe, "2025", Concept("bomb"))
    torch.testing.assert_close(becomes, parts_of(pipe).encode([""]).first.double()[0, :1])


def test_the_2023_settings_align_the_tails_and_keep_the_empty_prompt(pipe: object) -> None:
    goes, becomes, stays = rows(pipe, "2023", Concept("van gogh", "style"))
    encoded = parts_of(pipe).encode(["van gogh", ""]).first.double()
    torch.testing.assert_close(goes, encoded[0, 2:])
    torch.testing.assert_close(becomes, encoded[1, :14])
    torch.testing.assert_close(stays, encoded[1])


@pytest.mark.parametrize("preset", UCE.presets)
def test_the_file_holds_the_dense_edit_of_every_layer(pipe: object, preset: str) -> None:
    settings = UCE(**UCE.presets[preset])
    concepts = [
        Concept("van gogh", "style", keep=("monet", "dog")),
        Concept("bomb", keep=("hammer", "cat")),
    ]
    parts = parts_of(pipe)
    goes, becomes, stays, _ = settings.rows(parts, concepts)["sequence"]
    keep_scale = 1.0 if settings.keep_scale is None else settings.keep_scale
    # '' is kept beside the four
    keep_scale = 0.2 if preset == "2023" else keep_scale
    scales = torch.tensor([1.0] * len(goes) + [keep_scale] * len(stays), dtype=torch.float64)
    erasure: Erasure = settings.fit(parts, concepts)
    for name, layer in parts.readers()["sequence"].layers.items():
        want = dense(
            layer.weight.detach().double(),
            torch.cat([goes, stays]),
            torch.cat([becomes, stays]),
            scales,
            settings.ridge,
        )
        a = erasure.tensors[f"unet.{name}.lora_A.weight"].double()
        b = erasure.tensors[f"unet.{name}.lora_B.weight"].double()
        torch.testing.assert_close(layer.weight.detach().double() + b @ a, want, rtol=0, atol=2e-5)


def products(pipe: object, settings: UCE, concepts: list[Concept]) -> dict[str, Tensor]:
    tensors = settings.fit(parts_of(pipe), concepts).tensors
    names = {name.rpartition(".lora_")[0] for name in tensors}
    return {n: tensors[f"{n}.lora_B.weight"] @ tensors[f"{n}.lora_A.weight"] for n in names}


@pytest.mark.parametrize("preset", UCE.presets)
def test_the_order_of_concepts_does_not_matter(pipe: object, preset: str) -> None:
    settings = UCE(**UCE.presets[preset])
    concepts = [
        Concept("van gogh", "style", keep=("monet", "dog")),
        Concept("bomb", keep=("hammer", "cat")),
        Concept("knife", anchor="cat"),
    ]
    one, two = (products(pipe, settings, order) for order in (concepts, concepts[::-1]))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-4)


def test_what_its_anchor_encodes_to_already_is_let_be(pipe: object) -> None:
    # One letter to the tokenizer, two texts to us
    same = Concept("caf\u00e9", anchor="cafe\u0301", keep=("dog",))
    assert max(product.abs().max() for product in products(pipe, UCE(), [same]).values()) < 1e-9


def test_a_style_that_is_its_own_default_anchor_is_refused(pipe: object) -> None:
    with pytest.raises(InputError, match="'Art' is its own anchor"):
        UCE().fit(parts_of(pipe), [Concept("Art", "style")])


def test_moderation_makes_a_style_nothing(pipe: object) -> None:
    _, becomes, _ = rows(pipe, "moderate", Concept("van gogh", "style"))
    torch.testing.assert_close(becomes, parts_of(pipe).encode([""]).first.double()[0, :1])


def test_a_concept_without_templates_is_expanded_as_far_as_there_is_room(pipe: object) -> None:
    goes, becomes, stays = rows(pipe, "2025-expanded", Concept("bomb", keep=("cat",)))
    texts = ["bomb", "photo of bomb", "painting of bomb"]
    encoded = parts_of(pipe).encode(texts).first.double()
    for i, text in enumerate(texts):
        last = encoded[i, parts_of(pipe).streams()[0].position(text)]
        assert (goes - last).abs().sum(1).min() < 1e-5
    assert len(goes) == len(becomes) == 6 and len(stays) == 1
    long = Concept("bomb bomb bomb bomb bomb bomb")
    assert 1 < len(rows(pipe, "2025-expanded", long)[0]) < 6


def test_however_many_rows_there_are_the_edit_is_the_same() -> None:
    weight, sources, targets, _ = problem(300, 500)
    goals = targets + sources[:300]
    pairs = gather({"rows": some} for some in torch.cat([sources[:300], goals], 1).split(7))
    kept = gather({"rows": some} for some in sources[300:].split(7))["rows"].rows
    few = paired(pairs, {"rows": kept})["rows"]
    assert len(few.sources) < 300 and len(kept) <= 4 * 24
    assert few.norm == pytest.approx(float(sources[:300].square().sum(1).mean()))
    one, two = (
        weight @ left @ right
        for left, right in (
            Rows(sources[:300], goals, sources[300:], 1.0).solve(1.0, 0.05, 0.5),
            few.solve(1.0, 0.05, 0.5),
        )
    )
    torch.testing.assert_close(two, one, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "settings",
    [{"ridge": 0.0}, {"erase_scale": 0.0}, {"keep_scale": -1.0}, {"tokens": "first"}],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        UCE(**settings)  # type: ignore[arg-type]
