"""Concept ablation: beside its loop written out, what it is shown, and how it is stored."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from unsee._errors import InputError
from unsee.erasers.ablation import Ablation
from unsee.erasers.effect import effect
from unsee.pipelines import Erasure, parts_of
from unsee.prompts import Concept

VAN_GOGH = Concept("van gogh", "style", anchor="art", keep=("monet",))
BOMB = Concept("bomb", keep=("hammer", "dog"))

# Few and large steps: a tiny model learns in them what a test can see.
FAST: dict[str, Any] = {
    "iterations": 3,
    "batch_size": 2,
    "images": 4,
    "sampling_steps": 3,
    "lr": 1e-3,
}


def same(one: Any, other: Any) -> bool:
    """Whether two mappings hold the same tensors, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def ddim(pipe: Any, steps: int) -> Any:
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    return scheduler


# Against the loop written out


@pytest.mark.parametrize(
    "loss, target",
    [("model-based", "teacher"), ("model-based", "student"), ("noise-based", "student")],
)
def test_it_learns_what_the_loop_written_out_learns(pipe: Any, loss: Any, target: Any) -> None:
    settings = Ablation(
        **FAST,
        loss=loss,
        target=target,
        variant="x",
        anchor_weight=0.5,
        keep_weight=2.0,
        store="dense",
    )
    parts = parts_of(pipe)
    got = settings.fit(parts, [VAN_GOGH], seed=5)
    plan = settings._plan(parts, [VAN_GOGH], 5)
    texts = parts.encode(plan.prompts)
    alphas = pipe.scheduler.alphas_cumprod

    def predict(unet: Any, x: Tensor, t: Tensor, prompts: Tensor) -> Tensor:
        out: Tensor = unet(x, t, **texts[prompts].inputs).sample
        return out

    with torch.no_grad():
        drawn = []
        for prompt, start in zip(plan.drawn, plan.start, strict=True):
            scheduler, x = ddim(pipe, 3), start[None]
            for t in scheduler.timesteps:
                both = torch.stack([torch.tensor(0), prompt])
                empty, prompted = predict(pipe.unet, torch.cat([x, x]), t, both).chunk(2)
                x = scheduler.step(empty + 6.0 * (prompted - empty), t, x).prev_sample
            drawn.append(x)
    student = copy.deepcopy(pipe.unet).requires_grad_(False)
    trained = {n: p for n, p in student.named_parameters() if ".attn2." in n}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(trained.values(), lr=1e-3)
    before = {n: p.detach().clone() for n, p in trained.items()}
    for step in range(3):
        total = torch.zeros(())
        for n in (2 * step, 2 * step + 1):
            t, noise = plan.timesteps[n, None], plan.noise[n, None]

            def noised(x: Tensor, t: Tensor = t, noise: Tensor = noise) -> Tensor:
                return torch.add(alphas[t] ** 0.5 * x, (1 - alphas[t]) ** 0.5 * noise)

            x, k = noised(drawn[plan.images[n]]), noised(drawn[plan.kept[n]])
            goes, comes = plan.concepts[n, None], plan.drawn[plan.images[n], None]
            stays = plan.drawn[plan.kept[n], None]
            with torch.no_grad():
                whose = student if target == "student" else pipe.unet
                goal = predict(whose, x, t, comes) if loss == "model-based" else noise
                held = predict(pipe.unet, k, t, stays)
            total = total + (predict(student, x, t, goes) - goal).square().mean() / 2
            total = total + 0.5 * (predict(student, x, t, comes) - noise).square().mean() / 2
            total = total + 2.0 * (predict(student, k, t, stays) - held).square().mean() / 2
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert got.tensors.keys() == {f"unet.{n}_delta" for n in trained}
    for name, parameter in trained.items():
        delta = got.tensors[f"unet.{name}_delta"]
        assert delta.any() or not parameter.grad.any()
        # Adam's first steps are of one length whatever the gradient: where that is nearly
        # nothing, rounding decides the sign.
        off = (delta - (parameter - before[name])).abs() > 1e-5
        assert off.float().mean() < 0.02


def test_truth_is_the_noise_or_the_velocity(pipe: Any) -> None:
    x, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator())
    t = torch.tensor([0, 500, 999])

    def truth(kind: str) -> Tensor:
        pipe.scheduler.register_to_config(prediction_type=kind)
        return parts_of(pipe).schedule(3).truth(x, noise, t)

    assert torch.equal(truth("epsilon"), noise)
    alpha = pipe.scheduler.alphas_cumprod[t].view(3, 1, 1, 1)
    want = alpha**0.5 * noise - (1 - alpha) ** 0.5 * x
    torch.testing.assert_close(truth("v_prediction"), want)
    assert torch.equal(truth("sample"), x)
    pipe.scheduler.register_to_config(prediction_type="the weather")
    with pytest.raises((InputError, ValueError), match="the weather"):
        truth("the weather")


# What it is shown


def test_every_phrase_template_and_image_has_its_turn(pipe: Any) -> None:
    group = Concept("unsafe", phrases=("bomb", "knife"), templates=("a {}", "{} photo"))
    settings = Ablation(iterations=12, batch_size=2, images=6)
    plan = settings._plan(parts_of(pipe), [group, VAN_GOGH], 0)
    assert len(plan.images) == len(plan.concepts) == 24
    assert set(Counter(plan.images.tolist()).values()) == {4}
    assert set(Counter(plan.kept.tolist()).values()) == {4}
    pairs = Counter(
        (plan.prompts[c], plan.prompts[plan.drawn[i]])
        for c, i in zip(plan.concepts.tolist(), plan.images.tolist(), strict=True)
    )
    assert pairs.keys() == {
        ("a bomb", "a "),
        ("a knife", "a "),
        ("bomb photo", " photo"),
        ("knife photo", " photo"),
        ("van gogh", "art"),
    }
    assert {plan.prompts[plan.drawn[i]] for i in plan.kept.tolist()} == {"monet"}
    assert plan.timesteps.min() >= 0 and plan.timesteps.max() < 1000
    assert plan.prompts[0] is None
    # One image is enough for each concept, and what is not kept has none.
    few = Ablation(iterations=1, batch_size=1, keep_weight=0.0)
    assert len(few._plan(parts_of(pipe), [group, VAN_GOGH], 0).drawn) == 2
    plain = Ablation(expand=False)._plan(parts_of(pipe), [group, BOMB], 0)
    assert set(plain.prompts) == {None, "bomb", "knife", "hammer", "dog"}


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("templates", [("{}",), ("{}", "a {}", "{} photo")])
def test_every_phrase_is_shown_as_often_as_the_others(
    pipe: Any, count: int, templates: tuple[str, ...]
) -> None:
    phrases = tuple(f"{word} cat" for word in "abcdefgh")
    group = Concept("unsafe", phrases=phrases, templates=templates, anchor="dog")
    settings = Ablation(iterations=8 * count, batch_size=1, images=8)
    plan = settings._plan(parts_of(pipe), [group], 0)
    shown = Counter(plan.prompts[c] for c in plan.concepts.tolist())
    each = [sum(n for text, n in shown.items() if phrase in text) for phrase in phrases]
    assert each == [count] * 8


def test_images_and_targets_are_made_once_and_in_batches(pipe: Any) -> None:
    rows: list[tuple[int, bool]] = []
    hook = pipe.unet.register_forward_pre_hook(
        lambda module, args: rows.append((len(args[0]), torch.is_grad_enabled()))
    )
    Ablation(**FAST, sampling_batch=3).fit(parts_of(pipe), [BOMB])
    hook.remove()
    teacher = [n for n, learns in rows if not learns]
    # Eight images of three steps, then ε* of six samples for the concept and for what is kept
    assert teacher == [6] * 3 + [6] * 3 + [4] * 3 + [3, 3] + [3, 3]
    assert [n for n, learns in rows if learns] == [6] * 3


def test_the_keep_term_holds_what_is_kept(pipe: Any) -> None:
    moved = []
    for keep_weight in (0.0, 10.0):
        settings = Ablation(
            **FAST | {"iterations": 20, "lr": 1e-2}, anchor_weight=0.0, keep_weight=keep_weight
        )
        erasure = settings.fit(parts_of(pipe), [BOMB])
        moved.append(effect(parts_of(pipe), erasure, [BOMB])["bomb"])
    assert moved[0].moved > 0.3
    free, held = (one.kept_moved or 0.0 for one in moved)
    assert held < 0.7 * free


# Going on, and what is stored


def test_a_resumed_run_comes_to_the_same_weights(pipe: Any, tmp_path: Path) -> None:
    settings, kept = Ablation(**FAST | {"iterations": 6}), tmp_path / "kept"
    whole = settings.fit(parts_of(pipe), [BOMB], seed=3)

    losses: list[float] = []

    def stop(loss: float) -> None:
        losses.append(loss)
        if len(losses) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        settings.fit(parts_of(pipe), [BOMB], seed=3, checkpoint=kept, watch=stop)
    resumed = settings.fit(parts_of(pipe), [BOMB], seed=3, checkpoint=kept, watch=losses.append)
    assert len(losses) == 6
    assert same(whole.tensors, resumed.tensors) and whole.record == resumed.record
    called: list[float] = []
    with pytest.raises(InputError, match="of another run, with other concepts, lr"):
        Ablation(**FAST | {"iterations": 6, "lr": 1.0}).fit(
            parts_of(pipe), [VAN_GOGH], seed=3, checkpoint=kept, progress=called.append
        )
    assert not called


def test_it_is_stored_as_a_lora_of_the_keys_and_values_or_dense(pipe: Any) -> None:
    parts = parts_of(pipe)
    settings = FAST | {"iterations": 1}
    plain, rank, dense = (
        Ablation(**settings, **more).fit(parts, [BOMB])
        for more in ({"residual": 0.2}, {"rank": 2}, {"store": "dense"})
    )
    for erasure in (plain, rank, dense):
        assert erasure.record.method == "ablation"
        assert (
            erasure.record.base.components["unet"].layers.keys()
            == parts.readers()["sequence"].layers.keys()
        )
        assert erasure.measured.loss is not None and erasure.measured.loss.first > 0
    assert 0 < (plain.measured.residual or 0) <= 0.2
    assert {t.shape[0] for n, t in rank.tensors.items() if "lora_A" in n} == {2}
    assert dense.record.kind == "dense"
    for name in parts.readers()["sequence"].layers:
        product = (
            plain.tensors[f"unet.{name}.lora_B.weight"]
            @ plain.tensors[f"unet.{name}.lora_A.weight"]
        )
        delta = dense.tensors[f"unet.{name}.weight_delta"]
        assert (product - delta).norm() < 0.5 * delta.norm()


def test_progress_goes_from_0_to_1(pipe: Any) -> None:
    seen: list[float] = []
    Ablation(**FAST).fit(parts_of(pipe), [BOMB], progress=seen.append)
    assert seen == sorted(seen) and 0 < seen[0] < 0.9 and seen[-1] == 1.0


def test_the_file_round_trips(pipe: Any, tmp_path: Path) -> None:
    erasure = Ablation(**FAST).fit(parts_of(pipe), [BOMB])
    erasure.save(tmp_path / "it.safetensors")
    assert same(erasure.tensors, Erasure.load(tmp_path / "it.safetensors").tensors)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "none"},
        {"variant": "xx"},
        {"store": "thick"},
        {"precision": "float16"},
        {"iterations": 0},
        {"batch_size": 0},
        {"images": 0},
        {"sampling_steps": 0},
        {"sampling_batch": 0},
        {"rank": 0},
        {"lr": 0.0},
        {"anchor_weight": -1.0},
        {"keep_weight": float("nan")},
        {"residual": 1.0},
        {"rank": 2, "store": "dense"},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        Ablation(**settings)
