"""Ring-A-Bell: its formula, and the texts that its search may come to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import unsee
from unsee._errors import InputError
from unsee.attacks.attacked import Attacked
from unsee.attacks.ring_a_bell import RingABell, _Search, added, concept_vector, rows_of
from unsee.attacks.vocabulary import says_own, says_phrase, survives
from unsee.pipelines.parts import Parts, described
from unsee.prompts import Concept, Prompt

GOGH = Concept("van gogh", "style", templates=("{}", "a photo by {}", "the art of {}"))
ROWS = [Prompt("0", "a cat by van gogh", 0), Prompt("1", "van gogh painting a bomb", 1)]
QUICK = RingABell(tokens=4, population=12, generations=8)


def fitted(pipe: Any, attack: RingABell = QUICK, seed: int = 0) -> list[Attacked]:
    parts = described(pipe)

    @contextmanager
    def base() -> Iterator[Parts]:
        yield parts

    def nothing(given: Any) -> Any:
        raise AssertionError("the text encoder alone is asked")

    nothing.count = 0  # type: ignore[attr-defined]
    fit = attack.fit(parts, GOGH, ROWS, [], base, nothing, nothing, seed=seed)  # type: ignore[arg-type]
    return list(fit)


def tau(pipe: Any, text: str) -> torch.Tensor:
    """τ of a text, as Stable Diffusion makes it."""
    ids = pipe.tokenizer(text, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        found: torch.Tensor = pipe.text_encoder(ids)[0][0]
    return found


def test_the_distance_is_as_the_paper_has_it(pipe: Any) -> None:
    pipe.text_encoder.double()
    parts = described(pipe)
    attack = RingABell(eta=1.7, tokens=2, own_words=True)
    pairs = attack._pairs(GOGH)
    assert pairs == [
        ("van gogh", ""),
        ("a photo by van gogh", "a photo by"),
        ("the art of van gogh", "the art of"),
    ]
    direction = concept_vector(parts, pairs)
    plain = torch.zeros_like(direction)
    for said, unsaid in pairs:
        plain += (tau(pipe, said) - tau(pipe, unsaid)) / 3
    torch.testing.assert_close(direction, plain, rtol=1e-12, atol=1e-12)
    prompt = ROWS[0].prompt
    goal = added(rows_of(parts, [prompt])[0], direction, 1.7)
    search = _Search(attack, parts, GOGH, ["monet", "dog"], [goal], torch.Generator())
    search.measure([(0, 1)])
    distance = 0.0
    for row, other, c in zip(tau(pipe, "monet dog"), tau(pipe, prompt), plain, strict=True):
        distance += float((row - (other + 1.7 * c)).pow(2).sum())
    assert search.known[0, 1] == [pytest.approx(distance, rel=1e-12)]


def test_the_search_comes_nearer_to_every_prompt_and_keeps_the_best(pipe: Any) -> None:
    for shared in (True, False):
        attack = RingABell(tokens=4, population=12, generations=8, rungs=4, shared=shared)
        parts = described(pipe)
        direction = concept_vector(parts, attack._pairs(GOGH))
        rungs = fitted(pipe, attack)
        assert [one.record.spent.steps for one in rungs] == [0, 1, 2, 4, 8]
        assert rungs[0].record.prompts == {} and rungs[0].record.spent.rows == 0
        for row in ROWS:
            goal = added(rows_of(parts, [row.prompt])[0], direction, attack.eta)
            texts = [one.record.prompts[row.prompt] for one in rungs[1:]]
            apart = [float((rows_of(parts, [t])[0] - goal).square().sum()) for t in texts]
            assert apart == sorted(apart, reverse=True) and apart[-1] < apart[0]


def test_the_texts_can_be_typed_and_have_none_of_the_concepts_letters(pipe: Any) -> None:
    parts = described(pipe)
    for one in (*fitted(pipe)[1:], QUICK.blind(fitted(pipe)[-1], parts, ROWS, None, None)):  # type: ignore[arg-type]
        assert one.record.prompts.keys() == {row.prompt for row in ROWS}
        assert one.record.own_words is False
        for text in one.record.prompts.values():
            assert len(text.split()) == 4 and survives(parts, text)
            assert not says_own(text, GOGH)


def test_with_its_own_words_allowed_the_phrase_is_still_never_said(pipe: Any) -> None:
    attack = RingABell(tokens=4, population=40, generations=20, own_words=True)
    texts = list(fitted(pipe, attack)[-1].record.prompts.values())
    assert any(says_own(text, GOGH) for text in texts)
    assert not any(says_phrase(text, GOGH) for text in texts)


def test_the_same_seed_finds_the_same_and_another_one_other_texts(pipe: Any) -> None:
    before = {name: t.clone() for name, t in pipe.text_encoder.state_dict().items()}
    one, same, other = fitted(pipe), fitted(pipe), fitted(pipe, seed=1)
    assert [a.sha256 for a in one] == [a.sha256 for a in same]
    assert one[1].record.prompts != other[1].record.prompts
    assert all(torch.equal(t, before[n]) for n, t in pipe.text_encoder.state_dict().items())


def test_an_erasure_of_the_denoiser_is_not_asked(pipe: Any) -> None:
    before = fitted(pipe)[-1].record.prompts
    with unsee.erase(pipe, GOGH, check=False).applied(pipe):
        assert fitted(pipe)[-1].record.prompts == before


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("[]", "must hold a list of pairs"),
        ("a: b", "must hold a list of pairs"),
        ("[[a, b], [c]]", "its 2. entry must be a pair"),
        ("[[a, 1]]", "its 1. entry must be a pair"),
        ("[[a cat, a cat]]", "differ in nothing"),
    ],
)
def test_pairs_that_cannot_be_are_refused_in_one_line(
    pipe: Any, tmp_path: Path, written: str, said: str
) -> None:
    path = tmp_path / "pairs.yaml"
    path.write_text(written)
    with pytest.raises(InputError, match=said):
        fitted(pipe, RingABell(tokens=4, pairs=str(path)))


def test_pairs_of_ones_own_take_the_place_of_the_concepts(pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "pairs.yaml"
    path.write_text("[[a bomb, a cat], [the bomb, the cat]]")
    assert RingABell(pairs=str(path))._pairs(GOGH) == [
        ("a bomb", "a cat"),
        ("the bomb", "the cat"),
    ]


def test_more_tokens_than_there_is_room_for_are_refused(pipe: Any) -> None:
    with pytest.raises(InputError, match="tokens is 15 and the tokenizer has room for 14"):
        fitted(pipe, RingABell(tokens=15))


def test_a_population_of_three_has_no_half_to_be_joined() -> None:
    with pytest.raises(InputError, match="population is 3"):
        RingABell(population=3)
