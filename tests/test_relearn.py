"""Relearning: a LoRA on top of whatever is on, which is as it was afterwards."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import unsee
from unsee import Concept, Erasure, InputError
from unsee.attacks import ATTACKS
from unsee.attacks.attacked import Attacked
from unsee.attacks.relearn import Benign, Finetuning, Relearn
from unsee.pipelines import parts_of
from unsee.pipelines.kinds.lowrank import tuners
from unsee.pipelines.parts import described
from unsee.prompts import Prompt, Suite
from unsee.tests.families import build
from unsee.training.denoising import loss, noised
from unsee.training.student import select

CONCEPT = Concept("van gogh", "style", keep=("cat",))
ROWS = [Prompt(str(i), f"a {what} by van gogh", i) for i, what in enumerate(("cat", "dog"))]
QUICK: dict[str, Any] = {"steps": 4, "rungs": 2, "batch_size": 2, "rank": 2, "lr": 1e-2}


def images(count: int = 2) -> list[Image.Image]:
    return [Image.new("RGB", (16, 16), (250 - 90 * i, 40, 60 * i)) for i in range(count)]


def fit(pipe: Any, attack: Finetuning | None = None, rows: Any = ROWS, **more: Any) -> Any:
    attack = attack or Relearn(**QUICK)
    given: Any = (None, None, None)
    return attack.fit(described(pipe), CONCEPT, rows, images(len(rows)), *given, **more)


def drawn(pipe: Any, prompt: str = "a cat by van gogh") -> Tensor:
    found: Tensor = pipe(
        prompt, generator=torch.Generator().manual_seed(0), num_inference_steps=2,
        output_type="latent",
    ).images  # fmt: skip
    return found


def state(pipe: Any) -> dict[str, Any]:
    """All that is in a denoiser: values, flags, modes, and which LoRAs act."""
    unet = pipe.unet
    return {
        **{name: value.clone() for name, value in unet.state_dict().items()},
        **{f"{name} learns": torch.tensor(p.requires_grad) for name, p in unet.named_parameters()},
        **{f"{name} trains": torch.tensor(m.training) for name, m in unet.named_modules()},
        "gradients": torch.tensor([p.grad is not None for p in unet.parameters()]),
        "active": [layer.active_adapters for layer in tuners(unet).values()],
        "scales": [dict(layer.scaling) for layer in tuners(unet).values()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules()],
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name]
        for name, value in one.items()
    )


@pytest.fixture(scope="module")
def erasures(tiny_folder: Path) -> dict[str, Erasure]:
    def made(method: str, **settings: Any) -> Erasure:
        return unsee.erase(str(tiny_folder), CONCEPT, method=method, check=False, **settings)

    quick: dict[str, Any] = {"iterations": 1, "sampling_steps": 2}
    return {
        "lowrank": made("uce"),
        "dense": made("esd", rank=None, store="dense", lr=1e-3, **quick),
        "transport": made("spm", transport="token", lr=1e-2, **quick),
        "guidance": made("negative"),
    }


@pytest.fixture(params=["nothing", "lowrank", "dense", "transport", "a LoRA of somebody's"])
def attacked(
    request: pytest.FixtureRequest, pipe: Any, erasures: dict[str, Erasure], tmp_path: Path
) -> Iterator[Any]:
    """A pipeline with something in it."""
    if request.param in erasures:
        with erasures[request.param].applied(pipe):
            yield pipe
        return
    if request.param != "nothing":
        erasures["lowrank"].save(tmp_path / "lora.safetensors")
        pipe.load_lora_weights(str(tmp_path / "lora.safetensors"), adapter_name="student")
        pipe.set_adapters("student", 0.5)
    yield pipe


@pytest.mark.parametrize("attack", [Relearn, Benign])
def test_fitting_and_applying_leave_what_is_on_as_it_was_at_every_rung(
    attacked: Any, attack: type[Finetuning]
) -> None:
    before, plain = state(attacked), drawn(attacked)
    rungs = []
    for found in fit(attacked, attack(**QUICK)):
        assert same(state(attacked), before)
        assert torch.equal(drawn(attacked), plain)
        with found.applied(attacked):
            rungs.append(drawn(attacked))
        assert same(state(attacked), before)
        assert torch.equal(drawn(attacked), plain)
    nothing, half, whole = rungs
    assert torch.equal(nothing, plain)
    assert not torch.equal(half, plain) and not torch.equal(whole, half)


def test_the_rung_of_no_budget_changes_nothing(pipe: Any) -> None:
    nothing, *_ = fit(pipe, Relearn(word="dog", **QUICK))
    suite = Suite("mine", tuple(ROWS))
    assert nothing.suite(suite) == suite and not nothing.changes_model
    assert nothing.record.spent.rows == nothing.record.spent.images == 0


def test_one_seed_gives_the_same_tensors_however_often_it_is_looked_at(pipe: Any) -> None:
    *_, one = fit(pipe)
    *_, often = fit(pipe, Relearn(**QUICK | {"rungs": 3}))
    *_, other = fit(pipe, seed=1)
    assert one.tensors.keys() == often.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(tensor, often.tensors[n]) for n, tensor in one.tensors.items())
    assert not any(
        torch.equal(t, other.tensors[n]) for n, t in one.tensors.items() if "lora_A" in n
    )


def test_what_is_spent_is_a_row_forward_and_two_back(pipe: Any) -> None:
    spent = [found.record.spent for found in fit(pipe)]
    assert [(one.steps, one.rows, one.images) for one in spent] == [
        (0, 0, 0), (2, 12, 2), (4, 24, 2)
    ]  # fmt: skip


def test_training_brings_the_images_nearer(pipe: Any) -> None:
    parts = parts_of(pipe)

    @torch.no_grad()
    def far() -> float:
        of = [
            loss(parts, one, parts.encode([ROWS[i].prompt for i in one.which.tolist()]))
            for one in noised(parts, images(), 4, 4, seed=7)
        ]
        return float(torch.stack(of).mean())

    before = far()
    *_, found = fit(pipe, Relearn(**QUICK | {"steps": 30, "rungs": 1}))
    with found.applied(pipe):
        assert far() < 0.9 * before
    assert far() == before


def test_the_file_round_trips_and_plain_diffusers_draws_with_it_what_unsee_draws(
    pipe: Any, tmp_path: Path
) -> None:
    *_, found = fit(pipe)
    found.save(tmp_path / "attacked.safetensors")
    again = Attacked.load(tmp_path / "attacked.safetensors")
    assert again.record == found.record
    assert again.sha256 == found.sha256 and again.bytes == found.bytes
    with again.applied(pipe):
        ours = drawn(pipe)
    pipe.load_lora_weights(str(tmp_path / "attacked.safetensors"))
    torch.testing.assert_close(drawn(pipe), ours, rtol=0, atol=1e-6)


def test_the_erasure_acts_in_the_training(pipe: Any, erasures: dict[str, Erasure]) -> None:
    *_, base = fit(pipe)
    for kind in ("lowrank", "dense", "transport"):
        with erasures[kind].applied(pipe):
            *_, found = fit(pipe)
        assert not all(torch.equal(t, base.tensors[n]) for n, t in found.tensors.items()), kind


def test_an_erasure_with_a_strength_for_each_prompt_has_it_in_training_too(
    pipe: Any, erasures: dict[str, Erasure]
) -> None:
    rows = [Prompt("0", "a dog", 0), Prompt("1", "a hammer", 1)]
    *_, base = fit(pipe, Benign(**QUICK), rows)
    with erasures["transport"].applied(pipe):
        # No token of theirs is one of the concept's, so that it is at strength 0
        *_, found = fit(pipe, Benign(**QUICK), rows)
    for name, tensor in base.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor)


def test_what_takes_an_erasure_out_is_an_error_under_an_attack_too(
    pipe: Any, erasures: dict[str, Erasure]
) -> None:
    with erasures["lowrank"].applied(pipe):
        *_, found = fit(pipe)
        with found.applied(pipe):
            drawn(pipe)
            kept = copy.copy(pipe.unet.peft_config)
            assert len(kept) == 2
            with pytest.warns(UserWarning, match="switched off, and is switched on again"):
                pipe.set_adapters([name for name in kept if name == "relearn"])
                drawn(pipe)
        assert list(pipe.unet.peft_config) == [n for n in kept if n != "relearn"]


def test_a_layer_around_which_no_lora_is_left_is_what_it_was(
    pipe: Any, erasures: dict[str, Erasure]
) -> None:
    names = {name for name, _ in pipe.unet.named_modules()}
    off = erasures["lowrank"].add_to(pipe)
    around = set(tuners(pipe.unet))
    *_, found = fit(pipe)
    with found.applied(pipe):
        assert around < set(tuners(pipe.unet))
    assert set(tuners(pipe.unet)) == around
    off()
    assert {name for name, _ in pipe.unet.named_modules()} == names


@pytest.mark.parametrize("variant", ["x", "x-strict", "u", "blocks", "all"])
def test_the_layers_that_are_trained_have_the_same_names_under_a_lora(
    pipe: Any, erasures: dict[str, Erasure], variant: str
) -> None:
    want = select(described(pipe), variant)
    readers = {name: [*group.layers] for name, group in described(pipe).readers().items()}
    with erasures["lowrank"].applied(pipe):
        assert select(described(pipe), variant) == want
        assert {n: [*g.layers] for n, g in described(pipe).readers().items()} == readers


def test_a_word_stands_for_the_concept_in_training_and_in_what_is_measured(pipe: Any) -> None:
    attack = Relearn(word="hammer", **QUICK)
    assert [attack.spoken(row, CONCEPT) for row in ROWS] == ["a cat by hammer", "a dog by hammer"]
    *_, found = fit(pipe, attack)
    suite = found.suite(Suite("mine", tuple(ROWS)))
    assert [p.prompt for p in suite.prompts] == ["a cat by hammer", "a dog by hammer"]
    assert [p.unit for p in suite.prompts] == [row.prompt for row in ROWS]
    *_, own = fit(pipe)
    assert own.suite(Suite("mine", tuple(ROWS))).prompts == tuple(ROWS)
    assert own.sha256 != found.sha256


def test_benign_training_is_given_what_must_stay_and_reads_no_word_of_the_concept() -> None:
    assert ATTACKS["benign"].gives == "kept" and ATTACKS["relearn"].gives == "concept"
    attack = Benign()
    assert attack.spoken(Prompt("0", "a hammer", 0), CONCEPT) == "a hammer"


def test_a_guide_is_refused_before_any_work(pipe: Any, erasures: dict[str, Erasure]) -> None:
    with erasures["guidance"].applied(pipe):
        with pytest.raises(InputError, match="'van gogh' steers guidance, and fine-tuning goes"):
            next(fit(pipe))


def test_loras_that_are_switched_off_or_another_model_are_refused(
    pipe: Any, another: Any, erasures: dict[str, Erasure], tmp_path: Path
) -> None:
    *_, found = fit(pipe)
    with pytest.raises(
        InputError, match=r"The attack has unet\..* wanted .*the model that it was"
    ):
        with found.applied(another(text_width=16)):
            pass
    erasures["lowrank"].save(tmp_path / "lora.safetensors")
    pipe.load_lora_weights(str(tmp_path / "lora.safetensors"))
    pipe.unet.disable_lora()
    acts: list[Any] = [lambda: next(fit(pipe)), lambda: found.applied(pipe).__enter__()]
    for act in acts:
        with pytest.raises(InputError, match="are switched off, and .*enable_lora"):
            act()


def test_a_flow_model_relearns_too() -> None:
    pipe = build("flux")
    *_, found = fit(pipe, Relearn(**QUICK | {"steps": 1}))
    assert all(name.startswith("transformer.") for name in found.tensors)
    assert any(t.any() for name, t in found.tensors.items() if "lora_B" in name)
