"""Several erasures at once, each at its weight."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import unsee
from unsee import Concept, Erasure, InputError, load_pipeline
from unsee.erasers.effect import together, weakened
from unsee.erasers.negative import Negative
from unsee.pipelines import parts_of
from unsee.records import Interference, Moved
from unsee.tests.families import drawn

Run = Callable[..., tuple[int, str, str]]


def made(folder: Path, name: str, **settings: Any) -> Erasure:
    concept = Concept(name, "style", keep=("cat",))
    return unsee.erase(str(folder), concept, check=False, **settings)


@pytest.fixture(scope="module")
def erasures(tiny_folder: Path) -> dict[str, Erasure]:
    return {
        "lowrank": made(tiny_folder, "van gogh"),
        "dense": made(
            tiny_folder, "van gogh", method="esd", iterations=1, rank=None, store="dense"
        ),
        "other": made(tiny_folder, "monet"),
    }


def halved(pipe: Any, erasure: Erasure) -> torch.Tensor:
    """What is drawn with half of an erasure's change of the weights, added by hand."""
    (prefix,) = erasure.record.base.components
    parameters = dict(getattr(pipe, prefix).named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    for key, tensor in erasure.tensors.items():
        name = key.removeprefix(f"{prefix}.")
        if name.endswith("_delta"):
            parameters[name.removesuffix("_delta")].data += 0.5 * tensor.float()
        elif name.endswith(".lora_B.weight"):
            a = erasure.tensors[key.replace("lora_B", "lora_A")]
            parameters[name.replace(".lora_B", "")].data += 0.5 * (tensor @ a)
    found = drawn(pipe)
    for name, p in parameters.items():
        p.data.copy_(before[name])
    return found


@pytest.mark.parametrize("kind", ["lowrank", "dense"])
def test_an_erasure_at_a_weight_adds_that_much_and_comes_off_bit_for_bit(
    pipe: Any, erasures: dict[str, Erasure], kind: str, tiny_folder: Path, tmp_path: Path
) -> None:
    erasure, base = erasures[kind], drawn(pipe)
    wanted = halved(pipe, erasure)
    erasure.save(tmp_path / "it.safetensors")
    for given in ((erasure, 0.5), f"{tmp_path / 'it.safetensors'}:0.5"):
        loaded = load_pipeline(tiny_folder, given, device="cpu")
        torch.testing.assert_close(drawn(loaded), wanted, rtol=0, atol=1e-4)
        assert [(one.name, one.weight) for one in unsee.active(loaded)] == [("van gogh", 0.5)]
        unsee.remove(loaded)
        assert torch.equal(drawn(loaded), base)
    assert (wanted - base).norm() > 1e-3


def test_the_watch_holds_each_at_its_weight(pipe: Any, erasures: dict[str, Erasure]) -> None:
    erasures["lowrank"].add_to(pipe, 0.5)
    erasures["other"].add_to(pipe)
    both = drawn(pipe)
    names = [one.adapter for one in unsee.active(pipe)]
    pipe.set_adapters(names, [1.0, 1.0])
    with pytest.warns(UserWarning, match="'van gogh' was given another weight, and is switched"):
        assert torch.equal(drawn(pipe), both)
    pipe.disable_lora()
    with pytest.warns(UserWarning, match="'monet' was switched off"):
        assert torch.equal(drawn(pipe), both)


def test_a_saved_pipeline_says_at_what_weight(
    pipe: Any, erasures: dict[str, Erasure], tmp_path: Path
) -> None:
    erasures["lowrank"].add_to(pipe, 0.5)
    erased = drawn(pipe)
    pipe.save_pretrained(tmp_path)
    again = load_pipeline(tmp_path, device="cpu")
    torch.testing.assert_close(drawn(again), erased, rtol=0, atol=1e-4)
    assert [(one.kind, one.weight) for one in unsee.active(again)] == [("weights", 0.5)]


def test_a_guide_has_no_weight(pipe: Any, tiny_folder: Path) -> None:
    guide = Negative().fit(parts_of(pipe), [Concept("bomb", "object")], seed=0)
    for call in (
        lambda: guide.add_to(pipe, 0.5),
        lambda: load_pipeline(tiny_folder, (guide, 0.5), device="cpu"),
    ):
        with pytest.raises(InputError, match=r"'bomb' is a guide \(negative\), which has no wei"):
            call()
    with guide.applied(pipe, 1.0):
        pass
    assert not unsee.active(pipe)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), 11, "much", None, True])
def test_what_is_no_weight_is_refused(
    pipe: Any, erasures: dict[str, Erasure], weight: Any
) -> None:
    with pytest.raises(InputError, match="the weight of 'van gogh' is .*; it must be a number"):
        erasures["lowrank"].add_to(pipe, weight)
    assert not unsee.active(pipe)


def test_a_gallery_records_the_weights_and_its_images_depend_on_them(
    run: Run, tiny_folder: Path, erasures: dict[str, Erasure], tmp_path: Path
) -> None:
    erasures["lowrank"].save(tmp_path / "a.safetensors")
    erasures["other"].save(tmp_path / "b.safetensors")
    command = ("generate", str(tiny_folder), "-p", "a cat", "--steps", "2", "-o", "out")
    code, _, err = run(*command, "-e", "a.safetensors:0.8", "-e", "b.safetensors")
    assert code == 0, err
    made_by = unsee.Gallery.open(tmp_path / "out").made_by
    assert made_by and [one.weight for one in made_by.erasures] == [0.8, 1]
    code, _, err = run(*command, "-e", "a.safetensors:0.7", "-e", "b.safetensors")
    assert code == 2 and "times 0.7" in err and "times 0.8" in err
    code, out, err = run(*command, "-e", "a.safetensors:0.8", "-e", "b.safetensors:1")
    assert code == 0, err
    code, _, err = run(*command, "-e", "a.safetensors:0")
    assert code == 2 and "the weight of 'a.safetensors' is 0.0" in err


def test_a_gallery_from_before_there_were_weights_is_one_of_weight_1(
    run: Run, tiny_folder: Path, erasures: dict[str, Erasure], tmp_path: Path
) -> None:
    erasures["lowrank"].save(tmp_path / "a.safetensors")
    command = ("generate", str(tiny_folder), "-p", "a cat", "--steps", "2", "-o", "out")
    assert run(*command, "-e", "a.safetensors")[0] == 0
    head = tmp_path / "out" / "gallery.json"
    page = json.loads(head.read_text(encoding="utf-8"))
    assert page["made_by"]["erasures"][0].pop("weight") == 1
    head.write_text(json.dumps(page), encoding="utf-8")
    assert run(*command, "-e", "a.safetensors")[0] == 0
    made_by = unsee.Gallery.open(tmp_path / "out").made_by
    assert made_by and made_by.erasures[0].weight == 1


def test_what_each_does_alone_is_what_the_stack_is_measured_against(
    pipe: Any, erasures: dict[str, Erasure]
) -> None:
    parts, (one, other) = parts_of(pipe), (erasures["lowrank"], erasures["other"])
    before = drawn(pipe)
    found = together(parts, [(one, 1.0), (other, 1.0)])
    assert torch.equal(drawn(pipe), before)
    assert found.concepts.keys() == {"van gogh", "monet"} and found.kept.keys() == {"cat"}
    # A stack of one is that one alone
    single = together(parts, [(one, 1.0)])
    assert single.concepts["van gogh"].alone == single.concepts["van gogh"].together
    assert single.concepts["van gogh"].alone == found.concepts["van gogh"].alone
    # Less of it moves less
    half = together(parts, [(one, 0.5), (other, 1.0)])
    assert half.concepts["van gogh"].alone < found.concepts["van gogh"].alone
    assert half.concepts["monet"].alone == found.concepts["monet"].alone


def opposite(erasure: Erasure, name: str, keep: tuple[str, ...] = ()) -> Erasure:
    """An erasure that adds the opposite of another: what goes by one comes back by it."""
    import dataclasses

    tensors = {k: -t if "lora_B" in k else t for k, t in erasure.tensors.items()}
    concept = Concept(name, "style", keep=keep)
    return Erasure(tensors, dataclasses.replace(erasure.record, concepts=(concept,)))


def test_a_concept_that_another_erasure_brings_back_is_named(
    pipe: Any, erasures: dict[str, Erasure], tiny_folder: Path, run: Run, tmp_path: Path
) -> None:
    one, against = erasures["lowrank"], opposite(erasures["lowrank"], "monet")
    with pytest.warns(UserWarning, match="'van gogh' is less erased beside the others") as told:
        found = unsee.interference(pipe, [one, against])
    assert any("moves 0% of the way" in str(warning.message) for warning in told)
    assert found.concepts["van gogh"].alone > 0.7
    assert found.concepts["van gogh"].together == pytest.approx(0, abs=1e-3)
    one.save(tmp_path / "a.safetensors")
    against.save(tmp_path / "b.safetensors")
    code, out, err = run(
        *("generate", str(tiny_folder), "-p", "a cat", "--steps", "2", "-o", "out"),
        *("-e", "a.safetensors", "-e", "b.safetensors"),
    )
    assert code == 0 and "Warning: 'van gogh' is less erased beside the others" in out, err


def test_what_must_stay_and_moves_only_together_is_named() -> None:
    kept = {"cat": Moved(0.3, 0.8), "dog": Moved(0.6, 0.9), "bird": Moved(0.1, 0.4)}
    (line,) = weakened(Interference({"bomb": Moved(0.9, 0.95)}, kept))
    assert "'cat' (80%)" in line and "dog" not in line and "bird" not in line
    assert weakened(Interference({"bomb": Moved(0.5, 0.4)}, {})) == []


def test_interference_is_between_erasures_of_weights(
    pipe: Any, erasures: dict[str, Erasure]
) -> None:
    guide = Negative().fit(parts_of(pipe), [Concept("bomb", "object")], seed=0)
    with pytest.raises(InputError, match="name at least two"):
        unsee.interference(pipe, [erasures["lowrank"]])
    with pytest.raises(InputError, match="'bomb' is a guide"):
        unsee.interference(pipe, [erasures["lowrank"], guide])
