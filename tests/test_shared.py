"""Features are made once on a machine; a report is the same whether they were found or made."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import unsee
from unsee import Prompt, Suite
from unsee._files import append_rows
from unsee.eval.detectors.judge import Judge
from unsee.eval.metrics import CLIP, METRICS, ClipScore, KernelDistance
from unsee.eval.metrics.features import OpenClip

KEEP = [Prompt(f"k{i:02}", f"a bomb {i}", i, {"object": "bomb"}) for i in range(20)]


def suite(name: str, count: int) -> Suite:
    """Of prompts of a target, and then the same twenty."""
    target = [Prompt(f"t{i}", f"a {name}", i, {"object": name}) for i in range(count)]
    return Suite(name, (*target, *KEEP))


SUITES = {"cat": suite("cat", 3), "dog": suite("dog", 5)}
ROW = {"clip": 32 + 4 * 128 + 8, "judge": 32 + 4 * 256 + 8}
CHECKED = 8
"""Images that every run makes again, to see that what it finds is what it would make."""

READ = ["emoji/clip", "kid:emoji-judge", "frechet/emoji-judge", "cmmd:emoji-clip"]
Asked = dict[str, int]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Of how many images each network makes features."""
    images = {"judge": 0, "clip": 0}
    pixels, see = Judge.pixels, OpenClip.see

    def judge(self: Any, some: Any) -> Any:
        images["judge"] += len(some)
        return pixels(self, some)

    def clip(self: Any, some: Any) -> Any:
        images["clip"] += len(some)
        return see(self, some)

    monkeypatch.setattr(Judge, "pixels", judge)
    monkeypatch.setattr(OpenClip, "see", clip)
    return images


@pytest.fixture(scope="module")
def erasures(tiny_folder: Path) -> dict[str, Any]:
    def erased(name: str) -> Any:
        return unsee.erase(tiny_folder, name, anchor="knife", kind="object", check=False)

    return {name: erased(name) for name in ("cat", "dog")}


@pytest.fixture(scope="module")
def made(
    tiny_folder: Path, erasures: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A run, and the store as it left it."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNSEE_STORE", str(folder / "store"))
        return audited(tiny_folder, erasures["cat"], folder / "run"), folder / "store"


@pytest.fixture
def first(made: tuple[Path, Path], store: Path) -> Path:
    """A run, whose store is the test's."""
    run, its_store = made
    shutil.copytree(its_store, store)
    return run


def audited(model: Path, erasure: Any, out: Path, **settings: Any) -> Path:
    (concept,) = erasure.record.concepts
    chosen: dict[str, Any] = {
        "detectors": ["emoji/object"],
        "metrics": READ,
        "steps": 1,
        "batch_size": 32,
        "images": False,
    }
    unsee.audit(model, erasure, out=out, suite=SUITES[concept.name], **(chosen | settings))
    return out


def reported(run: Path) -> str:
    """A report, but for when it was made and how long that took."""
    page = json.loads((run / "report.json").read_text())
    return json.dumps(
        {k: v for k, v in page.items() if k not in ("date", "seconds", "peak_bytes")}
    )


def spent(asked: Asked) -> Asked:
    """What was asked since the last time."""
    found = dict(asked)
    asked.update(dict.fromkeys(asked, 0))
    return found


def files(store: Path) -> dict[str, Path]:
    found = {int(file.stem.split("-")[1]): file for file in (store / "features").iterdir()}
    assert found.keys() == {128, 256}
    return {"clip": found[128], "judge": found[256]}


def test_several_audits_make_the_bases_features_once_and_report_as_if_each_had_made_them(
    tiny_folder: Path, erasures: Any, tmp_path: Path, store: Path, asked: Asked,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cat = audited(tiny_folder, erasures["cat"], tmp_path / "cat")
    # Two metrics read by each network, and a detector by the judge
    assert spent(asked) == {"judge": 2 * 23, "clip": 2 * 23}
    dog = audited(tiny_folder, erasures["dog"], tmp_path / "dog")
    new = 2 * 5 + 20
    # Of the base's five that are new the judge's detector was asked before
    assert spent(asked) == {"judge": 5 + CHECKED + new, "clip": CHECKED + new}
    again = audited(tiny_folder, erasures["cat"], tmp_path / "again")
    assert spent(asked) == {"judge": CHECKED, "clip": CHECKED}
    assert reported(again) == reported(cat)
    assert {n: f.stat().st_size for n, f in files(store).items()} == {
        n: (2 * 23 + new) * size for n, size in ROW.items()
    }
    monkeypatch.setenv("UNSEE_STORE", "off")
    for name, found in (("cat", cat), ("dog", dog)):
        alone = audited(tiny_folder, erasures[name], tmp_path / f"{name} alone")
        assert reported(alone) == reported(found)
        assert spent(asked)["judge"] >= 2 * 23
    values = [m["erased"]["value"] for m in json.loads(reported(dog))["measurements"]]
    assert len(values) == 5 and all(isinstance(value, float) for value in values)


def test_each_of_several_erasures_makes_its_own_features_alone(
    tiny_folder: Path, erasures: Any, tmp_path: Path, asked: Asked
) -> None:
    some = {str(weight): (erasures["cat"], weight) for weight in (0.25, 0.5, 1.0)}
    unsee.audit_each(
        tiny_folder, some, out=tmp_path, suite=SUITES["cat"], steps=1, batch_size=23,
        detectors=["emoji/object"], metrics=["emoji/clip"],
    )  # fmt: skip
    assert asked["clip"] == 2 * 23 + 2 * (23 + CHECKED)


def weights(page: Any, tensors: Any) -> None:
    tensors["visual.attnpool.c_proj.weight"] *= 1.5


def a_setting_that_no_protocol_names(page: Any, tensors: Any) -> None:
    page["model_cfg"]["vision_cfg"]["head_width"] = 32


@pytest.mark.parametrize("change", [weights, a_setting_that_no_protocol_names])
def test_another_network_of_the_same_name_finds_nothing(
    change: Callable[[Any, Any], None], tiny_folder: Path, erasures: Any, tmp_path: Path,
    asked: Asked, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def audited_by(folder: Path, out: str) -> Path:
        return audited(tiny_folder, erasures["cat"], tmp_path / out, metrics=[f"clip:{folder}"])

    one, other = (Path(shutil.copytree(CLIP, tmp_path / n / "clip")) for n in ("one", "other"))
    file, config = other / "open_clip_model.safetensors", other / "open_clip_config.json"
    page, tensors = json.loads(config.read_text()), load_file(file)
    change(page, tensors)
    config.write_text(json.dumps(page))
    save_file(tensors, file, {"format": "pt"})
    first = audited_by(one, "a")
    assert spent(asked)["clip"] == 2 * 23
    second = audited_by(other, "b")
    assert spent(asked)["clip"] >= 2 * 23
    assert reported(first) != reported(second)
    spent(asked)
    assert reported(audited_by(other, "b again")) == reported(second)
    assert spent(asked)["clip"] == CHECKED + 2 * 23 * (change is not weights)
    # What the first had is still its own
    assert reported(audited_by(one, "c")) == reported(first)
    assert spent(asked)["clip"] == CHECKED
    monkeypatch.setenv("UNSEE_STORE", "off")
    assert reported(audited_by(other, "d")) == reported(second)


def test_a_run_that_is_killed_while_it_writes_leaves_what_it_had_written(
    tiny_folder: Path, erasures: Any, tmp_path: Path, store: Path, asked: Asked,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def killed(path: Path, rows: bytes, size: int) -> None:
        append_rows(path, rows[: 11 * size + size // 2], size)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("unsee.eval.metrics.shared.append_rows", killed)
        audited(tiny_folder, erasures["cat"], tmp_path / "a", metrics=["emoji/clip"])
    (file,) = (store / "features").iterdir()
    assert file.stat().st_size == 11 * ROW["clip"] + ROW["clip"] // 2
    spent(asked)
    run = audited(tiny_folder, erasures["cat"], tmp_path / "a", metrics=["emoji/clip"])
    assert spent(asked)["clip"] == CHECKED + 2 * 23 - 11
    assert file.stat().st_size == 2 * 23 * ROW["clip"]
    monkeypatch.setenv("UNSEE_STORE", "off")
    alone = audited(tiny_folder, erasures["cat"], tmp_path / "b", metrics=["emoji/clip"])
    assert reported(run) == reported(alone)


def changed(data: bytes, place: int, by: bytes = b"?") -> bytes:
    return data[:place] + by + data[place + len(by) :]


FAULTS: dict[str, tuple[Callable[[bytes, int], bytes], int]] = {
    "a feature": (lambda data, size: changed(data, 30 * size + size // 2), CHECKED + 1),
    "one of those that are checked": (lambda data, size: changed(data, 40), CHECKED + 1),
    "an image": (lambda data, size: changed(data, 30 * size + 5), CHECKED + 1),
    "two rows": (lambda data, size: changed(data, 30 * size - 9, bytes(19)), CHECKED + 2),
    "the end": (lambda data, size: data[:-1], CHECKED + 1),
    "something after it": (lambda data, size: data + b"something", CHECKED),
    "the first byte is gone": (lambda data, size: data[1:], 2 * 23),
    "something else": (lambda data, size: b"something else\n", 2 * 23),
}
"""A file of features to what became of it, and of how many images they are then made."""


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_as_it_was_written_is_made_again(
    fault: str, first: Path, tiny_folder: Path, erasures: Any, tmp_path: Path, store: Path,
    asked: Asked,
) -> None:  # fmt: skip
    breaks, count = FAULTS[fault]
    for name, file in files(store).items():
        file.write_bytes(breaks(file.read_bytes(), ROW[name]))
    for name, number in (("again", count), ("after that", CHECKED)):
        again = audited(tiny_folder, erasures["cat"], tmp_path / name)
        assert spent(asked) == {"judge": number, "clip": number}
        assert reported(again) == reported(first)


def forge(file: Path, name: str, numbers: slice) -> None:
    """Gives rows the features of no image, with a check that fits."""
    size = ROW[name]
    data = file.read_bytes()
    rows = [data[at : at + size] for at in range(0, len(data), size)]
    for i in range(len(rows))[numbers]:
        row = rows[i][:32] + np.frombuffer(rows[i][32:-8], "<f4")[::-1].tobytes()
        rows[i] = row + hashlib.sha256(row).digest()[:8]
    file.write_bytes(b"".join(rows))


def test_of_features_that_a_network_does_not_make_nothing_is_used(
    first: Path, tiny_folder: Path, erasures: Any, tmp_path: Path, store: Path, asked: Asked
) -> None:
    for name, file in files(store).items():
        forge(file, name, slice(5, 6))
    there = {name: file.read_bytes() for name, file in files(store).items()}
    second = audited(tiny_folder, erasures["cat"], tmp_path / "b")
    assert spent(asked) == {"judge": CHECKED + 2 * 23, "clip": CHECKED + 2 * 23}
    assert reported(second) == reported(first)
    assert there == {name: file.read_bytes() for name, file in files(store).items()}


def test_verifying_makes_features_again_and_believes_no_store(
    first: Path, tiny_folder: Path, erasures: Any, tmp_path: Path, store: Path, asked: Asked
) -> None:
    assert not unsee.verify(first, metrics=READ).differences
    assert spent(asked)["clip"] >= 2 * 23
    for name, file in files(store).items():
        forge(file, name, slice(30, None))
    forged = unsee.verify(audited(tiny_folder, erasures["cat"], tmp_path / "b"), metrics=READ)
    for metric in ("emoji/clip", "kid/emoji-judge", "cmmd/emoji-clip"):
        assert any(line.startswith(f"report.json: {metric}") for line in forged.differences)


def test_what_somebody_wrote_is_asked_in_every_run(
    tiny_folder: Path, erasures: Any, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = dict.fromkeys(("extractor", "metric"), 0)

    class Mine:
        """Of which a new version says no more than the old one."""

        name, dim = "mine", 3
        protocol: dict[str, Any] = {}

        def __call__(self, images: Any) -> torch.Tensor:
            seen["extractor"] += len(images)
            return torch.stack([torch.tensor(np.asarray(i).mean((0, 1))) for i in images])

    class MyScore(ClipScore):
        """Which sees the images in its own way."""

        def look(self, images: Any, partners: Any = ()) -> Any:
            seen["metric"] += len(images)
            return super().look([image.transpose(0) for image in images])

    monkeypatch.setattr(METRICS, "_here", {})
    METRICS.register("mine/kid")(lambda: KernelDistance(Mine()))
    METRICS.register("mine/score")(lambda: MyScore(name="mine/score"))
    for n in (1, 2):
        run = tmp_path / f"{n}"
        audited(tiny_folder, erasures["cat"], run, metrics=["mine/kid", "mine/score"])
        assert seen == dict.fromkeys(seen, n * 2 * 23)
    assert not (store / "features").exists()


def test_the_features_of_images_that_no_run_has_can_go(
    tiny_folder: Path, erasures: Any, tmp_path: Path, store: Path, asked: Asked,
    run: Callable[..., tuple[int, str, str]],
) -> None:  # fmt: skip
    audited(tiny_folder, erasures["cat"], tmp_path / "cat")
    dog = audited(tiny_folder, erasures["dog"], tmp_path / "dog")
    assert run("runs", "--prune")[0] == 0
    assert files(store)["clip"].stat().st_size == (2 * 23 + 30) * ROW["clip"]
    for name, file in files(store).items():
        file.write_bytes(changed(file.read_bytes(), 10 * ROW[name]) + b"half a row")
        (file.parent / f".{file.name}.abcd1234").write_bytes(b"half written")
    shutil.rmtree(dog)
    assert run("runs", "--prune")[0] == 0
    assert {n: f.stat().st_size for n, f in files(store).items()} == {
        n: (2 * 23 - 1) * size for n, size in ROW.items()
    }
    spent(asked)
    audited(tiny_folder, erasures["cat"], tmp_path / "again")
    assert spent(asked) == {"judge": CHECKED + 1, "clip": CHECKED + 1}
    for name in ("cat", "again"):
        shutil.rmtree(tmp_path / name)
    assert run("runs", "--prune")[0] == 0
    assert not list((store / "features").iterdir())


def test_features_that_cannot_be_written_are_done_without(
    tiny_folder: Path, erasures: Any, tmp_path: Path, store: Path, asked: Asked
) -> None:
    store.mkdir()
    (store / "features").write_text("in the way")
    first, second = (audited(tiny_folder, erasures["cat"], tmp_path / n) for n in "ab")
    assert asked["clip"] == 2 * 2 * 23 and reported(first) == reported(second)
