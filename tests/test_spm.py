"""SPM: what it is trained on, and how each prompt decides its strength."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor

from unsee._errors import InputError
from unsee.erasers.esd import ESD
from unsee.erasers.sld import SLD
from unsee.erasers.spm import SPM, surrogates
from unsee.erasers.uce import UCE
from unsee.pipelines import Erasure, load_pipeline, parts_of
from unsee.pipelines.transport import overlap, similarity
from unsee.prompts import Concept
from unsee.records import Transport

VAN_GOGH = Concept("van gogh", "style", keep=("monet", "dog"))
FAST: dict[str, Any] = {"iterations": 4, "batch_size": 1, "sampling_steps": 4, "lr": 0.05}


@pytest.fixture(scope="module")
def membranes(tiny_folder: Path) -> Callable[[str], Erasure]:
    """Membranes of one training, under any transport."""
    parts = parts_of(load_pipeline(tiny_folder, device="cpu"))
    made = SPM(**FAST, transport="token").fit(parts, [VAN_GOGH])

    def of(kind: str) -> Erasure:
        transport = None if kind == "none" else Transport(cast(Any, kind), ("van gogh",))
        record = dataclasses.replace(made.record, transport=transport)
        return dataclasses.replace(made, record=record)

    return of


@pytest.fixture
def plain(tiny_folder: Path, membranes: Callable[[str], Erasure], tmp_path: Path) -> Any:
    """The tiny model with the file as diffusers alone loads it."""
    pipe = DiffusionPipeline.from_pretrained(tiny_folder)
    pipe.set_progress_bar_config(disable=True)
    membranes("token").save(tmp_path / "it.safetensors")
    pipe.load_lora_weights(str(tmp_path / "it.safetensors"), adapter_name="spm")
    return pipe


def images(pipe: Any, *prompts: str, **call: Any) -> Tensor:
    """An image a prompt, shape (prompts, 3, 16, 16)."""
    text = {"prompt": list(prompts)} if prompts else {}
    made: Tensor = pipe(
        **text,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts) or 1)],
        num_inference_steps=3,
        output_type="pt",
        **call,
    ).images
    return made


# Training


def test_surrogates_are_drawn_by_how_little_they_are_like_the_concept() -> None:
    sources = list(torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]]))
    candidates = list(torch.tensor([[[3.0, 4.0]], [[-5.0, 0.0]], [[1.0, 1.0]]]))
    # The nearest phrase's |cos|: 4/5, 1, √½
    weights = torch.tensor([0.2, 0.0, 1 - 0.5**0.5], dtype=torch.float64) ** 2
    found = surrogates(sources, candidates, 2.0)
    torch.testing.assert_close(found, weights / weights.sum(), atol=1e-6, rtol=0)
    even = torch.full((3,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(surrogates(sources, candidates, 0.0), even)


def test_its_surrogates_are_kept_in_the_share_that_d_gives_them(pipe: Any) -> None:
    parts, draw = parts_of(pipe), torch.Generator().manual_seed(0)
    concept = Concept("bomb", keep=("knife", "monet", "dog"))
    anchored = SPM(iterations=2000, batch_size=1, alpha=3.0)._anchored(
        parts, concept, ["bomb"], draw
    )
    want = surrogates(
        list(parts.encode(["bomb"]).first), list(parts.encode(concept.keep).first), 3.0
    )
    assert want.max() > 1.3 * want.min()
    for phrase, chance in zip(concept.keep, want.tolist(), strict=True):
        assert anchored.keep.count(phrase) / 2000 == pytest.approx(chance, abs=0.04)


def test_where_nothing_is_kept_words_of_the_vocabulary_are_anchored(pipe: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    going = ["van gogh", "bomb"]
    anchored = SPM(iterations=100)._anchored(parts_of(pipe), Concept("bomb"), going, draw)
    words = set(anchored.keep)
    assert {"monet", "hammer", "photo"} <= words
    assert not words & {"van", "gogh", "bomb"}


def test_a_membrane_is_of_rank_1_around_each_layer_of_the_transformer_blocks(
    pipe: Any, membranes: Callable[[str], Erasure]
) -> None:
    wanted = {
        f"{block}.{name}"
        for block, transformer in pipe.unet.named_modules()
        if isinstance(transformer, Transformer2DModel)
        for name, module in transformer.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
    }
    erasure = membranes("token")
    assert erasure.record.base.components["unet"].layers.keys() == wanted
    for name, tensor in erasure.tensors.items():
        assert tensor.shape[0 if "lora_A" in name else 1] == 1 and tensor.any()
    assert erasure.record.method == "spm"
    assert erasure.record.settings["alpha"] == 1.0
    assert erasure.record.concepts == (VAN_GOGH,)


def test_without_anchoring_it_learns_as_esd_does(pipe: Any) -> None:
    parts = parts_of(pipe)
    ours = SPM(**FAST, anchoring=0.0).fit(parts, [VAN_GOGH], seed=2)
    esd = ESD(**FAST, variant="blocks", rank=1, keep_weight=0.0)
    theirs = esd.fit(parts, [VAN_GOGH], seed=2)
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(t, theirs.tensors[n]) for n, t in ours.tensors.items())


@pytest.mark.parametrize("anchor", [None, "art"])
def test_its_target_has_the_anchor_in_the_bracket(pipe: Any, anchor: str | None) -> None:
    parts, concept = parts_of(pipe), Concept("bomb", anchor=anchor)
    esd = SPM(**FAST | {"eta": 1.5})._esd()
    samples = esd._samples(parts, [concept], 2, None, lambda done: None)
    for n, x in enumerate(samples.latents.split(1)):
        with torch.no_grad():
            e_c, e_a = (
                pipe.unet(x, samples.timesteps[n], encoder_hidden_states=text).sample
                for text in parts.encode(["bomb", anchor or ""]).first.split(1)
            )
        torch.testing.assert_close(
            samples.targets[n, None], e_a - 1.5 * (e_c - e_a), rtol=0, atol=1e-3
        )


# Transport


def test_the_likeness_of_two_texts_is_the_cosine_and_the_share_of_tokens() -> None:
    texts = [torch.tensor([[1.0, 2.0], [2.0, 0.0]])]
    # The first has one token less.
    others = [torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, -2.0], [-2.0, 0.0]])]
    torch.testing.assert_close(similarity(texts, others), torch.tensor([[1 / 3, -1.0]]))
    assert overlap({1, 2, 3}, [{1, 4}, {2, 5, 6}]) == 0.5
    assert overlap({1}, [{2}]) == 0.0
    assert overlap({1}, [{2}, set()]) == 1.0


def test_at_zero_transport_it_is_the_base_model(
    pipe: Any, membranes: Callable[[str], Erasure]
) -> None:
    prompts = ["a photo of a dog", "a knife"]
    before = images(pipe, *prompts)
    with membranes("token").applied(pipe):
        assert torch.equal(images(pipe, *prompts), before)


@pytest.mark.parametrize("kind", ["token", "sentence", "both"])
def test_at_full_transport_it_is_the_lora_as_diffusers_loads_it(
    pipe: Any, plain: Any, membranes: Callable[[str], Erasure], kind: str
) -> None:
    # Without guidance there is no row of the empty prompt, and this one is the concept itself.
    call: dict[str, Any] = {"guidance_scale": 1.0}
    before = images(pipe, "van gogh", **call)
    with membranes(kind).applied(pipe):
        found = images(pipe, "van gogh", **call)
    want = images(plain, "van gogh", **call)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5)
    assert (want - before).abs().max() > 0.02


def test_without_transport_every_prompt_gets_the_whole_lora(
    pipe: Any, plain: Any, membranes: Callable[[str], Erasure]
) -> None:
    once = SPM(**FAST | {"iterations": 1}, transport="none").fit(parts_of(pipe), [VAN_GOGH])
    assert once.record.transport is None
    with membranes("none").applied(pipe):
        found = images(pipe, "a photo of a dog")
    torch.testing.assert_close(found, images(plain, "a photo of a dog"), rtol=0, atol=1e-5)


def test_each_row_of_a_batch_has_its_own_strength(
    pipe: Any, plain: Any, membranes: Callable[[str], Erasure]
) -> None:
    prompts = ["a painting by van gogh", "a dog", "a van"]
    call: dict[str, Any] = {"guidance_scale": 1.0, "num_images_per_prompt": 1}
    wanted = []
    for strength in (1.0, 0.0, 0.5):
        plain.set_adapters("spm", strength)
        wanted.append(images(plain, *prompts, **call))
    with membranes("token").applied(pipe):
        found = images(pipe, *prompts, **call)
    for row, want in enumerate(wanted):
        torch.testing.assert_close(found[row], want[row], rtol=0, atol=1e-5)
    assert (wanted[0][2] - wanted[2][2]).abs().max() > 1e-3


@torch.no_grad()
def test_the_sentence_is_compared_as_it_was_encoded_and_the_larger_counts(
    pipe: Any, plain: Any, membranes: Callable[[str], Erasure]
) -> None:
    one, other = (pipe.encode_prompt([p], "cpu", 1, False)[0][0] for p in ("a van", "van gogh"))
    cosine = float((one * other).sum() / one.norm() / other.norm())
    assert 0.5 < cosine < 0.999
    x, t = torch.ones(1, 4, 8, 8), torch.tensor(500)
    plain.set_adapters("spm", cosine)
    want = plain.unet(x, t, encoder_hidden_states=one[None]).sample
    for kind in ("sentence", "both"):
        with membranes(kind).applied(pipe):
            text = pipe.encode_prompt(["a van"], "cpu", 1, False)[0]
            found = pipe.unet(x, t, encoder_hidden_states=text).sample
        torch.testing.assert_close(found, want, rtol=0, atol=1e-5)


def test_a_text_that_was_not_seen_gets_the_whole_strength(
    pipe: Any, plain: Any, membranes: Callable[[str], Erasure]
) -> None:
    text, empty = pipe.encode_prompt(["a dog"], "cpu", 1, True)
    call = {"prompt_embeds": text, "negative_prompt_embeds": empty}
    with membranes("token").applied(pipe):
        found = images(pipe, **call)
    torch.testing.assert_close(found, images(plain, **call), rtol=0, atol=1e-5)


def test_it_stacks_and_comes_off_in_any_order(
    pipe: Any, membranes: Callable[[str], Erasure]
) -> None:
    parts = parts_of(pipe)
    uce = UCE().fit(parts, [Concept("bomb")])
    sld = SLD(warmup=0).fit(parts, [Concept("knife")])
    prompts = ["a painting by van gogh", "a bomb"]
    base = images(pipe, *prompts)
    alone = {}
    for name, erasure in {"spm": membranes("token"), "uce": uce, "sld": sld}.items():
        with erasure.applied(pipe):
            alone[name] = images(pipe, *prompts)
    both = []
    for order in ((membranes("token"), sld, uce), (uce, membranes("token"), sld)):
        removes = [erasure.add_to(pipe) for erasure in order]
        both.append(images(pipe, *prompts))
        for remove in removes:
            remove()
        assert torch.equal(images(pipe, *prompts), base)
        assert not pipe.unet._forward_pre_hooks
        assert not pipe.text_encoder._forward_hooks
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=1e-4)
    assert all((image - both[0]).abs().max() > 0.005 for image in (base, *alone.values()))
    # The first away, the second stays.
    remove, keep = membranes("token").add_to(pipe), uce.add_to(pipe)
    remove()
    torch.testing.assert_close(images(pipe, *prompts), alone["uce"], rtol=0, atol=1e-5)
    keep()
    assert torch.equal(images(pipe, *prompts), base)


def test_the_record_says_how_it_is_transported(pipe: Any, tmp_path: Path) -> None:
    erasure = SPM(**FAST | {"iterations": 2}).fit(parts_of(pipe), [VAN_GOGH, Concept("bomb")])
    erasure.save(tmp_path / "it.safetensors")
    record = Erasure.load(tmp_path / "it.safetensors").record
    assert record.transport == Transport("both", ("van gogh", "bomb"))


@pytest.mark.parametrize(
    "settings",
    [
        {"transport": "most"},
        {"anchoring": -1.0},
        {"alpha": -1.0},
        {"lr": 0.0},
        {"iterations": 0},
        {"precision": "float16"},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        SPM(**settings)


def test_layers_that_are_not_there_are_refused(pipe: Any) -> None:
    with pytest.raises(InputError, match="No layer.*'nowhere'"):
        SPM(layers="nowhere").fit(parts_of(pipe), [VAN_GOGH])
