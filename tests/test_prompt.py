"""The search for tokens before each prompt: its formulas, and the texts that it may come to."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional

import unsee
from unsee._errors import InputError
from unsee.attacking import make_attack
from unsee.attacks.attacked import Attacked
from unsee.attacks.prompt import (
    Frame,
    Lexicon,
    PromptSearch,
    Samples,
    _Search,
    framed,
    on_simplex,
)
from unsee.attacks.vocabulary import says_own, survives
from unsee.pipelines import load_pipeline
from unsee.pipelines.generation import pictures
from unsee.pipelines.parts import described
from unsee.prompts import Concept, Prompt, Suite
from unsee.tests.families import build

KNIFE = Concept("knife", anchor="hammer")
ROWS = [
    Prompt("0", "a photo of a knife", 0),
    Prompt("1", "a painting of a knife by monet", 1),
    Prompt("2", "a photo of a knife", 2),
]
QUICK = PromptSearch(steps=4, rungs=2, looks=0, batch_size=2, candidates=6)
BOTH = [QUICK, dataclasses.replace(QUICK, by="simplex")]


class Looking:
    """Sees the concept from an image on, and counts."""

    def __init__(self, sees_from: float = float("inf")) -> None:
        self.count = 0
        self.sees_from = sees_from

    def __call__(self, images: Sequence[Image.Image]) -> list[bool]:
        self.count += len(images)
        return [self.count - len(images) + i >= self.sees_from for i in range(len(images))]


@pytest.fixture
def images(pipe: Any) -> list[Image.Image]:
    return pictures(pipe, ROWS, guidance=3.0, steps=2)


def fitted(
    pipe: Any,
    images: Sequence[Image.Image],
    attack: PromptSearch = QUICK,
    *,
    rows: Sequence[Prompt] = ROWS,
    look: Looking | None = None,
    seed: int = 0,
) -> list[Attacked]:
    def draw(prompts: Sequence[Prompt]) -> list[Image.Image]:
        return pictures(pipe, prompts, guidance=3.0, steps=2)

    @contextmanager
    def base() -> Iterator[Any]:
        yield described(pipe)

    look = look or Looking()
    fit = attack.fit(described(pipe), KNIFE, rows, images, base, look, draw, seed=seed)
    return list(fit)


def started(pipe: Any, images: Sequence[Image.Image], attack: PromptSearch) -> _Search:
    """A search before its first step."""
    parts, draw = described(pipe), torch.Generator().manual_seed(0)
    lexicon = Lexicon(parts, KNIFE, attack.own_words)
    prompts = list(dict.fromkeys(row.prompt for row in ROWS))
    frames = [framed(parts.streams()[0], p, attack.tokens, attack.every) for p in prompts]
    samples = Samples(attack, parts, prompts, ROWS, images, draw)
    return _Search(attack, parts, lexicon, frames, samples, draw)


def sorted_simplex(row: torch.Tensor) -> torch.Tensor:
    """The nearest point of the simplex, by sorting (Held, Wolfe and Crowder 1974)."""
    values = sorted(row.tolist(), reverse=True)
    level, total = 0.0, 0.0
    for i, value in enumerate(values, 1):
        total += value
        if value > (total - 1) / i:
            level = (total - 1) / i
    return torch.tensor([max(value - level, 0.0) for value in row.tolist()], dtype=row.dtype)


def test_the_nearest_point_of_the_simplex_is_that_by_sorting() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 50, generator=draw, dtype=torch.float64)
    rows[1] = 0.3
    rows[2] = on_simplex(rows[2:3])[0]
    rows[3] *= 1e-3
    found = on_simplex(rows)
    for one, row in zip(found, rows, strict=True):
        torch.testing.assert_close(one, sorted_simplex(row), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.sum(1), torch.ones(20, dtype=torch.float64))


def test_a_step_on_the_simplex_is_the_formula_written_out(
    pipe: Any, images: list[Image.Image]
) -> None:
    """hardtanh(∂‖n − ε_θ(x_t, t, τ([P E, p]))‖² / ∂P), Adam and the projection, in float64."""
    pipe.unet.double(), pipe.text_encoder.double(), pipe.vae.double()
    attack = dataclasses.replace(QUICK, by="simplex", tokens=2, at_once=2)
    task = started(pipe, images, attack)
    count = len(task.lexicon.words)
    task.step()
    for p, frame in enumerate(task.frames):
        x, t, n = task.samples.of(p, [0, 1])
        tokens = [
            pipe.tokenizer(w, add_special_tokens=False).input_ids for w in task.lexicon.words
        ]
        table = pipe.text_encoder.get_input_embeddings()
        e = table.weight.detach()[[one for (one,) in tokens]]
        shares = torch.full((2, count), 1 / count, dtype=torch.float64, requires_grad=True)
        drawn = functional.one_hot(torch.tensor(task.now[p]), count).double()
        rows = (drawn + shares - shares.detach()) @ e
        text = f"a a {frame.prompt}"
        ids = pipe.tokenizer(text, padding="max_length", return_tensors="pt").input_ids

        def put(m: Any, a: Any, out: torch.Tensor, rows: torch.Tensor = rows) -> torch.Tensor:
            return torch.cat([out[:, :1], rows[None], out[:, 3:]], 1)

        handle = table.register_forward_hook(put)
        read = pipe.text_encoder(ids)[0]
        handle.remove()
        made = pipe.unet(x.double(), t, read.expand(2, -1, -1)).sample
        (made - n).square().mean().backward()
        assert shares.grad is not None and shares.grad.any()
        gradient = shares.grad.clamp(-1, 1) + attack.weight_decay / count
        moved = shares.detach() - attack.lr * gradient / (gradient.abs() + 1e-8)
        wanted = torch.stack([sorted_simplex(row) for row in moved])
        torch.testing.assert_close(task.shares[p].double(), wanted, rtol=1e-3, atol=1e-5)


def test_each_prompts_gradient_is_what_it_is_alone(pipe: Any, images: list[Image.Image]) -> None:
    task = started(pipe, images, QUICK)
    (one, other), losses = task.gradients([0, 1])
    alone, lost = task.gradients([1])
    assert not torch.allclose(one, other, rtol=0.1)
    torch.testing.assert_close(other, alone[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(losses[1:], lost)


def test_gcg_keeps_what_is_better_and_nothing_else(pipe: Any, images: list[Image.Image]) -> None:
    attack = dataclasses.replace(QUICK, samples=2, steps=6)
    task = started(pipe, images, attack)
    losses = [task.losses(list(enumerate(task.now)))]
    for _ in range(6):
        task.step()
        losses.append(task.losses(list(enumerate(task.now))))
    for own in zip(*losses, strict=True):
        assert all(b <= a + 1e-6 for a, b in zip(own, own[1:], strict=False))
        assert own[-1] < own[0]


@pytest.mark.parametrize("attack", BOTH, ids=["gcg", "simplex"])
def test_texts_can_be_typed_end_in_their_prompt_and_have_no_word_of_the_concepts(
    attack: PromptSearch, pipe: Any, images: list[Image.Image]
) -> None:
    one, other = fitted(pipe, images, attack), fitted(pipe, images, attack, seed=1)
    assert one[-1].record.prompts != other[-1].record.prompts
    assert [a.sha256 for a in one] == [a.sha256 for a in fitted(pipe, images, attack)]
    for found in (*one[1:], *other[1:]):
        assert found.record.own_words is False and found.record.left == ()
        assert found.record.prompts.keys() == {row.prompt for row in ROWS}
        for prompt, text in found.record.prompts.items():
            assert text.endswith(f" {prompt}")
            before = text.removesuffix(f" {prompt}")
            assert len(pipe.tokenizer(before, add_special_tokens=False).input_ids) == 3
            assert survives(described(pipe), text) and not says_own(before, KNIFE)


def test_the_concepts_own_words_are_there_only_where_they_are_allowed(pipe: Any) -> None:
    parts = described(pipe)
    concept = Concept("cat", phrases=("a cat", "dog of the art"))
    allowed, rest = (set(Lexicon(parts, concept, own).words) for own in (True, False))
    assert allowed - rest == {"a", "cat", "dog", "of", "the", "art"}
    lexicon = Lexicon(parts, Concept("cat"), False)
    letters = tuple(lexicon.words.index(letter) for letter in "cat")
    assert not lexicon.allows(Frame("a dog", (None, None, None, "a dog")), letters)


def test_a_prompt_that_has_no_room_is_left_and_said(pipe: Any, images: list[Image.Image]) -> None:
    full = Prompt("1", "a photo of a photo of a photo of a cat by monet", 1)
    rows = [ROWS[0], full, ROWS[2]]
    last = fitted(pipe, images, rows=rows)[-1]
    assert last.record.left == (full.prompt,)
    assert last.record.prompts.keys() == {ROWS[0].prompt}
    with pytest.raises(InputError, match="None of the 1 prompts can take free tokens"):
        fitted(pipe, images[:1], rows=[full])


def test_a_free_token_stands_before_every_so_many_where_words_begin(pipe: Any) -> None:
    stream = described(pipe).streams()[0]
    frame = framed(stream, "a photo of a knife", 9, 3)
    assert frame.pieces == (None, "a", "photo", "of", None, "a", "knife")
    assert frame.text(["cat", "dog"]) == "cat a photo of dog a knife"
    assert frame.spans(stream, ["cat", "dog"]) == [range(0, 1), range(4, 5)]


def test_a_prompt_is_done_once_it_shows_the_concept(pipe: Any, images: list[Image.Image]) -> None:
    attack = dataclasses.replace(QUICK, looks=4)
    blind_eyes, eyes = Looking(), Looking(2)
    whole = fitted(pipe, images, attack, look=blind_eyes)[-1].record.spent
    found = fitted(pipe, images, attack, look=eyes)
    assert (whole.looks, blind_eyes.count) == (8, 8) and whole.steps == 4
    # Both are seen at the second of four times
    assert found[-1].record.spent.looks == 4 and found[-1].record.spent.steps == 2
    assert found[1].record.prompts == found[2].record.prompts
    assert found[-1].record.spent.rows * 2 == pytest.approx(whole.rows, rel=0.2)


@pytest.mark.parametrize("looks", [0, 3])
def test_blind_draws_as_many_looks_and_one_text_a_prompt(
    looks: int, pipe: Any, images: list[Image.Image]
) -> None:
    last = fitted(pipe, images)[-1]
    spent = dataclasses.replace(last.record.spent, looks=looks)
    last = dataclasses.replace(last, record=dataclasses.replace(last.record, spent=spent))

    def draw(prompts: Sequence[Prompt]) -> list[Image.Image]:
        return pictures(pipe, prompts, guidance=3.0, steps=2)

    eyes = Looking()
    blind = QUICK.blind(last, described(pipe), ROWS, eyes, draw, seed=5)
    assert eyes.count == looks == blind.record.spent.looks and blind.record.spent.rows == 0
    assert blind.record.prompts.keys() == last.record.prompts.keys()
    assert blind.record.prompts != last.record.prompts


def test_the_bases_own_predictions_are_what_is_predicted(
    pipe: Any, another: Any, images: list[Image.Image]
) -> None:
    parts = described(pipe)
    attack = dataclasses.replace(QUICK, target="base", samples=3)
    task = started(pipe, images, attack)
    whole = another(seed=1)
    task.samples.ask(described(whole))
    assert task.samples.rows == 2 * 3
    x, t, goal = task.samples.of(1, [2, 0])
    ids = pipe.tokenizer(ROWS[1].prompt, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        made = whole.unet(x, t, whole.text_encoder(ids)[0].expand(2, -1, -1)).sample
    torch.testing.assert_close(goal, made, rtol=1e-4, atol=1e-5)
    # Nothing is to be gained where it is the base that is attacked
    task.samples.ask(parts)
    loss = task._loss([0], parts.encode([ROWS[0].prompt]))
    assert loss.item() == pytest.approx(0, abs=1e-8)


def test_uda_reads_its_fifty_times_from_low_noise_on() -> None:
    uda = make_attack("prompt", "uda")
    samples = object.__new__(Samples)
    samples.settings = uda  # type: ignore[assignment]
    times = [samples.time(i) for step in range(2000) for i in samples.at(step)]
    assert times == [10 + 20 * (step // 40) for step in range(2000)]


@pytest.mark.parametrize("preset", PromptSearch.presets)
def test_presets_search(preset: str, pipe: Any, images: list[Image.Image]) -> None:
    small = {"steps": 2, "looks": 2, "samples": 2, "tokens": 3}
    attack = make_attack("prompt", preset, **small)
    assert isinstance(attack, PromptSearch)
    assert len(fitted(pipe, images, attack)[-1].record.prompts) == 2


@pytest.mark.parametrize("name", ["stable-diffusion-3", "pixart-sigma"])
def test_flow_models_and_encoders_that_cut_otherwise_are_searched_too(name: str) -> None:
    pipe = build(name)
    parts = described(pipe)
    rows = [Prompt("0", "a photo of a knife", 0)]
    pictured = pictures(pipe, rows, guidance=3.0, steps=2)
    found = fitted(pipe, pictured, dataclasses.replace(QUICK, steps=2), rows=rows)
    (text,) = found[-1].record.prompts.values()
    assert survives(parts, text) and text.endswith("a photo of a knife")


def test_a_guide_is_refused_in_words(pipe: Any, images: list[Image.Image]) -> None:
    with unsee.erase(pipe, KNIFE, method="sld").applied(pipe):
        with pytest.raises(InputError, match="steers guidance"):
            fitted(pipe, images)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="no t lies between"):
        PromptSearch(earliest=5, latest=4)
    with pytest.raises(InputError, match="set no more looks than steps"):
        PromptSearch(steps=2, looks=3)


@pytest.mark.slow
def test_a_report_says_how_many_prompts_were_drawn_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "knife.safetensors"
    unsee.erase("emoji", "kitchen knife", method="uce", check=False).save(file)
    said = (
        "a kitchen knife",
        "an emoji of a kitchen knife, fluent style",
        # Of which the base draws no knife: it is fitted to it all the same
        f"a {'flat ' * 12}kitchen knife",
    )
    knife = {"object": "kitchen knife"}
    suite = Suite("s", tuple(Prompt(f"{i}", p, i, labels=knife) for i, p in enumerate(said)))
    stream = described(load_pipeline("emoji", device="cpu")).streams()[0]
    room = stream.room - len(stream.tokens(said[0]))
    attack = dataclasses.replace(QUICK, steps=1, tokens=room, by="simplex")
    report = unsee.attack("emoji", file, suite=suite, out=tmp_path / "run", attacks=[attack])
    (found,) = report.attacks
    assert "It could put nothing into 2 of 3 prompts" in found.note
    assert {c.name for c in found.last.controls} == {"positive", "blind"}
