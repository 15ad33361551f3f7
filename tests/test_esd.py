"""ESD: its target, its trajectories, what it trains and how that is stored."""

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DDIMScheduler, DiffusionPipeline, EulerDiscreteScheduler
from safetensors.torch import save_file
from torch import Tensor

from unsee._errors import InputError
from unsee.cli import main
from unsee.erasers.effect import effect
from unsee.erasers.esd import ESD, target
from unsee.erasers.leco import leco
from unsee.flow import erase, make_eraser
from unsee.pipelines import Erasure, load_pipeline, parts_of
from unsee.prompts import Concept
from unsee.records import Loss
from unsee.training.record import factors
from unsee.training.student import lora, masters, select

VAN_GOGH = Concept("van gogh", "style", anchor="art", keep=("monet",))
BOMB = Concept("bomb", keep=("hammer", "dog"))

# Few and large steps: a tiny model learns in them what a test can see.
FAST: dict[str, Any] = {"iterations": 4, "sampling_steps": 4, "lr": 1e-3}


def images(pipe: Any) -> Tensor:
    """Two images, shape (2, 3, 16, 16)."""
    made: Tensor = pipe(
        ["a photo of a bomb", "a painting by van gogh"],
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
        num_inference_steps=3,
        output_type="pt",
    ).images
    return made


def state(pipe: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in pipe.unet.state_dict().items()}


def same(one: Any, other: Any) -> bool:
    """Whether two mappings hold the same tensors, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def products(erasure: Erasure) -> dict[str, Tensor]:
    """B A of every layer, shape (out, …)."""
    return {
        name: (
            erasure.tensors[f"unet.{name}.lora_B.weight"].flatten(1)
            @ erasure.tensors[f"unet.{name}.lora_A.weight"].flatten(1)
        ).reshape(shape)
        for name, shape in erasure.record.base.components["unet"].layers.items()
    }


# The target


def test_the_target_at_eta_0_is_the_anchors_own_prediction() -> None:
    concept, empty, anchor = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator())
    assert torch.equal(target(concept, empty, anchor, 0.0), anchor)


def test_the_target_is_the_papers() -> None:
    concept, empty, anchor = torch.tensor([[5.0], [2.0], [1.0]])
    # 1 − 2 (5 − 2)
    assert target(concept, empty, anchor, 2.0).item() == -5.0


def test_the_2025_eta_counts_from_the_concept() -> None:
    concept, empty = torch.randn(2, 9, generator=torch.Generator())
    authors = concept - 2.0 * (concept - empty)
    torch.testing.assert_close(target(concept, empty, empty, 1.0), authors)


@pytest.mark.parametrize("erase_from, eta", [(None, 1.0), ("cat", 2.0)])
def test_the_2025_target_is_its_authors_with_and_without_erase_from(
    pipe: Any, erase_from: str | None, eta: float
) -> None:
    settings = make_eraser(
        "esd", "2025", erase_from=erase_from, iterations=3, sampling_steps=3, store="dense"
    )
    assert isinstance(settings, ESD) and settings.eta == eta
    parts = parts_of(pipe)
    samples = settings._samples(parts, [BOMB], 5, None, lambda done: None)
    comes = erase_from or "bomb"
    for n, x in enumerate(samples.latents.split(1)):
        with torch.no_grad():
            e_from, e_c, e_0 = (
                pipe.unet(x, samples.timesteps[n], encoder_hidden_states=text).sample
                for text in parts.encode([comes, "bomb", ""]).first.split(1)
            )
        # Their own code's: what is erased from, less 2 of what the concept adds to nothing
        torch.testing.assert_close(samples.targets[n, None], e_from - 2.0 * (e_c - e_0))
        assert torch.equal(samples.texts.first[samples.reads[n]], parts.encode([comes]).first[0])


# The trajectories


def plainly(pipe: Any, text: Tensor, x: Tensor, steps: int, guidance: float) -> list[Any]:
    """Every (t, x, ε_c, ε_∅) of one DDIM trajectory with classifier-free guidance."""
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    points = []
    with torch.no_grad():
        for t in scheduler.timesteps:
            rows = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=text).sample
            empty, concept = rows.chunk(2)
            points.append((t, x, concept, empty))
            x = scheduler.step(empty + guidance * (concept - empty), t, x).prev_sample
    return points


def test_reference_is_the_published_loop_bit_for_bit(pipe: Any) -> None:
    settings = ESD(
        sampling="reference",
        sampling_steps=5,
        iterations=6,
        lr=1e-3,
        eta=1.5,
        keep_weight=0,
        store="dense",
    )
    got = settings.fit(parts_of(pipe), [VAN_GOGH], seed=7)

    student = copy.deepcopy(pipe.unet).requires_grad_(False)
    trained = {n: p for n, p in student.named_parameters() if ".attn2." in n}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(trained.values(), lr=1e-3)
    empty, concept, anchor = parts_of(pipe).encode(["", "van gogh", "art"]).first.split(1)
    draw = torch.Generator().manual_seed(7)
    noise = torch.randn(6, 4, 8, 8, generator=draw)
    steps = torch.randint(5, (6,), generator=draw)
    assert len(set(steps.tolist())) > 2
    for x, k in zip(noise.split(1), steps.tolist(), strict=True):
        t, x, *_ = plainly(pipe, torch.cat([empty, concept]), x, 5, 3.0)[k]
        with torch.no_grad():
            e_c, e_0, e_a = (
                pipe.unet(x, t, encoder_hidden_states=text).sample
                for text in (concept, empty, anchor)
            )
        eps = student(x, t, encoder_hidden_states=concept).sample
        loss = torch.nn.functional.mse_loss(eps, e_a - 1.5 * (e_c - e_0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    before = dict(pipe.unet.named_parameters())
    want = {f"unet.{n}_delta": (p - before[n]).detach() for n, p in trained.items()}
    assert same(want, got.tensors)


@pytest.mark.parametrize("keep_weight", [0.0, 1.0])
def test_batched_samples_lie_on_the_plain_loops_trajectories(
    pipe: Any, keep_weight: float
) -> None:
    concepts, parts = [VAN_GOGH, BOMB], parts_of(pipe)
    settings = ESD(
        iterations=5, batch_size=4, sampling_steps=4, sampling_batch=3, keep_weight=keep_weight
    )
    plan = settings._plan(parts, concepts, 0)
    samples = settings._samples(parts, concepts, 0, None, lambda done: None)
    assert len(plan.noise) == 5
    assert sorted(map(tuple, plan.points.tolist())) == [(i, k) for i in range(5) for k in range(4)]
    assert plan.points[:, 0].tolist() != sorted(plan.points[:, 0].tolist())
    for n, (i, k) in enumerate(plan.points.tolist()):
        goes = plan.prompts[plan.concepts[i]]
        comes = {"van gogh": "art", "bomb": None}[str(goes)]
        text = parts.encode([None, goes]).first
        t, x, concept, empty = plainly(pipe, text, plan.noise[i : i + 1], 4, 3.0)[k]
        with torch.no_grad():
            anchor = pipe.unet(x, t, **parts.encode([comes]).inputs).sample
        torch.testing.assert_close(samples.latents[n], x[0], rtol=0, atol=1e-3)
        torch.testing.assert_close(
            samples.targets[n], target(concept, empty, anchor, 1.0)[0], rtol=0, atol=1e-3
        )
        assert samples.timesteps[n] == t
        assert torch.equal(samples.texts.first[samples.reads[n]], text[1])
        if keep_weight:
            kept = plan.prompts[samples.keeps[n]]
            assert kept in ("monet", "hammer", "dog")
            with torch.no_grad():
                want = pipe.unet(x, t, **parts.encode([kept]).inputs).sample
            torch.testing.assert_close(samples.keep_targets[n], want[0], rtol=0, atol=1e-3)


def test_the_sampler_of_the_pipeline_does_not_matter(pipe: Any) -> None:
    settings = ESD(**FAST)
    one = settings.fit(parts_of(pipe), [BOMB])
    # Its latents are scaled before the denoiser sees them.
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    before = dict(vars(pipe.scheduler))
    assert same(one.tensors, settings.fit(parts_of(pipe), [BOMB]).tensors)
    assert vars(pipe.scheduler) == before


@pytest.mark.parametrize(
    "concept, keep_weight, most",
    [(BOMB, 0.0, 3), (BOMB, 1.0, 5), (VAN_GOGH, 0.0, 4), (VAN_GOGH, 1.0, 6)],
)
def test_a_sample_takes_few_rows_of_the_denoiser(
    pipe: Any, concept: Concept, keep_weight: float, most: int
) -> None:
    rows = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    ESD(iterations=8, batch_size=2, sampling_steps=8, keep_weight=keep_weight).fit(
        parts_of(pipe), [concept]
    )
    hook.remove()
    assert sum(rows) / 16 == most <= 6


# What is trained


def test_each_variant_selects_its_layers(pipe: Any) -> None:
    parts = parts_of(pipe)
    everything = {
        name
        for name, module in pipe.unet.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
    }
    cross = {name for name in everything if ".attn2." in name}
    block = "mid_block.attentions.0.transformer_blocks.0.attn2"
    assert {f"{block}.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")} <= cross
    strict = {name for name in cross if name.endswith(("to_k", "to_v"))}
    assert set(select(parts, "x")) == cross
    assert set(select(parts, "x-strict")) == strict == set(parts.readers()["sequence"].layers)
    assert set(select(parts, "u")) == everything - cross
    assert set(select(parts, "all")) == everything
    assert select(parts, "x", "mid_block.*to_k") == [f"{block}.to_k"]
    assert "conv_norm_out" in select(parts, "u", everything=True)


@pytest.mark.parametrize("variant", ["x", "x-strict", "u", "all"])
def test_a_variant_changes_its_layers_and_no_others(pipe: Any, variant: Any) -> None:
    parts = parts_of(pipe)
    erasure = ESD(variant=variant, iterations=1, lr=1e-3).fit(parts, [VAN_GOGH])
    assert list(erasure.record.base.components["unet"].layers) == select(parts, variant)
    with erasure.applied(pipe):
        pipe.unet.fuse_lora()
        after = {n.replace(".base_layer", ""): v for n, v in state(pipe).items()}
        pipe.unet.unfuse_lora()
    # to_k of a text's keys can be without gradient, as can what leads to nothing else.
    changed = {n for n, v in state(pipe).items() if not torch.allclose(after[n], v, atol=1e-6)}
    assert changed <= {f"{name}.weight" for name in select(parts, variant)}
    assert len(changed) > 0.9 * len(select(parts, variant))


def test_a_selection_of_no_layer_is_refused(pipe: Any) -> None:
    with pytest.raises(InputError, match="No layer of the UNet2DConditionModel.*'x'.*'nowhere'"):
        ESD(layers="nowhere").fit(parts_of(pipe), [BOMB])


def test_every_phrase_and_template_has_its_turn(pipe: Any) -> None:
    parts = parts_of(pipe)
    group = Concept("unsafe", phrases=("bomb", "knife"), templates=("a {}", "{} photo"), anchor="")
    settings = ESD(iterations=40, sampling_steps=8)
    plan = settings._plan(parts, [group, VAN_GOGH], 0)
    pairs = zip(plan.concepts.tolist(), plan.anchors.tolist(), strict=True)
    seen = {(plan.prompts[c], plan.prompts[a]) for c, a in pairs}
    assert len(plan.noise) == 5
    assert seen == {
        ("a bomb", "a "),
        ("bomb photo", " photo"),
        ("a knife", "a "),
        ("knife photo", " photo"),
        ("van gogh", "art"),
    }
    # One sample is enough for a trajectory a phrase.
    assert len(ESD(iterations=1)._plan(parts, [group, VAN_GOGH], 0).noise) == 3
    plain = ESD(iterations=40, expand=False)._plan(parts, [group, BOMB], 0)
    assert set(plain.prompts) == {None, "bomb", "knife", "hammer", "dog"}
    assert not plain.anchors.any()


@pytest.mark.parametrize("sampling", ["batched", "reference"])
@pytest.mark.parametrize("samples", [40, 43])
def test_every_one_of_many_phrases_reaches_the_student(
    pipe: Any, sampling: str, samples: int
) -> None:
    phrases = [f"{a} {b}" for a in "abcde" for b in "fghijklm"]
    concepts = [Concept(phrase) for phrase in phrases[:30]]
    concepts.append(Concept("rest", phrases=tuple(phrases[30:])))
    read = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        if torch.is_grad_enabled():
            read.extend(kwargs["encoder_hidden_states"])

    hook = pipe.unet.register_forward_pre_hook(look, with_kwargs=True)
    settings: dict[str, Any] = {"sampling": sampling, "sampling_steps": 2, "lr": 1e-3}
    erase(pipe, concepts, method="esd", iterations=samples, check=False, **settings)
    hook.remove()
    texts = parts_of(pipe).encode(phrases).first
    seen = [min(float((text - row).abs().max()) for row in read) for text in texts]
    assert len(read) == samples and max(seen) < 1e-5


def test_fewer_samples_than_phrases_are_refused_before_any_work(pipe: Any) -> None:
    pipe.unet.register_forward_pre_hook(lambda *given: pytest.fail("the denoiser was run"))
    concepts = [VAN_GOGH, Concept("unsafe", phrases=("bomb", "knife"))]
    for method in ("esd", "spm", "ablation"):
        with pytest.raises(InputError, match="3 phrases are to go, .* set iterations to 2"):
            erase(pipe, concepts, method=method, iterations=1, batch_size=2)


def test_alpha_is_multiplied_into_the_file(pipe: Any) -> None:
    def learnt(**settings: Any) -> Erasure:
        made = ESD(**FAST | {"iterations": 1}, rank=4, **settings)
        return made.fit(parts_of(pipe), [BOMB], seed=3)

    plain, quarter = learnt(), learnt(alpha=1.0)
    # Adam's first step is as long at any scale, so at 1/4 the weights go a quarter of the way.
    whole, part = (
        torch.cat([p.flatten() for p in products(e).values()]) for e in (plain, quarter)
    )
    assert (4 * part - whole).norm() < 0.1 * whole.norm()
    with pytest.raises(InputError, match="alpha is 1.0 and rank is none"):
        ESD(alpha=1.0)


def test_it_moves_every_concept_towards_its_anchor(pipe: Any) -> None:
    erasure = ESD(iterations=60, sampling_steps=10, lr=1e-3).fit(parts_of(pipe), [VAN_GOGH, BOMB])
    for seen in effect(parts_of(pipe), erasure, [VAN_GOGH, BOMB]).values():
        assert seen.moved > 0.5
    loss = erasure.measured.loss
    assert loss is not None and 0 < loss.last < 0.8 * loss.first


def test_the_keep_term_holds_what_is_kept(pipe: Any) -> None:
    moved = []
    for keep_weight in (0.0, 1.0, 10.0):
        settings = ESD(iterations=40, sampling_steps=10, lr=1e-3, keep_weight=keep_weight)
        erasure = settings.fit(parts_of(pipe), [BOMB])
        kept_moved = effect(parts_of(pipe), erasure, [BOMB])["bomb"].kept_moved
        assert kept_moved is not None
        moved.append(kept_moved)
    assert moved == sorted(moved, reverse=True) and moved[-1] < 0.7 * moved[0]


def test_a_loss_that_is_not_finite_stops_and_names_the_step(pipe: Any, tmp_path: Path) -> None:
    before, kept = state(pipe), tmp_path / "kept"
    with pytest.raises(
        InputError, match=r"not finite at step 2 of 4 .*lower lr.*is in .*kept: rem"
    ):
        ESD(**FAST | {"lr": 1e30}).fit(parts_of(pipe), [BOMB], checkpoint=kept)
    assert same(before, state(pipe))
    assert kept.is_file()


# Leaving no trace, whatever the model is like


def test_flags_and_modes_are_put_back_after_a_failure(pipe: Any) -> None:
    pipe.unet.train().requires_grad_(True)
    pipe.unet.mid_block.eval().requires_grad_(False)

    def looks() -> list[Any]:
        flags = [(n, id(p), p.requires_grad, p.grad) for n, p in pipe.unet.named_parameters()]
        return [flags, [(n, m.training) for n, m in pipe.unet.named_modules()]]

    def fail(done: float) -> None:
        if done > 0.8:
            raise RuntimeError

    before, weights = looks(), state(pipe)
    for rank in (None, 2):
        with pytest.raises(RuntimeError):
            ESD(**FAST, rank=rank, gradient_checkpointing=True).fit(
                parts_of(pipe), [BOMB], progress=fail
            )
        assert looks() == before and same(weights, state(pipe))
        assert not pipe.unet.is_gradient_checkpointing


def test_progress_goes_from_0_to_1(pipe: Any) -> None:
    seen: list[float] = []
    ESD(**FAST).fit(parts_of(pipe), [BOMB], progress=seen.append)
    assert seen == sorted(seen) and 0 < seen[0] < 0.5 and seen[-1] == 1.0


def test_gradient_checkpointing_changes_no_result(pipe: Any) -> None:
    seen: list[bool] = []
    plain, saved = (
        ESD(**FAST, gradient_checkpointing=on).fit(
            parts_of(pipe),
            [BOMB],
            progress=lambda done: seen.append(pipe.unet.is_gradient_checkpointing),
        )
        for on in (False, True)
    )
    assert seen == [False] * (len(seen) // 2) + [True] * (len(seen) // 2)
    for name, product in products(plain).items():
        torch.testing.assert_close(products(saved)[name], product, rtol=0, atol=1e-6)


def test_what_learns_is_float32_in_a_half_precision_model(tiny_folder: Path) -> None:
    half = load_pipeline(tiny_folder, device="cpu", dtype=torch.bfloat16)
    before = state(half)
    erasure = ESD(**FAST | {"lr": 1e-6}, store="dense").fit(parts_of(half), [BOMB])
    assert same(before, state(half))
    for name, delta in erasure.tensors.items():
        assert delta.dtype == torch.float32 and delta.abs().max() < 5e-6
        weight = before[name.removeprefix("unet.").removesuffix("_delta")]
        if name.endswith("to_v.weight_delta"):
            # What bfloat16 weights would have rounded away.
            assert delta.any() and torch.equal((weight + delta).bfloat16(), weight)
    rank = ESD(**FAST, rank=2).fit(parts_of(half), [BOMB])
    assert all(tensor.dtype == torch.float32 for tensor in rank.tensors.values())
    with pytest.raises(InputError, match="loaded as torch.bfloat16"):
        ESD(**FAST, precision="float32").fit(parts_of(half), [BOMB])


def test_bfloat16_arithmetic_learns_about_the_same(pipe: Any) -> None:
    settings = FAST | {"iterations": 20}
    full, half = (
        ESD(**settings, precision=p).fit(parts_of(pipe), [BOMB]) for p in ("float32", "bfloat16")
    )
    moved = [effect(parts_of(pipe), e, [BOMB])["bomb"].moved for e in (full, half)]
    assert moved[0] > 0.3 and moved[1] != moved[0]
    assert moved[1] == pytest.approx(moved[0], rel=0.2)


# Going on


@pytest.mark.parametrize("more", [{}, {"rank": 2}])
def test_a_resumed_run_comes_to_the_same_weights(
    pipe: Any, tmp_path: Path, more: dict[str, Any]
) -> None:
    settings = ESD(**FAST | {"iterations": 8} | more)
    whole = settings.fit(parts_of(pipe), [BOMB], seed=3)
    kept = tmp_path / "kept"

    def stop(done: float) -> None:
        if done > 0.7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        settings.fit(parts_of(pipe), [BOMB], seed=3, checkpoint=kept, progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    rows = []
    hook = pipe.unet.register_forward_hook(lambda *_: rows.append(torch.is_grad_enabled()))
    resumed = settings.fit(parts_of(pipe), [BOMB], seed=3, checkpoint=kept)
    hook.remove()
    assert 0 < sum(rows) < 8
    assert same(whole.tensors, resumed.tensors)
    assert whole.record == resumed.record


def test_a_checkpoint_of_another_run_is_refused(pipe: Any, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with pytest.raises(InputError, match="not finite"):
        ESD(**FAST | {"lr": 1e30}).fit(parts_of(pipe), [BOMB], checkpoint=kept)
    with pytest.raises(InputError, match="of another run, with other concepts, lr, seed: remove"):
        ESD(**FAST).fit(parts_of(pipe), [VAN_GOGH], seed=1, checkpoint=kept)
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(InputError, match="no checkpoint of a training"):
        ESD(**FAST).fit(parts_of(pipe), [BOMB], checkpoint=kept)
    for text, match in {"[" * 200_000: "nested too deeply", "[]": "its run is"}.items():
        save_file({"losses": torch.zeros(1)}, kept, {"unsee-training": text})
        with pytest.raises(InputError, match=match):
            ESD(**FAST).fit(parts_of(pipe), [BOMB], checkpoint=kept)


# Storing


def updates() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "linear": torch.randn(12, 30, generator=draw) @ torch.randn(30, 30, generator=draw),
        "small": torch.randn(3, 5, generator=draw),
        "conv": 5 * torch.randn(8, 6, 3, 3, generator=draw),
    }


@pytest.mark.parametrize("residual", [0.0, 0.1, 0.5])
def test_the_stored_rank_is_the_least_within_the_residual(residual: float) -> None:
    dense = updates()

    def left_out(pairs: dict[str, tuple[Tensor, Tensor]], rank: int) -> float:
        off = [
            dense[n].flatten(1) - b.flatten(1)[:, :rank] @ a.flatten(1)[:rank]
            for n, (a, b) in pairs.items()
        ]
        total = sum(d.square().sum() for d in dense.values())
        return float((sum(o.square().sum() for o in off) / total) ** 0.5)

    pairs, reached = factors(dense, residual)
    ranks = {len(a) for a, _ in pairs.values()}
    assert len(ranks) == 1
    (rank,) = ranks
    assert reached == pytest.approx(left_out(pairs, rank), abs=1e-5)
    assert reached <= residual < left_out(pairs, rank - 1)
    assert pairs["conv"][0].shape == (rank, 6, 3, 3) and pairs["conv"][1].shape == (8, rank, 1, 1)


def test_an_update_of_nothing_has_rank_1() -> None:
    pairs, reached = factors({"still": torch.zeros(4, 6)}, 0.1)
    assert [t.shape for t in pairs["still"]] == [(1, 6), (4, 1)] and reached == 0.0


def test_the_file_is_what_was_learnt_to_its_residual(pipe: Any) -> None:
    exact, cut = (
        ESD(**FAST | {"iterations": 20}, residual=residual).fit(parts_of(pipe), [BOMB])
        for residual in (0.0, 0.3)
    )
    want, got = products(exact), products(cut)
    off = sum((got[n] - w).square().sum() for n, w in want.items())
    relative = float((off / sum(w.square().sum() for w in want.values())) ** 0.5)
    assert 0.05 < relative <= 0.3
    assert cut.measured.residual == pytest.approx(relative, abs=1e-4)


@pytest.mark.parametrize("more", [{}, {"rank": 2}])
def test_plain_diffusers_reads_a_lora_with_convolutions(
    pipe: Any, tiny_folder: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    erasure = ESD(variant="all", **FAST, **more).fit(parts_of(pipe), [BOMB])
    erasure.save(tmp_path / "it.safetensors")
    if more:
        assert erasure.tensors["unet.conv_in.lora_B.weight"].shape == (16, 2, 1, 1)
    before = images(pipe)
    with Erasure.load(tmp_path / "it.safetensors").applied(pipe):
        ours = images(pipe)
    assert torch.equal(images(pipe), before)
    plain = DiffusionPipeline.from_pretrained(tiny_folder)
    plain.set_progress_bar_config(disable=True)
    plain.load_lora_weights(str(tmp_path / "it.safetensors"))
    torch.testing.assert_close(images(plain), ours, rtol=0, atol=1e-5)
    for name, product in products(erasure).items():
        pipe.unet.get_submodule(name).weight.data += product
    assert (ours - before).abs().max() > 0.02
    torch.testing.assert_close(images(pipe), ours, rtol=0, atol=1e-4)


def test_a_lora_of_a_rank_is_stored_as_it_was_trained(pipe: Any) -> None:
    erasure = ESD(**FAST, rank=3).fit(parts_of(pipe), [BOMB])
    assert {t.shape[0] for n, t in erasure.tensors.items() if "lora_A" in n} == {3}
    assert erasure.measured.residual is None
    assert all(t.any() for t in erasure.tensors.values())
    names = select(parts_of(pipe), "x")
    with lora(copy.deepcopy(pipe.unet), names, 3, 0) as drawn:
        for name, tensor in erasure.tensors.items():
            # Four steps of Adam, from peft's own beginning.
            start = drawn[name.removeprefix("unet.")]
            assert 0 < (tensor - start).abs().max() < 4.1e-3


@torch.no_grad()
def test_a_lora_does_in_training_what_its_file_will_do(pipe: Any) -> None:
    parts = parts_of(pipe)
    names = select(parts, "x")
    x, t = torch.ones(1, *parts.latent_shape()), torch.tensor(500)
    text = parts.encode(["bomb"])
    before = parts.predict(x, t, text)
    with lora(pipe.unet, names, 2, 0) as drawn:
        for name, parameter in drawn.items():
            if "lora_B" in name:
                parameter.fill_(0.1)
        got = parts.predict(x, t, text)
    assert torch.equal(parts.predict(x, t, text), before)
    for name in names:
        product = drawn[f"{name}.lora_B.weight"] @ drawn[f"{name}.lora_A.weight"]
        pipe.unet.get_submodule(name).weight += product
    assert (got - before).abs().max() > 0.01
    torch.testing.assert_close(parts.predict(x, t, text), got, rtol=0, atol=1e-5)


def test_a_lora_begins_from_its_seed_alone(pipe: Any) -> None:
    names = select(parts_of(pipe), "x-strict")
    begun = []
    for seed in (0, 0, 1):
        before = torch.get_rng_state()
        with lora(pipe.unet, names, 2, seed) as drawn:
            begun.append({name: p.detach().clone() for name, p in drawn.items()})
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(1)
    assert same(begun[0], begun[1]) and not same(begun[0], begun[2])


def test_masters_are_put_back_as_they_were(pipe: Any) -> None:
    weight = pipe.unet.conv_in.weight
    with masters(pipe.unet, ["conv_in.weight"]) as copies:
        assert pipe.unet.conv_in.weight is copies["conv_in.weight"] is not weight
    assert pipe.unet.conv_in.weight is weight


# Dense


@pytest.fixture
def dense(pipe: Any) -> Erasure:
    return ESD(variant="all", store="dense", **FAST).fit(parts_of(pipe), [BOMB])


def test_a_dense_erasure_adds_what_was_learnt_and_comes_off_bit_for_bit(
    pipe: Any, dense: Erasure, tmp_path: Path
) -> None:
    dense.save(tmp_path / "it.safetensors")
    loaded = Erasure.load(tmp_path / "it.safetensors")
    assert same(dense.tensors, loaded.tensors)
    assert loaded.record == dense.record
    before = state(pipe)
    # Norms and biases too: every parameter there is.
    assert loaded.tensors.keys() == {f"unet.{name}_delta" for name in before}
    with pytest.raises(ZeroDivisionError), loaded.applied(pipe):
        after = state(pipe)
        assert all(
            torch.equal(after[n], before[n] + loaded.tensors[f"unet.{n}_delta"]) for n in before
        )
        with pytest.raises(InputError, match="'bomb' is on in this pipeline"):
            parts_of(pipe)
        1 / 0  # noqa: B018
    assert same(before, state(pipe))
    parts_of(pipe)


def test_dense_erasures_add_up_and_come_off_in_any_order(pipe: Any, dense: Erasure) -> None:
    other = ESD(store="dense", **FAST).fit(parts_of(pipe), [VAN_GOGH])
    light = ESD(**FAST).fit(parts_of(pipe), [VAN_GOGH])
    before, base = state(pipe), images(pipe)
    name = select(parts_of(pipe), "x-strict")[0]
    with other.applied(pipe):
        one = state(pipe)
    remove_light = light.add_to(pipe)
    remove_first, remove_second = dense.add_to(pipe), other.add_to(pipe)
    both = sum(e.tensors[f"unet.{name}.weight_delta"] for e in (dense, other))
    weight = pipe.unet.get_submodule(name).base_layer.weight
    torch.testing.assert_close(weight, before[f"{name}.weight"] + both)
    remove_first()
    remove_light()
    assert same(one, state(pipe))
    remove_second()
    assert same(before, state(pipe)) and torch.equal(images(pipe), base)


def test_a_dense_erasure_is_loaded_with_a_pipeline(
    pipe: Any, dense: Erasure, tiny_folder: Path
) -> None:
    erased = load_pipeline(tiny_folder, dense, device="cpu")
    with dense.applied(pipe):
        assert same(state(pipe), state(erased))


def test_a_dense_erasure_is_refused_by_another_base(
    dense: Erasure, another: Callable[..., Any]
) -> None:
    for other, match in ((another(seed=1), "other weights"), (another(text_width=16), "has")):
        before = state(other)
        with pytest.raises(InputError, match=match):
            dense.add_to(other)
        assert same(before, state(other))


def test_a_dense_file_that_is_not_right_is_refused(dense: Erasure, tmp_path: Path) -> None:
    key, path = "unet.conv_in.weight_delta", tmp_path / "it.safetensors"
    tensors, record = dict(dense.tensors), dense.record
    without = {n: t for n, t in tensors.items() if n != key}
    cases = {
        f"lacks {key}": Erasure(without, record),
        f"{key} has shape": Erasure(tensors | {key: torch.ones(2, 2)}, record),
        "bias_delta has shape": Erasure(
            tensors | {"unet.conv_in.bias_delta": torch.ones(2)}, record
        ),
        "has 'unet.more.weight_delta'": Erasure(
            tensors | {"unet.more.weight_delta": torch.ones(2)}, record
        ),
        "not finite": Erasure(tensors | {key: tensors[key] * torch.nan}, record),
        "is of the kind 'thick'": Erasure(tensors, dataclasses.replace(record, kind="thick")),
        "lacks unet.conv_in.lora_A": Erasure(tensors, dataclasses.replace(record, kind="lowrank")),
    }
    for message, wrong in cases.items():
        wrong.save(path)
        with pytest.raises(InputError, match=message):
            Erasure.load(path)


# Settings


@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "xx"},
        {"sampling": "none"},
        {"store": "thick"},
        {"precision": "float16"},
        {"iterations": 0},
        {"batch_size": 0},
        {"sampling_steps": 0},
        {"sampling_batch": 0},
        {"rank": 0},
        {"lr": 0.0},
        {"keep_weight": -1.0},
        {"residual": 1.0},
        {"rank": 2, "store": "dense"},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        ESD(**settings)


# From the command line


@pytest.fixture
def unsee(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs ``unsee`` with arguments in an empty folder, and gives its exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["unsee", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    return call


def erase_of(folder: Path, *more: str, **settings: Any) -> list[str]:
    """The command that erases by ESD in the steps of ``FAST``."""
    pairs = [f"--set={name}={value}" for name, value in (FAST | settings).items()]
    return ["erase", str(folder), *more, "--method", "esd", "-o", "it.safetensors", *pairs]


def test_an_interrupted_command_goes_on_to_the_same_weights(
    unsee: Callable[..., int],
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = erase_of(tiny_folder, "bomb", iterations=8)
    file, part = tmp_path / "it.safetensors", tmp_path / "it.safetensors.part"
    assert unsee(*command) == 0 and not part.exists()
    whole = Erasure.load(file)
    file.unlink()
    notes: list[str] = []

    @contextmanager
    def interrupting(at: float) -> Iterator[Callable[..., None]]:
        def show(what: str, done: float, total: int, note: str = "") -> None:
            notes.append(note)
            if done >= at:
                raise KeyboardInterrupt

        yield show

    monkeypatch.setattr("unsee.cli.commands.progress", lambda: interrupting(75))
    assert unsee(*command) == 130
    assert part.is_file() and not file.exists()
    stopped = [note for note in notes if note]
    assert 0 < len(stopped) < 8 and all(re.fullmatch(r"loss \d\S*", note) for note in stopped)
    notes.clear()
    monkeypatch.setattr("unsee.cli.commands.progress", lambda: interrupting(101))
    capsys.readouterr()
    assert unsee(*command) == 0
    assert "Found it.safetensors.part" in capsys.readouterr().out
    assert len([note for note in notes if note]) == 8 - len(stopped)
    assert same(whole.tensors, Erasure.load(file).tensors)
    assert not part.exists()


def test_a_training_is_kept_until_its_erasure_is_saved(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    settings = ESD(**FAST)
    whole = settings.fit(parts_of(pipe), [BOMB], checkpoint=kept)
    assert kept.is_file()
    monkeypatch.setattr(ESD, "_loss", lambda *given: pytest.fail("it was trained to the end"))
    assert same(whole.tensors, settings.fit(parts_of(pipe), [BOMB], checkpoint=kept).tensors)


def test_the_loss_of_every_step_is_told(pipe: Any) -> None:
    seen: list[float] = []
    erasure = erase(pipe, BOMB, method="esd", watch=seen.append, check=False, **FAST)
    assert len(seen) == FAST["iterations"]
    assert erasure.measured.loss == Loss(seen[0], seen[-1])


def test_a_failed_training_writes_over_nothing(
    unsee: Callable[..., int],
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, part = tmp_path / "it.safetensors", tmp_path / "it.safetensors.part"
    assert unsee("erase", str(tiny_folder), "bomb", "-o", "it.safetensors") == 0
    before = file.read_bytes()
    assert unsee(*erase_of(tiny_folder, "bomb", lr=1e30)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert re.search(
        r"not finite at step 2 of 4 .*lower lr.* is in it.safetensors.part", lines[-1]
    )
    assert file.read_bytes() == before and part.is_file()
    # It is of another run, and whether it is still wanted is for its owner to say.
    state = part.read_bytes()
    assert unsee(*erase_of(tiny_folder, "bomb")) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "it.safetensors.part is the checkpoint of another run, with other lr: remove it" in line
    assert file.read_bytes() == before and part.read_bytes() == state
    # A method that does not train has nothing to do with it.
    assert unsee("erase", str(tiny_folder), "bomb", "-o", "it.safetensors") == 0
    assert part.read_bytes() == state


def test_another_runs_checkpoint_is_refused_before_any_work(pipe: Any, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    ESD(**FAST).fit(parts_of(pipe), [BOMB], checkpoint=kept)
    pipe.unet.register_forward_pre_hook(lambda *given: pytest.fail("the denoiser was run"))
    with pytest.raises(InputError, match="of another run, with other concepts, eta: remove it"):
        ESD(**FAST, eta=2.0).fit(parts_of(pipe), [VAN_GOGH], checkpoint=kept)


def test_a_method_that_does_not_train_refuses_a_checkpoint(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="uce does not train"):
        erase(pipe, BOMB, method="uce", checkpoint=tmp_path / "kept")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "setting, message",
    [
        ("rank=0", "rank is '0'; it must be a whole number from 1"),
        ("layers=nowhere", "No layer of the UNet2DConditionModel is selected by variant 'x'"),
        ("variant=xx", "variant is 'xx'; it must be one of x, x-strict, u, blocks, all"),
        ("lr=nan", "lr is 'nan'"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line_and_nothing_written(
    unsee: Callable[..., int],
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    setting: str,
    message: str,
) -> None:
    assert unsee(*erase_of(tiny_folder, "bomb"), f"--set={setting}") == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


# Erasing from another prompt


@pytest.mark.parametrize("sampling", ["batched", "reference"])
@pytest.mark.parametrize("anchor", [None, "art"])
def test_erasing_from_a_prompt_is_the_authors_loss(
    pipe: Any, sampling: Any, anchor: str | None
) -> None:
    parts, wheel = parts_of(pipe), Concept("bomb", anchor=anchor)
    settings = ESD(iterations=4, sampling_steps=4, sampling=sampling, eta=2.0, erase_from="cat")
    plan = settings._plan(parts, [wheel], 0)
    samples = settings._samples(parts, [wheel], 0, None, lambda done: None)
    read, goes, comes = parts.encode(["cat", "bomb", anchor or "cat"]).first.split(1)
    for n, (i, k) in enumerate(plan.points.tolist()):
        t, x, _, empty = plainly(
            pipe, torch.cat([parts.encode([None]).first, read]), plan.noise[i : i + 1], 4, 3.0
        )[k]
        with torch.no_grad():
            e_c, e_a = (pipe.unet(x, t, encoder_hidden_states=s).sample for s in (goes, comes))
        torch.testing.assert_close(samples.latents[n], x[0], rtol=0, atol=1e-3)
        want = e_a - 2.0 * (e_c - empty)
        torch.testing.assert_close(samples.targets[n], want[0], rtol=0, atol=1e-3)
        assert torch.equal(samples.texts.first[samples.reads[n]], read[0])


def test_a_concept_erased_from_itself_is_erased(pipe: Any) -> None:
    concept = Concept("bomb", anchor="cat")
    plain, named = (
        ESD(**FAST, erase_from=prompt).fit(parts_of(pipe), [concept]) for prompt in (None, "bomb")
    )
    assert same(plain.tensors, named.tensors)


def test_what_is_kept_is_not_erased_from(pipe: Any) -> None:
    with pytest.raises(InputError, match="erase_from is 'hammer', which is to be kept"):
        ESD(erase_from="hammer").fit(parts_of(pipe), [BOMB])


# LECO's files

LECO = """
- target: "van gogh"
  positive: "van gogh"
  unconditional: ""
  neutral: "art"
  action: "erase"
  guidance_scale: 1.5
  resolution: 512
  batch_size: 2
- target: "monet"
  guidance_scale: 1.5
  batch_size: 2
"""

LECO_TOML = """
guidance_scale = 1.5
batch_size = 2
[[prompts]]
target = "van gogh"
neutral = "art"
[[prompts]]
target = "monet"
"""


@pytest.mark.parametrize("name, text", [("it.yaml", LECO), ("it.toml", LECO_TOML)])
def test_a_file_of_lecos_prompts_is_concepts_and_settings(
    tmp_path: Path, name: str, text: str
) -> None:
    if name.endswith("toml"):
        pytest.importorskip("tomllib")
    (tmp_path / name).write_text(text)
    concepts, settings = leco(tmp_path / name, "style")
    assert concepts == [
        Concept("van gogh", "style", anchor="art"),
        Concept("monet", "style", anchor=""),
    ]
    assert settings == {"eta": 1.5, "batch_size": 2, "erase_from": None}


def test_lecos_loss_is_esds_whatever_its_neutral_prompt_is(tmp_path: Path) -> None:
    entries = {
        "{target: bomb, guidance_scale: 3}": ("bomb", "", 3.0, None),
        "{target: bomb, neutral: bomb, guidance_scale: 3}": ("bomb", "", 2.0, None),
        "{target: cat, positive: bomb, neutral: cat}": ("bomb", "cat", 1.0, "cat"),
        "{target: '', positive: bomb}": ("bomb", "", 1.0, ""),
    }
    predictions = dict(zip(("", "bomb", "cat"), torch.randn(3, 9).double(), strict=True))
    for text, (name, anchor, eta, taken_from) in entries.items():
        (tmp_path / "it.yaml").write_text(f"[{text}]")
        (concept,), settings = leco(tmp_path / "it.yaml")
        assert (concept.name, concept.anchor) == (name, anchor)
        assert settings == {"eta": eta, "batch_size": 1, "erase_from": taken_from}
        entry = {"neutral": "", "guidance_scale": 1.0} | yaml.safe_load(text)
        positive = entry.get("positive", entry["target"])
        theirs = predictions[entry["neutral"]] - entry["guidance_scale"] * (
            predictions[positive] - predictions[""]
        )
        ours = target(predictions[name], predictions[""], predictions[anchor], eta)
        torch.testing.assert_close(ours, theirs)


# As LECO's own examples have it, each prompt again at three sizes
SIZES = "\n".join(
    f"- {{target: {target}, resolution: {size}, batch_size: {batch}}}"
    for size, batch in ((512, 3), (640, 2), (768, 1))
    for target in ("van", "cat")
)


@pytest.mark.filterwarnings("ignore:.*resolution not taken")
@pytest.mark.parametrize(
    "text, phrases, batch_size",
    [
        (SIZES, ["van", "cat"], 2),
        # 1.5 in the mean
        ("[{target: van}, {target: cat, batch_size: 2}]", ["van", "cat", "cat"], 2),
        ("[{target: van, batch_size: '4'}, {target: cat, batch_size: 4}]", ["van", "cat"], 4),
    ],
)
def test_a_prompt_comes_as_often_as_its_batch_size_says(
    tmp_path: Path, text: str, phrases: list[str], batch_size: int
) -> None:
    (tmp_path / "it.yaml").write_text(text)
    concepts, settings = leco(tmp_path / "it.yaml")
    assert [phrase for concept in concepts for phrase in concept.phrases] == phrases
    assert settings == {"eta": 1.0, "batch_size": batch_size, "erase_from": None}


@pytest.mark.filterwarnings("ignore:.*not taken", "ignore:.*not known beside")
@pytest.mark.parametrize(
    "name, text",
    [
        # LECO's first example, numbers as texts, and what sd-scripts takes
        ("it.yaml", "[{target: van, guidance_scale: '1.5', bucketing: false, batch_size: '2'}]"),
        ("it.yaml", "[{target: van, positive: null, guidance_scale: 1.5, batch_size: 2}]"),
        ("it.yaml", "{targets: [{target: van}], guidance_scale: 1.5, batch_size: 2, name: x}"),
        ("it.yaml", "{slider: {targets: [{target: van}], guidance_scale: 1.5, batch_size: 2}}"),
        ("it.yaml", "{target: van, guidance_scale: 1.5, batch_size: 2, neutral: }"),
        ("it.toml", "batch_size = 2\n[[targets]]\ntarget = 'van'\nguidance_scale = '1.5'"),
        ("it.toml", "[slider]\ntarget = 'van'\nguidance_scale = 1.5\nbatch_size = 2"),
        (
            "it.toml",
            "batch_size = 2\nguidance_scale = 1.5\n[[prompts]]\ntarget = 'van'\n"
            "resolution = [768, 512]",
        ),
    ],
)
def test_files_in_every_form_that_lecos_tools_read_are_read_alike(
    tmp_path: Path, name: str, text: str
) -> None:
    if name.endswith("toml"):
        pytest.importorskip("tomllib")
    (tmp_path / name).write_text(text)
    concepts, settings = leco(tmp_path / name)
    assert concepts == [Concept("van", anchor="")]
    assert settings == {"eta": 1.5, "batch_size": 2, "erase_from": None}


def test_what_is_not_known_beside_the_prompts_is_said(tmp_path: Path) -> None:
    (tmp_path / "it.yaml").write_text("{train: {precision: bfloat16}, prompts: [{target: a}]}")
    with pytest.warns(UserWarning, match="'train' not known beside the prompts, and not read"):
        leco(tmp_path / "it.yaml")


def test_spms_files_are_settings_of_spm(tmp_path: Path) -> None:
    (tmp_path / "it.yaml").write_text("[{target: bomb, neutral: cat, action: erase_with_la}]")
    (concept,), settings = leco(tmp_path / "it.yaml", method="spm")
    assert concept == Concept("bomb", anchor="cat")
    assert settings == {"eta": 1.0, "batch_size": 1}
    (tmp_path / "it.yaml").write_text("[{target: bomb}]")
    assert leco(tmp_path / "it.yaml", method="spm")[1]["anchoring"] == 0.0
    (tmp_path / "it.yaml").write_text("[{target: bomb, la_strength: 500, action: erase_with_la}]")
    with pytest.warns(UserWarning, match="la_strength not taken"):
        leco(tmp_path / "it.yaml", method="spm")
    (tmp_path / "it.yaml").write_text("[{target: bomb, positive: cat}]")
    with pytest.raises(InputError, match="spm takes a concept from itself alone"):
        leco(tmp_path / "it.yaml", method="spm")


def test_a_size_that_is_not_taken_is_said(tmp_path: Path) -> None:
    (tmp_path / "it.yaml").write_text(
        "[{target: bomb, resolution: 768, dynamic_resolution: true}]"
    )
    with pytest.warns(UserWarning, match="resolution, dynamic_resolution not taken, the model's"):
        leco(tmp_path / "it.yaml")


@pytest.mark.parametrize(
    "text, message",
    [
        ("[{target: a, action: enhance}]", "Prompt 1 of .* has action 'enhance': esd erases"),
        ("[{target: a, unconditional: b}]", "unconditional can only be ''"),
        ("[{target: a, weight: 2}]", "weight can only be 1.0"),
        ("[{target: a}, {positive: b}]", "Prompt 2 of .*: target must be text, and is None"),
        ("[{target: a, guidance_scale: high}]", "guidance_scale must be a number, and is 'high'"),
        ("[{target: a, tagret: b}]", "has 'tagret', which LECO's prompts have not"),
        ("[{target: a, guidance_scale: .nan}]", "guidance_scale must be a number, and is nan"),
        ("[{target: a}, {target: b, guidance_scale: 2}]", "differ in eta, from their guidance"),
        ("{target_class: a, negative: b}", "has a slider"),
        ("[{target: a, action: erase_with_la}]", "action 'erase_with_la': esd erases"),
        ("[{target: a, action: [erase]}]", r"has action \['erase'\]"),
        ("[{target: a, batch_size: [1]}]", "batch_size must be a number, and is"),
        ("[{target: a, batch_size: true}]", "batch_size must be a number, and is True"),
        ("[{target: a, batch_size: 10000000000}]", "batch_size must be a number, and is"),
        ("[{target: {a: b}}]", "target must be text, and is {'a': 'b'}"),
        ("[a, b]", "must hold a list of LECO's prompts"),
        ("{prompts: {target: a}}", "must hold a list of LECO's prompts"),
        ("7", "must hold a list of LECO's prompts"),
        ("", "must hold a list of LECO's prompts"),
        ("[" * 3000, "YAML|nested too deeply"),
        ("slider: {targets: [{target_class: a, positive: b}]}", "has a slider"),
        ("[{target: a, positive: b}, {target: b}]", "differ in erase_from, from their target"),
        ("[{target: ''}]", "A concept needs a name"),
        ("[]", "holds no prompt"),
        ("targets: {}", "must hold a list of LECO's prompts"),
        ("[a", "is not YAML"),
    ],
)
def test_what_esd_does_not_take_of_lecos_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "it.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        leco(tmp_path / "it.yaml")


def test_lecos_prompts_are_erased_from_the_command_line(
    unsee: Callable[..., int],
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "prompts.yaml").write_text(LECO)
    command = erase_of(tiny_folder, "--prompts", "prompts.yaml", "--kind", "style")
    assert unsee(*command, "--set=batch_size=1", "--set=rank=4") == 0
    record = Erasure.load(tmp_path / "it.safetensors").record
    assert [c.name for c in record.concepts] == ["van gogh", "monet"]
    settings = record.settings
    assert (settings["eta"], settings["batch_size"], settings["rank"]) == (1.5, 1, 4)
    capsys.readouterr()
    for mistake, message in {
        ("--prompts", "prompts.yaml"): "add --method esd",
        ("--prompts", "prompts.yaml", "bomb"): "either CONCEPT or --prompts FILE",
        (): "either CONCEPT or --prompts FILE",
        ("--prompts", "none.yaml", "--method", "esd"): "none.yaml cannot be read",
    }.items():
        assert unsee("erase", str(tiny_folder), *mistake) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
