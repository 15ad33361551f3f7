"""LoRA pairs of any component, biases among them: files made by hand, by the public values."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import unsee
from unsee import Concept, Erasure, InputError
from unsee.erasers.merge import Sum
from unsee.pipelines.identity import sample
from unsee.pipelines.parts import described
from unsee.records import Base, Component, Record, Transport
from unsee.tests.families import build

pytestmark = [
    # Names of layers that end alike; the adapters are counted.
    pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters:RuntimeWarning"),
    # What peft says of a bias for a layer without one, and diffusers of a second LoRA
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed:UserWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]

PROMPTS = ["a painting by van gogh", "a photo of a dog"]
# By a regular expression of the names in the file, which are those of transformers 4
EDITED = {
    "stable-diffusion": ("unet", "text_encoder"),
    "stable-diffusion-xl": ("unet", "text_encoder", "text_encoder_2"),
    "stable-diffusion-3": ("transformer", "text_encoder", "text_encoder_2"),
    "flux": ("transformer", "text_encoder"),
}
CLIP = r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q|v|out)_proj|mlp\.fc1)"


def layers_of(pipe: Any, component: str) -> dict[str, nn.Module]:
    """The layers of a component that a file by hand edits, by their names there."""
    module = getattr(pipe, component)
    if component not in ("unet", "transformer"):
        # transformers 5 leaves text_model out of CLIPTextModel's names.
        names = {
            f"text_model.{n.removeprefix('text_model.')}": m for n, m in module.named_modules()
        }
        return {n: m for n, m in names.items() if re.fullmatch(CLIP, n)}
    readers = described(pipe).readers()
    return {n: layer for group in readers.values() for n, layer in group.layers.items()}


def by_hand(
    pipe: Any, components: Iterable[str], bias: bool = False, seed: int = 0, rank: int = 2
) -> Erasure:
    """An erasure with random pairs in those components."""
    draw = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    edited = {}
    for component in components:
        layers = layers_of(pipe, component)
        weights: dict[str, Any] = {name: layer.weight for name, layer in layers.items()}
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        edited[component] = Component(shapes, sample(weights))
        for name, (out, *rest) in shapes.items():
            at = f"{component}.{name}.lora"
            tensors[f"{at}_A.weight"] = torch.randn(rank, *rest, generator=draw) * 0.3
            tensors[f"{at}_B.weight"] = torch.randn(out, rank, generator=draw) * 0.3
            if bias:
                tensors[f"{at}_B.bias"] = torch.randn(out, generator=draw) * 0.3
    base = Base("by hand", type(pipe).__name__, edited)
    concepts = (Concept("van gogh", "style"),)
    return Erasure(tensors, Record("lowrank", "by-hand", {}, concepts, seed, base, {}))


@torch.no_grad()
def drawn(pipe: Any, **more: Any) -> Tensor:
    """Two images, text encoders and autoencoder among it."""
    arguments = described(pipe).call(**{"prompt": list(PROMPTS), "steps": 2, **more})
    draws = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
    made: Tensor = pipe(**arguments, generator=draws, output_type="pt").images
    return made


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def state(pipe: Any) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor.clone()
        for part, module in pipe.components.items()
        if isinstance(module, nn.Module)
        for name, tensor in module.state_dict().items()
    }


def same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("name", EDITED)
def test_a_file_of_several_components_acts_the_same_in_plain_diffusers_and_comes_off(
    name: str, bias: bool, tmp_path: Path
) -> None:
    pipe, path = build(name), tmp_path / "it.safetensors"
    base, weights = drawn(pipe), state(pipe)
    by_hand(pipe, EDITED[name], bias).save(path)
    erasure = Erasure.load(path)
    for part in EDITED[name]:
        # Each component's share alone is seen in the image.
        with by_hand(pipe, [part], bias).applied(pipe):
            assert apart(drawn(pipe), base) > 1e-4
    erasure.add_to(pipe)
    ours = drawn(pipe)
    assert [(one.name, one.kind) for one in unsee.active(pipe)] == [("van gogh", "lowrank")]
    unsee.remove(pipe)
    assert not unsee.active(pipe)
    assert torch.equal(drawn(pipe), base) and same_state(state(pipe), weights)
    plain = build(name)
    plain.load_lora_weights(path)
    for part in EDITED[name]:
        adapters = sum(hasattr(module, "lora_A") for module in getattr(plain, part).modules())
        assert adapters == len(erasure.record.base.components[part].layers)
    assert apart(drawn(plain), ours) < 1e-5
    plain.unload_lora_weights()
    assert torch.equal(drawn(plain), base)


def test_the_names_of_a_text_encoder_are_those_of_transformers_4() -> None:
    pipe = build("stable-diffusion")
    erasure = by_hand(pipe, ["text_encoder"])
    assert all(key.startswith("text_encoder.text_model.encoder.") for key in erasure.tensors)
    # The same layers by the names of transformers 5 are of no text encoder.
    (one,) = erasure.record.base.components.values()
    cut = {key: key.removeprefix("text_model.") for key in one.layers}
    bare = Component(
        {cut[key]: shape for key, shape in one.layers.items()},
        {cut[key]: values for key, values in (one.sample or {}).items()},
    )
    base = replace(erasure.record.base, components={"text_encoder": bare})
    other = replace(
        erasure,
        record=replace(erasure.record, base=base),
        tensors={key.replace("text_model.", ""): t for key, t in erasure.tensors.items()},
    )
    with pytest.raises(InputError, match="the model given has no such layer"):
        other.add_to(pipe)


def test_weights_multiply_the_bias_too() -> None:
    pipe = build("stable-diffusion")
    erasure = by_hand(pipe, EDITED["stable-diffusion"], bias=True)
    halved = {key: t if ".lora_A." in key else t * 0.5 for key, t in erasure.tensors.items()}
    with replace(erasure, tensors=halved).applied(pipe):
        wanted = drawn(pipe)
    with erasure.applied(pipe, 0.5):
        assert apart(drawn(pipe), wanted) < 1e-6


def test_of_two_text_encoders_that_are_asked_one_after_another_either_can_be_edited() -> None:
    pipe = build("hunyuan-dit")
    base, right = drawn(pipe), by_hand(build("stable-diffusion"), ["text_encoder"]).record
    for component in ("text_encoder", "text_encoder_2"):
        module = getattr(pipe, component)
        name, layer = next(
            (n, m)
            for n, m in module.named_modules()
            if isinstance(m, nn.Linear) and re.search(r"attention.*value|Attention.v$", n)
        )
        out, width = layer.weight.shape
        one = Component({name: (out, width)}, sample({name: layer.weight}))
        edited = Base("by hand", type(pipe).__name__, {component: one})
        tensors = {
            f"{component}.{name}.lora_A.weight": torch.linspace(-3, 9, width).sin()[None],
            f"{component}.{name}.lora_B.weight": 9 * torch.linspace(-1, 1, out).cos()[:, None],
        }
        with Erasure(tensors, replace(right, base=edited)).applied(pipe):
            assert apart(drawn(pipe), base) > 1e-4
        assert torch.equal(drawn(pipe), base)


@pytest.mark.parametrize("what", ["dense", "transport"])
def test_what_cannot_act_in_a_text_encoder_is_refused(what: str, tmp_path: Path) -> None:
    pipe, path = build("stable-diffusion"), tmp_path / "it.safetensors"
    one = by_hand(pipe, ["text_encoder"])
    if what == "dense":
        tensors = {
            f"{name}.weight_delta": torch.ones(shape)
            for name, shape in one.record.base.layers.items()
        }
        one = replace(one, tensors=tensors, record=replace(one.record, kind="dense"))
    else:
        transport = Transport("both", ("van gogh",))
        one = replace(one, record=replace(one.record, transport=transport))
    one.save(path)
    for refused in (lambda: Erasure.load(path), lambda: one.add_to(pipe)):
        with pytest.raises(InputError, match="edits the text_encoder and ") as error:
            refused()
        assert "\n" not in str(error.value)


# It never stops acting in silence.


def off_by_diffusers(pipe: Any) -> None:
    pipe.unload_lora_weights()


def other_encoder(pipe: Any) -> None:
    pipe.text_encoder = build("stable-diffusion").text_encoder


def hooks(pipe: Any) -> None:
    pipe.text_encoder._forward_pre_hooks.clear()


def overwritten(pipe: Any) -> None:
    for module in pipe.text_encoder.modules():
        if hasattr(module, "lora_B"):
            torch.nn.init.zeros_(next(iter(module.lora_B.values())).bias)


def retrained(pipe: Any) -> None:
    for module in pipe.text_encoder.modules():
        if hasattr(module, "base_layer"):
            torch.nn.init.ones_(module.base_layer.weight)


def fused(pipe: Any) -> None:
    for module in pipe.text_encoder.modules():
        if getattr(getattr(module, "base_layer", None), "bias", None) is not None:
            module.merge()


def past_it(pipe: Any) -> None:
    """A call that goes past the hooks."""
    pipe.text_encoder.__class__ = type("Past", (type(pipe.text_encoder),), {"__call__": _forward})


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self.forward(*args, **kwargs)


TAKEN: dict[str, tuple[Callable[[Any], None], str]] = {
    "unload_lora_weights": (off_by_diffusers, "has been taken out"),
    "another text encoder": (other_encoder, "is not in the text_encoder that the pipeline has"),
    "no hooks": (hooks, "The hooks of the text_encoder have been removed"),
    "a bias overwritten": (overwritten, "has been overwritten"),
    "the weights below": (retrained, "was made for other weights"),
    "fused": (fused, "fused into the weights"),
    "a call past the hooks": (past_it, "did not act: the text_encoder"),
}


@pytest.mark.parametrize("how", TAKEN)
def test_what_takes_it_out_of_a_text_encoder_is_an_error_at_the_next_image(how: str) -> None:
    pipe = build("stable-diffusion")
    take, said = TAKEN[how]
    by_hand(pipe, ["text_encoder"], bias=True).add_to(pipe)
    drawn(pipe)
    take(pipe)
    with pytest.raises(InputError, match=said) as error:
        drawn(pipe)
    assert "\n" not in str(error.value)


def test_embeddings_that_the_text_encoder_may_not_have_made_are_refused() -> None:
    pipe = build("stable-diffusion")
    rows, empty = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    given = {"prompt": None, "prompt_embeds": rows, "negative_prompt_embeds": empty}
    base = drawn(pipe, **given)
    off = by_hand(pipe, ["text_encoder"]).add_to(pipe)
    with pytest.raises(InputError, match="pass prompt, not prompt_embeds"):
        drawn(pipe, **given)
    drawn(pipe)
    off()
    assert torch.equal(drawn(pipe, **given), base)


def test_what_switches_it_off_in_a_text_encoder_is_undone_with_a_warning() -> None:
    pipe = build("stable-diffusion")
    by_hand(pipe, ["text_encoder"]).add_to(pipe)
    ours = drawn(pipe)
    pipe.disable_lora()
    with pytest.warns(UserWarning, match="was switched off, and is switched on again"):
        assert torch.equal(drawn(pipe), ours)


def test_a_lora_of_ones_own_in_the_text_encoder_stays(tmp_path: Path) -> None:
    pipe, mine = build("stable-diffusion"), tmp_path / "mine.safetensors"
    own = by_hand(pipe, EDITED["stable-diffusion"], seed=7)
    save_file({key: t.contiguous() for key, t in own.tensors.items()}, mine)
    erasure, plain = by_hand(pipe, EDITED["stable-diffusion"], bias=True), drawn(pipe)
    for first in (True, False):
        if first:
            pipe.load_lora_weights(mine, adapter_name="mine")
            before = drawn(pipe)
        off = erasure.add_to(pipe)
        if not first:
            pipe.load_lora_weights(mine, adapter_name="mine")
            with pytest.warns(UserWarning, match="switched on again"):
                drawn(pipe)
        both = drawn(pipe)
        assert apart(both, before) > 1e-3
        off()
        assert torch.equal(drawn(pipe), before)
        pipe.delete_adapters("mine")
        assert torch.equal(drawn(pipe), plain)


def test_erasing_starts_without_a_lora_in_the_text_encoder(tmp_path: Path) -> None:
    pipe, mine = build("stable-diffusion"), tmp_path / "mine.safetensors"
    own = by_hand(pipe, ["text_encoder"], seed=7)
    save_file({key: t.contiguous() for key, t in own.tensors.items()}, mine)
    pipe.load_lora_weights(mine, adapter_name="mine")
    with pytest.raises(InputError, match="carries the LoRA mine"):
        unsee.erase(pipe, "van gogh", check=False)


# Other places


def test_its_weights_are_saved_in_every_component(tmp_path: Path) -> None:
    pipe = build("stable-diffusion")
    erasure = by_hand(pipe, EDITED["stable-diffusion"])
    with erasure.applied(pipe):
        ours = drawn(pipe)
    unsee.export(erasure, tmp_path / "erased", to="pipeline", model=pipe)
    plain = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "erased")
    assert [(one.name, one.kind) for one in unsee.active(plain)] == [("van gogh", "weights")]
    other = build("stable-diffusion")
    other.unet, other.text_encoder = plain.unet, plain.text_encoder
    assert apart(drawn(other), ours) < 1e-5


def test_a_bias_is_saved_where_the_layer_has_one_and_refused_where_it_has_none(
    tmp_path: Path,
) -> None:
    pipe = build("stable-diffusion")
    erasure = by_hand(pipe, ["text_encoder"], bias=True)
    with erasure.applied(pipe, 0.5):
        ours = drawn(pipe)
        pipe.text_encoder.save_pretrained(tmp_path / "text_encoder")
    other = build("stable-diffusion")
    other.text_encoder = type(pipe.text_encoder).from_pretrained(tmp_path / "text_encoder")
    assert apart(drawn(other), ours) < 1e-5
    with pytest.raises(InputError, match=r"adds a bias to unet\..*to_[kv], which has none"):
        unsee.export(
            by_hand(pipe, ["unet"], bias=True), tmp_path / "out", to="pipeline", model=pipe
        )
    assert not (tmp_path / "out").exists()


def test_the_sum_of_two_has_both_in_every_component() -> None:
    pipe = build("stable-diffusion")
    one = by_hand(pipe, EDITED["stable-diffusion"], bias=True)
    two = by_hand(pipe, ["text_encoder"], seed=1)
    two = replace(two, record=replace(two.record, concepts=(Concept("dog"),)))
    merged = Sum(residual=0).of([one, two])
    with one.applied(pipe), two.applied(pipe):
        wanted = drawn(pipe)
    with merged.applied(pipe):
        assert apart(drawn(pipe), wanted) < 1e-4


def test_show_names_the_components(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    pipe = build("stable-diffusion")
    by_hand(pipe, EDITED["stable-diffusion"], bias=True).save(tmp_path / "it.safetensors")
    code, out, err = run("show", "it.safetensors")
    assert code == 0, err
    assert re.search(r"layers +\d+ \(\d+ in the text_encoder, \d+ in the unet\), with biases", out)


WRONG: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "a bias is missing": (
        lambda tensors: tensors.pop(next(key for key in tensors if key.endswith("B.bias"))),
        r"lacks .*lora_B\.bias \(1 missing\)",
    ),
    "a bias is of another shape": (
        lambda tensors: tensors.update(
            {key: torch.ones(3) for key in tensors if key.endswith("B.bias")}
        ),
        r"lora_B\.bias has shape \(3,\), wanted",
    ),
    "a bias of A": (
        lambda tensors: tensors.update(
            {key.replace("B.bias", "A.bias"): t for key, t in [*tensors.items()] if "bias" in key}
        ),
        r"has '.*lora_A\.bias', which its record does not",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_biases_are_in_all_layers_or_in_none(what: str, tmp_path: Path) -> None:
    change, said = WRONG[what]
    erasure = by_hand(build("stable-diffusion"), EDITED["stable-diffusion"], bias=True)
    tensors = dict(erasure.tensors)
    change(tensors)
    replace(erasure, tensors=tensors).save(tmp_path / "it.safetensors")
    with pytest.raises(InputError, match=said):
        Erasure.load(tmp_path / "it.safetensors")


@pytest.mark.parametrize(
    "component, name, said",
    [
        ("text_encoder", "text_model.embeddings.token_embedding", "of Embedding"),
        ("text_encoder", "text_model.encoder.layers.0", "no such layer"),
        ("unet", "mid_block", "no such layer"),
    ],
)
def test_what_is_no_layer_for_a_lora_is_refused(component: str, name: str, said: str) -> None:
    pipe = build("stable-diffusion")
    module = getattr(pipe, component).get_submodule(name.removeprefix("text_model."))
    weight = getattr(module, "weight", torch.ones(4, 4)).detach()
    out, width = weight.shape
    tensors = {
        f"{component}.{name}.lora_A.weight": torch.linspace(-3, 9, width).sin()[None],
        f"{component}.{name}.lora_B.weight": torch.ones(out, 1),
    }
    right = by_hand(pipe, [component]).record
    one = Component({name: (out, width)}, sample({name: weight}))
    base = replace(right.base, components={component: one})
    with pytest.raises(InputError, match=said):
        Erasure(tensors, replace(right, base=base)).add_to(pipe)


def test_a_norm_is_refused_when_the_file_is_read(tmp_path: Path) -> None:
    erasure = by_hand(build("stable-diffusion"), ["unet"])
    one = Component({"conv_norm_out": (4,)}, sample({"conv_norm_out": torch.ones(4)}))
    base = replace(erasure.record.base, components={"unet": one})
    for a in (torch.ones(1), torch.ones(1, 4)):
        tensors = {
            "unet.conv_norm_out.lora_A.weight": a,
            "unet.conv_norm_out.lora_B.weight": torch.ones(4),
        }
        Erasure(tensors, replace(erasure.record, base=base)).save(tmp_path / "it.safetensors")
        with pytest.raises(InputError, match="has shape"):
            Erasure.load(tmp_path / "it.safetensors")


# Export


def test_what_diffusers_does_not_load_into_a_text_encoder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "it.safetensors"
    flux = build("flux")
    t5 = next(n for n, m in flux.text_encoder_2.named_modules() if n.endswith("SelfAttention.q"))
    weight = flux.text_encoder_2.get_submodule(t5).weight
    right = by_hand(flux, ["text_encoder"])
    one = Component({t5: tuple(weight.shape)}, sample({t5: weight}))
    base = replace(right.record.base, components={"text_encoder_2": one})
    tensors = {
        f"text_encoder_2.{t5}.lora_A.weight": torch.ones(1, weight.shape[1]),
        f"text_encoder_2.{t5}.lora_B.weight": torch.ones(weight.shape[0], 1),
    }
    other = Erasure(tensors, replace(right.record, base=base))
    before = drawn(flux)
    with other.applied(flux):
        assert apart(drawn(flux), before) > 1e-4
    assert torch.equal(drawn(flux), before)
    with pytest.raises(InputError, match="no LoRA into the text_encoder_2 of a FluxPipeline"):
        unsee.export(other, path, to="diffusers")
    unsee.export(right, path, to="diffusers")
    assert path.exists()


def test_a_checkpoint_has_the_erasure_in_its_text_encoder(tmp_path: Path) -> None:
    pipe, folder = build("stable-diffusion"), tmp_path / "model"
    pipe.save_pretrained(folder)
    pipe = unsee.load_pipeline(folder, device="cpu")
    erasure = by_hand(pipe, EDITED["stable-diffusion"])
    out = tmp_path / "it.safetensors"
    with erasure.applied(pipe):
        ours = drawn(pipe)
    unsee.export(erasure, out, to="checkpoint", model=pipe)
    assert apart(drawn(unsee.load_pipeline(out, config=folder, device="cpu")), ours) < 1e-4
