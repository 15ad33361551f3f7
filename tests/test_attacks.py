"""What every attack promises, whatever it does; and textual inversion's own laws."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional

from unsee import erase
from unsee._errors import InputError
from unsee.attacking import find_attacks, make_attack
from unsee.attacks import ATTACKS
from unsee.attacks.attacked import Attacked, Record, Spent
from unsee.attacks.kinds.text import put_in
from unsee.attacks.textual_inversion import TextualInversion
from unsee.pipelines.generation import pictures
from unsee.pipelines.parts import described
from unsee.prompts import Concept, Prompt, Suite
from unsee.tests.families import build
from unsee.training import search

CONCEPT = Concept("knife", anchor="hammer", keep=("cat",))
ROWS = [Prompt(f"{i}", f"a {word} of a knife", i) for i, word in enumerate(("photo", "painting"))]

SMALL: dict[str, dict[str, Any]] = {
    "prompt": {"steps": 2, "looks": 1, "batch_size": 2, "candidates": 3},
    "ring-a-bell": {"tokens": 3, "population": 8, "generations": 3},
    "words": {"samples": 4, "drawn": 4, "pairs": 2, "candidates": 12},
    "benign": {"steps": 2, "rungs": 2, "batch_size": 2, "rank": 2},
    "relearn": {"steps": 2, "rungs": 2, "batch_size": 2, "rank": 2},
    "textual-inversion": {"steps": 4, "rungs": 2, "batch_size": 2, "start": "hammer"},
}
"""Settings that a tiny model can be attacked with."""


@pytest.fixture(scope="module", autouse=True)
def lora(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A LoRA of somebody's own, which one of the attacks is told."""
    file = tmp_path_factory.mktemp("lora") / "dog.safetensors"
    erase(tiny_folder, Concept("dog", anchor="cat"), check=False).save(file)
    SMALL["stack"] = {"lora": str(file)}


class Looking:
    """Sees nothing, and counts."""

    count = 0

    def __call__(self, images: Sequence[Image.Image]) -> list[bool]:
        self.count += len(images)
        return [False] * len(images)


@pytest.fixture
def images(pipe: Any) -> list[Image.Image]:
    return pictures(pipe, ROWS, guidance=3.0, steps=2)


@contextmanager
def erased(pipe: Any) -> Iterator[None]:
    with erase(pipe, CONCEPT, check=False).applied(pipe):
        yield


def fitted(name: str, pipe: Any, images: Sequence[Image.Image], **settings: Any) -> list[Attacked]:
    def draw(prompts: Sequence[Prompt]) -> list[Image.Image]:
        return pictures(pipe, prompts, guidance=3.0, steps=2)

    @contextmanager
    def base() -> Iterator[Any]:
        yield described(pipe)

    attack = make_attack(name, **SMALL.get(name, {}), **settings)
    fit = attack.fit(described(pipe), CONCEPT, ROWS, images, base, Looking(), draw, seed=0)
    return list(fit)


def state(pipe: Any) -> dict[str, Any]:
    """All that an attack must leave as it was."""
    found: dict[str, Any] = {"tokenizer": pipe.tokenizer, "config": dict(pipe.config)}
    for part, module in pipe.components.items():
        if isinstance(module, torch.nn.Module):
            for name, tensor in module.state_dict().items():
                found[f"{part}.{name}"] = tensor.clone()
            hooks = [m for m in module.modules() if m._forward_hooks or m._forward_pre_hooks]
            found[f"{part}'s hooks"] = [type(m).__name__ for m in hooks]
            found[f"{part} learns"] = [p.requires_grad for p in module.parameters()]
            found[f"{part} trains"] = [m.training for m in module.modules()]
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name])
        if isinstance(value, torch.Tensor)
        else value == other[name]
        for name, value in one.items()
    )


def drawn(pipe: Any, prompts: Sequence[Prompt]) -> list[bytes]:
    return [image.tobytes() for image in pictures(pipe, prompts, guidance=3.0, steps=2)]


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_leaves_the_pipeline_as_it_was(
    name: str, pipe: Any, images: list[Image.Image]
) -> None:
    with erased(pipe):
        before = state(pipe)
        found = fitted(name, pipe, images)
        assert same(before, state(pipe))
        with found[-1].applied(pipe):
            drawn(pipe, found[-1].suite(Suite("s", tuple(ROWS))).prompts)
        assert same(before, state(pipe))


@pytest.mark.parametrize("name", ATTACKS)
def test_of_no_budget_it_draws_the_erased_models_images(
    name: str, pipe: Any, images: list[Image.Image]
) -> None:
    with erased(pipe):
        first = fitted(name, pipe, images)[0]
        assert first.record.spent == Spent() and not first.changes_model
        before = drawn(pipe, ROWS)
        with first.applied(pipe):
            assert drawn(pipe, first.suite(Suite("s", tuple(ROWS))).prompts) == before


@pytest.mark.parametrize("name", ATTACKS)
def test_one_seed_gives_one_attack_and_the_budget_only_grows(
    name: str, pipe: Any, images: list[Image.Image]
) -> None:
    with erased(pipe):
        one, other = fitted(name, pipe, images), fitted(name, pipe, images)
    assert [a.sha256 for a in one] == [a.sha256 for a in other]
    costs = [(a.record.spent.rows, a.record.spent.steps, a.record.spent.looks) for a in one]
    assert costs == sorted(costs)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_file_is_read_as_it_was_written(
    name: str, pipe: Any, images: list[Image.Image], tmp_path: Path
) -> None:
    with erased(pipe):
        last = fitted(name, pipe, images)[-1]
    last.save(tmp_path / "a.safetensors")
    found = Attacked.load(tmp_path / "a.safetensors")
    assert found.record == last.record and found.sha256 == last.sha256
    assert found.tensors.keys() == last.tensors.keys()
    (tried,) = find_attacks([tmp_path / "a.safetensors"])
    assert tried.found == found if not last.tensors else tried.found is not None


@pytest.mark.parametrize("name", ATTACKS)
def test_it_keeps_ids_seeds_labels_and_units(
    name: str, pipe: Any, images: list[Image.Image]
) -> None:
    rows = tuple(dataclasses.replace(row, labels={"object": "knife"}) for row in ROWS)
    with erased(pipe):
        suite = fitted(name, pipe, images)[-1].suite(Suite("s", rows))
    for ours, theirs in zip(rows, suite.prompts, strict=True):
        assert (ours.id, ours.seed, ours.labels) == (theirs.id, theirs.seed, theirs.labels)
        assert theirs.prompt == ours.prompt or theirs.unit == ours.prompt


@pytest.mark.parametrize("name", [n for n in ATTACKS if ATTACKS[n].touches == "text"])
def test_words_survive_being_decoded_and_encoded(
    name: str, pipe: Any, images: list[Image.Image]
) -> None:
    with erased(pipe):
        for found in fitted(name, pipe, images):
            for text in filter(None, (found.record.text, *found.record.prompts.values())):
                ids = pipe.tokenizer(text, add_special_tokens=False).input_ids
                again = pipe.tokenizer(pipe.tokenizer.decode(ids), add_special_tokens=False)
                assert again.input_ids == ids


def test_a_file_of_an_attack_is_no_erasure_and_an_edited_one_is_refused(
    tmp_path: Path, pipe: Any
) -> None:
    from unsee.pipelines import Erasure

    record = Record("words", "text", "text", {}, CONCEPT, 0, text="cat")
    path = tmp_path / "a.safetensors"
    Attacked(record).save(path)
    with pytest.raises(InputError, match="is no erasure file"):
        Erasure.load(path)
    path.write_bytes(path.read_bytes().replace(b'\\"text\\": \\"cat\\"', b'\\"text\\": \\"dog\\"'))
    with pytest.raises(InputError, match="changed since it was written"):
        Attacked.load(path)
    erase(pipe, CONCEPT, check=False).save(path)
    with pytest.raises(InputError, match="is no attack's file"):
        Attacked.load(path)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("textual-invers", "No attack is named 'textual-invers'"),
        ("textual-inversion:ccee", "No preset of textual-inversion is named 'ccee'"),
        ("textual-inversion?step=3", "No setting of textual-inversion is named 'step'"),
        ("textual-inversion?steps=none", "steps"),
        ("missing.safetensors", "missing.safetensors"),
    ],
)
def test_what_is_no_attack_is_refused_in_a_line(named: str, words: str) -> None:
    with pytest.raises(InputError, match=words.replace("?", r"\?")):
        find_attacks(named)


def test_an_attack_is_named_once() -> None:
    with pytest.raises(InputError, match="is there twice"):
        find_attacks(["textual-inversion", "textual-inversion"])


def test_a_phrase_is_replaced_whole_and_whatever_its_case() -> None:
    concept = Concept("kitchen knife", phrases=("kitchen knife", "knife"))
    assert put_in("A Kitchen  Knife and a knife", concept, "x") == "A x and a x"
    assert put_in("a penknife", concept, "x") == "a penknife, x"


# Textual inversion


def test_a_tokens_embedding_is_what_the_encoder_reads(pipe: Any) -> None:
    """With a word's own embedding, the token is that word."""
    parts = described(pipe)
    word = search.like(pipe, "cat", 1)
    with search.learnt(pipe, word):
        token = parts.encode([f"a photo of {search.words(pipe, 1)} by monet"])
    assert token.equals(parts.encode(["a photo of cat by monet"]))


@pytest.mark.parametrize("name", ["flux", "stable-diffusion-xl", "wan"])
def test_every_encoder_reads_a_tokens_embedding(name: str) -> None:
    pipe = build(name)
    token = {n: torch.full_like(v, 0.5) for n, v in search.like(pipe, "cat", 1).items()}
    with search.learnt(pipe, token), search.embedded(pipe) as read:
        described(pipe).encode([f"a photo of {search.words(pipe, 1)} by monet"])
    assert read.keys() == token.keys()
    for one in read.values():
        assert int((one.rows == 0.5).all(-1).sum()) == 1


def test_several_vectors_stand_one_after_another(pipe: Any) -> None:
    parts = described(pipe)
    two = {n: torch.cat([a, b]) for (n, a), b in zip(
        search.like(pipe, "cat", 1).items(), search.like(pipe, "dog", 1).values(), strict=True
    )}  # fmt: skip
    with search.learnt(pipe, two):
        token = parts.encode([f"a {search.words(pipe, 2)} by monet"])
    assert token.equals(parts.encode(["a cat dog by monet"]))


@pytest.mark.parametrize("vectors", [1, 2])
def test_diffusers_loads_the_file_and_draws_the_same(
    vectors: int, pipe: Any, images: list[Image.Image], tmp_path: Path
) -> None:
    found = fitted("textual-inversion", pipe, images, vectors=vectors)[-1]
    suite = found.suite(Suite("s", tuple(ROWS)))
    with found.applied(pipe):
        ours = drawn(pipe, suite.prompts)
    found.save(tmp_path / "token.safetensors")
    pipe.load_textual_inversion(str(tmp_path), weight_name="token.safetensors")
    assert drawn(pipe, suite.prompts) == ours


def test_a_step_is_adams_on_the_formula_written_out(pipe: Any, images: list[Image.Image]) -> None:
    """‖n − ε_θ(x_t, t, τ(… S* …))‖² and one step of Adam, in float64, without our machinery."""
    pipe.unet.double(), pipe.text_encoder.double(), pipe.vae.double()
    attack = TextualInversion(steps=1, rungs=1, batch_size=2, start="hammer", lr=0.01)
    parts = described(pipe)

    def none(prompts: Sequence[Prompt] = ()) -> Any:
        raise AssertionError("Textual inversion neither draws nor lifts the erasure.")

    *_, found = attack.fit(parts, CONCEPT, ROWS, images, none, Looking(), none, seed=3)
    draw = torch.Generator().manual_seed(3)
    which = torch.randint(2, (1, 2), generator=draw)[0]
    t = torch.randint(1000, (1, 2), generator=draw)[0]
    x0 = parts.latents(images).float()[which]
    n = torch.randn(x0.shape, generator=draw)
    root = pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    x = (root.sqrt() * x0 + (1 - root).sqrt() * n).double()
    v = search.like(pipe, "hammer", 1)["text_encoder"].requires_grad_()
    table, ids = pipe.text_encoder.get_input_embeddings(), []
    for i in which.tolist():
        words = ROWS[i].prompt.replace("knife", "hammer")
        ids.append(pipe.tokenizer(words, padding="max_length", max_length=16).input_ids)
    hammer = pipe.tokenizer("hammer", add_special_tokens=False).input_ids[-1]
    read = torch.tensor(ids)
    handle = table.register_forward_hook(
        lambda m, a, out: torch.where((read == hammer)[..., None], v.to(out), out)
    )
    text = pipe.text_encoder(read)[0]
    handle.remove()
    loss = functional.mse_loss(pipe.unet(x, t, text).sample.float(), n)
    loss.backward()
    assert v.grad is not None
    step = 0.01 * v.grad / (v.grad.abs() + 1e-8)
    (learnt,) = found.tensors.values()
    torch.testing.assert_close(learnt, (v - step).detach(), rtol=1e-4, atol=1e-6)


def test_a_guide_is_refused_in_words(pipe: Any, images: list[Image.Image]) -> None:
    with erase(pipe, CONCEPT, method="sld").applied(pipe):
        with pytest.raises(InputError, match="steers guidance"):
            fitted("textual-inversion", pipe, images)
