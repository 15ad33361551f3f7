"""Erasures that come on late, act in part or stand in rounded weights, and then are as before."""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from diffusers.schedulers import HeunDiscreteScheduler, PNDMScheduler
from torch import Tensor

import unsee
from unsee._errors import InputError
from unsee.contract import Tried
from unsee.erasers.negative import Negative
from unsee.erasers.sld import SLD
from unsee.erasers.uce import UCE
from unsee.pipelines import Erasure, load_pipeline, parts_of
from unsee.pipelines.kinds.lowrank import tuners
from unsee.pipelines.weaken import late, merged, weighed
from unsee.tests.families import GUIDED, PIPELINES, build
from unsee.tests.test_components import by_hand
from unsee.tests.test_watch import CONCEPT, KINDS, images, load, second
from unsee.tests.test_watch import erasures as erasures
from unsee.tests.test_watch import files as files

PROMPTS = ["a painting by van gogh", "a photo of a bomb"]
OTHERS = {"a painting by van gogh": "a cat", "a photo of a bomb": "the art of a dog in a hammer"}


def other(prompt: str) -> str:
    return OTHERS[prompt]


def state_of(pipe: Any) -> dict[str, Any]:
    """All that a pipeline's components hold, and what is around them."""
    found: dict[str, Any] = {}
    for name, module in pipe.components.items():
        if isinstance(module, torch.nn.Module):
            for key, tensor in module.state_dict().items():
                found[f"{name}.{key}"] = tensor.clone()
            for key, parameter in module.named_parameters():
                found[f"{name}.{key} grad"] = parameter.requires_grad
            for key, part in module.named_modules():
                hooks = (*part._forward_pre_hooks.values(), *part._forward_hooks.values())
                found[f"{name}.{key} hooks"] = len(hooks)
            for n, layer in enumerate(tuners(module).values()):
                found[f"{name} {n}"] = (list(layer.active_adapters), dict(layer.scaling))
    return found | {"own": sorted(vars(pipe)), "on": unsee.active(pipe)}


def others_in(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """The names of what differs."""
    return [
        name
        for name in sorted(one.keys() | two.keys())
        if name not in one
        or name not in two
        or not (
            torch.equal(one[name], two[name])
            if isinstance(one[name], Tensor)
            else one[name] == two[name]
        )
    ]


@contextmanager
def unchanged(pipe: Any) -> Iterator[None]:
    before = state_of(pipe)
    yield
    assert others_in(before, state_of(pipe)) == []


@pytest.fixture(scope="module")
def every(tiny_folder: Path, erasures: dict[str, Erasure]) -> dict[str, Erasure]:
    """One of each kind, and one that edits a text encoder."""
    pipe = load_pipeline(tiny_folder, device="cpu")
    kinds = {kind: erasures[kind] for kind in KINDS}
    return kinds | {"encoder": by_hand(pipe, ["text_encoder"], rank=1)}


@contextmanager
def on(pipe: Any, *some: Erasure) -> Iterator[None]:
    with ExitStack() as stack:
        for erasure in some:
            stack.enter_context(erasure.applied(pipe))
        yield


STACKS = [
    *((kind,) for kind in (*KINDS, "encoder")),
    ("transport", "encoder", "dense", "guidance"),
]
stacks = pytest.mark.parametrize("stack", STACKS, ids="+".join)


# From a step on


@stacks
def test_an_erasure_that_comes_on_at_no_step_is_whole_and_after_the_last_is_none(
    pipe: Any, every: dict[str, Erasure], stack: tuple[str, ...]
) -> None:
    base = images(pipe)
    with on(pipe, *(every[kind] for kind in stack)):
        erased = images(pipe)
        found = []
        with unchanged(pipe):
            for step in range(5):
                with late(pipe, step):
                    found.append(images(pipe))
        assert torch.equal(images(pipe), erased)
    assert torch.equal(found[0], erased)
    assert torch.equal(found[3], base) and torch.equal(found[4], base)
    for one in found[1:3]:
        assert (one - base).abs().max() > 1e-3 and (one - erased).abs().max() > 1e-3
    assert not torch.equal(found[1], found[2])


def at(step: int, does: Callable[[Any], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """A callback of diffusers', at the end of the step before this one."""

    def callback(pipe: Any, done: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        return given | does(pipe) if done == step - 1 else given

    return callback


def embeds(pipe: Any, prompts: list[str]) -> Tensor:
    prompt, empty = pipe.encode_prompt(prompts, "cpu", 1, True)
    return torch.cat([empty, prompt])


@pytest.mark.parametrize("kind", ["lowrank", "dense"])
def test_it_is_what_a_callback_that_puts_the_erasure_on_draws(
    pipe: Any, every: dict[str, Erasure], kind: str
) -> None:
    def put(pipe: Any) -> dict[str, Any]:
        every[kind].add_to(pipe)
        return {}

    wanted = images(pipe, callback_on_step_end=at(2, put))
    with late(pipe, 2):
        assert torch.equal(images(pipe), wanted)


def test_of_a_text_encoder_it_is_what_a_callback_that_gives_the_erased_text_draws(
    pipe: Any, every: dict[str, Erasure]
) -> None:
    with every["encoder"].applied(pipe):
        text = embeds(pipe, PROMPTS)
        with late(pipe, 2):
            found = images(pipe)
    give: dict[str, Any] = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    callback = at(2, lambda pipe: {"prompt_embeds": text})
    assert torch.equal(images(pipe, callback_on_step_end=callback, **give), found)


def test_of_a_guide_without_memory_it_is_the_guide_that_begins_at_that_step(pipe: Any) -> None:
    def drawn(begins: int, step: int) -> Tensor:
        # Its setting counts 50 steps
        warmup = round(begins * 50 / 4)
        settings = SLD(warmup=warmup, scale=5000.0, threshold=1.0, momentum=0.0)
        with settings.fit(parts_of(pipe), [CONCEPT]).applied(pipe), late(pipe, step):
            return images(pipe, steps=4)

    # Other rows in a call are other roundings
    for begins, step in ((1, 0), (2, 0), (3, 0), (3, 2)):
        wanted = drawn(begins, 0) if step else drawn(0, begins)
        torch.testing.assert_close(drawn(begins, step), wanted, rtol=0, atol=1e-3)
    assert (drawn(2, 0) - drawn(1, 0)).abs().max() > 0.05


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("stack", [(), *STACKS], ids="+".join)
def test_the_prompts_become_others_at_that_step(
    pipe: Any, every: dict[str, Erasure], stack: tuple[str, ...], step: int
) -> None:
    others = [OTHERS[prompt] for prompt in PROMPTS]
    with on(pipe, *(every[kind] for kind in stack)):
        own, wanted = images(pipe), images(pipe, prompt=others)
        with unchanged(pipe), late(pipe, step, other):
            found = images(pipe)
        if step == 0:
            assert torch.equal(found, wanted)
        else:
            with late(pipe, step):
                left = images(pipe)
            for one in (own, wanted, left):
                assert (found - one).abs().max() > 1e-3


def test_on_the_base_it_is_what_a_callback_that_gives_the_other_text_draws(pipe: Any) -> None:
    text = embeds(pipe, [OTHERS[prompt] for prompt in PROMPTS])
    give: dict[str, Any] = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    callback = at(2, lambda pipe: {"prompt_embeds": text})
    wanted = images(pipe, callback_on_step_end=callback, **give)
    with unchanged(pipe), late(pipe, 2, other):
        assert torch.equal(images(pipe), wanted)


@pytest.mark.parametrize("scheduler", [HeunDiscreteScheduler, PNDMScheduler])
def test_a_step_is_the_samplers_however_often_it_asks_the_denoiser(
    pipe: Any, every: dict[str, Erasure], scheduler: Any
) -> None:
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    steps = [0]

    def callback(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        steps[0] += 1
        return given

    base = images(pipe, steps=6, callback_on_step_end=callback)
    assert steps[0] > 6
    with every["transport"].applied(pipe), every["guidance"].applied(pipe):
        erased, found = images(pipe, steps=6), []
        for step in (0, 1, 5, 6):
            with late(pipe, step):
                found.append(images(pipe, steps=6))
    assert torch.equal(found[0], erased) and torch.equal(found[3], base)
    assert not torch.equal(found[1], erased) and not torch.equal(found[2], base)


@pytest.mark.parametrize(
    "sibling", [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline]
)
@stacks
def test_a_pipeline_that_begins_with_an_image_counts_its_own_steps(
    pipe: Any, every: dict[str, Erasure], stack: tuple[str, ...], sibling: type
) -> None:
    made, picture = second(pipe, sibling), torch.rand(2, 3, 16, 16)
    call: dict[str, Any] = {"image": picture, "strength": 0.5, "steps": 6}
    if sibling is StableDiffusionInpaintPipeline:
        call |= {"mask_image": torch.ones(2, 1, 16, 16), "height": 16, "width": 16}
    base = images(made, **call)
    with on(made, *(every[kind] for kind in stack)):
        erased, found = images(made, **call), []
        for step in (0, 1, 3):
            with unchanged(made), late(made, step):
                found.append(images(made, **call))
    assert torch.equal(found[0], erased) and torch.equal(found[2], base)
    assert (found[1] - base).abs().max() > 1e-4 and (found[1] - erased).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["lowrank", "dense", "encoder"])
def test_it_acts_in_a_pipeline_whose_parts_were_erased_by_way_of_another(
    pipe: Any, every: dict[str, Erasure], kind: str
) -> None:
    base, also = images(pipe), second(pipe)
    with every[kind].applied(pipe):
        erased = images(also)
        with unchanged(also), late(also, 2):
            found = images(also)
            assert torch.equal(images(pipe), erased)
        with late(pipe, 2):
            assert torch.equal(images(pipe), found)
    assert not torch.equal(found, base) and not torch.equal(found, erased)


def test_each_loop_is_counted_from_its_own_start(pipe: Any, every: dict[str, Erasure]) -> None:
    with every["lowrank"].applied(pipe), every["encoder"].applied(pipe):
        with late(pipe, 2):
            alone = [images(pipe, steps=steps) for steps in (3, 5, 2)]
        with late(pipe, 2):
            with pytest.raises(ZeroDivisionError):
                images(pipe, callback_on_step_end=lambda *given: 1 / 0)
            again = [images(pipe, steps=steps) for steps in (5, 2, 3)]
    assert [torch.equal(a, b) for a, b in zip(alone, [again[2], *again[:2]], strict=True)] == (
        [True] * 3
    )


@stacks
def test_whatever_breaks_a_loop_the_erasure_is_on_afterwards(
    pipe: Any, every: dict[str, Erasure], stack: tuple[str, ...]
) -> None:
    with on(pipe, *(every[kind] for kind in stack)):
        erased = images(pipe)
        for broken in (1, 2):
            with unchanged(pipe), pytest.raises(ZeroDivisionError), late(pipe, 2, other):
                images(pipe, callback_on_step_end=at(broken, lambda pipe: {"no": 1 / 0}))
            assert torch.equal(images(pipe), erased)


def in_a_thread(call: Callable[[], object]) -> list[BaseException]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return errors


def test_another_thread_never_gets_the_base_while_the_erasure_is_off(
    pipe: Any, every: dict[str, Erasure]
) -> None:
    also, errors = second(pipe), list[BaseException]()

    def callback(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        errors.extend(in_a_thread(lambda: images(pipe)) + in_a_thread(lambda: images(also)))
        return given

    with every["lowrank"].applied(pipe), late(pipe, 2):
        wanted = images(pipe)
        assert torch.equal(images(pipe, callback_on_step_end=callback), wanted)
    words = [str(error) for error in errors]
    # In the first two steps it is off; after them the other pipeline is erased.
    assert len(words) == 5 and all(isinstance(error, InputError) for error in errors)
    assert sum("is off for the first steps of another drawing" in word for word in words) == 2
    assert sum("Two threads draw with one pipeline" in word for word in words) == 3


def test_copies_in_threads_of_their_own_draw_the_same(
    pipe: Any, every: dict[str, Erasure]
) -> None:
    with on(pipe, every["transport"], every["encoder"]), late(pipe, 1, other):
        wanted, copies = images(pipe), [copy.deepcopy(pipe) for _ in range(2)]
        made: list[Tensor] = []
        threads = [
            threading.Thread(target=lambda one=one: made.append(images(one))) for one in copies
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(made) == 2 and all(torch.equal(one, wanted) for one in made)


def test_a_copy_made_while_the_erasure_is_off_gives_no_image_of_the_base(
    pipe: Any, every: dict[str, Erasure]
) -> None:
    copies: list[Any] = []

    def take(pipe: Any) -> dict[str, Any]:
        copies.extend([copy.deepcopy(pipe), copy.deepcopy(pipe.unet)])
        return {}

    with every["lowrank"].applied(pipe):
        with late(pipe, 2):
            wanted = images(pipe, callback_on_step_end=at(1, take))
            # It is of the pipeline as it is, whose erasures come on late.
            assert torch.equal(images(copies[0]), wanted)
        pipe.unet = copies[1]
        with pytest.raises(InputError, match="'van gogh' is off for the first steps of another"):
            images(pipe)


@pytest.mark.parametrize(
    "does, words",
    [
        (images, "A callback draws with the pipeline that it was called by"),
        (lambda pipe: pipe.save_pretrained("never"), "weighed otherwise for a while"),
        (lambda pipe: pipe.unet.save_pretrained("never"), "weighed otherwise for a while"),
    ],
    ids=["draw", "save", "save the unet"],
)
def test_what_a_callback_must_not_do_while_the_erasure_is_off_is_said(
    pipe: Any, every: dict[str, Erasure], does: Callable[[Any], Any], words: str
) -> None:
    images(pipe)
    with every["lowrank"].applied(pipe), unchanged(pipe):
        with pytest.raises(InputError, match=words), late(pipe, 2):
            images(pipe, callback_on_step_end=at(1, lambda pipe: does(pipe) or {}))


def test_an_erasure_that_was_taken_out_or_switched_off_is_looked_at_as_ever(
    pipe: Any, every: dict[str, Erasure], files: Callable[[float], str]
) -> None:
    load(pipe, files(0.3))
    every["lowrank"].add_to(pipe)
    with late(pipe, 2):
        wanted = images(pipe)
        pipe.disable_lora()
        with pytest.warns(UserWarning, match="was switched off, and is switched on again"):
            assert not torch.equal(images(pipe), wanted)
        pipe.enable_lora()
        pipe.fuse_lora(adapter_names=["mine"])
        with pytest.raises(InputError, match=r"call pipe\.unfuse_lora\(\)"):
            images(pipe)
        pipe.unfuse_lora()
        with pytest.raises(InputError, match="has been taken out of the pipeline"):
            images(pipe, callback_on_step_end=at(1, lambda pipe: pipe.unload_lora_weights() or {}))


def test_a_lora_of_ones_own_acts_at_every_step(
    pipe: Any, every: dict[str, Erasure], files: Callable[[float], str]
) -> None:
    load(pipe, files(0.3))
    pipe.set_adapters("mine", 0.5)
    before = images(pipe)
    with unchanged(pipe), late(pipe, 5):
        assert torch.equal(images(pipe), before)
    with every["lowrank"].applied(pipe), unchanged(pipe), late(pipe, 5):
        assert torch.equal(images(pipe), before)


def test_text_that_cannot_be_read_again_is_refused(pipe: Any, every: dict[str, Erasure]) -> None:
    given = embeds(pipe, PROMPTS)[2:]
    with (
        pytest.raises(InputError, match="embeddings were given.*pass prompt"),
        late(pipe, 2, other),
    ):
        images(pipe, prompt=None, prompt_embeds=given, negative_prompt_embeds=given)
    callback = at(1, lambda pipe: {"prompt_embeds": embeds(pipe, ["a dog", "a cat"])})
    give: dict[str, Any] = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with pytest.raises(InputError, match="changed on the way"), late(pipe, 2, other):
        images(pipe, callback_on_step_end=callback, **give)
    with every["encoder"].applied(pipe), late(pipe, 2):
        with pytest.raises(InputError, match="pass prompt, not prompt_embeds"):
            images(pipe, prompt=None, prompt_embeds=given, negative_prompt_embeds=given)
    with late(pipe, 1), pytest.raises(InputError, match="leave that context first"):
        with late(pipe, 2):
            pass


# Every architecture


def drawn(pipe: Any, name: str, prompts: list[str], **more: Any) -> Tensor:
    found: Tensor = Tried(pipe, GUIDED.get(name, {})).draw(prompts, **more)
    return found


@pytest.mark.parametrize("name", list(PIPELINES))
@torch.no_grad()
def test_an_erasure_comes_on_late_and_prompts_become_others_in_every_architecture(
    name: str,
) -> None:
    pipe = build(name)
    parts = parts_of(pipe)
    others = [OTHERS[prompt] for prompt in PROMPTS]
    base, wanted = drawn(pipe, name, PROMPTS), drawn(pipe, name, others)
    assert not torch.equal(base, wanted)
    stack = [UCE().fit(parts, [CONCEPT])]
    if parts.guided() or name in GUIDED:
        stack.append(Negative().fit(parts, [CONCEPT]))
    with late(pipe, 0, other):
        assert torch.equal(drawn(pipe, name, PROMPTS), wanted)
    with on(pipe, *stack):
        erased, other_erased = (drawn(pipe, name, prompts) for prompts in (PROMPTS, others))
        found = []
        for step in (0, 1, 99):
            with late(pipe, step):
                found.append(drawn(pipe, name, PROMPTS))
        with late(pipe, 1, str):
            assert torch.equal(drawn(pipe, name, PROMPTS), found[1])
        with late(pipe, 1, other):
            assert not torch.equal(drawn(pipe, name, PROMPTS), found[1])
        with late(pipe, 0, other):
            assert torch.equal(drawn(pipe, name, PROMPTS), other_erased)
    assert torch.equal(found[0], erased) and torch.equal(found[2], base)
    assert not torch.equal(found[1], erased) and not torch.equal(found[1], base)
    assert torch.equal(drawn(pipe, name, PROMPTS), base)


def test_negative_prompts_stay_where_they_have_a_call_of_their_own() -> None:
    pipe = build("flux")
    call = {"true_cfg_scale": 4.0, "negative_prompt": "a photo of a bomb", "steps": 2}

    def made(prompt: str) -> Tensor:
        draw = torch.Generator().manual_seed(0)
        found: Tensor = pipe(
            **parts_of(pipe).call(prompt=[prompt], **call), generator=draw, output_type="pt"
        ).images
        return found

    wanted = made("a cat")
    with late(pipe, 0, {"a painting by van gogh": "a cat", "a photo of a bomb": "no"}.__getitem__):
        assert torch.equal(made("a painting by van gogh"), wanted)


# At a share of their weights


@pytest.mark.parametrize("kind", ["lowrank", "transport", "dense", "encoder"])
def test_weighed_is_the_erasure_at_that_weight_and_of_nothing_the_base(
    pipe: Any, every: dict[str, Erasure], kind: str
) -> None:
    base = images(pipe)
    with every[kind].applied(pipe, 0.5):
        half = images(pipe)
    with every[kind].applied(pipe):
        erased = images(pipe)
        for share, wanted in ((0.0, base), (0.5, half), (1.0, erased)):
            with unchanged(pipe), weighed(pipe, share):
                assert torch.equal(images(pipe), wanted)
            assert torch.equal(images(pipe), erased)
    assert torch.equal(images(pipe), base)


def test_all_that_is_on_is_weighed_and_a_guide_cannot_be(
    pipe: Any, every: dict[str, Erasure]
) -> None:
    base = images(pipe)
    with on(pipe, *every.values()):
        erased = images(pipe)
        with weighed(pipe, 0.0):
            assert torch.equal(images(pipe), base)
        with unchanged(pipe), pytest.raises(InputError, match="is a guide, which has no weights"):
            with weighed(pipe, 0.5):
                pass
        assert torch.equal(images(pipe), erased)


def test_what_is_overwritten_while_it_is_weighed_is_an_error(
    pipe: Any, every: dict[str, Erasure]
) -> None:
    with every["dense"].applied(pipe), weighed(pipe, 0.5):
        images(pipe)
        with torch.no_grad():
            name = next(iter(every["dense"].tensors)).removeprefix("unet.").removesuffix("_delta")
            dict(pipe.unet.named_parameters())[name].mul_(1.5)
        with pytest.raises(InputError, match="'van gogh' has been overwritten"):
            images(pipe)


# Merged


@pytest.mark.parametrize("stack", [(), ("lowrank",), ("dense",), ("dense", "lowrank", "encoder")])
def test_merged_weights_draw_what_the_erasures_beside_them_do(
    pipe: Any, every: dict[str, Erasure], stack: tuple[str, ...]
) -> None:
    with on(pipe, *(every[kind] for kind in stack)):
        erased = images(pipe)
        with unchanged(pipe), merged(pipe, lambda weight: weight):
            torch.testing.assert_close(images(pipe), erased, rtol=0, atol=1e-5)
        with unchanged(pipe), merged(pipe, torch.zeros_like):
            weights = [
                layer.weight
                for layer in pipe.unet.modules()
                if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))
            ]
            own = [w for w in weights if not w.requires_grad or w.abs().max() == 0]
            assert len(own) > 40 and (images(pipe) - erased).abs().max() > 0.05
        assert torch.equal(images(pipe), erased)


@pytest.mark.parametrize("kind", ["transport", "guidance"])
def test_what_weights_cannot_hold_is_not_merged(
    pipe: Any, every: dict[str, Erasure], files: Callable[[float], str], kind: str
) -> None:
    with every[kind].applied(pipe), unchanged(pipe):
        with pytest.raises(InputError, match="'van gogh' .*weights cannot hold"):
            with merged(pipe, lambda weight: weight):
                pass
    load(pipe, files(0.3))
    for words in ("which is no part of its weights", "beside its erasures"):
        with pytest.raises(InputError, match=f"the LoRA mine.*{words}"):
            with merged(pipe, lambda weight: weight):
                pass
        every["lowrank"].add_to(pipe)
