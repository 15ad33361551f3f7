"""The training loop: a step is whole or it is not there."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.optimization import get_scheduler
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from unsee._errors import InputError
from unsee.training import loop as training
from unsee.training.loop import train

STEPS = 6


def parameters() -> dict[str, nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(3, generator=draw)) for name in ("one", "two")}


def loss_of(learns: dict[str, nn.Parameter]) -> Callable[[int], Tensor]:
    def loss(step: int) -> Tensor:
        return ((learns["one"] * learns["two"] - step) ** 2).sum()

    return loss


def trained(checkpoint: Path | None = None) -> tuple[dict[str, nn.Parameter], list[float]]:
    learns = parameters()
    losses = train(learns, loss_of(learns), steps=STEPS, lr=0.1, run={}, checkpoint=checkpoint)
    return learns, losses


@pytest.fixture
def interrupted() -> Iterator[list[int]]:
    """An interrupt when an optimizer has changed parameters in the step of that number."""
    steps = [0, -1]

    def stop(*given: object) -> None:
        steps[0] += 1
        if steps[0] == steps[1]:
            raise KeyboardInterrupt

    handle = register_optimizer_step_post_hook(stop)
    yield steps
    handle.remove()


@pytest.mark.parametrize("every", [0.0, 1e9])
@pytest.mark.parametrize("step", [1, 4])
def test_a_step_that_was_cut_short_is_never_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interrupted: list[int],
    every: float,
    step: int,
) -> None:
    monkeypatch.setattr(training, "EVERY", every)
    want, wanted_losses = trained()
    interrupted[:] = [0, step]
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "kept")
    interrupted[:] = [0, -1]
    found, losses = trained(tmp_path / "kept")
    assert losses == wanted_losses
    assert all(torch.equal(found[name], want[name]) for name in want)
    # What had been written before was gone on from.
    assert interrupted[0] == (STEPS + 1 - step if every == 0 else STEPS)


@pytest.mark.parametrize("warmup, cycles", [(0, 0), (4, 0), (0, 1), (3, 3)])
@pytest.mark.parametrize("decay, clip", [(0.0, None), (0.2, None), (0.0, 0.5), (0.2, 0.5)])
def test_its_steps_are_those_of_torch_and_diffusers(
    warmup: int, cycles: int, decay: float, clip: float | None
) -> None:
    steps, learns, theirs = 20, parameters(), parameters()
    settings: dict[str, Any] = {"weight_decay": decay, "clip": clip, "run": {}}
    settings |= {"warmup": warmup, "cycles": cycles}
    train(learns, loss_of(learns), steps=steps, lr=0.1, **settings)
    optimizer = torch.optim.AdamW(theirs.values(), lr=0.1, weight_decay=decay)
    schedule = get_scheduler(
        "cosine_with_restarts" if cycles else "constant_with_warmup",
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        num_cycles=cycles,
    )
    for step in range(steps):
        loss_of(theirs)(step).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    for name, want in theirs.items():
        torch.testing.assert_close(learns[name], want, rtol=0, atol=1e-6)


def test_a_run_that_was_stopped_in_its_warm_up_goes_on_with_its_rate(
    tmp_path: Path,
) -> None:
    def run(checkpoint: Path | None) -> dict[str, nn.Parameter]:
        learns = parameters()
        settings: dict[str, Any] = {"warmup": 3, "cycles": 1, "weight_decay": 0.1, "clip": 1.0}
        train(
            learns,
            loss_of(learns),
            steps=STEPS,
            lr=0.1,
            run={},
            checkpoint=checkpoint,
            progress=lambda done: stop(done) if checkpoint else None,
            **settings,
        )
        return learns

    def stop(done: float) -> None:
        if done == 2 / STEPS and not (tmp_path / "kept").exists():
            raise KeyboardInterrupt

    want = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "kept")
    found = run(tmp_path / "kept")
    assert all(torch.equal(found[name], want[name]) for name in want)


class Interrupting(nn.Parameter):
    """Raises when the optimizer comes to it in its fourth step."""

    steps = 0

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is Tensor.addcdiv_:
            cls.steps += 1
            if cls.steps == 4:
                raise KeyboardInterrupt
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs or {})


def test_a_step_that_changed_one_of_two_parameters_is_never_written(tmp_path: Path) -> None:
    learns = parameters()
    learns["two"] = Interrupting(learns["two"].detach())
    before: dict[str, Tensor] = {}

    def loss(step: int) -> Tensor:
        before.update({name: p.detach().clone() for name, p in learns.items()})
        return loss_of(learns)(step)

    with pytest.raises(KeyboardInterrupt):
        train(learns, loss, steps=STEPS, lr=0.1, run={}, checkpoint=tmp_path / "kept")
    assert not torch.equal(learns["one"], before["one"])
    assert torch.equal(learns["two"], before["two"])
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("what", ["gradient", "loss"])
@pytest.mark.parametrize("at", [0, 3])
def test_a_loss_or_a_gradient_that_is_not_finite_is_never_applied(
    tmp_path: Path, at: int, what: str
) -> None:
    learns, kept = parameters(), tmp_path / "kept"
    before: dict[str, Tensor] = {}

    def loss(step: int) -> Tensor:
        if step < at:
            return loss_of(learns)(step)
        before.update({name: p.detach().clone() for name, p in learns.items()})
        if what == "loss":  # whose gradient is 1
            return learns["one"].sum() + math.inf
        # 0 itself, and infinitely steep
        value = (learns["one"] - learns["one"].detach()).abs().sqrt().sum()
        assert value == 0
        return value

    said = f"not finite at step {at + 1} of 6 .loss {'inf' if what == 'loss' else '0.0'}.: lower"
    with pytest.raises(InputError, match=said):
        train(learns, loss, steps=STEPS, lr=0.1, run={}, checkpoint=kept)
    assert all(torch.equal(learns[name], value) for name, value in before.items())
    # And the state before it is what a run goes on from.
    found, losses = trained(kept)
    want, wanted_losses = trained()
    assert losses == wanted_losses
    assert all(torch.equal(found[name], want[name]) for name in want)


def opened(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run that was interrupted after three steps."""
    learns, path = parameters(), tmp_path_factory.mktemp("training") / "kept"

    def loss(step: int) -> Tensor:
        if step == 3:
            raise KeyboardInterrupt
        return loss_of(learns)(step)

    with pytest.raises(KeyboardInterrupt):
        train(learns, loss, steps=STEPS, lr=0.1, run={}, checkpoint=path)
    return path


FORGED: dict[str, Callable[[Tensor], Tensor | None]] = {
    "removed": lambda tensor: None,
    "of another shape": lambda tensor: torch.ones(2, 2, dtype=tensor.dtype),
    "longer": lambda tensor: torch.cat([tensor.flatten()] * 7),
    "of another type": lambda tensor: tensor.to(torch.float16),
    "of whole numbers": lambda tensor: tensor.to(torch.int64),
    "not finite": lambda tensor: tensor * torch.nan,
}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_checkpoint_is_one_line_and_changes_nothing(
    halfway: Path, tmp_path: Path, how: str
) -> None:
    tensors, header = opened(halfway)
    assert len(tensors) == 1 + 2 * 4
    for name in tensors:
        new = FORGED[how](tensors[name])
        changed = {key: t for key, t in tensors.items() if key != name}
        save_file(changed if new is None else changed | {name: new}, tmp_path / "kept", header)
        learns, before = parameters(), parameters()
        with pytest.raises(InputError, match="not as a training left it: .*emove it") as error:
            train(
                learns, loss_of(learns), steps=STEPS, lr=0.1, run={}, checkpoint=tmp_path / "kept"
            )
        assert "\n" not in str(error.value)
        assert all(torch.equal(learns[key], before[key]) for key in before)


@pytest.mark.parametrize("name", ["parameter:three", "more", "step:"])
def test_a_checkpoint_with_a_tensor_more_is_refused(
    halfway: Path, tmp_path: Path, name: str
) -> None:
    tensors, header = opened(halfway)
    save_file(tensors | {name: torch.ones(1)}, tmp_path / "kept", header)
    with pytest.raises(InputError, match=f"it has '{name}', which this training does not"):
        trained(tmp_path / "kept")


def test_an_average_of_squares_below_zero_is_refused(halfway: Path, tmp_path: Path) -> None:
    tensors, header = opened(halfway)
    tensors["exp_avg_sq:one"] *= -1
    save_file(tensors, tmp_path / "kept", header)
    with pytest.raises(InputError, match="'exp_avg_sq:one' has values below 0"):
        trained(tmp_path / "kept")


def test_a_checkpoint_that_is_not_forged_is_gone_on_from(halfway: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(halfway.read_bytes())
    found, losses = trained(tmp_path / "kept")
    want, wanted_losses = trained()
    assert losses == wanted_losses
    assert all(torch.equal(found[name], want[name]) for name in want)
