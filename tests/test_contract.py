"""What holds for every eraser that is registered, those of other packages too."""

import contextlib
import dataclasses
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unsee._errors import InputError
from unsee.erasers import ERASERS
from unsee.erasers.effect import effect
from unsee.flow import erase, make_eraser
from unsee.pipelines import Erasure, load, load_pipeline, load_text_side, parts_of
from unsee.pipelines.kinds import KINDS
from unsee.prompts import Concept
from unsee.records import Effect

CONCEPTS = [
    Concept("van gogh", "style", keep=("monet",)),
    Concept("bomb", keep=("hammer", "dog")),
]

# Enough for a random model, and done in seconds.
QUICK: dict[str, dict[str, Any]] = {
    "ablation": {
        "iterations": 60,
        "batch_size": 2,
        "images": 8,
        "sampling_steps": 5,
        "lr": 1e-2,
        # A random model has not learnt to see noise.
        "anchor_weight": 0.0,
    },
    "esd": {
        "iterations": 60,
        "batch_size": 2,
        "sampling_steps": 5,
        "lr": 1e-3,
        "keep_weight": 5.0,
    },
    "spm": {
        "iterations": 60,
        "batch_size": 2,
        "sampling_steps": 5,
        "lr": 1e-2,
        "anchoring": 5.0,
    },
    "mace": {"keep_scale": 0.5, "prompts": 5},
    "rece": {"keep_scale": 3.0},
}

every = pytest.mark.parametrize("method", list(ERASERS))
every_made = pytest.mark.parametrize("made", list(ERASERS), indirect=True)


def state(pipe: Any) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": value.clone()
        for part in ("unet", "vae", "text_encoder")
        for name, value in getattr(pipe, part).state_dict().items()
    }


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def images(pipe: Any, prompts: Sequence[str] = ("van gogh", "bomb")) -> np.ndarray:
    """An image a prompt, (n, height, width, 3) in [0, 1], on the same noise in each call."""
    draws = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    drawn = pipe(list(prompts), num_inference_steps=4, output_type="np", generator=draws).images
    return np.asarray(drawn)


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """By how much the images differ that differ least."""
    return float(np.abs(one - other).mean(axis=(1, 2, 3)).min())


SEEN = 0.001
"""Mean difference of two images' pixels: rounding is a thousandth of it, an erasure ten times."""


@dataclass(frozen=True)
class Made:
    """A method's erasure, and what making it may have changed and has not.

    Attributes:
        before: The model's state.
        after: The same, and the global generators' states, afterwards.
    """

    method: str
    erasure: Erasure
    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]


def generators() -> dict[str, torch.Tensor]:
    """The states of the global generators."""
    return {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(
            np.random.get_state(legacy=False)["state"]["key"].astype(np.int64)
        ),
        "random": torch.tensor(random.getstate()[1]),
    }


@pytest.fixture(scope="session")
def made(request: pytest.FixtureRequest, tiny_folder: Path) -> Made:
    """Each method's erasure of the same concepts, fitted once for all tests."""
    pipe, method = load_pipeline(tiny_folder, device="cpu"), request.param
    scheduler = dict(pipe.scheduler.config)
    before = state(pipe) | generators()
    erasure = erase(pipe, CONCEPTS, method=method, **QUICK.get(method, {}))
    after = state(pipe) | generators()
    assert dict(pipe.scheduler.config) == scheduler
    assert all(not p.requires_grad or p.grad is None for p in pipe.unet.parameters())
    return Made(method, erasure, before, after)


@pytest.fixture(scope="session")
def others(tiny_folder: Path) -> dict[str, Erasure]:
    """An erasure of each kind, by kind, for others to stand on."""
    pipe = load_pipeline(tiny_folder, device="cpu")
    dense: dict[str, Any] = {
        "store": "dense",
        "iterations": 8,
        "batch_size": 2,
        "sampling_steps": 3,
        "lr": 1e-3,
    }
    partners: dict[str, dict[str, Any]] = {"uce": {}, "esd": dense, "sld": {}}
    erasures = [
        # in another order, as two guides away from the same text are no more than one
        erase(pipe, ["bomb", "van gogh"], method=method, check=False, **settings)
        for method, settings in partners.items()
    ]
    found = {erasure.record.kind: erasure for erasure in erasures}
    assert found.keys() == KINDS.keys()
    return found


@every_made
def test_the_pipeline_and_the_global_generators_are_left_as_they_were(made: Made) -> None:
    assert same(made.before, made.after)


@every_made
def test_the_same_seed_gives_the_same_tensors_whatever_the_global_generators(
    pipe: Any, made: Made
) -> None:
    torch.manual_seed(99)
    eraser = make_eraser(made.method, **QUICK.get(made.method, {}))
    again = eraser.fit(parts_of(pipe), CONCEPTS, seed=made.erasure.record.seed)
    assert same(again.tensors, made.erasure.tensors)
    assert again.record == made.erasure.record


@every_made
def test_the_file_round_trips_with_its_whole_record(pipe: Any, made: Made, tmp_path: Path) -> None:
    made.erasure.save(tmp_path / "it.safetensors")
    loaded = Erasure.load(tmp_path / "it.safetensors")
    record = loaded.record
    assert record.method == made.method
    assert record.settings.keys() == {f.name for f in dataclasses.fields(ERASERS[made.method])}
    assert list(record.concepts) == CONCEPTS
    assert loaded.measured == made.erasure.measured and record == made.erasure.record
    assert record.seed == 0 and (loaded.measured.seconds or 0) > 0
    assert record.versions.keys() >= {"unsee", "torch", "diffusers"}
    assert same(loaded.tensors, made.erasure.tensors)
    with made.erasure.applied(pipe):
        want = images(pipe)
    with loaded.applied(pipe):
        np.testing.assert_array_equal(images(pipe), want)


@every_made
def test_applied_the_concepts_image_changes_and_off_it_is_the_bases_bit_for_bit(
    pipe: Any, made: Made
) -> None:
    base, weights = images(pipe), state(pipe)
    with made.erasure.applied(pipe):
        assert apart(images(pipe), base) > SEEN
    assert same(state(pipe), weights)
    np.testing.assert_array_equal(images(pipe), base)


@pytest.mark.parametrize("kind", KINDS)
@every_made
def test_stacked_on_another_both_act_and_come_off_in_any_order(
    pipe: Any, made: Made, others: dict[str, Erasure], kind: str
) -> None:
    other, base, weights = others[kind], images(pipe), state(pipe)
    with made.erasure.applied(pipe):
        alone = images(pipe)
    lower, upper = contextlib.ExitStack(), contextlib.ExitStack()
    lower.enter_context(other.applied(pipe))
    below = images(pipe)
    upper.enter_context(made.erasure.applied(pipe))
    both = images(pipe)
    assert min(apart(both, below), apart(both, alone), apart(below, base)) > SEEN
    upper.close()
    np.testing.assert_array_equal(images(pipe), below)
    upper.enter_context(made.erasure.applied(pipe))
    lower.close()
    np.testing.assert_array_equal(images(pipe), alone)
    upper.close()
    np.testing.assert_array_equal(images(pipe), base)
    assert same(state(pipe), weights)


@pytest.mark.parametrize("method", [name for name in ERASERS if ERASERS[name].needs == "text"])
def test_the_text_side_alone_gives_the_same_file(
    pipe: Any, tiny_folder: Path, method: str
) -> None:
    shell = load_text_side(tiny_folder)
    assert shell.vae is None and shell.unet.conv_in.weight.is_meta
    one, two = (
        make_eraser(method, **QUICK.get(method, {})).fit(parts_of(p), CONCEPTS, seed=3)
        for p in (pipe, shell)
    )
    assert one.record == two.record and one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_the_denoiser_is_not_read_where_nobody_looks(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = erase(str(tiny_folder), CONCEPTS)
    assert (looked.measured.effect or {})["bomb"].moved > 0.5
    monkeypatch.setattr(load, "load_pipeline", None)
    blind = erase(str(tiny_folder), CONCEPTS, check=False)
    assert blind.measured.effect is None
    assert all(torch.equal(blind.tensors[name], looked.tensors[name]) for name in looked.tensors)


def test_a_denoiser_that_is_cut_short_is_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_folder, tmp_path / "cut")
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match="No model could be loaded as"):
        erase(str(copy), CONCEPTS)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match="No model could be loaded as"):
        erase(str(copy), CONCEPTS, check=False)


@every_made
def test_it_moves_the_concepts_more_than_what_is_kept(made: Made) -> None:
    for seen in (made.erasure.measured.effect or {}).values():
        assert seen.moved > 0.5
        assert seen.kept_moved is not None and seen.kept_moved < 0.5


@every
@pytest.mark.parametrize("given", [{"keep": ["hammer"]}, {"anchor": "cat"}])
def test_what_it_is_asked_to_keep_or_become_it_honours_or_refuses(
    pipe: Any, method: str, given: dict[str, Any]
) -> None:
    quick = QUICK.get(method, {}) | ({"iterations": 2} if ERASERS[method].trains else {})

    def tensors(**more: Any) -> dict[str, torch.Tensor]:
        return dict(erase(pipe, "bomb", method=method, check=False, **quick, **more).tensors)

    if getattr(ERASERS[method], f"honours_{next(iter(given))}"):
        one, other = tensors(), tensors(**given)
        assert any(
            other[name].shape != t.shape or not torch.equal(other[name], t)
            for name, t in one.items()
        )
    else:
        with pytest.raises(InputError, match=f"^{method} .*leave {next(iter(given))} out"):
            tensors(**given)
    # What a concept says of itself it may say to any method.
    concept = Concept("bomb", keep=("hammer",), anchor="cat")
    assert erase(pipe, concept, method=method, check=False, **quick).record.method == method


@pytest.mark.parametrize("method", [name for name in ERASERS if ERASERS[name].keep_setting])
def test_what_a_setting_of_0_would_drop_is_refused(pipe: Any, method: str) -> None:
    setting = str(ERASERS[method].keep_setting)
    quick = QUICK.get(method, {}) | {setting: 0.0}
    with pytest.raises(InputError, match=f"^{method} has {setting} 0, at which nothing is kept"):
        erase(pipe, "bomb", method=method, keep=["hammer"], **quick)


@every
def test_a_phrase_that_the_tokenizer_would_cut_is_refused(pipe: Any, method: str) -> None:
    with pytest.raises(InputError, match="tokens long and the tokenizer cuts after 14"):
        erase(pipe, "van gogh " * 20, method=method, **QUICK.get(method, {}))


def test_of_hundreds_of_concepts_the_effect_is_seen_on_some(pipe: Any) -> None:
    concepts = [Concept(f"{a} {b}") for a in "abcdefgh" for b in "ijklmnop"]
    erasure = ERASERS["uce"]().fit(parts_of(pipe), concepts)
    seen = effect(parts_of(pipe), erasure, concepts, most=4)
    assert list(seen) == ["a i", "c i", "e i", "g i"]


@every
def test_settings_are_frozen_and_every_preset_is_made_of_them(method: str) -> None:
    eraser = make_eraser(method)
    with pytest.raises(dataclasses.FrozenInstanceError):
        eraser.nothing = 1  # type: ignore[attr-defined]
    for preset in ERASERS[method].presets:
        assert make_eraser(method, preset) != eraser


def test_an_erasure_of_nothing_is_seen_to_move_nothing(pipe: Any) -> None:
    erasure = ERASERS["uce"]().fit(parts_of(pipe), CONCEPTS[:1])
    still = dataclasses.replace(
        erasure, tensors={name: torch.zeros_like(t) for name, t in erasure.tensors.items()}
    )
    seen = effect(parts_of(pipe), still, CONCEPTS[:1])["van gogh"]
    assert seen == Effect(0.0, 0.0)


def test_an_erasure_that_hardly_moves_the_concept_says_so(pipe: Any) -> None:
    with pytest.warns(UserWarning, match="'van gogh' is hardly erased: the prediction moved 0%"):
        erase(pipe, CONCEPTS[:1], ridge=1e9)


def test_names_that_are_not_there_are_refused(pipe: Any) -> None:
    refused: dict[Callable[[], object], str] = {
        lambda: erase(
            pipe, "bomb", method="ucee"
        ): "No method is named 'ucee'. Did you mean 'uce'",
        lambda: erase(pipe, "bomb", preset="2024"): "No preset of uce is named '2024'.*2025",
        lambda: erase(pipe, "bomb", rigde=1): "setting of uce.*Did you mean 'ridge'",
        lambda: erase(pipe, []): "no concept",
        lambda: erase(pipe, "bomb", keep=["bomb"]): "'bomb' cannot both go and stay",
        lambda: erase(pipe, "bomb", anchor="bomb"): "its own anchor",
        lambda: erase(pipe, " "): "empty",
        lambda: erase(pipe, "van gogh " * 20): "tokens long and the tokenizer cuts after 14",
        lambda: erase("no/such/model", "bomb"): "No model could be loaded as 'no/such/model'",
    }
    for call, match in refused.items():
        with pytest.raises(InputError, match=match):
            call()
