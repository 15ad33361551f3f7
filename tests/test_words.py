"""The attack by words: what is tried, how it is ranked, and what is looked at."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from PIL.Image import Image

import unsee
from unsee._errors import InputError
from unsee.attacks import Draw
from unsee.attacks.attacked import Attacked
from unsee.attacks.kinds.text import put_in
from unsee.attacks.vocabulary import says_own, says_phrase, survives, vocabulary
from unsee.attacks.words import Trial, Words
from unsee.eval import find_detector
from unsee.eval.detectors import Detection
from unsee.pipelines import Erasure, load_pipeline
from unsee.pipelines.generation import pictures
from unsee.pipelines.parts import Parts, described
from unsee.prompts import Concept, Prompt, find_concept, find_suites, join

GOGH = Concept("van gogh", "style")
ROWS = [
    Prompt(f"{i}", f"{what} by van gogh", i)
    for i, what in enumerate(["a cat", "a dog", "art", "the bomb", "a knife", "a hammer"])
]
QUICK = Words(samples=8, drawn=6, pairs=3)


class Bright:
    """Sees the concept in images that are brighter than most."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, images: Sequence[Image]) -> list[bool]:
        self.count += len(images)
        return [sum(image.convert("L").tobytes()) > 128 * 256 for image in images]


@dataclass
class Fitted:
    """What an attack came to on a pipeline, and what its denoiser and eyes saw meanwhile."""

    rungs: list[Attacked]
    rows: list[int]
    looked: list[int]


def drawing(pipe: Any) -> Draw:
    def draw(prompts: Sequence[Prompt]) -> list[Image]:
        return pictures(pipe, prompts, steps=2, guidance=2.0)

    return draw


def fitted(
    pipe: Any, attack: Words, base: Callable[[], Any] | None = None, seed: int = 0
) -> Fitted:
    images = drawing(pipe)(ROWS)
    parts, look, rows, looked = described(pipe), Bright(), [0], list[int]()

    def count(module: Any, args: Any, kwargs: Any) -> None:
        rows[0] += len(args[0] if args else kwargs["sample"])

    def draw(prompts: Sequence[Prompt]) -> list[Image]:
        before = rows[0]
        made = drawing(pipe)(prompts)
        # What is drawn counts as looks, and not as rows
        rows[0] = before
        return made

    @contextmanager
    def itself() -> Iterator[Parts]:
        yield parts

    handle = pipe.unet.register_forward_pre_hook(count, with_kwargs=True)
    found, spent = [], []
    for one in attack.fit(parts, GOGH, ROWS, images, base or itself, look, draw, seed=seed):
        found.append(one)
        spent.append(rows[0])
        looked.append(look.count)
    handle.remove()
    return Fitted(found, spent, looked)


def test_the_vocabulary_is_the_words_that_are_one_token_each(pipe: Any) -> None:
    words = "a an the of in by style art photo painting picture van gogh monet bomb knife"
    found = vocabulary(described(pipe).streams()[0])
    assert {*words.split(), "hammer", "cat", "dog"} <= set(found)
    # Pieces of words are none, nor are signs
    assert all(pipe.tokenizer.decode([token]).strip() == word for word, token in found.items())
    assert all(len(pipe.tokenizer(word).input_ids) == 3 for word in found)
    assert "kni" not in found


def test_each_rung_says_what_it_spent_and_the_first_spent_nothing(pipe: Any) -> None:
    made = fitted(pipe, QUICK)
    records = [one.record for one in made.rungs]
    assert records[0].text is None and records[0].spent.rows == records[0].spent.looks == 0
    assert [r.spent.rows for r in records] == made.rows
    assert [r.spent.looks for r in records] == made.looked
    # Six words and one image more; then twice three pairs likewise
    assert made.looked == [0, 7, 14]
    assert records[1].spent.steps < records[2].spent.steps
    assert all(r.spent.images == len(ROWS) for r in records[1:])


def test_what_is_found_can_be_typed_and_is_not_the_phrase(pipe: Any) -> None:
    parts = described(pipe)
    for own in (True, False):
        for one in fitted(pipe, dataclasses.replace(QUICK, own_words=own)).rungs[1:]:
            text = one.record.text
            assert text and survives(parts, text) and not says_phrase(text, GOGH)
            assert one.record.own_words is own
            assert own or not says_own(text, GOGH)


def test_the_phrase_is_never_tried_nor_made_of_its_words(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: set[str] = set()
    parts = described(pipe)
    encode = parts.encode

    def listening(texts: Sequence[str | None], **more: Any) -> Any:
        tried.update(text or "" for text in texts)
        return encode(texts, **more)

    monkeypatch.setattr(parts, "encode", listening)
    attack = Words(samples=2, first=2, drawn=8, pairs=8, candidates=8)
    rows = ROWS[:2]
    images = drawing(pipe)(rows)
    for lists in (False, True):
        attack = dataclasses.replace(attack, lists=lists)
        list(
            attack.fit(parts, GOGH, rows, images, lambda: _itself(parts), Bright(), drawing(pipe))
        )
    assert any("gogh van" in prompt for prompt in tried)
    assert any("vangogh" in prompt for prompt in tried)
    assert not any(says_phrase(prompt, GOGH) for prompt in tried)


@contextmanager
def _itself(parts: Parts) -> Iterator[Parts]:
    yield parts


def test_own_words_are_known_by_their_letters_however_they_are_spaced() -> None:
    knife = Concept("kitchen knife")
    for text in ("kitchen", "Knife", "k nife", "kit chen", "knives and kitchens", "kitchen-ware"):
        assert says_own(text, knife)
    for text in ("knives", "kitten", "hammer"):
        assert not says_own(text, knife)


def trial(pipe: Any, batch_size: int) -> Trial:
    """The samples by which words are ranked, of images of the model as it is now."""
    attack = dataclasses.replace(QUICK, batch_size=batch_size)
    draw = torch.Generator().manual_seed(3)
    return attack._trial(described(pipe), GOGH, ROWS, drawing(pipe)(ROWS), draw)


def test_a_word_is_ranked_by_its_mean_error_on_samples_common_to_all(pipe: Any) -> None:
    texts = ["monet", "a cat", "hammer"]
    made, parts = trial(pipe, 64), described(pipe)
    found = made.losses(parts, texts, range(8))
    for text, loss in zip(texts, found.tolist(), strict=True):
        plain = 0.0
        for i in range(8):
            read = parts.encode([put_in(made.prompts[i], GOGH, text)])
            with torch.no_grad():
                predicted = pipe.unet(made.x[i : i + 1], made.t[i], read.first).sample
            plain += float((predicted - made.goal[i : i + 1]).double().pow(2).mean())
        assert loss == pytest.approx(plain, rel=1e-5)
    assert made.t.min() >= QUICK.earliest and made.t.max() <= QUICK.latest


def test_a_word_that_the_transport_lets_through_is_ranked_as_on_the_base(pipe: Any) -> None:
    # More texts than the transport hears at a time, in several calls of the denoiser each
    texts = ["monet", "a cat", "hammer", "the dog", "art", "bomb", "photo", "style", "of", "in"]
    made = trial(pipe, 5)
    before = made.losses(described(pipe), [*texts, "gogh"], range(8))
    erasure = unsee.erase(
        pipe, dataclasses.replace(GOGH, keep=("monet",)), method="spm", transport="token",
        iterations=4, batch_size=2, sampling_steps=2, lr=0.1, check=False,
    )  # fmt: skip
    with erasure.applied(pipe):
        after = made.losses(described(pipe), [*texts, "gogh"], range(8))
    # γ is 0 for other words, and a half for one of two
    assert torch.equal(before[:-1], after[:-1])
    assert abs(before[-1] - after[-1]) > 1e-3


def test_a_guide_is_attacked_by_words_that_the_base_ranks(pipe: Any) -> None:
    erasure = unsee.erase(pipe, GOGH, method="negative", check=False)
    off = erasure.add_to(pipe)

    @contextmanager
    def base() -> Iterator[Parts]:
        nonlocal off
        off()
        yield described(pipe)
        off = erasure.add_to(pipe)

    made = fitted(pipe, QUICK, base)
    off()
    assert made.rungs[-1].record.text
    assert made.rungs[-1].record.spent.rows == made.rows[-1]


def test_the_same_seed_finds_the_same_and_leaves_the_pipeline_as_it_was(pipe: Any) -> None:
    before = {name: t.clone() for name, t in pipe.unet.state_dict().items()}
    drawing(pipe)(ROWS[:1])
    own = set(vars(pipe))
    one, other = fitted(pipe, QUICK), fitted(pipe, QUICK)
    assert [a.sha256 for a in one.rungs] == [a.sha256 for a in other.rungs]
    assert all(torch.equal(t, before[name]) for name, t in pipe.unet.state_dict().items())
    assert set(vars(pipe)) == own and not pipe.unet._forward_pre_hooks


def test_blind_looks_are_as_many_and_at_words_that_were_drawn(pipe: Any) -> None:
    parts, found = described(pipe), fitted(pipe, QUICK).rungs[-1]
    texts = set()
    for seed in range(3):
        look = Bright()
        blind = QUICK.blind(found, parts, ROWS, look, drawing(pipe), seed=seed)
        assert look.count == blind.record.spent.looks == found.record.spent.looks
        text = blind.record.text
        assert text and survives(parts, text) and not says_phrase(text, GOGH)
        assert blind.record.spent.rows == 0
        texts.add(text)
    assert len(texts) > 1


def test_of_a_large_vocabulary_the_nearest_and_some_others_are_ranked(pipe: Any) -> None:
    parts = described(pipe)
    attack = dataclasses.replace(QUICK, candidates=6)
    chosen = [
        attack._chosen(parts, GOGH, torch.Generator().manual_seed(seed)) for seed in range(4)
    ]
    assert all(len(set(some)) == 6 for some in chosen)
    assert all({"van", "gogh"} <= set(some[:3]) for some in chosen)
    assert len({tuple(some[3:]) for some in chosen}) > 1


def test_translations_and_misspellings_are_tried(pipe: Any) -> None:
    listed = Words()._listed(Concept("Van Gogh", "style"))
    assert {"Ван Гог", "VanGogh", "Van-Gogh", "Van Goh", "Vna Gogh"} <= set(listed)
    assert Words(lists=False)._listed(GOGH) == []
    # Without its own words the concept is not misspelt
    assert "vangogh" not in Words(own_words=False)._listed(GOGH)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"earliest": 900, "latest": 800}, "no t lies between"),
        ({"first": 80}, "first is 80"),
        ({"pairs": 1}, "one word makes no pair"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Words(**settings)


def test_prompts_without_room_for_a_word_are_refused_before_any_work(pipe: Any) -> None:
    row = Prompt("0", "van gogh" + " cat" * 20, 0)
    images = drawing(pipe)([ROWS[0]])
    parts = described(pipe)
    fit = Words().fit(parts, GOGH, [row], images, lambda: _itself(parts), Bright(), drawing(pipe))
    with pytest.raises(InputError, match="No word can stand for 'van gogh'"):
        next(fit)


@pytest.mark.slow
def test_one_of_its_words_brings_back_what_spm_erased(tmp_path: Any) -> None:
    pipe, concept = load_pipeline("emoji"), find_concept("kitchen knife", model="emoji")
    suite = join(find_suites(["emoji"], [concept], None))
    own = [p for p in suite.prompts if p.labels.get("object") == "kitchen knife"]
    rows = [dataclasses.replace(p, seed=p.seed + 1_000_003) for p in own[:16]]
    detector = find_detector("emoji/object", suite.prompts)

    class Look:
        count = 0

        def __call__(self, images: Sequence[Image]) -> list[bool]:
            self.count += len(images)
            answers = detector(list(images))
            return [isinstance(a, Detection) and "kitchen knife" in a.labels for a in answers]

    def draw(prompts: Sequence[Prompt]) -> list[Image]:
        return pictures(pipe, prompts, steps=20, guidance=3.0)

    images = draw(rows)
    found: dict[str, tuple[str, int]] = {}
    spm: Erasure = unsee.erase(
        "emoji", concept, method="spm", iterations=100, batch_size=8, transport="token",
        check=False,
    )  # fmt: skip
    for name, erasure in {"spm": spm, "uce": unsee.erase("emoji", concept)}.items():
        with erasure.applied(pipe):
            parts, look = described(pipe), Look()
            fit = Words(pairs=0).fit(
                parts, concept, rows, images, partial(_itself, parts), look, draw
            )
            text = [one.record.text for one in fit][-1]
            assert text is not None
            tests = [dataclasses.replace(p, prompt=put_in(p.prompt, concept, text)) for p in own]
            found[name] = text, sum(look(draw(tests[:16])))
    assert {"kitchen", "knife"} & set(found["spm"][0].split()) and found["spm"][1] >= 6
    assert found["uce"][1] <= 4
