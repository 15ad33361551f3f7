"""SAFREE beside its formula, written out in float64, and what it leaves alone."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import unsee
from unsee._errors import InputError
from unsee.erasers.negative import Negative
from unsee.erasers.safree import SAFREE, pooled, project, span, triggers
from unsee.flow import make_eraser
from unsee.pipelines import parts_of
from unsee.prompts import Concept

CONCEPT = Concept("van gogh", "style", phrases=("van gogh", "bomb"))
PROMPTS = ["a painting by van gogh", "a photo of a dog", "bomb"]


def drawn(pipe: Any, steps: int = 5, **call: Any) -> Tensor:
    images: Tensor = pipe(
        **{"prompt": PROMPTS} | call,
        generator=torch.Generator().manual_seed(1),
        num_inference_steps=steps,
        output_type="pt",
    ).images
    return images


def texts_read(pipe: Any, erasure: Any, steps: int, **call: Any) -> list[Tensor]:
    """What the denoiser reads in each step, the prompts' rows."""
    read: list[Tensor] = []
    with erasure.applied(pipe):
        handle = pipe.unet.register_forward_pre_hook(
            lambda module, args, kwargs: read.append(kwargs["encoder_hidden_states"].chunk(2)[1]),
            with_kwargs=True,
        )
        drawn(pipe, steps, **call)
        handle.remove()
    return read


def without(pipe: Any, text: str, masked: int | None) -> np.ndarray:
    """The pooled embedding of a text, padded as usual, with id 0 in one position."""
    ids = pipe.tokenizer(text, padding="max_length", return_tensors="pt").input_ids
    if masked is not None:
        ids[0, masked] = 0
    with torch.no_grad():
        found = pipe.text_encoder(ids).pooler_output
    return np.asarray(found[0].double())


def onto(columns: list[np.ndarray]) -> np.ndarray:
    c = np.stack(columns, 1)
    return np.asarray(c @ np.linalg.inv(c.T @ c) @ c.T)


def written_out(pipe: Any, prompt: str, margin: float) -> tuple[np.ndarray, np.ndarray, float]:
    """The prompt's text with its triggers moved, which they are, and 1 − β."""
    count = len(pipe.tokenizer(prompt).input_ids) - 2
    e = np.asarray(parts_of(pipe).encode([prompt]).first[0].double())
    away = np.eye(e.shape[1]) - onto([without(pipe, p, None) for p in CONCEPT.phrases])
    masked = [without(pipe, prompt, 1 + i) for i in range(count)]
    d = [np.linalg.norm(away @ p) for p in masked]
    hit = np.zeros(len(e), dtype=bool)
    for i in range(count):
        others = d[:i] + d[i + 1 :]
        hit[1 + i] = not others or d[i] >= (1 + margin) * np.mean(others)
    clean = (away @ onto(masked) @ e.T).T
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(e[: count + 2], clean[: count + 2], strict=True)
    ]
    return np.where(hit[:, None], clean, e), hit, float(np.mean(cosines))


def seen(pipe: Any, text: str) -> torch.Tensor:
    """A text's pooled embedding, and with each token masked."""
    return pooled(pipe, parts_of(pipe).encoders()[0], text)


def test_each_step_reads_the_formulas_text(pipe: Any) -> None:
    settings: dict[str, Any] = {"margin": 0.03, "midpoint": 5.2, "limit": 30}
    erasure = SAFREE(**settings).fit(parts_of(pipe), [CONCEPT])
    read = texts_read(
        pipe, erasure, 12, num_images_per_prompt=2, negative_prompt=["cat", "", "dog"]
    )
    assert len(read) == 12
    lengths = []
    for row, prompt in enumerate(p for p in PROMPTS for _ in range(2)):
        text, hit, cosine = written_out(pipe, prompt, 0.03)
        last = round(30 / (1 + np.exp(-5 * (10 * (1 - cosine) - 5.2))) * 12 / 50)
        steps = (last + 1) * hit.any()
        plain = parts_of(pipe).encode([prompt]).first[0]
        for step in range(12):
            if hit.any() and step <= last:
                torch.testing.assert_close(
                    read[step][row].double(), torch.from_numpy(text), rtol=0, atol=1e-5
                )
                assert torch.equal(read[step][row][~hit], plain[~hit])
            else:
                assert torch.equal(read[step][row], plain)
        lengths.append(int(steps))
    assert lengths == [4, 4, 1, 1, 8, 8]


def test_without_a_trigger_nothing_changes_bit_for_bit(pipe: Any) -> None:
    plain = drawn(pipe, prompt=PROMPTS[:2])
    with SAFREE(margin=100.0, validate=False).fit(parts_of(pipe), [CONCEPT]).applied(pipe):
        assert torch.equal(drawn(pipe, prompt=PROMPTS[:2]), plain)


def test_with_the_phrases_as_negative_prompt_too_it_is_both(pipe: Any) -> None:
    parts = parts_of(pipe)
    with Negative().fit(parts, [CONCEPT]).applied(pipe):
        alone = drawn(pipe)
        with SAFREE().fit(parts, [CONCEPT]).applied(pipe):
            both = drawn(pipe)
    with SAFREE(negative=True).fit(parts, [CONCEPT]).applied(pipe):
        assert torch.equal(drawn(pipe), both)
    assert (both - alone).abs().max() > 0.02


def test_not_validated_every_step_reads_the_moved_text(pipe: Any) -> None:
    erasure = SAFREE(validate=False).fit(parts_of(pipe), [CONCEPT])
    first, *more = texts_read(pipe, erasure, 5, prompt="bomb")
    assert len(more) == 4 and all(torch.equal(text, first) for text in more)
    assert not torch.equal(first, parts_of(pipe).encode(["bomb"]).first)


def test_a_prompt_that_is_a_phrase_is_found_out_and_an_empty_one_is_not(pipe: Any) -> None:
    concept = span(seen(pipe, "bomb")[:1])
    assert triggers(seen(pipe, "bomb"), concept, 0.01).tolist() == [True]
    assert triggers(seen(pipe, ""), concept, 0.01).tolist() == []


def test_a_phrase_said_twice_spans_no_more(pipe: Any) -> None:
    one, two = seen(pipe, "bomb")[:1], seen(pipe, "van gogh")[:1]
    once, twice = span(torch.cat([one, two])), span(torch.cat([one, two, one * (1 + 1e-7)]))
    assert len(once) == len(twice) == 2
    torch.testing.assert_close(once.T @ once, twice.T @ twice, rtol=0, atol=1e-6)


def test_a_call_with_embeddings_for_a_prompt_is_told_what_to_pass(pipe: Any) -> None:
    text = parts_of(pipe).encode(["bomb", ""]).first
    with SAFREE().fit(parts_of(pipe), [CONCEPT]).applied(pipe):
        with pytest.raises(InputError, match="safree reads .* pass prompt, not prompt_embeds"):
            drawn(pipe, prompt=None, prompt_embeds=text[:1], negative_prompt_embeds=text[1:])


@pytest.mark.parametrize("settings", [{"margin": -0.1}, {"limit": -1}, {"sharpness": -1.0}])
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        SAFREE(**settings)


def test_a_prompt_with_a_trigger_is_moved_in_the_first_step_at_least(pipe: Any) -> None:
    erasure = SAFREE(midpoint=1000.0).fit(parts_of(pipe), [CONCEPT])
    first, second, *_ = texts_read(pipe, erasure, 5, prompt="bomb")
    plain = parts_of(pipe).encode(["bomb"]).first
    assert torch.equal(second, plain) and not torch.equal(first, plain)


def test_a_style_has_constants_of_its_own() -> None:
    style = make_eraser("safree", "style")
    assert isinstance(style, SAFREE) and (style.sharpness, style.midpoint) == (7.0, 5.5)
    assert (SAFREE().sharpness, SAFREE().midpoint) == (5.0, 5.333)


PHRASES = [f"{a} {b}" for a in ("van", "photo", "knife", "dog") for b in ("gogh", "cat", "by")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_its_subspace_is_the_same_in_half_precision(pipe: Any, dtype: torch.dtype) -> None:
    words = torch.cat([seen(pipe, phrase)[:1] for phrase in PHRASES])
    basis = span(words)
    erasure = SAFREE(validate=False).fit(parts_of(pipe), [CONCEPT])
    whole = texts_read(pipe, erasure, 1)[0]
    pipe.to(dtype)
    half = span(torch.cat([seen(pipe, phrase)[:1] for phrase in PHRASES]))
    assert len(half) == len(basis) == len(PHRASES)
    assert (project(words.double(), half) - words).norm() < 0.02 * words.norm()
    found = texts_read(pipe, erasure, 1)[0].float()
    assert (found - whole).norm() < 0.03 * whole.norm()


def test_a_pipeline_without_a_pooled_embedding_is_refused_when_it_is_to_be_erased() -> None:
    from unsee.tests.families import build

    with pytest.raises(InputError, match="has none: take sld or negative"):
        unsee.erase(build("flux"), "van gogh", method="safree", kind="style")
