"""Completion and the probes: what they come to, how it is put on, and what it leaves."""

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import unsee
from unsee import InputError
from unsee.attacks import ATTACKS, Attack, beside_weights
from unsee.attacks.attacked import Attacked, Spent
from unsee.attacks.kinds.rounded import rounded
from unsee.pipelines import Erasure
from unsee.pipelines.parts import described
from unsee.pipelines.watch import Active, active
from unsee.prompts import Concept, Prompt, Suite
from unsee.tests.test_watch import CONCEPT, images
from unsee.tests.test_watch import erasures as erasures
from unsee.tests.test_watch import files as files
from unsee.tests.test_weaken import unchanged

ROWS = tuple(
    Prompt(id=f"{i}", prompt=prompt, seed=i, steps=20)
    for i, prompt in enumerate(["a bomb", "van gogh"])
)
PROBES = ("quantise", "scale", "stack")
every = pytest.mark.parametrize("name", ["completion", *PROBES])

SUITE = Suite("two", ROWS)


class Looked:
    """A detector that must not be asked."""

    count = 0

    def __call__(self, images: Any) -> list[bool]:
        raise AssertionError("nothing is looked at")


def never(prompts: Any) -> Any:
    raise AssertionError("nothing is drawn")


def attack(name: str, **settings: Any) -> Attack:
    make: Any = ATTACKS[name]
    made: Attack = make(**settings)
    return made


def rungs(of: Attack, pipe: Any, concept: Concept = CONCEPT, **more: Any) -> list[Attacked]:
    given = {"rows": ROWS} | more
    return list(
        of.fit(
            described(pipe),
            concept,
            given["rows"],
            [],
            lambda: nullcontext(described(pipe)),
            Looked(),
            never,
            seed=5,
        )
    )


def drawn(pipe: Any, attacked: Attacked) -> Tensor:
    with attacked.applied(pipe):
        return images(pipe, steps=4)


@every
def test_its_first_rung_changes_nothing_and_each_draws_otherwise_and_leaves_no_trace(
    pipe: Any,
    erasures: dict[str, Erasure],
    files: Callable[[float], str],
    name: str,
    tmp_path: Path,
) -> None:
    base, file = images(pipe, steps=4), files(0.3)
    with erasures["lowrank"].applied(pipe):
        erased = images(pipe, steps=4)
        with unchanged(pipe):
            found = rungs(attack(name, **({"lora": file} if name == "stack" else {})), pipe)
        assert len(found) > 2 and len({one.sha256 for one in found}) == len(found)
        assert found[0].record.spent == Spent() and not found[0].changes_model
        before = []
        for attacked in found:
            with unchanged(pipe):
                before.append(drawn(pipe, attacked))
            path = tmp_path / f"{attacked.sha256}.safetensors"
            attacked.save(path)
            assert Attacked.load(path) == attacked
            assert attacked.suite(SUITE) == SUITE
    assert torch.equal(before[0], erased)
    assert all(one.changes_model for one in found[1:])
    for i, one in enumerate(before):
        assert all(not torch.equal(one, other) for other in before[i + 1 :])
    if name == "scale":
        assert torch.equal(before[-1], base)
    assert torch.equal(images(pipe, steps=4), base)


def test_completion_comes_on_after_shares_of_the_samplers_own_steps(pipe: Any) -> None:
    def steps(**settings: Any) -> list[int | None]:
        asked = settings.pop("steps", None)
        rows = [dataclasses.replace(row, steps=asked) for row in ROWS]
        return [a.record.step for a in rungs(attack("completion", **settings), pipe, rows=rows)]

    assert steps(steps=20) == [None, 2, 3, 4] and steps(steps=4) == [None, 1]
    # Stable Diffusion's own 50 steps, and the paper's shares
    assert steps(shares=(0.2, 0.1, 0.0)) == steps(**ATTACKS["completion"].presets["wace"])
    assert steps(shares=(0.2, 0.1, 1.0)) == [None, 5, 10, 50]
    rows = [dataclasses.replace(row, steps=3 + i) for i, row in enumerate(ROWS)]
    with pytest.raises(InputError, match="in 3 and 4 steps.*one number of steps"):
        rungs(attack("completion"), pipe, rows=rows)
    with pytest.raises(InputError, match="a share of the steps above 0"):
        attack("completion", shares=(0.0,))
    with pytest.raises(InputError, match="shares.*from 0 to 1"):
        attack("completion", shares=(2,))


@pytest.mark.parametrize("anchor", ["a cat", None])
def test_what_was_supplied_ends_under_the_anchors_prompt(
    pipe: Any, erasures: dict[str, Erasure], anchor: str | None
) -> None:
    concept = dataclasses.replace(CONCEPT, anchor=anchor)
    completion = attack("completion")
    rows = [dataclasses.replace(row, steps=3) for row in ROWS]
    prompts = ["a painting by van gogh", "the art of a hammer"]
    with erasures["lowrank"].applied(pipe):
        plain, one = rungs(completion, pipe, concept, rows=rows)
        for found in (plain, one):
            control = completion.supplied(found)
            assert control.record.step == found.record.step and control.changes_model
            assert control.sha256 != found.sha256
        # What says no phrase of the concept's is the anchor alone
        said = [f"a painting by {anchor or ''}", anchor or ""]
        wanted = images(pipe, prompt=said)
        with completion.supplied(plain).applied(pipe):
            assert torch.equal(images(pipe, prompt=prompts), wanted)
        with completion.supplied(one).applied(pipe):
            control_images = images(pipe, prompt=prompts)
        with one.applied(pipe):
            assert (control_images - images(pipe, prompt=prompts)).abs().max() > 1e-3


def test_what_an_attack_cannot_do_is_said_before_any_work(
    pipe: Any, erasures: dict[str, Erasure], files: Callable[[float], str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="say lora=FILE"):
        rungs(attack("stack"), pipe)
    with pytest.raises(InputError, match="is not there: wanted a .safetensors file"):
        rungs(attack("stack", lora=str(tmp_path / "no.safetensors")), pipe)
    with erasures["guidance"].applied(pipe):
        with pytest.raises(InputError, match="is a guide.*leave scale out"):
            rungs(ATTACKS["scale"](), pipe)
        with pytest.raises(InputError, match="weights cannot hold"):
            rungs(ATTACKS["quantise"](), pipe)
        assert len(rungs(attack("completion"), pipe)) == 4
    path = tmp_path / "mine.safetensors"
    path.write_bytes(Path(files(0.3)).read_bytes())
    last = rungs(attack("stack", lora=str(path)), pipe)[-1]
    path.write_bytes(Path(files(0.2)).read_bytes())
    with pytest.raises(InputError, match="is not there any more, or another"):
        last.applied(pipe)


def test_a_lora_on_top_is_known_by_its_bytes_and_not_by_its_place(
    pipe: Any, files: Callable[[float], str], tmp_path: Path
) -> None:
    path = tmp_path / "elsewhere.safetensors"
    path.write_bytes(Path(files(0.3)).read_bytes())
    one, two, other = (
        rungs(attack("stack", lora=file), pipe)[-1] for file in (files(0.3), str(path), files(0.2))
    )
    assert one.sha256 == two.sha256 != other.sha256


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_weight_is_rounded_to_the_nearest_of_its_channels_steps(bits: int) -> None:
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[2] = 0.0
    found = rounded(weight, bits)
    if bits == 16:
        assert torch.equal(found, weight.bfloat16().float())
        return
    greatest = weight.flatten(1).abs().amax(1)
    step = greatest / (2 ** (bits - 1) - 1)
    apart = (found - weight).flatten(1).abs().amax(1)
    assert (apart <= step / 2 * 1.0001).all() and apart.max() > 0
    assert all(len(row.unique()) <= 2**bits - 1 for row in found.flatten(1))
    torch.testing.assert_close(found.flatten(1).abs().amax(1), greatest)
    assert torch.equal(found[2], weight[2])
    # As the weights of a linear layer, whatever is around the channel
    assert torch.equal(rounded(weight.flatten(1), bits).reshape(weight.shape), found)


def test_probes_decide_nothing_and_of_what_lies_beside_the_weights_it_is_said(
    pipe: Any, erasures: dict[str, Erasure]
) -> None:
    for name in PROBES:
        probe = ATTACKS[name]
        assert (probe.decides, probe.of_weights, probe.controls) == (False, True, ())
    one = ATTACKS["completion"]
    assert (one.decides, one.of_weights, one.controls) == (True, False, ("supplied",))
    assert beside_weights(active(pipe)) == ""
    assert beside_weights([Active("a", "weights", "uce")]) == ""
    with erasures["lowrank"].applied(pipe):
        said = beside_weights(active(pipe))
    assert "'van gogh' is a file beside the base model, and who does not load it has" in said
    both = [Active("a", "guidance", "sld"), Active("b", "dense", "uce")]
    assert "'a' and 'b' are files beside" in beside_weights(both)


@pytest.mark.slow
def test_on_the_built_in_model_its_rungs_are_of_the_steps_that_are_drawn(tmp_path: Path) -> None:
    file = tmp_path / "knife.safetensors"
    unsee.erase("emoji", "kitchen knife", method="uce", check=False).save(file)
    for steps, rungs in ((None, [0, 2, 3, 4]), (8, [0, 1, 2])):
        report = unsee.attack(
            "emoji", file, out=tmp_path / f"{steps}", attacks="completion", size=4, steps=steps
        )
        (found,) = report.attacks
        assert [rung.steps for rung in found.rungs] == rungs
        assert [[c.name for c in rung.controls] for rung in found.rungs[1:]] == [["supplied"]] * (
            len(rungs) - 1
        )
