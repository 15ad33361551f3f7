"""SAFREE beside its formula, written out in float64, and what it leaves alone."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unsee._errors import InputError
from unsee.erasers.negative import Negative
from unsee.erasers.safree import SAFREE, pooled, span, triggers
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


def without(pipe: Any, text: str, hidden: int | None) -> np.ndarray:
    """The pooled embedding of a text, padded as usual, of which one position is masked."""
    given = pipe.tokenizer(text, padding="max_length", return_tensors="pt")
    mask = torch.ones_like(given.input_ids)
    if hidden is not None:
        mask[0, hidden] = 0
    with torch.no_grad():
        found = pipe.text_encoder(given.input_ids, attention_mask=mask).pooler_output
    return np.asarray(found[0].double())


def onto(columns: list[np.ndarray]) -> np.ndarray:
    c = np.stack(columns, 1)
    return np.asarray(c @ np.linalg.inv(c.T @ c) @ c.T)


def written_out(pipe: Any, prompt: str, margin: float) -> tuple[np.ndarray, np.ndarray, float]:
    """The prompt's text with its triggers moved, which they are, and 1 − β."""
    count = len(pipe.tokenizer(prompt).input_ids) - 2
    e = np.asarray(parts_of(pipe).encode([prompt])[0].double())
    away = np.eye(e.shape[1]) - onto([without(pipe, p, None) for p in CONCEPT.phrases])
    masked = [without(pipe, prompt, 1 + i) for i in range(count)]
    d = [np.linalg.norm(away @ p) for p in masked]
    hit = np.zeros(len(e), dtype=bool)
    for i in range(count):
        others = d[:i] + d[i + 1 :] or [np.linalg.norm(away @ without(pipe, prompt, None))]
        hit[1 + i] = d[i] >= (1 + margin) * np.mean(others)
    clean = (away @ onto(masked) @ e.T).T
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(e[: count + 2], clean[: count + 2], strict=True)
    ]
    return np.where(hit[:, None], clean, e), hit, float(np.mean(cosines))


def test_each_step_reads_the_formulas_text(pipe: Any) -> None:
    settings: dict[str, Any] = {"margin": 0.03, "midpoint": 4.4, "limit": 30}
    erasure = SAFREE(**settings).fit(parts_of(pipe), [CONCEPT])
    read = texts_read(
        pipe, erasure, 12, num_images_per_prompt=2, negative_prompt=["cat", "", "dog"]
    )
    assert len(read) == 12
    lengths = []
    for row, prompt in enumerate(p for p in PROMPTS for _ in range(2)):
        text, hit, cosine = written_out(pipe, prompt, 0.03)
        steps = round(30 / (1 + np.exp(-5 * (10 * (1 - cosine) - 4.4))) * 12 / 50) * hit.any()
        plain = parts_of(pipe).encode([prompt])[0]
        for step in range(12):
            if step < steps:
                torch.testing.assert_close(
                    read[step][row].double(), torch.from_numpy(text), rtol=0, atol=1e-5
                )
                assert torch.equal(read[step][row][~hit], plain[~hit])
            else:
                assert torch.equal(read[step][row], plain)
        lengths.append(int(steps))
    assert lengths == [6, 6, 1, 1, 7, 7]


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
    assert not torch.equal(first, parts_of(pipe).encode(["bomb"]))


def test_a_prompt_that_is_a_phrase_is_found_out_and_an_empty_one_is_not(pipe: Any) -> None:
    concept = span(pooled(pipe, "bomb")[:1])
    assert triggers(pooled(pipe, "bomb"), concept, 0.01).tolist() == [True]
    assert triggers(pooled(pipe, ""), concept, 0.01).tolist() == []


def test_a_phrase_said_twice_spans_no_more(pipe: Any) -> None:
    one, two = pooled(pipe, "bomb")[:1], pooled(pipe, "van gogh")[:1]
    once, twice = span(torch.cat([one, two])), span(torch.cat([one, two, one * (1 + 1e-7)]))
    assert len(once) == len(twice) == 2
    torch.testing.assert_close(once.T @ once, twice.T @ twice, rtol=0, atol=1e-6)


def test_a_call_with_embeddings_for_a_prompt_is_told_what_to_pass(pipe: Any) -> None:
    with SAFREE().fit(parts_of(pipe), [CONCEPT]).applied(pipe):
        text = parts_of(pipe).encode(["bomb", ""])
        with pytest.raises(InputError, match="safree reads .* pass prompt, not prompt_embeds"):
            drawn(pipe, prompt=None, prompt_embeds=text[:1], negative_prompt_embeds=text[1:])


@pytest.mark.parametrize("settings", [{"margin": -0.1}, {"limit": -1}, {"sharpness": -1.0}])
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        SAFREE(**settings)
